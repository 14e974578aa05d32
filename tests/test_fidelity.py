"""What a cell shows in a warm kernel equals what it shows in a stock kernel under nbclient."""

import os

import pytest
from fidelity_cases import CASES, make_notebook, normalise, run_stock

from scalekit.devices import n_cores
from scalekit.engine import Execution
from scalekit.kernels.choose import KernelOrder, open_kernel
from scalekit.kernels.hygiene import THREAD_VARIABLES
from scalekit.live import LiveNotebook
from scalekit.notebook import clear_notebook
from scalekit.outcome import Limits

PRELOAD = ("numpy", "pandas", "torch", "matplotlib")


def run_warm(cells: list[str], folder: str) -> list:
    "Outputs of a notebook that scalekit's engine runs in a warm kernel"
    notebook = clear_notebook(dict(make_notebook(cells)))
    order = KernelOrder("python3", folder, dict(os.environ), n_cores(), PRELOAD)
    notes: list[str] = []
    with open_kernel(order, on_note=notes.append) as (kernel, _):
        assert kernel.kind == "warm", notes
        Execution(notebook, kernel, LiveNotebook(notebook, None), Limits(keep_widgets=True)).run()
    return normalise(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_warm_kernel_shows_what_a_stock_one_shows(case, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a stock kernel leaves out native output when it sees this
    for name in THREAD_VARIABLES:  # a stock kernel obeys them, and a test may have left one
        monkeypatch.delenv(name, raising=False)
    assert run_warm(CASES[case], str(tmp_path)) == run_stock(CASES[case], str(tmp_path))
