"""Sweeps whose controller, workers and trials are killed: nothing is lost, and nothing is done twice."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from notebooks import write_notebook
from processes import MARK, SCALEKIT, list_marked, start_scalekit, wait_until
from sweep_faults import have_ended, run_and_kill, write_faulty

import scalekit as sk
from scalekit.cli import main
from scalekit.search import Search
from scalekit.store import Store
from scalekit.study import Study

pytestmark = pytest.mark.usefixtures("place")

SPACE = ["-s", "lr=log_uniform(1e-4, 1e-1)", "--goal", "maximize score"]
HERE = ["--profile", "cpu", "--workers", "2"]


def rows_of(**filters):
    return Store("runs").list_runs(**filters)


def test_a_controller_killed_twice_leaves_a_search_that_does_each_trial_exactly_once(place):
    write_faulty(place)
    words = ["sweep", "faulty.ipynb", *SPACE, "--trials", "12", "--retries", "2", "--prune", "none", *HERE]
    words += ["-p", "share=0.25", "-p", "seconds=0.3"]
    outcome = run_and_kill(words, [have_ended(3), have_ended(7)], timeout=120)
    assert outcome.code == 0, outcome.said
    states = Counter(row["state"] for row in outcome.rows)
    assert states["succeeded"] == 12 and set(states) == {"succeeded", "failed"}
    ended = Counter(row["trial"] for row in outcome.rows if row["state"] == "succeeded")
    assert ended == dict.fromkeys(range(12), 1)
    values = {row["trial"]: set() for row in outcome.rows}
    for row in outcome.rows:
        values[row["trial"]].add(row["parameters"]["lr"])
    assert all(len(tried) == 1 for tried in values.values())  # an attempt tries what its trial tries
    assert len(set.union(*values.values())) == 12
    own = [str(row["error"]) for row in outcome.rows if not str(row["error"]).startswith("lost: ")]
    assert sum("injected" in error or "KernelDied" in error or "MemoryError" in error for error in own) >= 2
    wait_until(lambda: not list_marked(os.environ[MARK]))
    (folder,) = Path("runs/sweeps").iterdir()
    study = Study(folder / "search.log", Search({}, (("maximize", "score"),)))
    assert study.list_open() == [] and study.n_trials == 12
    scores = {row["trial"]: row["metrics"]["score"] for row in outcome.rows if row["state"] == "succeeded"}
    told = {t.user_attrs["trial"]: t.value for t in study._study.trials if t.state.name == "COMPLETE"}
    assert told == scores  # Optuna heard of each, whichever moment the controller was killed at


@pytest.fixture
def far_cluster(place):
    "A scheduler and two workers that outlive every controller; the address"
    dask, file = Path(SCALEKIT).with_name("dask"), place / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    started = [subprocess.Popen([dask, "scheduler", "--port", "0", *common], **quiet)]
    alone = ["--nworkers", "1", "--nthreads", "1", "--death-timeout", "200"]

    def add_worker():
        started.append(subprocess.Popen([dask, "worker", *alone, *common], **quiet))

    try:
        add_worker()
        add_worker()
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], add_worker
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(120)


WAITS = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.1)"


def test_runs_that_outlive_their_controller_are_adopted_and_a_worker_that_joins_is_used(place, far_cluster):
    address, add_worker = far_cluster
    head = ("lr: float = 0.1", "parameters")
    write_notebook(place / "waits.ipynb", head, WAITS, "import scalekit as sk\nsk.record(score=lr)")
    words = ["sweep", "waits.ipynb", *SPACE, "--trials", "4", "--profile", address]
    process = start_scalekit(*words)
    wait_until(lambda: len(rows_of(state="running")) == 2)
    going_on = {row["run_id"] for row in rows_of(state="running")}
    process.kill()
    process.communicate()
    process = start_scalekit("sweep", "--resume", "waits")
    add_worker()
    wait_until(lambda: len(rows_of(state="running")) == 3)
    assert going_on < {row["run_id"] for row in rows_of(state="running")}
    Path("go").touch()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    ended = {row["run_id"]: row["trial"] for row in rows_of(state="succeeded")}
    assert going_on <= set(ended) and sorted(ended.values()) == [0, 1, 2, 3]
    study = Study(next(Path("runs/sweeps").iterdir()) / "search.log", Search({}, (("maximize", "score"),)))
    assert study.list_open() == []


def test_a_signal_ends_a_search_well_and_the_same_trials_go_on(place):
    head = ("lr: float = 0.1", "parameters")
    write_notebook(place / "waits.ipynb", head, WAITS, "import scalekit as sk\nsk.record(score=lr)")
    words = ["sweep", "waits.ipynb", *SPACE, "--trials", "3", *HERE]
    process = start_scalekit(*words)
    wait_until(lambda: len(rows_of(state="running")) == 2)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and ": preempted. 0 trials are done and kept" in said, said
    tried = {row["trial"]: row["parameters"]["lr"] for row in rows_of()}
    Path("go").touch()
    assert main(["sweep", "--resume", "waits"]) == 0
    ended = {row["trial"]: row["parameters"]["lr"] for row in rows_of(state="succeeded")}
    assert sorted(ended) == [0, 1, 2]
    assert {number: ended[number] for number in tried} == tried


def test_a_trial_whose_notebook_kills_its_worker_is_given_up_and_the_search_goes_on(place):
    from scalekit.cluster import open_cluster

    looks = "import json, os, time\nimport scalekit as sk\npath = sk.current_run().path\n"
    looks += "lines = open(path / 'events.jsonl').readlines()\n"
    looks += "pid = next(e['pid'] for e in map(json.loads, lines) if e.get('state') == 'running')\n"
    kills = (
        "if json.loads((path / 'run.json').read_text())['trial'] == 1:\n    os.kill(pid, 9)\ntime.sleep(0.5)"
    )
    head = ("lr: float = 0.1", "parameters")
    write_notebook(place / "kills.ipynb", head, looks, kills, "sk.record(score=lr)")
    with open_cluster("cpu", n_workers=2) as cluster:
        found = sk.sweep(
            "kills.ipynb", lr=sk.uniform(0, 1), goal="maximize score", n_trials=4, profile=cluster.address,
            on_progress=lambda now: None,
        )  # fmt: skip
    states = {row["trial"]: row["state"] for row in found.rows}
    assert states == {0: "succeeded", 1: "failed", 2: "succeeded", 3: "succeeded"}
    assert [row["trial"] for row in rows_of(state="failed")] == [1, 1, 1]
