"""The sweep panel without a browser: what a look reads, what it draws, and what its buttons ask for."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from processes import wait_until as wait_for

import scalekit as sk
from scalekit.bundle import Bundle
from scalekit.controller import find_sweep_stop, request_sweep_stop
from scalekit.core import ScaleKitError
from scalekit.events import StoreError
from scalekit.panels.sweep import SweepPanel
from scalekit.panels.trials import SweepFollower
from scalekit.store import Store
from scalekit.typed.check import BadParameter

SWEEP = "train-1a2b3c4d"


class Made:
    "A sweep of a grid that nobody really runs"

    def __init__(self, folder: Path, n_trials: int = 4, price: float | None = None) -> None:
        self.store, self.price = Store(folder / "runs"), price
        self.folder = self.store.folder / "sweeps" / SWEEP
        self.folder.mkdir(parents=True)
        self.grid = [{"lr": number / 10, "width": 8} for number in range(n_trials)]
        asked = {"notebook_sha256": "ab", "trials": self.grid, "goal": ["maximize", "accuracy"]}
        (self.folder / "sweep.json").write_text(json.dumps(asked | {"n_trials": n_trials}))

    def begin(self, number: int, sweep: str = SWEEP) -> Bundle:
        asked = {"notebook_sha256": "ab", "parameters": self.grid[number], "sweep": sweep, "trial": number,
                 "price_per_hour": self.price}  # fmt: skip
        bundle = self.store.create_run(asked)
        bundle.set_state("running")
        return bundle

    def end(self, number: int, accuracy: float, sweep: str = SWEEP, state: str = "succeeded") -> Bundle:
        bundle = self.begin(number, sweep)
        bundle.append("record", values={"accuracy": accuracy})
        bundle.set_state(state)
        return bundle


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def panel(made: Made) -> Iterator[SweepPanel]:
    made.end(0, 0.9)
    panel = sk.watch(SWEEP, store=made.store.folder)
    panel.period = 0.05
    panel.open()
    wait_for(lambda: panel.body is not None and "1/4 trials" in panel.body["html"])
    yield panel
    panel.close(forget=True)
    wait_for(
        lambda: not [one for one in threading.enumerate() if one.name.startswith("scalekit-panel-sweep")]
    )


# Reading


def test_a_look_reads_only_what_is_new(made, monkeypatch):
    ended = [made.end(number, 0.9) for number in range(2)]
    follower = SweepFollower(made.store, made.folder)
    assert follower.look() == {bundle.run_id for bundle in ended}
    read: list[str] = []
    follow = Bundle.follow
    monkeypatch.setattr(
        Bundle, "follow", lambda self, offset=0: (read.append(self.run_id), follow(self, offset))[1]
    )
    assert (follower.look(), read) == (set(), [])
    running = made.begin(2)
    assert (follower.look(), read) == ({running.run_id}, [running.run_id])
    assert (follower.look(), read) == (set(), [running.run_id])


def test_runs_of_other_sweeps_are_no_trials_but_their_results_count_where_they_fit(made):
    other = made.end(0, 0.9, sweep="another")
    made.begin(1, sweep="another")
    follower = SweepFollower(made.store, made.folder)
    follower.look()
    assert [row["run_id"] for row in follower.list_rows()] == [other.run_id]
    made.begin(2, sweep="another")
    assert follower.look() == set()


def test_a_trial_that_is_tried_again_is_one_row(made):
    made.end(0, 0.1, state="failed")
    follower = SweepFollower(made.store, made.folder)
    follower.look()
    again = made.begin(0)
    follower.look()
    assert [(row["run_id"], row["state"]) for row in follower.list_rows()] == [(again.run_id, "running")]


def test_costs_and_counts_include_what_runs(tmp_path):
    made = Made(tmp_path, price=3600.0)
    made.end(0, 0.9)
    made.begin(1)
    follower = SweepFollower(made.store, made.folder)
    follower.look()
    time.sleep(0.05)
    progress = follower.summarize(follower.list_rows())
    assert (progress.count, progress.n_running, progress.states) == ("1/4 trials", 1, {"succeeded": 1})
    assert progress.cost is not None
    assert progress.cost > 0.05


def test_a_run_that_is_deleted_while_it_is_watched_is_forgotten(made):
    import shutil

    bundle = made.begin(0)
    follower = SweepFollower(made.store, made.folder)
    follower.look()
    shutil.rmtree(bundle.path)
    follower.look()
    assert follower.list_rows() == []
    shutil.rmtree(made.folder)
    with pytest.raises(StoreError, match="was deleted"):
        follower.look()


# Names


def test_a_sweep_is_found_by_latest_by_the_beginning_of_its_name_and_by_what_it_gave(made):
    made.end(0, 0.9)
    sweep = sk.Sweep(SWEEP, [], (("maximize", "accuracy"),), made.folder / "index.html")
    for name in ("latest", "train", SWEEP, sweep):
        assert sk.watch(name, store=made.store.folder).sweep_id == SWEEP
    with pytest.raises(ScaleKitError, match=f"Did you mean '{SWEEP}'"):
        sk.watch("train-1a2b3c4e", store=made.store.folder)


# Drawing


def test_what_runs_stands_first_and_the_best_is_marked(made, panel):
    made.end(1, 0.95)
    made.begin(2)
    wait_for(lambda: "1 running" in panel.body["html"] and "2 succeeded" in panel.body["html"])
    rows = panel.body["html"].split("<tr")[2:]
    assert ["running" in rows[0], "★" in rows[0], "★" in rows[1], "★" in rows[2]] == [
        True,
        False,
        True,
        False,
    ]
    assert "0.95" in rows[1]


def test_a_name_that_is_markup_stays_text(tmp_path):
    made = Made(tmp_path)
    made.grid[0]["lr"] = "<script>alert(1)</script>"
    made.end(0, 0.9)
    made.grid[1]["lr"] = "b"
    made.end(1, 0.8)
    (made.folder / "sweep.json").write_text(
        json.dumps(
            {"notebook_sha256": "ab", "trials": made.grid, "goal": ["maximize", "accuracy"], "n_trials": 4}
        )
    )
    panel = sk.watch(SWEEP, store=made.store.folder)
    drawn = panel.read()["html"] + panel._drawings.html + panel.picture()["text/html"]
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn


def test_of_many_trials_some_are_shown_and_the_others_counted(tmp_path):
    made = Made(tmp_path, 130)
    for number in range(130):
        made.end(number, number / 200)
    panel = sk.watch(SWEEP, store=made.store.folder)
    assert panel.read()["html"].count("<tr") == 26
    panel.handle({"do": "more"})
    drawn = panel.read()["html"]
    assert (drawn.count("<tr"), "and 30 more trials" in drawn) == (101, True)


def test_drawings_wait_for_a_trial_to_end(made, panel):
    drawn = panel._drawings.html
    running = made.begin(1)
    wait_for(lambda: "1 running" in panel.body["html"])
    assert panel._drawings.html is drawn
    running.append("record", values={"accuracy": 0.99})
    running.set_state("succeeded")
    wait_for(lambda: "0.99" in panel._pictures.value or panel._drawings.html is not drawn)


def test_a_sweep_shows_itself_as_the_panel_does_where_nothing_moves(made):
    for number in range(3):
        made.end(number, number / 10)
    panel = sk.watch(SWEEP, store=made.store.folder)
    panel.read()
    picture = panel.picture()
    sweep = sk.Sweep(SWEEP, panel._rows, (("maximize", "accuracy"),), made.folder / "index.html")
    assert "3 trials: 3 succeeded; best accuracy 0.2 (lr=0.2)" in picture["text/plain"]
    for html in (picture["text/html"], sweep._repr_html_()):
        assert "3 trials: 3 succeeded; best accuracy 0.2 (lr=0.2)" in html
        assert "data:image/svg+xml" in html


def test_in_a_notebook_that_runs_as_a_job_the_panel_is_a_picture_and_starts_nothing(made):
    made.end(0, 0.9)
    panel = sk.watch(SWEEP, store=made.store.folder)
    assert sorted(panel._repr_mimebundle_()) == ["text/html", "text/plain"]
    assert not panel.is_open


# Buttons


def test_prune_and_stop_of_a_trial_and_stop_of_all_leave_their_words_in_the_store(made, panel):
    running = [made.begin(number) for number in (1, 2)]
    wait_for(lambda: "2 running" in panel.body["html"])
    panel.handle({"do": "prune", "run": running[0].run_id})
    panel.handle({"do": "cancel", "run": running[1].run_id})
    panel.handle({"do": "stop"})
    wait_for(lambda: find_sweep_stop(made.folder) == "cancelled")
    wait_for(lambda: all((bundle.path / "stop").exists() for bundle in running))
    assert [(bundle.path / "stop").read_text() for bundle in running] == ["pruned", "cancelled"]
    wait_for(lambda: panel.body["html"].count(", stopping") == 2)


def test_an_order_for_a_run_that_is_no_trial_does_nothing(made, panel):
    other = made.begin(3, sweep="another")
    panel.handle({"do": "prune", "run": other.run_id})
    panel.handle({"do": "prune", "run": "../../etc"})
    wait_for(lambda: not panel._work.names)
    assert not (other.path / "stop").exists()
    assert panel.trouble is None


# A real one


WORK = """import time
import scalekit as sk
for step in range(steps):
    time.sleep(0.1)
    sk.log(accuracy=step / 100 + lr / 1000, step=step)
sk.record(accuracy=1 - lr)"""


def write_notebook(folder: Path) -> Path:
    tagged = nbformat.v4.new_code_cell("lr: float = 0.1\nsteps: int = 1", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[tagged, nbformat.v4.new_code_cell(WORK)], metadata=kernel)
    nbformat.write(notebook, folder / "train.ipynb")
    return folder / "train.ipynb"


def test_a_sweep_in_a_process_of_its_own_is_watched_pruned_and_stopped(
    tmp_path, slots, warm_server, monkeypatch
):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    notebook = write_notebook(tmp_path)
    with pytest.raises(BadParameter, match="lr"):
        sk.start_sweep(notebook, lr=["fast"])
    grid = {"lr": [0.2, 0.4], "steps": [1, 6000]}
    panel = sk.start_sweep(notebook, grid, goal="max accuracy", profile=slots)
    panel.period = 0.1
    panel.open()
    try:
        wait_for(lambda: panel._progress.n_running == 2 and panel._progress.states.get("succeeded") == 2)
        again = sk.start_sweep(notebook, grid, goal="max accuracy", profile=slots)
        assert (again.sweep_id, again._process) == (panel.sweep_id, None)
        long = next(row for row in panel._rows if row["state"] == "running")
        panel.handle({"do": "prune", "run": long["run_id"]})
        wait_for(lambda: panel._progress.states.get("pruned") == 1)
        request_sweep_stop(panel.follower.folder)
        wait_for(lambda: panel._process.poll() is not None)
        wait_for(lambda: "cancelled. " in panel.body["html"])
        assert panel._progress.states == {"succeeded": 2, "pruned": 1, "cancelled": 1}
        assert "best accuracy" in panel.body["html"]
    finally:
        panel.close(forget=True)
        wait_for(lambda: not panel.is_open)
