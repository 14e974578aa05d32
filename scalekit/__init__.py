"Prototype in a notebook, scale it, run the same bytes as a job that cannot lose work"

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Module -> the names that it gives to users. Each is imported at its first use, so `import scalekit` stays
# cheap in every kernel and worker. No module is called like one of them: it would take the name's place.
_public = {
    "core": "ScaleKitError",
    "config": "load_settings",
    "template": "copy_template list_templates",
    "store": "Store",
    "cluster": "Cluster open_cluster",
    "context": "log record artifact tag note current_run",
    "checkpoints": "checkpoint",
    "runner": "Run RunFailed run runs",
    "overview": "export kpi",
    "sizing.rightsizing": "rightsize",
    "differences": "diff",
    "space": "uniform log_uniform int_uniform normal log_normal choice from_signature",
    "sweeps": "sweep resume_sweep",
    "track.sync": "sync",
    "trials": "Sweep",
    "reports": "report",
    "footprint.estimate": "estimate_memory",
    "footprint.probe": "largest_batch",
    "measuring.probing": "measure open_study",
    "roof.distance": "measure_limit",
    "ranks.attempts": "RankFailed",
    "ranks.launcher": "launch",
    "ranks.world": "Preempted current_world",
    "budget": "Budget",
    "jobs.schedule": "schedule list_jobs list_firings pause_job resume_job trigger_job backfill_job "
    "unschedule",
    "train.loop": "training",
    "train.foreign": "check_world",
    "train.partitions": "Partitions",
    "inference.driver": "Predictions predict",
    "scaling.batches": "fit_batches",
    "scaling.fitted": "fit_scaling",
    "panels.advisor": "AdvisorPanel advisor",
    "panels.form": "RunForm form",
    "panels.runs": "RunsPanel show_runs",
    "panels.sweep": "SweepPanel start_sweep watch",
}
_home = {name: module for module, names in _public.items() for name in names.split()}

__all__ = ["__version__", *_home]

if TYPE_CHECKING:  # the same names once more, for mypy and editors
    from .budget import Budget as Budget
    from .checkpoints import checkpoint as checkpoint
    from .cluster import Cluster as Cluster
    from .cluster import open_cluster as open_cluster
    from .config import load_settings as load_settings
    from .context import artifact as artifact
    from .context import current_run as current_run
    from .context import log as log
    from .context import note as note
    from .context import record as record
    from .context import tag as tag
    from .core import ScaleKitError as ScaleKitError
    from .differences import diff as diff
    from .footprint.estimate import estimate_memory as estimate_memory
    from .footprint.probe import largest_batch as largest_batch
    from .inference.driver import Predictions as Predictions
    from .inference.driver import predict as predict
    from .jobs.schedule import backfill_job as backfill_job
    from .jobs.schedule import list_firings as list_firings
    from .jobs.schedule import list_jobs as list_jobs
    from .jobs.schedule import pause_job as pause_job
    from .jobs.schedule import resume_job as resume_job
    from .jobs.schedule import schedule as schedule
    from .jobs.schedule import trigger_job as trigger_job
    from .jobs.schedule import unschedule as unschedule
    from .measuring.probing import measure as measure
    from .measuring.probing import open_study as open_study
    from .overview import export as export
    from .overview import kpi as kpi
    from .panels.advisor import AdvisorPanel as AdvisorPanel
    from .panels.advisor import advisor as advisor
    from .panels.form import RunForm as RunForm
    from .panels.form import form as form
    from .panels.runs import RunsPanel as RunsPanel
    from .panels.runs import show_runs as show_runs
    from .panels.sweep import SweepPanel as SweepPanel
    from .panels.sweep import start_sweep as start_sweep
    from .panels.sweep import watch as watch
    from .ranks.attempts import RankFailed as RankFailed
    from .ranks.launcher import launch as launch
    from .ranks.world import Preempted as Preempted
    from .ranks.world import current_world as current_world
    from .reports import report as report
    from .roof.distance import measure_limit as measure_limit
    from .runner import Run as Run
    from .runner import RunFailed as RunFailed
    from .runner import run as run
    from .runner import runs as runs
    from .scaling.batches import fit_batches as fit_batches
    from .scaling.fitted import fit_scaling as fit_scaling
    from .sizing.rightsizing import rightsize as rightsize
    from .space import choice as choice
    from .space import from_signature as from_signature
    from .space import int_uniform as int_uniform
    from .space import log_normal as log_normal
    from .space import log_uniform as log_uniform
    from .space import normal as normal
    from .space import uniform as uniform
    from .store import Store as Store
    from .sweeps import resume_sweep as resume_sweep
    from .sweeps import sweep as sweep
    from .template import copy_template as copy_template
    from .template import list_templates as list_templates
    from .track.sync import sync as sync
    from .train.foreign import check_world as check_world
    from .train.loop import training as training
    from .train.partitions import Partitions as Partitions
    from .trials import Sweep as Sweep


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_home[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
