"""What a real MLflow server holds after a sync: everything once, whatever happened on the way."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import torch
from proxy import open_proxy

from scalekit.bundle import Bundle
from scalekit.store import Store

SYNC = [sys.executable, "-c", "import sys; from scalekit.cli import main; sys.exit(main())", "sync"]


def make_run(
    store: Store, target: dict[str, str], n_rows: int = 5, end: str | None = "succeeded", **asked
) -> Bundle:
    "A run that was told of"
    about = {"notebook": "train.ipynb", "parameters": {"lr": 0.1}, "track": ["mlflow"], "mlflow": target}
    bundle = store.create_run(about | asked)
    nbformat.write(nbformat.v4.new_notebook(), bundle.notebook)
    bundle.set_state("running", host="node7")
    log_rows(bundle, range(n_rows))
    if end:
        bundle.set_state(end)
        bundle.seal()
    return bundle


def log_rows(bundle: Bundle, steps: range) -> None:
    for step in steps:
        bundle.append("log", step=step, values={"loss": 1 / (1 + step), "val/f1": step / 7})


def find_runs(client, target: dict[str, str]) -> list:
    "All runs of an experiment, in the order of their names"
    experiment = client.get_experiment_by_name(target["experiment"])
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return sorted(found, key=lambda run: run.data.tags["mlflow.runName"])


def read_curve(client, run, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def look(client, target: dict[str, str]) -> list:
    "Everything that the server shows of an experiment"
    return [
        (run.to_dictionary(), {name: read_curve(client, run, name) for name in run.data.metrics})
        for run in find_runs(client, target)
    ]


def read_steps(client, run, name: str = "loss") -> list[int]:
    return sorted(step for step, _ in read_curve(client, run, name))


def test_a_run_arrives_once_and_whole(store, target, send, client):
    bundle = make_run(store, target, n_rows=1200, end=None, tags=["baseline"], code={"commit": "ab12"})
    (bundle.artifacts / "plots").mkdir()
    (bundle.artifacts / "plots" / "loss.png").write_bytes(b"png")
    bundle.append("record", values={"accuracy": 0.97, "verdict": "good", "worst": math.nan}, files={})
    bundle.set_state("succeeded")
    bundle.seal()
    bundle.note("the labels are those of May")
    sent = send(bundle)

    [run] = find_runs(client, target)
    assert read_curve(client, run, "loss") == [(step, 1 / (1 + step)) for step in range(1200)]
    assert read_curve(client, run, "val/f1") == [(step, step / 7) for step in range(1200)]
    assert (run.data.metrics["accuracy"], math.isnan(run.data.metrics["worst"])) == (0.97, True)
    assert (run.data.params, run.info.status) == ({"lr": "0.1"}, "FINISHED")
    told = {"mlflow.note.content": "the labels are those of May", "baseline": "true", "verdict": "good"}
    assert run.data.tags.items() >= (told | {"mlflow.source.git.commit": "ab12"}).items()
    assert run.info.start_time < run.info.end_time <= time.time() * 1000
    assert sent.rows == 1200
    place = client.download_artifacts(run.info.run_id, "artifacts/plots/loss.png")
    with open(place, "rb") as file:
        assert file.read() == b"png"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"notebook.ipynb", "run.json"}
    assert run.info.run_id in sent.url


def test_a_second_sync_changes_nothing_also_without_what_was_remembered(store, target, send, client):
    bundle = make_run(store, target, n_rows=30)
    send(bundle)
    before = look(client, target)
    send(bundle)
    assert look(client, target) == before
    (bundle.path / "later" / "mlflow.json").unlink()
    send(bundle)
    assert look(client, target) == before


def test_a_running_run_grows_at_its_end(store, target, send, client):
    bundle = make_run(store, target, n_rows=3, end=None)
    send(bundle)
    [run] = find_runs(client, target)
    assert (run.info.status, read_steps(client, run)) == ("RUNNING", [0, 1, 2])
    log_rows(bundle, range(3, 8))
    bundle.append("record", values={"loss": 0.01}, files={})
    bundle.set_state("failed", error="cell 3: ValueError: loss is nan")
    send(bundle)
    [run] = find_runs(client, target)
    assert (run.info.status, read_steps(client, run)) == ("FAILED", [*range(8), 7])
    assert run.data.metrics["loss"] == 0.01
    assert run.data.tags["scalekit.error"] == "cell 3: ValueError: loss is nan"


def test_equal_points_of_a_fast_loop_all_arrive(store, target, send, client):
    bundle = make_run(store, target, n_rows=0, end=None)
    for _ in range(300):
        bundle.append("log", step=1, values={"same": 0.5})
    bundle.set_state("succeeded")
    send(bundle)
    [run] = find_runs(client, target)
    assert len(read_curve(client, run, "same")) == 300


def test_a_resumed_run_goes_on_in_the_same_run(store, target, send, client):
    first = make_run(store, target, n_rows=4, end="failed")
    send(first)
    second = make_run(store, target, n_rows=0, end=None, resumed=first.run_id, parameters={"lr": 0.2, "n": 3})
    log_rows(second, range(4, 9))
    second.set_state("succeeded")
    send(first, second)
    [run] = find_runs(client, target)
    assert (run.info.status, read_steps(client, run)) == ("FINISHED", list(range(9)))
    assert run.data.params == {"lr": "0.1", "n": "3"}  # MLflow lets nobody change one
    assert run.data.tags["scalekit.now.lr"] == "0.2"


def test_trials_stand_below_the_run_of_their_sweep(store, target, send, client):
    trials = [make_run(store, target, sweep="Bob's night", trial=n, parameters={"lr": n}) for n in range(3)]
    pruned = make_run(store, target, sweep="Bob's night", trial=3, end="pruned")
    for bundle in (*trials, pruned):
        send(bundle)
    *children, parent = find_runs(client, target)
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 4
    assert (parent.data.tags["mlflow.runName"], parent.info.status) == ("Bob's night", "FINISHED")
    assert [run.info.status for run in children] == ["FINISHED"] * 3 + ["KILLED"]


def test_a_tag_that_was_taken_away_goes(store, target, send, client):
    bundle = make_run(store, target, tags=["draft", "baseline"])
    send(bundle)
    bundle.tag("draft", remove=True)
    send(bundle)
    [run] = find_runs(client, target)
    assert ("baseline" in run.data.tags, "draft" in run.data.tags) == (True, False)


def test_a_long_parameter_is_cut_and_its_name_is_told(store, target, send, client):
    bundle = make_run(store, target, parameters={"prompt": "x" * 10_000, "opt": {"name": "adam"}})
    send(bundle)
    [run] = find_runs(client, target)
    assert (len(run.data.params["prompt"]), run.data.params["opt.name"]) == (6000, "adam")
    assert "prompt" in run.data.tags["scalekit.cut"]
    with open(client.download_artifacts(run.info.run_id, "run.json")) as file:
        assert len(json.load(file)["parameters"]["prompt"]) == 10_000


def test_odd_names_become_names_that_mlflow_takes(store, target, send, client):
    bundle = make_run(store, target, n_rows=0, end=None, parameters={"a(b)": 1})
    bundle.append("log", step=0, values={"loss (val)": 0.5, "a//b": 1.0, "../x": 2.0, "y" * 300: 3.0})
    bundle.set_state("succeeded")
    send(bundle)
    [run] = find_runs(client, target)
    assert sorted(run.data.metrics.values()) == [0.5, 1.0, 2.0, 3.0]


def test_the_data_of_a_training_are_a_data_set_of_its_run(store, target, send, client):
    bundle = make_run(store, target, end=None)
    manifest = {"manifest": {"about": {"training": {"data": "rows", "content of the data": "c0ffee" * 10}}}}
    step = bundle.path / "checkpoints" / "model" / "00000010"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text(json.dumps(manifest))
    bundle.set_state("succeeded")
    for _ in range(2):
        send(bundle)
        (bundle.path / "later" / "mlflow.json").unlink()
    [run] = find_runs(client, target)
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("rows", ("c0ffee" * 10)[:36])
    assert "checkpoints" not in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_models_arrive_with_a_signature_and_predict_the_same(store, target, send, client, monkeypatch):
    import mlflow

    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softmax(-1)).eval()
    bundle, x = make_run(store, target, end=None), torch.rand(5, 4)
    program = torch.export.export(net, (x,), dynamic_shapes={"input": {0: torch.export.Dim("batch", max=64)}})
    torch.export.save(program, bundle.artifacts / "net.pt2")
    torch.onnx.export(program, dynamo=True).save(bundle.artifacts / "net.onnx")
    torch.save(net.state_dict(), bundle.artifacts / "weights.pt")
    bundle.set_state("succeeded")
    send(bundle)
    [run] = find_runs(client, target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", target["uri"])
    for name in ("net.pt2", "net.onnx"):
        model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/models/{name}")
        [port] = model.metadata.signature.inputs.inputs
        assert (port.type, port.shape) == (np.dtype("float32"), (-1, 4))
        found = model.predict(x.numpy())
        found = found[next(iter(found))] if isinstance(found, dict) else found
        np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-6)
    assert [file.path for file in client.list_artifacts(run.info.run_id, "artifacts")] == [
        "artifacts/weights.pt"
    ]


@pytest.mark.parametrize("fault", [429, 503, "cut"])
def test_bad_answers_double_nothing(store, target, send, client, server, fault):
    bundle = make_run(store, target, n_rows=1000)
    with open_proxy(server) as (address, faults):
        faults.plan = [
            (part, fault) for part in ("experiments/create", "runs/create", "log-batch", "runs/update")
        ]
        send(bundle, uri=address)
        assert len(faults.struck) == 4
    [run] = find_runs(client, target)
    assert (run.info.status, read_steps(client, run)) == ("FINISHED", list(range(1000)))


def test_syncs_that_are_killed_lose_and_double_nothing(store, target, client):
    make_run(store, target, n_rows=12_000)
    moments = random.Random(5)
    n_seen = []
    while len(n_seen) < 2:
        sync = subprocess.Popen([*SYNC, "--store", store.folder], stderr=subprocess.DEVNULL)
        wait_for_rows(client, target, more_than=n_seen[-1] if n_seen else 0)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(sync.pid, signal.SIGKILL)
        sync.wait()
        n_seen.append(count_rows(client, target))
    assert n_seen[0] < 12_000, "the first sync was through before it was killed"
    subprocess.run([*SYNC, "--store", store.folder], check=True)
    [run] = find_runs(client, target)
    assert (run.info.status, read_steps(client, run)) == ("FINISHED", list(range(12_000)))


def count_rows(client, target) -> int:
    if client.get_experiment_by_name(target["experiment"]) is None:
        return 0
    return max([int(run.data.tags.get("scalekit.rows", 0)) for run in find_runs(client, target)], default=0)


def wait_for_rows(client, target, more_than: int) -> None:
    end = time.monotonic() + 60
    while count_rows(client, target) <= more_than and more_than < 12_000:
        assert time.monotonic() < end, "a sync sends nothing"
        time.sleep(0.02)


def test_a_dead_server_costs_seconds_and_one_sentence(store, target, client):
    bundle = make_run(store, {"experiment": target["experiment"]})
    begun = time.monotonic()
    dead = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    sync = [*SYNC, "--store", str(store.folder)]
    told = subprocess.run(sync, env=dead, capture_output=True, text=True)
    assert (told.returncode, len(told.stderr.splitlines())) == (1, 1), told.stderr
    assert "MLflow at http://127.0.0.1:9 can't be reached" in told.stderr
    assert time.monotonic() - begun < 60  # and not the minutes that the client would take
    alive = os.environ | {"MLFLOW_TRACKING_URI": target["uri"]}
    subprocess.run(sync, env=alive, check=True, capture_output=True)
    [run] = find_runs(client, target)
    assert (run.data.tags["scalekit.run_id"], read_steps(client, run)) == (bundle.run_id, list(range(5)))
