"""Sweeps: every combination once, only what is missing, and one table and page of it."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from unittest.mock import MagicMock

import psutil
import pytest
from faults import started
from notebooks import write_notebook
from processes import start_scalekit, wait_until

import scalekit as sk
from scalekit import sweeps
from scalekit.bundle import Bundle
from scalekit.cli import main
from scalekit.core import ScaleKitError
from scalekit.execute import RunOrder
from scalekit.place import Done, Placement
from scalekit.signature import BadParameter, UnknownParameter
from scalekit.store import Store

pytestmark = pytest.mark.usefixtures("place")

PARAMETERS = ("lr: float = 0.1\nseed: int = 0", "parameters")
TRAIN = "import scalekit as sk\nsk.record(score=lr * 10 + seed)"


@pytest.fixture
def notebook(place):
    return write_notebook(place / "train.ipynb", PARAMETERS, TRAIN)


@pytest.fixture
def sweep(slots):
    "A sweep on the shared cluster that shows no bar"

    def run(*args, **named):
        return sk.sweep(*args, **{"profile": slots, "on_progress": lambda progress: None, **named})

    return run


def rows_of(store="runs", **filters):
    return Store(store).list_runs(**filters)


# What it does


def test_every_combination_runs_once_and_the_best_comes_first(notebook, sweep):
    found = sweep("train.ipynb", lr=[0.1, 0.2], seed=[0, 1, 2], goal="maximize score")
    assert len(found.rows) == 6
    assert {(row["parameters"]["lr"], row["parameters"]["seed"]) for row in found.rows} == {
        (lr, seed) for lr in (0.1, 0.2) for seed in range(3)
    }
    assert [row["metrics"]["score"] for row in found.rows] == [4.0, 3.0, 3.0, 2.0, 2.0, 1.0]
    assert (found.best.parameters, found.best.metrics) == ({"lr": 0.2, "seed": 2}, {"score": 4.0})
    assert list(found.table.columns) == ["lr", "seed", "score", "state", "seconds", "run_id"]
    assert all(row["state"] == "succeeded" and row["sealed"] for row in found.rows)
    assert "train.ipynb" in found.page.read_text()
    assert found.page.parent == Path("runs/sweeps").absolute() / found.sweep_id
    assert json.loads((found.page.parent / "sweep.json").read_text())["n_trials"] == 6


def test_the_page_is_there_while_the_sweep_runs(notebook, sweep, monkeypatch):
    monkeypatch.setattr("scalekit.sweep_page.EVERY", 0.0)
    monkeypatch.setattr("scalekit.sweep_page.SHARE", 1.0)
    seen = []

    def look(progress):
        pages = list(Path("runs/sweeps").glob("*/index.html"))
        seen.append((progress.n_done, "train.ipynb" in pages[0].read_text() if pages else None))

    sweep("train.ipynb", seed=range(6), on_progress=look)
    assert any(shown and 0 < n_done < 6 for n_done, shown in seen)


def test_a_page_that_cannot_be_written_stops_no_trial(notebook, sweep, monkeypatch):
    monkeypatch.setattr("scalekit.sweep_page.EVERY", 0.0)
    fails = lambda *_: 1 / 0  # noqa: E731
    monkeypatch.setattr("scalekit.sweep_page.write_page", fails)
    with pytest.warns(UserWarning, match="is not written while the sweep runs: division by zero"):
        assert len(sweep("train.ipynb", seed=range(3)).rows) == 3


def test_the_smallest_is_the_best_where_it_shall_be_minimized(notebook, sweep):
    found = sweep("train.ipynb", seed=[2, 0, 1], goal="minimize score")
    assert [row["parameters"]["seed"] for row in found.rows] == [0, 1, 2]


def test_asked_again_it_does_nothing_and_opens_no_cluster(notebook, sweep, monkeypatch):
    first = sweep("train.ipynb", seed=[0, 1])
    monkeypatch.setattr(sweeps, "open_cluster", lambda *_: pytest.fail("a cluster was opened"))
    again = sweep("train.ipynb", seed=[0, 1])
    assert [row["run_id"] for row in again.rows] == [row["run_id"] for row in first.rows]
    assert len(rows_of()) == 2


def test_a_larger_grid_does_only_what_is_new(notebook, sweep):
    first = sweep("train.ipynb", seed=[0, 1])
    larger = sweep("train.ipynb", seed=[0, 1, 2])
    assert len(rows_of()) == 3
    assert {row["run_id"] for row in first.rows} < {row["run_id"] for row in larger.rows}


def test_another_notebook_under_the_same_name_is_other_work(notebook, sweep):
    sweep("train.ipynb", seed=[0, 1])
    write_notebook(notebook, PARAMETERS, TRAIN + "\n# changed")
    sweep("train.ipynb", seed=[0, 1])
    assert len(rows_of()) == 4


def test_fresh_does_everything_once_more(notebook, sweep):
    sweep("train.ipynb", seed=[0, 1])
    sweep("train.ipynb", seed=[0, 1], fresh=True)
    assert len(rows_of()) == 4


def test_a_run_that_left_cells_out_did_not_do_the_work_of_a_trial(place, sweep):
    write_notebook(place / "train.ipynb", PARAMETERS, (TRAIN, "train"))
    sk.run("train.ipynb", seed=0, skip_tags=("train",))
    assert [row["metrics"] for row in sweep("train.ipynb", seed=[0]).rows] == [{"score": 1.0}]


def test_a_single_run_that_did_the_work_already_counts(notebook, sweep):
    run = sk.run("train.ipynb", seed=0)
    assert [row["run_id"] for row in sweep("train.ipynb", seed=[0]).rows] == [run.run_id]


def test_a_failed_trial_is_in_the_table_and_alone_is_done_again(place, sweep):
    write_notebook(
        place / "train.ipynb", PARAMETERS, "import os\nassert seed != 1 or os.path.exists('mended')", TRAIN
    )
    first = sweep("train.ipynb", seed=[0, 1, 2], goal="maximize score")
    assert [row["state"] for row in first.rows] == ["succeeded", "succeeded", "failed"]
    assert "AssertionError" in first.rows[-1]["error"]
    (place / "mended").touch()
    again = sweep("train.ipynb", seed=[0, 1, 2], goal="maximize score")
    assert [row["state"] for row in again.rows] == ["succeeded"] * 3
    assert len(rows_of()) == 4


def test_a_trial_that_fails_is_tried_again_as_often_as_asked(place, sweep):
    count = "with open(f'count-{seed}', 'a') as file: file.write('x')\n"
    count += "assert open(f'count-{seed}').read() == 'x' * (seed + 1)"
    write_notebook(place / "train.ipynb", PARAMETERS, count)
    found = sweep("train.ipynb", seed=[0, 1, 2, 3], retries=2)
    states = {row["parameters"]["seed"]: row["state"] for row in found.rows}
    assert states == {0: "succeeded", 1: "succeeded", 2: "succeeded", 3: "failed"}
    assert len(rows_of()) == 1 + 2 + 3 + 3


def test_a_trial_that_takes_too_long_fails_alone(place, sweep):
    write_notebook(place / "train.ipynb", PARAMETERS, "import time; time.sleep(600 if seed == 1 else 0)")
    found = sweep("train.ipynb", seed=[0, 1, 2], cell_timeout=3.0)
    assert [row["state"] for row in found.rows] == ["succeeded", "succeeded", "failed"]
    assert "CellTimeout" in found.rows[-1]["error"]


@pytest.mark.parametrize(
    "grid, error, sentence",
    [
        ({"seeds": [1]}, UnknownParameter, "Did you mean 'seed'?"),
        ({"seed": [1, "two"]}, BadParameter, "parameter seed must be int, got 'two'"),
        ({"seed": 1}, ScaleKitError, "grid"),
        ({"seed": []}, ScaleKitError, "seed"),
        ({"seed": [1], "goal": "best score"}, ScaleKitError, 'goal must be like "maximize accuracy"'),
    ],
)
def test_a_mistake_stops_before_anything_is_made(notebook, monkeypatch, grid, error, sentence):
    monkeypatch.setattr(sweeps, "open_cluster", lambda *_: pytest.fail("a cluster was opened"))
    with pytest.raises(error) as caught:
        sk.sweep("train.ipynb", **grid)
    assert sentence in str(caught.value)
    assert not Path("runs").exists()


def test_a_profile_that_is_not_there_leaves_no_run(notebook, sweep):
    with pytest.raises(ScaleKitError, match="Did you mean 'cpu'?"):
        sweep("train.ipynb", seed=[0], profile="cpus")
    assert rows_of() == []


def test_a_secret_that_all_trials_share_is_in_no_file(place, sweep):
    from pydantic import SecretStr

    head = "from pydantic import SecretStr\ntoken: SecretStr\nseed: int = 0"
    write_notebook(
        place / "train.ipynb", (head, "parameters"), "print(token.get_secret_value(), seed)\n1 / seed"
    )
    sweep("train.ipynb", seed=[0, 1], parameters={"token": SecretStr("hunter2-hunter")})
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_the_progress_counts_up_and_ends_with_all(notebook, sweep):
    seen = []
    write_notebook(notebook, PARAMETERS, "import time; time.sleep(0.7)")
    sweep("train.ipynb", seed=[0])
    sweep(
        "train.ipynb", seed=[0, 1, 2, 3],
        on_progress=lambda now: seen.append((now.n_done, now.n_running, now.n_slots, now.eta)),
    )  # fmt: skip
    done = [n_done for n_done, *_ in seen]
    assert done == sorted(done) and (done[0], done[-1]) == (1, 4)
    assert max(n_running for _, n_running, *_ in seen) == 2
    assert seen[-1][2] == 2
    assert (seen[0][-1], seen[-1][-1]) == (None, 0.0)


MEET = """
import os, time
open(f"here{seed}", "w").close()
while seed < 2 and not (os.path.exists("here0") and os.path.exists("here1")):
    time.sleep(0.02)
"""


def test_slots_are_kept_busy_and_never_shared(place, sweep):
    write_notebook(place / "train.ipynb", PARAMETERS, MEET)
    found = sweep("train.ipynb", seed=list(range(6)))
    spans = sorted((row["started"], row["ended"]) for row in found.rows)
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


# Several at once, and odd places


def test_two_different_sweeps_share_a_store(place, sweep):
    found = {}
    for name in ("a", "b"):
        write_notebook(place / f"{name}.ipynb", PARAMETERS, TRAIN + f"\nsk.record(name={name!r})")

    def work(name):
        found[name] = sweep(f"{name}.ipynb", seed=[0, 1, 2])

    threads = [threading.Thread(target=work, args=[name]) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        assert {row["metrics"]["name"] for row in found[name].rows} == {name}
        assert [row["state"] for row in found[name].rows] == ["succeeded"] * 3
    assert len(rows_of()) == 6


WAITS = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)"


def test_the_same_sweep_twice_at_once_is_refused(place, sweep):
    write_notebook(place / "train.ipynb", PARAMETERS, WAITS)
    first = threading.Thread(target=sweep, args=["train.ipynb"], kwargs={"seed": [0, 1]})
    first.start()
    wait_until(lambda: len(rows_of(state="running")) == 2)
    with pytest.raises(
        ScaleKitError, match=r"is running already. See it: scalekit runs --sweep train-"
    ) as caught:
        sweep("train.ipynb", seed=[0, 1])
    (place / "go").touch()
    first.join()
    assert [row["state"] for row in rows_of()] == ["succeeded"] * 2
    assert main(["runs", "--sweep", str(caught.value).split("--sweep ")[1]]) == 0


def test_a_sweep_may_be_started_where_an_event_loop_is_running(notebook, sweep):
    async def as_in_a_cell():
        return sweep("train.ipynb", seed=[0, 1])

    assert len(asyncio.run(as_in_a_cell()).rows) == 2


def test_a_sweep_may_be_started_from_a_cell_of_a_notebook(place, notebook):
    call = "sk.sweep('train.ipynb', seed=[0, 1], profile='cpu', n_workers=1)"
    ask = f"import scalekit as sk\nfound = {call}\nfound"
    write_notebook(place / "outer.ipynb", ask, "sk.record(n=len(found.rows), best=found.best is not None)")
    outer = sk.run("outer.ipynb")
    assert outer.metrics == {"n": 2, "best": True}
    assert "Page of the sweep" in outer.notebook.read_text()
    assert {row["state"] for row in rows_of()} == {"succeeded"}


# The command


def test_the_command_shows_a_table_and_says_where_things_are(notebook, slots, capsys):
    words = ["sweep", "train.ipynb", "-g", "lr=0.1,0.2", "-g", "seed=0..1", "--goal", "maximize score"]
    assert main([*words, "--profile", slots]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split() == ["lr", "seed", "score", "state", "seconds", "run_id"]
    assert lines[1].split()[:4] == ["0.2", "1", "3", "succeeded"]
    assert lines[-2].startswith("best: runs/") and lines[-1].startswith("page: runs/sweeps/train-")
    assert Path(lines[-1].split()[1]).exists()
    assert main([*words, "--profile", slots, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["rows"]), told["rows"][0]["metrics"]) == (4, {"score": 3.0})


def test_the_command_exits_with_1_when_a_trial_failed_and_2_after_a_mistake(place, slots, capsys):
    write_notebook(place / "train.ipynb", PARAMETERS, "1 / seed")
    assert main(["sweep", "train.ipynb", "-g", "seed=0,1", "--profile", slots]) == 1
    assert "failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    for words in (["-g", "sed=0"], ["-g", "seed"], ["-g", "seed=x"], ["-p", "seed=1", "-g", "lr=0.1,x"]):
        assert main(["sweep", "train.ipynb", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("scalekit: ") and error.count("\n") == 1, error


def test_nothing_of_a_sweep_listens_to_other_machines(place, monkeypatch):
    write_notebook(place / "train.ipynb", PARAMETERS, WAITS)
    process = start_scalekit("sweep", "train.ipynb", "-g", "seed=0,1", "--profile", "cpu")
    wait_until(lambda: len(rows_of(state="running")) >= 1)  # and none ends while it is looked at
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    told = [event for row in rows_of() for event in Store("runs").open_run(row["run_id"]).events()]
    kernels = [psutil.Process(event["pid"]) for event in told if event["event"] == "kernel"]
    listening = [
        connection.laddr.ip for member in family + kernels for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN or not connection.raddr
    ]  # fmt: skip
    assert len(family) >= 3 and len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::1"}
    (place / "go").touch()
    assert process.wait(120) == 0
    process.communicate()


# Workers


def test_a_run_whose_worker_was_killed_is_found_though_dask_says_nothing(place):
    store = Store("runs")
    placement = Placement(cluster=None)
    with store.lease() as owner:
        orders = [RunOrder(str(store.create_run({}, owner).path), "/") for _ in range(3)]
        with started(take_on, orders[0].path), started(take_on, orders[1].path) as victim:
            wait_until(lambda: not any(os.path.islink(f"{order.path}/lease") for order in orders[:2]))
            placement.running = {MagicMock(name=order.path): order for order in orders}
            assert placement.find_orphan() is None
            victim.kill()
            victim.join()
            assert placement.find_orphan() == Done(orders[1], None, None)
            assert list(placement.running.values()) == [orders[0], orders[2]]
            assert placement.find_orphan() is None


def take_on(path):
    Bundle(path).lease()
    time.sleep(60)
