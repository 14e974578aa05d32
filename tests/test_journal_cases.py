"""Wherever a hard notebook is broken off, the resumed run ends as an unbroken one."""

import os

import pytest
from journal_cases import CASES
from notebooks import write_notebook

import scalekit as sk

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def each_cell_is_worth_keeping(monkeypatch):
    monkeypatch.setattr("scalekit.resume.WORTH", 0.0)


def finish(folder, cells, **options):
    notebook = write_notebook(
        folder / "case.ipynb", *cells, "import scalekit as sk\nsk.record(result=repr(result))"
    )
    return sk.run(notebook, store=folder / "runs", **options)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_as_an_unbroken_one(name, tmp_path, monkeypatch):
    cells = CASES[name]
    monkeypatch.chdir(tmp_path)
    unbroken = finish(tmp_path, cells).bundle.records()["result"]
    # At each cell when a person asks for it; the last place has the most to put back
    places = range(1, len(cells)) if os.environ.get("TORTURE") else [len(cells) - 1]
    for n_done in places:
        broken = finish(tmp_path, [*cells[:n_done], "raise RuntimeError('broken off')"], check=False)
        assert broken.state == "failed" and "broken off" in broken.error
        resumed = finish(tmp_path, cells, resume=broken.run_id)
        assert resumed.bundle.records()["result"] == unbroken, f"after {n_done} cells"
