"""The notebook of a sweep: whole without being run, and the same after it was run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scalekit.book import write_sweep_notebook, write_sweep_report
from scalekit.events import StoreError
from scalekit.store import Store

GOAL = ("maximize", "accuracy")
HOSTILE = "<img src=x onerror=alert(1)>[a](javascript:1)`$\\n```\ud800"


def add_run(store, parameters, accuracy, state="succeeded", sweep="first", error=None):
    asked = {"notebook": "train.ipynb", "notebook_sha256": "ab", "parameters": parameters, "sweep": sweep}
    bundle = store.create_run(asked)
    bundle.notebook.write_text("{}")
    bundle.set_state("running")
    for step in range(4):
        bundle.append("log", step=step, values={"accuracy": accuracy * (step + 1) / 4})
    bundle.set_state(state, **({"error": error} if error else {}))
    store.index(bundle)
    return bundle


@pytest.fixture
def store(tmp_path):
    "Twelve trials that succeeded, one that failed and one that was pruned; each with its notebook"
    store = Store(tmp_path / "runs")
    for number in range(12):
        parameters = {"lr": 10.0 ** -(number // 3), "seed": number % 3, "kind": "ab"[number // 6]}
        add_run(store, parameters, 0.9 - number / 50)
    add_run(store, {"lr": 9.0, "seed": 0, "kind": "a"}, 0.1, "failed", error=f"ValueError: {HOSTILE[:-1]}")
    add_run(store, {"lr": 8.0, "seed": 0, "kind": "a"}, 0.1, "pruned")
    (tmp_path / "runs" / "sweeps" / "first").mkdir(parents=True)
    return store


def read(path):
    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    return made


def shown(made):
    "What each code cell shows: text, and how many drawings"
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    data = [output.get("data", {"text/plain": output.get("text")}) for output in outputs]
    return [(one["text/plain"], one.get("text/html", "").count("<img")) for one in data]


def test_its_cells_give_by_hand_what_it_shows_already(store):
    folder = store.folder / "sweeps" / "first"
    path = write_sweep_notebook(
        folder / "index.ipynb", "First", store.list_runs(), GOAL, {"notebook": "t.ipynb"}
    )
    made = read(path)
    before = shown(made)
    assert sum(n_drawings for _, n_drawings in before) >= 7
    NotebookClient(made, timeout=200, resources={"metadata": {"path": str(folder)}}).execute()
    assert shown(made) == before


def test_pruned_trials_are_told_by_their_step(store):
    made = read(write_sweep_notebook(store.folder / "index.ipynb", "First", store.list_runs(), GOAL))
    assert any(cell.source == "## Pruned\n\n- after step 3: 1 trial" for cell in made.cells)


def test_trials_reused_from_another_sweep_are_named_one_by_one(store):
    add_run(store, {"lr": 5.0, "seed": 0, "kind": "a"}, 0.5, sweep="second")
    add_run(store, {"lr": 6.0, "seed": 0, "kind": "a"}, 0.6, sweep="second")
    rows = store.list_runs(sweep="second")[:1] + store.list_runs(sweep="first")[:3]
    path = write_sweep_notebook(store.folder / "sweeps" / "first" / "index.ipynb", "First", rows, GOAL)
    made = read(path)
    assert all(row["run_id"] in made.cells[1].source for row in rows)
    NotebookClient(made, timeout=200, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert made.cells[1].outputs[0].data["text/plain"].startswith("4 trials: ")


def test_links_lead_to_the_executed_notebooks(store):
    path = write_sweep_notebook(
        store.folder / "sweeps" / "first" / "index.ipynb", "First", store.list_runs(), GOAL
    )
    text = next(cell.source for cell in read(path).cells if cell.source.startswith("Best trial: [#1]("))
    target = text.partition("](")[2].partition(")")[0]
    assert (path.parent / target).resolve().parent == Path(
        store.list_runs(state="succeeded")[-1]["path"]
    ).resolve()


def test_hostile_text_is_text_in_markdown_too(store):
    rows = store.list_runs()
    rows[0]["parameters"] = rows[0]["parameters"] | {HOSTILE: HOSTILE}
    path = write_sweep_notebook(store.folder / "index.ipynb", HOSTILE, rows, GOAL, {HOSTILE: HOSTILE})
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# \\<img src=x onerror=alert\\(1\\)\\>\\[a\\]")
    failure = next(text for text in texts if text.startswith("## What did not succeed"))
    assert "    ValueError: <img" in failure, "an error stands in a block of code"


@pytest.mark.parametrize("rows", [[], [{"run_id": None, "state": None, "parameters": None, "metrics": None}]])
def test_a_sweep_without_anything_has_a_notebook_too(tmp_path, rows):
    made = read(write_sweep_notebook(tmp_path / "index.ipynb", "Empty", rows))
    assert any("No trial has reached the goal yet." in cell.source for cell in made.cells)


def test_page_and_notebook_lie_side_by_side(store):
    page, book = write_sweep_report(
        store.folder / "index.html", "First", store.list_runs(), GOAL, {"slots": 4}
    )
    assert (page.name, book.name) == ("index.html", "index.ipynb")
    assert "4 slots" in page.read_text()
    again = write_sweep_report(store.folder / "index.html", "First", store.list_runs(), GOAL, {"slots": 4})[1]
    assert read(again) == read(book)


def test_a_notebook_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="the notebook .* can't be written: "):
        write_sweep_notebook(tmp_path / "gone" / "index.ipynb", "Sweep", [])
