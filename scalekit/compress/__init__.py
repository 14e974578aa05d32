"""Smaller models, with a report card that says what was lost"""

from ..extras import MissingPackage
from ..pt2file import find_code
from .candidates import (
    Candidate,
    Change,
    NotCompressible,
    count_flops,
    count_weights,
    train_control,
    train_model,
)
from .card import ReportCard, choose_smallest, find_pareto, report_card, write_markdown
from .distillation import Lesson, distill, distillation_loss, learn_labels
from .exported import (
    DamagedExport,
    Exported,
    UntrustedExport,
    check_exported,
    export_model,
    open_exported,
    read_exported,
)
from .forms import NotExportable
from .outcomes import NotPaired
from .pruning import prune_channels, prune_weights
from .weights import to_bf16, to_int8

__all__ = [
    "Candidate",
    "Change",
    "DamagedExport",
    "Exported",
    "Lesson",
    "MissingPackage",
    "NotCompressible",
    "NotExportable",
    "NotPaired",
    "ReportCard",
    "UntrustedExport",
    "check_exported",
    "choose_smallest",
    "count_flops",
    "count_weights",
    "distill",
    "distillation_loss",
    "export_model",
    "find_code",
    "find_pareto",
    "learn_labels",
    "open_exported",
    "prune_channels",
    "prune_weights",
    "read_exported",
    "report_card",
    "to_bf16",
    "to_int8",
    "train_control",
    "train_model",
    "write_markdown",
]
