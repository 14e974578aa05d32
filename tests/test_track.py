"""Runs are shown by W&B: what notebooks say to wandb, what a sync sends, and what happens when things break.

The server is the project's own (fake_wandb): these tests show how the client is used, not what W&B does.
"""

import json
import math
import os
import signal
import threading

import pandas as pd
import pytest
from fake_wandb import FakeWandb
from notebooks import read_cells, write_notebook
from processes import start_scalekit, wait_until

import scalekit as sk
from scalekit.cli import main
from scalekit.config import load_settings
from scalekit.rules import ConfigError
from scalekit.store import Store
from scalekit.track.courier import Courier, Errand
from scalekit.track.mirror import make_mirror
from scalekit.track.plan import find_chains
from scalekit.track.wandbfile import BadWandbFile, find_wandb_files, read_wandb_run
from scalekit.values import MASK

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def module_server():
    with FakeWandb() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
        assert server.unknown == [] and server.odd == []


@pytest.fixture
def server(module_server, monkeypatch):
    "The server that all tests of this file share, in good health"
    for name, value in module_server.environment.items():
        monkeypatch.setenv(name, value)
    module_server.faults.__init__()
    return module_server


@pytest.fixture(scope="module")
def courier(module_server):
    "A process with a client, for all tests of this file"
    courier = Courier()
    yield courier
    courier.leave()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", tmp_path)


def make_run(store, n_rows=0, state="succeeded", **asked):
    "A tracked run that has logged so many rows, and ended"
    target = {"track": ["wandb"], "wandb": {"project": "digits"}}
    bundle = store.create_run({"notebook": "train.ipynb", "parameters": {"lr": 0.5}} | target | asked)
    write_notebook(bundle.notebook, ("lr: float = 0.1\nepochs: int = 3", "parameters"), "1")
    bundle.set_state("running", host="node7")
    log(bundle, n_rows)
    if state != "running":
        end(bundle, state)
    return bundle


def log(bundle, n, start=0):
    for number in range(start, start + n):
        bundle.append("log", step=10 * number, values={"loss": 1 / (number + 1)})


def end(bundle, state="succeeded", **why):
    bundle.set_state(state, **why)
    bundle.seal()


def send(courier, *bundles):
    "Bring the tracker up to date about one run"
    errand = Errand("wandb", tuple(str(bundle.path) for bundle in bundles), bundles[-1].asked["wandb"])
    return courier.send(errand, lambda rows: None, 60.0)


def rows_of(*bundles):
    "The rows that the tracker must show"
    rows = make_mirror(bundles, "wandb").rows
    return [row.values | ({} if row.step is None else {"step": row.step}) for row in rows]


# What is asked for


def test_a_run_says_who_shows_it_and_where_and_the_nearest_word_counts(tmp_path, monkeypatch):
    (tmp_path / "scalekit.toml").write_text(
        'track = "wandb"\n[wandb]\nentity = "team"\n[profiles.quiet]\nkind = "cpu"\ntrack = "none"'
    )
    settings = load_settings(tmp_path, {})
    expected = {"track": ["wandb"], "wandb": {"project": tmp_path.name, "entity": "team"}}
    assert settings.find_track() == expected
    assert settings.find_track(profile=settings.get_profile("quiet")) == {}
    assert settings.find_track("mlflow")["mlflow"] == {"experiment": tmp_path.name}
    by_variable = load_settings(tmp_path, {"SCALEKIT_TRACK": "mlflow,wandb"})
    assert by_variable.find_track(profile=by_variable.get_profile("quiet"))["track"] == ["mlflow", "wandb"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('track = "wanddb"', 'track must be "wandb", "mlflow"'),
        ('[wandb]\nprojet = "a"', "Did you mean 'project'?"),
        ('[wandb]\nbase_url = "https://ann:secret@wandb.org"', "without a password"),
        ('[mlflow]\nuri = "http://ann:secret@m"', "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_wrong_word_about_tracking_is_one_sentence_before_anything_starts(tmp_path, text, said):
    (tmp_path / "scalekit.toml").write_text(text)
    with pytest.raises(ConfigError, match=".") as caught:
        load_settings(tmp_path, {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_tracker_in_a_call_stops_before_a_bundle_is_made(place):
    notebook = write_notebook(place / "a.ipynb", "1")
    with pytest.raises(ConfigError, match="a run: track must be"):
        sk.run(notebook, track="wanddb")
    assert main(["run", str(notebook), "--track", "wanddb"]) == 2
    assert not list(place.glob("runs/*/run.json"))


# What a notebook says to wandb


WANDB_CELLS = (
    ("lr: float = 0.1\ntoken: str = 'x'", "parameters"),
    "import scalekit as sk, sys\nassert 'wandb' not in sys.modules\nsk.log(step=5, loss=0.5)",
    "import wandb\nassert wandb.login() is False\n"
    "run = wandb.init(project='other', mode='online', id='mine', config={'depth': 3}, tags=['mine'])",
    "for i in range(3):\n    wandb.log({'x': i, 'deep': {'y': float(i)}})\n"
    "wandb.log({'half': 1}, commit=False)\nwandb.log({'other': 2})\n"
    "wandb.log({'table': wandb.Table(columns=['a'], data=[[1], [2]]), 'page': wandb.Html('<b>x</b>')})\n"
    "wandb.config.update({'late': 1})",
    "import multiprocessing\n"
    "child = multiprocessing.get_context('fork').Process(target=lambda: run.log({'forked': 1}))\n"
    "child.start(); child.join()",
    "import os\nprint({name: value for name, value in os.environ.items() if 'KEY' in name})",
    "import subprocess\ncode = 'import wandb; run = wandb.init(); run.log(dict(apart=1)); run.finish()'\n"
    "done = subprocess.run([sys.executable, '-c', code], capture_output=True)\n"
    "assert done.returncode == 0, done",
)


@pytest.fixture(scope="module")
def spoken(module_server, warm_server, tmp_path_factory):
    "A run whose notebook speaks to wandb and is killed in the middle of it"
    place = tmp_path_factory.mktemp("spoken")
    kill = (
        "import time\nwhile b'late' not in open(run.settings.sync_file, 'rb').read(): time.sleep(0.05)\n"
        "for i in range(50):\n    wandb.log({'last': i})\nos.kill(os.getpid(), 9)"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**warm_server, "WANDB_API_KEY": "s3cret" * 7}.items():
            patch.setenv(name, value)
        patch.chdir(place)
        notebook = write_notebook(place / "spoken.ipynb", *WANDB_CELLS, kill)
        return sk.run(notebook, track="wandb", check=False).bundle


def test_what_a_notebook_logs_to_wandb_is_in_the_bundle_at_once_and_survives_a_kill(spoken):
    assert spoken.state == "failed"
    told = [event for event in spoken.events() if event["event"] == "log"]
    assert [event["values"] for event in told[:6]] == [
        {"loss": 0.5}, {"x": 0, "deep.y": 0.0}, {"x": 1, "deep.y": 1.0}, {"x": 2, "deep.y": 2.0},
        {"half": 1}, {"other": 2},
    ]  # fmt: skip
    assert [event["values"]["last"] for event in told if "last" in event["values"]] == list(range(50))
    assert [event["values"] for event in told if "forked" in event["values"]] == [{"forked": 1}]
    assert next(event["media"] for event in told if "media" in event) == ["table", "page"]


def test_wandb_is_offline_in_the_notebook_under_the_runs_own_name(spoken):
    said, apart = map(read_wandb_run, find_wandb_files(spoken.path))
    assert (apart.rows[0]["apart"], apart.exit_code) == (1, 0)
    assert (said.run_id, said.config["depth"], said.config["late"]) == (spoken.run_id, 3, 1)
    assert [row["deep"]["y"] for row in said.rows[:3]] == [0.0, 1.0, 2.0]
    assert said.exit_code is None  # nobody could write it


def test_the_key_of_an_account_never_reaches_the_bundle(spoken):
    assert read_cells(spoken.notebook)[5].text.strip() == "{}"
    found = [path for path in spoken.path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert found == []


def test_a_killed_run_arrives_with_every_row_its_tables_and_its_config(spoken, server, courier):
    assert send(courier, spoken)["rows"] == len(rows_of(spoken))
    rows = server.rows(spoken.run_id)
    assert [row["last"] for row in rows if "last" in row] == list(range(50))
    assert {"half": 1, "other": 2, "step": 3} in rows  # one row of wandb, said in two calls
    assert rows[-1] == {"apart": 1, "step": 0}  # of a program that the notebook has started
    media = next(row for row in rows if "table" in row)
    assert (media["table"]["nrows"], media["page"]["_type"]) == (2, "html-file")
    assert any(media["page"]["path"] in path for path in server.files.stored)
    shown = server.run(spoken.run_id)
    assert (shown["state"], shown["config"]["depth"], shown["config"]["late"]) == ("failed", 3, 1)
    assert shown["tags"] == ["mine"]


def test_a_secret_parameter_stays_one_whatever_the_notebook_does_with_it(place, server):
    cells = ("from pydantic import SecretStr\ntoken: SecretStr", "parameters")
    work = "import wandb\nwandb.init(config={'token': token.get_secret_value(), 'a': 1}).finish()"
    run = sk.run(write_notebook(place / "a.ipynb", cells, work), token="hush hush", track="wandb")
    assert make_mirror([run.bundle], "wandb").config | {"scalekit": 0} == {
        "a": 1,
        "token": MASK,
        "scalekit": 0,
    }
    assert [
        path for path in run.path.rglob("*") if path.is_file() and b"hush hush" in path.read_bytes()
    ] == []


def test_wandb_stays_disabled_for_who_wants_that_and_untracked_runs_are_left_alone(place):
    disabled = "import wandb\nrun = wandb.init(mode='disabled')\nrun.log({'x': 1})\nrun.finish()"
    run = sk.run(write_notebook(place / "a.ipynb", disabled), track="wandb")
    assert [event for event in run.bundle.events() if event["event"] in ("log", "wandb")] == []
    look = "import sys, os\nprint('scalekit.wandbhook' in sys.modules, 'SCALEKIT_WANDB_RUN' in os.environ)"
    run = sk.run(write_notebook(place / "b.ipynb", look))
    assert read_cells(run.notebook)[0].text == "False False\n"


def test_a_tracked_run_goes_on_though_its_own_place_for_wandb_is_another(place):
    slow = "import os, time\ntime.sleep(0.4)\nn = sum(name.startswith('WANDB_') for name in dict(os.environ))"
    once = "if not os.path.exists('done'):\n    open('done', 'w').close(); 1 / 0\nprint(n > 5)"
    notebook = write_notebook(place / "a.ipynb", slow, once)
    assert sk.run(notebook, track="wandb", check=False).state == "failed"
    run = sk.run(notebook, resume="latest")
    assert [cell.status for cell in read_cells(run.notebook)] == ["restored", "completed"]
    assert (read_cells(run.notebook)[1].text, run.bundle.asked["track"]) == ("True\n", ["wandb"])


# What a sync sends


def test_a_run_arrives_once_however_often_it_is_sent(store, server, courier):
    bundle = make_run(
        store, 30, tags=["team a"], sweep="train-1a2b", code={"commit": "abc123", "changed": False}
    )
    bundle.tag("accepted")
    bundle.note("good")
    assert send(courier, bundle)["rows"] == 30
    assert server.rows(bundle.run_id) == rows_of(bundle)
    shown = server.run(bundle.run_id)
    assert (shown["state"], shown["group"], shown["jobType"]) == ("finished", "train-1a2b", "trial")
    assert (shown["tags"], shown["notes"]) == (["team a", "accepted"], "good")
    assert (shown["commit"], shown["program"], shown["host"]) == ("abc123", "train.ipynb", "node7")
    assert (shown["config"]["lr"], shown["config"]["epochs"]) == (0.5, 3)
    assert shown["summary"]["loss"] == pytest.approx(1 / 30)
    assert shown["summary"]["scalekit/state"] == "succeeded"
    n_asked = len(server.asked)
    assert send(courier, bundle)["rows"] == 30
    assert len(server.asked) == n_asked  # there was nothing to say
    (bundle.path / "later" / "wandb.json").unlink()
    bundle.tag("late")
    bundle.tag("accepted", remove=True)
    bundle.note("better than it looked")
    send(courier, bundle)
    assert server.rows(bundle.run_id) == rows_of(bundle)
    shown = server.run(bundle.run_id)
    assert (shown["tags"], shown["notes"]) == (["team a", "late"], "good\nbetter than it looked")
    assert bundle.verify() == []


def test_a_run_that_is_still_running_is_shown_so_far_and_then_the_rest(store, server, courier):
    bundle = make_run(store, 5, state="running")
    send(courier, bundle)
    assert (len(server.rows(bundle.run_id)), server.run(bundle.run_id)["state"]) == (5, "running")
    log(bundle, 3, start=5)
    end(bundle)
    send(courier, bundle)
    assert server.rows(bundle.run_id) == rows_of(bundle)
    assert server.run(bundle.run_id)["state"] == "finished"


def test_a_run_that_goes_on_with_another_is_the_same_run_there(store, server, courier):
    first = make_run(store, 4, state="failed")
    send(courier, first)
    second = make_run(store, state="running", resumed=first.run_id)
    second.append("cell", index=1, status="restored", **{"from": first.run_id})
    second.append("log", step=0, values={"loss": 1.0}, cell=1)  # it was carried over
    log(second, 2, start=4)
    end(second)
    send(courier, first, second)
    assert [row["step"] for row in server.rows(first.run_id)] == [0, 10, 20, 30, 40, 50]
    assert server.run(first.run_id)["state"] == "finished"
    other = make_run(store, 1, resumed=first.run_id)
    assert find_chains([first, second, other]) == [(first, second), (other,)] or [
        [one.run_id for one in chain] for chain in find_chains([first, second, other])
    ] == [[first.run_id, second.run_id], [other.run_id]]


@pytest.mark.parametrize(("state", "shown"), [("pruned", "finished"), ("cancelled", "failed")])
def test_an_end_that_is_neither_good_nor_bad_is_a_tag(store, server, courier, state, shown):
    bundle = make_run(store, 2, state=state)
    send(courier, bundle)
    found = server.run(bundle.run_id)
    assert (found["state"], found["tags"]) == (shown, [state])


def test_each_wandb_run_in_a_notebook_has_rows_of_its_own(store, server, courier):
    bundle = make_run(store, state="running")
    for number in range(2):
        bundle.append("wandb", wandb="wandb/a.wandb", config={"round": number})
        for _ in range(2):
            bundle.append("log", step=0, values={f"x{_}": number}, source="wandb", wandb="wandb/a.wandb")
    assert len(rows_of(bundle)) == 1  # the last one may still grow
    end(bundle)
    send(courier, bundle)
    assert server.rows(bundle.run_id) == [{"x0": n, "x1": n, "step": 0} for n in (0, 1)]
    assert server.run(bundle.run_id)["config"]["round"] == 1


def test_system_metrics_numbers_that_are_none_and_odd_names_arrive(store, server, courier):
    bundle = make_run(store, state="running")
    bundle.append("system", values={"cpu": 1.5, "gpu0/memory": 10})
    bundle.append("log", step=None, values={"loss": math.nan, "best": -math.inf, "a/b c.d": 1, "note": "x"})
    end(bundle)
    send(courier, bundle)
    system, log = server.rows(bundle.run_id)
    assert system == {"system/cpu": 1.5, "system/gpu0/memory": 10}
    assert math.isnan(log.pop("loss")) and log == {"best": -math.inf, "a/b c.d": 1, "note": "x"}
    assert "system/cpu" not in server.run(bundle.run_id)["summary"]


def test_tables_pictures_models_arrive_and_checkpoints_are_only_named(store, server, courier):
    bundle = make_run(store, 1, state="running")
    pd.DataFrame({"label": [1, 2], 3: ["a", None]}).rename(columns=str).to_parquet(
        bundle.artifacts / "predictions.parquet"
    )
    (bundle.artifacts / "loss.png").write_bytes(PIXEL)
    (bundle.artifacts / "model.pt").write_bytes(b"weights")
    (bundle.path / "checkpoints" / "model").mkdir(parents=True)
    (bundle.path / "checkpoints" / "model" / "step.pt").write_bytes(b"a secret step")
    files = {"predictions": "artifacts/predictions.parquet", "loss curve": "artifacts/loss.png"}
    bundle.append("record", values={"accuracy": 0.9}, files=files)
    end(bundle)
    send(courier, bundle)
    summary = server.run(bundle.run_id)["summary"]
    assert (summary["accuracy"], summary["predictions"]["nrows"]) == (0.9, 2)
    assert summary["loss curve"]["_type"] == "image-file"
    kinds = {one["type"] for one in server.artifacts.found.values() if one["run"] == bundle.run_id}
    assert {"notebook", "model", "files", "checkpoints"} <= kinds
    assert b"weights" in server.files.stored.values()
    assert b"a secret step" not in server.files.stored.values()
    assert len(server.rows(bundle.run_id)) == 1  # none of it makes a row
    n = len(server.artifacts.found)
    bundle.tag("again")
    send(courier, bundle)
    assert len(server.artifacts.found) == n


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000"
    "0500017a5eab3f0000000049454e44ae426082"
)


# When things break


@pytest.mark.parametrize(
    "fault",
    [
        {"n_bad": 2, "status": 500}, {"n_bad": 1, "status": 429, "only": "file_stream"},
        {"n_cut": 1, "only": "file_stream"}, {"n_lost": 1, "only": "file_stream"},
        {"n_cut": 1, "only": "UpsertBucket"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)  # fmt: skip
def test_a_server_that_stumbles_has_every_row_once_in_the_end(store, server, courier, fault):
    bundle = make_run(store, 20)
    for name, value in fault.items():
        setattr(server.faults, name, value)
    send(courier, bundle)
    assert server.rows(bundle.run_id) == rows_of(bundle)


def test_a_dead_server_is_one_sentence_and_nothing_is_lost(place, server, capsys):
    bundle = make_run(Store(place / "runs", place), 3)
    with FakeWandb() as gone:
        pass
    os.environ["WANDB_BASE_URL"] = gone.url
    assert main(["sync"]) == 1
    told = capsys.readouterr()
    assert f"{bundle.run_id} not sent: W&B at {gone.url} can't be reached: " in told.err
    assert told.err.count("\n") == 1
    os.environ["WANDB_BASE_URL"] = server.url
    assert main(["sync", "--json"]) == 0
    assert [one["rows"] for one in json.loads(capsys.readouterr().out)["runs"]] == [3]
    assert server.rows(bundle.run_id) == rows_of(bundle)


def test_a_sync_that_is_killed_is_finished_by_the_next_and_a_bad_run_stops_no_other(place, server, capsys):
    store = Store(place / "runs", place)
    bundles = [make_run(store, 400) for _ in range(3)]
    damaged = make_run(store, 3, state="running")
    (damaged.path / "wandb" / "offline-run-1").mkdir(parents=True)
    (damaged.path / "wandb" / "offline-run-1" / "run-a.wandb").write_text("not wandb's")
    end(damaged)
    before = len(server.asked)
    process = start_scalekit("sync", "--workers", "1", "--store", place / "runs")
    try:
        wait_until(lambda: any("UpsertBucket" in asked for asked in server.asked[before:]))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = sk.sync(store=store.folder, n_workers=2)
    assert [one.run_id for one in result.failed] == [damaged.run_id]
    assert "this is no file of wandb" in result.failed[0].error
    for bundle in bundles:
        assert server.rows(bundle.run_id) == rows_of(bundle)
    assert main(["sync", "--dry-run", "--store", str(store.folder)]) == 0
    assert damaged.run_id in capsys.readouterr().out


def test_a_courier_that_dies_with_its_run_is_replaced(store, server):
    bundle, courier = make_run(store, 3), Courier()
    server.faults.delay = 3.0
    errand = Errand("wandb", (str(bundle.path),), bundle.asked["wandb"])
    before = len(server.asked)

    def kill_at_work():
        wait_until(lambda: len(server.asked) > before)
        courier._process.kill()

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    with pytest.raises(Exception, match="is gone"):
        courier.send(errand, lambda rows: None, 200.0)
    killer.join()
    server.faults.delay = 0.0
    assert courier.send(errand, lambda rows: None, 200.0)["rows"] == 3
    courier.leave()
    assert server.rows(bundle.run_id) == rows_of(bundle)


# wandb's own files


def test_a_torn_file_is_read_up_to_the_tear_and_a_changed_byte_is_told(spoken, tmp_path):
    file = find_wandb_files(spoken.path)[0]
    whole = file.read_bytes()
    torn = tmp_path / "run-a.wandb"
    torn.write_bytes(whole[: len(whole) // 2])
    assert 0 < len(read_wandb_run(torn).config) <= len(read_wandb_run(file).config)
    changed = bytearray(whole)
    changed[200] ^= 1
    torn.write_bytes(changed)
    with pytest.raises(BadWandbFile, match="is damaged"):
        read_wandb_run(torn)
