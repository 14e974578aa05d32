"""`scalekit agent` serves a sweep of a W&B server with the slots of a cluster."""

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from notebooks import write_notebook
from processes import start_scalekit, wait_until

from scalekit.bridge.agent import serve_sweep
from scalekit.bridge.trials import Manners
from scalekit.bundle import Bundle
from scalekit.cli import main
from scalekit.store import Store
from scalekit.trials import SweepStopped

pytestmark = pytest.mark.usefixtures("place")

PARAMETERS = ("lr: float = 0.1\nwidth: int = 8\nseconds: float = 0.0", "parameters")
TRAIN = """
import os, signal, time
from pathlib import Path
import scalekit as sk
mark = Path(f"mark-{lr}-{width}")
if (lr, width) == (0.2, 16) and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
for step in range(3):
    sk.log(loss=lr / (1 + step), step=step)
time.sleep(seconds)
sk.record(score=lr * width)
"""
GRID = """
method: grid
program: train.py
metric: {name: score, goal: maximize}
parameters:
  lr: {values: [0.1, 0.2, 0.3, 0.4]}
  width: {values: [8, 16]}
"""
QUICK = Manners(pause=0.3, learns=False)


@pytest.fixture
def notebook(place):
    return write_notebook(place / "train.ipynb", PARAMETERS, TRAIN)


def list_served(server) -> dict[str, dict]:
    "Runs on the server that belong to a sweep"
    return {key[2]: server.run(key[2]) for key, run in server.runs.found.items() if run["sweepName"]}


def test_eight_trials_on_two_slots_end_on_the_server_once_though_one_is_killed(notebook, wandb_server, slots):
    path = wandb_server.sweeps.make(GRID)
    sweep = serve_sweep(path, profile=slots, retries=1, manners=QUICK)
    served = list_served(wandb_server)
    assert len(served) == 8, "each run says that it belongs to the sweep"
    assert {run["state"] for run in served.values()} == {"finished"}
    assert {run["sweepName"] for run in served.values()} == {"sw1"} and len(wandb_server.runs.found) == 8
    wanted = {(lr, width): lr * width for lr in (0.1, 0.2, 0.3, 0.4) for width in (8, 16)}
    found = {
        (run["config"]["lr"], run["config"]["width"]): run["summary"]["score"] for run in served.values()
    }
    assert found == wanted
    for run_id, run in served.items():
        rows = [row for row in wandb_server.rows(run_id) if "loss" in row]
        lr = run["config"]["lr"]
        assert [(row["step"], row["loss"]) for row in rows] == [(0, lr), (1, lr / 2), (2, lr / 3)]
    rows = Store("runs").list_runs(sweep="sw1")
    assert [row["state"] for row in rows].count("failed") == 1 and len(rows) == 9
    assert sweep.best.metrics["score"] == 6.4 and sweep.notes == () and sweep.page.exists()
    assert len(sweep.rows) == 8 and {row["trial"] for row in sweep.rows} == set(range(8))
    agents = len(wandb_server.sweeps.agents)
    assert 2 <= agents <= 4, "an agent for each slot, and one for each run that is on its way"


def test_a_name_that_the_notebook_does_not_take_is_one_sentence_before_an_agent_is_registered(
    notebook, wandb_server, capsys
):
    path = wandb_server.sweeps.make(GRID.replace("  lr:", "  lrr:"))
    assert main(["agent", path]) == 2
    said = capsys.readouterr().err
    sentence = "scalekit: sweep me/digits/sw1 varies 'lrr', and train.ipynb has no such parameter. "
    assert said.startswith(f"{sentence}Did you mean 'lr'?") and said.count("\n") == 1
    assert wandb_server.sweeps.agents == {} and not Path("runs").exists()


def test_a_value_that_does_not_fit_is_a_failed_run_on_the_server_and_the_others_go_on(
    notebook, wandb_server, slots
):
    path = wandb_server.sweeps.make(
        "method: grid\nprogram: train.py\nparameters: {width: {values: [8, wide, 16]}}"
    )
    serve_sweep(path, profile=slots, manners=QUICK)
    served = list_served(wandb_server)
    states = {run["config"].get("width"): run["state"] for run in served.values()}
    assert states == {8: "finished", "wide": "failed", 16: "finished"}
    (why,) = [run["summary"]["scalekit/error"] for run in served.values() if run["state"] == "failed"]
    assert why.startswith("train.ipynb: parameter width must be int, got 'wide'")


def test_a_run_whose_curve_the_server_sees_and_does_not_like_ends_as_pruned(notebook, wandb_server, slots):
    path = wandb_server.sweeps.make(
        "method: random\nprogram: train.py\nearly_terminate: {type: hyperband, min_iter: 1}\n"
        "parameters: {lr: {values: [0.1, 0.2]}, seconds: {value: 0}}"
    )
    wandb_server.sweeps.found["sw1"]["todo"][0]["seconds"] = 60.0
    stopped = "sw1trial1"

    def stop_when_it_is_seen(progress):
        if wandb_server.runs.found and any("loss" in row for row in wandb_server.rows(stopped)):
            wandb_server.sweeps.stops.add(stopped)

    live = replace(QUICK, live=0.3)
    sweep = serve_sweep(path, profile=slots, manners=live, on_progress=stop_when_it_is_seen)
    assert {row["state"] for row in sweep.rows} == {"pruned", "succeeded"}
    run = wandb_server.run(stopped)
    assert (run["state"], run["tags"]) == ("finished", ["pruned"])
    rows = [row["loss"] for row in wandb_server.rows(stopped) if "loss" in row]
    assert rows == [0.1, 0.05, 0.1 / 3], "once, though the server has seen them before"


def test_when_the_server_is_gone_trials_end_and_the_agent_says_so_in_one_sentence(
    notebook, wandb_server, slots
):
    path = wandb_server.sweeps.make(
        "method: grid\nprogram: train.py\nparameters: {seconds: {values: [0.5, 0.6, 0.7]}}"
    )

    dying = threading.Thread(target=wandb_server.die)

    def die(progress):
        if progress.running and dying.ident is None:
            dying.start()

    with pytest.raises(SweepStopped) as stopped:
        serve_sweep(path, profile=slots, manners=replace(QUICK, patience=1.5), on_progress=die)
    dying.join()
    said, sweep = str(stopped.value), stopped.value.sweep
    assert said.startswith("sweep sw1: W&B did not answer for") and "can't be reached" in said
    assert sweep.rows and {row["state"] for row in sweep.rows} == {"succeeded"}
    assert "runs are not on the server" in sweep.notes[0] and "scalekit sync" in sweep.notes[0]
    wandb_server.start()
    assert main(["sync", "--store", "runs"]) == 0
    served = list_served(wandb_server)
    assert sum(run["state"] == "finished" for run in served.values()) == len(sweep.rows)


def test_an_agent_that_is_told_to_end_stops_its_trials_and_tells_the_server(notebook, wandb_server, slots):
    path = wandb_server.sweeps.make(GRID.replace("0.4]}", "0.4]}\n  seconds: {value: 60.0}"))
    agent = start_scalekit("agent", path, "--profile", slots)
    store = Store("runs")
    wait_until(lambda: sum("loss" in row["metrics"] for row in list_rows(store)) == 2)
    agent.send_signal(signal.SIGTERM)
    _, said = agent.communicate(timeout=120)
    assert agent.returncode == 1 and "sweep sw1: preempted. 0 trials are done and kept" in said
    assert [row["state"] for row in store.list_runs()] == ["cancelled"] * 2
    served = list_served(wandb_server).values()
    assert [(run["state"], run["tags"]) for run in served] == [("failed", ["cancelled"])] * 2
    assert len(wandb_server.sweeps.found["sw1"]["todo"]) == 6, "no run was asked for that nobody would do"


def list_rows(store: Store) -> list[dict]:
    "Rows as the bundles have them now"
    return [Bundle(path.parent).summary() for path in store.folder.glob("*/run.json")]
