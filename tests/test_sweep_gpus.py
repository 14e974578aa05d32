"""Trials that hold several GPUs, or a share of one, on simulated GPUs: see gpusim/README.md."""

from pathlib import Path

import pytest

pytest_plugins = "gpusim.fixtures"

GPU_SWEEP = """
import os
from pathlib import Path
os.environ["SCALEKIT_PRELOAD"] = "json"  # a server that is up in a second
from notebooks import write_notebook
import scalekit as sk
from scalekit.cluster import open_cluster

if __name__ == "__main__":
    head = ("import os, time\\nimport scalekit as sk\\nseed: int = 0", "parameters")
    told = "open(f'here{{seed}}', 'w').close()\\n"
    told += "while seed < 2 and not (os.path.exists('here0') and os.path.exists('here1')):\\n"
    told += "    time.sleep(0.02)\\n"
    told += "time.sleep(0.7)\\nsk.record(gpus=os.environ['CUDA_VISIBLE_DEVICES'])"
    write_notebook(Path("gpu.ipynb"), head, told)
    try:
        found = sk.sweep(
            "gpu.ipynb", seed=range({n}), gpus_per_trial={share}, profile="{profile}", store="runs",
            max_gpu_hours=10, on_progress=lambda now: None,
        )
        rows = [[row["metrics"]["gpus"], row["started"], row["ended"]] for row in found.rows]
        report(rows=rows, said="")
    except sk.ScaleKitError as error:
        report(rows=[], said=str(error))
"""


@pytest.mark.parametrize(
    "share, n, each, at_once",
    [(2, 5, {"0,1", "2,3"}, 1), (0.5, 8, {"0", "1", "2", "3"}, 2)],
)
def test_gpus_are_dealt_out_and_never_given_twice(run_on_gpus, share, n, each, at_once):
    tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    rows = run_on_gpus(tests + GPU_SWEEP.format(n=n, share=share, profile="auto"))["rows"]
    assert {gpus for gpus, *_ in rows} == each and len(rows) == n
    for gpus, start, _ in rows:
        holders = [one for one, begun, ended in rows if one == gpus and begun <= start < ended]
        assert len(holders) <= at_once
    moments = [sum(begun <= start < ended for _, begun, ended in rows) for _, start, _ in rows]
    assert max(moments) > 1


@pytest.mark.parametrize(
    "share, profile, sentence",
    [
        (8, "auto", "gpus_per_trial=8 is more than there are: 0, 1, 2, 3"),
        (0.7, "auto", "or a share such as 0.5 or 0.25, got 0.7"),
        (2, "cpu", "max_gpu_hours=10 counts time on GPUs"),
    ],
)
def test_gpus_that_cannot_be_dealt_out_are_a_mistake(run_on_gpus, share, profile, sentence):
    tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    facts = run_on_gpus(tests + GPU_SWEEP.format(n=2, share=share, profile=profile))
    assert sentence in facts["said"]
