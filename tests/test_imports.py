"""Runs that wandb and papermill left behind, as their own programs wrote them."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from processes import MARK, list_marked, wait_until

from scalekit.bundle import Bundle
from scalekit.cli import main
from scalekit.imports.papermill import import_papermill
from scalekit.imports.past import CannotImport
from scalekit.imports.wandb import import_wandb
from scalekit.store import Store

TRAIN = """
import os, sys, time, wandb
import numpy as np
run = wandb.init(project="digits", id=sys.argv[1], name="first try", tags=["baseline", "May"], notes="a try",
                 group="night", config={"lr": 0.1, "layers": [64, 32], "opt": {"name": "adam"}})
for step in range(40):
    run.log({"loss": 1 / (1 + step), "val": {"f1": step / 7}})
if sys.argv[2] == "killed":
    file = run.settings.sync_file
    while open(file, "rb").read().count(b"val") < 40:  # wandb writes behind
        time.sleep(0.05)
    os.kill(os.getpid(), 9)
run.log({"look": wandb.Image(np.zeros((4, 4, 3), np.uint8)), "loss": float("nan")})
run.summary["best"] = 0.99
with open("model.bin", "wb") as file:
    file.write(b"weights")
kept = wandb.Artifact("digits-model", "model")
kept.add_file("model.bin")
run.log_artifact(kept)
print("epoch 40")
if sys.argv[2] == "failed":
    raise ValueError("loss is nan")
run.finish()
"""
ENDS = ("good", "failed", "killed")


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Three runs of the real client: one went well, one failed, one was killed"
    folder = tmp_path_factory.mktemp("offline")
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1"}
    mark = folder.name
    for end in ENDS:
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, f"run{end}", end], cwd=folder, env=os.environ | quiet | {MARK: mark}
        )
        assert done.returncode == {"good": 0, "failed": 1, "killed": -signal.SIGKILL}[end]
    wait_until(lambda: not list_marked(mark))  # wandb's own process outlives the one that was killed
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def import_all(offline: Path, store: Store) -> dict[str, Bundle]:
    "Bundles by how the run ended"
    told = import_wandb([offline], store)
    bundles = [store.open_run(one.run_id) for one in told]
    return {bundle.asked["imported"]["run"].removeprefix("run"): bundle for bundle in bundles}


def test_runs_of_wandb_come_with_all_that_they_said(offline, store):
    bundle = import_all(offline, store)["good"]
    row = bundle.summary()
    assert (row["state"], row["sweep"], row["tags"], row["notes"]) == (
        "succeeded",
        "night",
        ["baseline", "May"],
        "a try",
    )
    assert row["parameters"] == {"lr": 0.1, "layers": [64, 32], "opt": {"name": "adam"}}
    assert bundle.curves()["loss"][:40] == [(step, 1 / (1 + step)) for step in range(40)]
    assert bundle.curves()["val.f1"] == [(step, step / 7) for step in range(40)]
    assert row["metrics"]["best"] == 0.99
    assert bundle.records()["look"].read_bytes().startswith(b"\x89PNG")
    assert (bundle.artifacts / "digits-model" / "model.bin").read_bytes() == b"weights"
    assert "epoch 40" in bundle.notebook.read_text()
    assert "numpy==" in (bundle.path / "environment.txt").read_text()
    assert bundle.verify() == []


def test_times_are_those_of_the_run(offline, store):
    bundle = import_all(offline, store)["good"]
    row, name = bundle.summary(), Path(bundle.asked["imported"]["path"]).parent.name
    assert (
        name.split("-")[2][:8] == bundle.run_id[:8]
    )  # the folder that wandb made: offline-run-20260501_120000-id
    assert row["started"] == row["created"] <= row["ended"] < bundle.asked["imported"]["time"]
    times = [event["time"] for event in bundle.events()]
    assert times == sorted(times)


def test_a_failed_run_says_why_and_a_killed_one_keeps_every_whole_row(offline, store):
    bundles = import_all(offline, store)
    assert bundles["failed"].summary()["error"] == "ValueError: loss is nan"
    killed = bundles["killed"].summary()
    assert (killed["state"], "never closed" in killed["error"]) == ("failed", True)
    assert len(bundles["killed"].curves()["loss"]) == 40


def test_a_second_import_makes_no_second_bundle(offline, store):
    first = import_all(offline, store)
    assert [one.outcome for one in import_wandb([offline], store)] == ["known"] * 3
    assert sorted(store.folder.glob("2*")) == sorted(bundle.path for bundle in first.values())


def test_a_damaged_file_is_told_and_the_others_go_on(offline, store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(offline, copy, symlinks=True)
    files = sorted(copy.rglob("offline-run-*/*.wandb"))
    data = bytearray(files[0].read_bytes())
    data[5000] ^= 1
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:20])
    told = import_wandb([copy], store)
    assert [one.outcome for one in told] == ["refused", "refused", "imported"]
    assert "is damaged" in told[0].text
    assert "before it says of which run it is" in told[1].text


def test_a_run_that_goes_on_is_left_alone(offline, store, tmp_path):
    copy = tmp_path / "offline-run-20260501_120000-a"
    killed = next(offline.rglob("offline-run-*/run-runkilled.wandb"))
    shutil.copytree(killed.parent, copy, symlinks=True)
    with open(copy / killed.name, "ab"):
        [told] = import_wandb([copy], store)
        assert (told.outcome, f"in process {os.getpid()}" in told.text) == ("refused", True)
    [told] = import_wandb([copy], store)
    assert told.outcome == "imported"


def test_links_and_paths_of_others_are_not_followed(offline, store, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("key")
    copy = tmp_path / "copy"
    good = next(offline.rglob("offline-run-*/run-rungood.wandb"))
    shutil.copytree(good.parent, copy, symlinks=True)
    (copy / "files" / "link.txt").symlink_to(secret)
    monkeypatch.setenv(
        "WANDB_DATA_DIR", str(tmp_path / "elsewhere")
    )  # so the model lies outside of wandb's place
    [told] = import_wandb([copy], store)
    names = [path.name for path in store.open_run(told.run_id).artifacts.rglob("*")]
    assert ("link.txt" in names, "model.bin" in names) == (False, False)
    assert "digits-model" in told.text


def write_wandb_file(path: Path, started: int) -> None:
    "What the client writes of a run that has only begun"
    from wandb.proto import wandb_internal_pb2 as pb

    record = pb.Record()
    record.run.run_id, record.run.project, record.run.start_time.seconds = "a1b2", "digits", started
    content = record.SerializeToString()
    path.parent.mkdir()
    head = struct.pack("<IHB", zlib.crc32(content, zlib.crc32(b"\x01")), len(content), 1)
    path.write_bytes(b":W&B\xef\xbe\x00" + head + content)


def test_a_resumed_run_goes_on_with_the_one_before(store, tmp_path):
    for number, started in enumerate((1777636800, 1777640400)):
        write_wandb_file(tmp_path / f"offline-run-20260501_1{number}0000-a1b2" / "run-a1b2.wandb", started)
    [old] = import_wandb([tmp_path / "offline-run-20260501_100000-a1b2"], store)  # one evening, and another
    first, second = (store.open_run(one.run_id) for one in import_wandb([tmp_path], store))
    assert first.run_id == old.run_id
    assert second.asked["resumed"] == first.run_id
    assert first.summary()["started"] == "2026-05-01T12:00:00.000000Z"


def test_our_own_runs_are_no_past_of_another_tool(offline, store, tmp_path):
    bundle = store.create_run({"notebook": "train.ipynb"})
    good = next(offline.rglob("offline-run-*/run-rungood.wandb"))
    shutil.copytree(good.parent, bundle.path / "wandb" / good.parent.name, symlinks=True)
    with pytest.raises(CannotImport, match="no .wandb file"):
        import_wandb([store.folder], store)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Three outputs of the real papermill: one went well, one failed, and of one the kernel died"
    import papermill

    folder = tmp_path_factory.mktemp("outputs")
    cells = [
        new_code_cell("lr = 1.0\nend = 'good'\nsizes = ()", metadata={"tags": ["parameters"]}),
        new_code_cell("import os\nprint('lr', lr)"),
        new_code_cell(
            "if end == 'failed':\n    raise ValueError('too much')\nif end == 'died':\n    os._exit(3)"
        ),
        new_code_cell("1 + 1"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "train.ipynb")
    for end in ("good", "failed", "died"):
        given = {"lr": 0.5, "end": end, "sizes": (64, 32), "worst": float("nan")}
        try:
            papermill.execute_notebook(
                folder / "train.ipynb", folder / f"out_{end}.ipynb", given, progress_bar=False
            )
        except Exception as error:  # papermill's own, and nbclient's for a kernel that died
            assert end != "good", error
    return folder


def test_outputs_of_papermill_come_with_their_ends(outputs, store):
    told = {one.source.stem: store.open_run(one.run_id) for one in import_papermill([outputs], store)}
    rows = {name: bundle.summary() for name, bundle in told.items()}
    assert {name: (row["state"], row["cell"]) for name, row in rows.items()} == {
        "out_good": ("succeeded", None), "out_failed": ("failed", 3), "out_died": ("failed", 3),
    }  # fmt: skip
    assert rows["out_failed"]["error"] == "ValueError: too much"
    good = rows["out_good"]["parameters"]
    assert (good["lr"], good["sizes"], good["worst"] != good["worst"]) == (0.5, "(64, 32)", True)  # as it ran
    assert rows["out_good"]["notebook"] == "train.ipynb"
    cells = [
        cell["metadata"].get("scalekit")
        for cell in json.loads(told["out_died"].notebook.read_text())["cells"]
    ]
    assert [cell["status"] for cell in cells if cell] == ["completed"] * 3 + ["failed", "not run"]
    assert all(bundle.verify() == [] for bundle in told.values())


def test_papermill_times_are_kept_to_the_microsecond(outputs, store):
    [told] = import_papermill([outputs / "out_good.ipynb"], store)
    said = json.loads((outputs / "out_good.ipynb").read_text())["metadata"]["papermill"]
    row = store.open_run(told.run_id).summary()
    assert [row["started"][:26], row["ended"][:26]] == [said["start_time"][:26], said["end_time"][:26]]
    assert row["seconds"] == pytest.approx(said["duration"], abs=1e-5)


def test_the_notebook_is_as_papermill_left_it(outputs, store):
    [told] = import_papermill([outputs / "out_failed.ipynb"], store)
    before, after = nbformat.read(told.source, 4), nbformat.read(store.open_run(told.run_id).notebook, 4)
    for cell in after.cells:
        cell.metadata.pop("scalekit", None)
    assert after == before


def test_a_half_written_output_is_told_and_the_others_go_on(outputs, store, tmp_path):
    (tmp_path / "out").mkdir()
    shutil.copy(outputs / "out_good.ipynb", tmp_path / "out" / "a.ipynb")
    text = (outputs / "out_failed.ipynb").read_text()
    (tmp_path / "out" / "b.ipynb").write_text(text[: len(text) // 2])
    told = {one.source.name: one for one in import_papermill([tmp_path / "out"], store)}
    assert told["a.ipynb"].outcome == "imported"
    assert (told["b.ipynb"].outcome, "is not a notebook" in told["b.ipynb"].text) == ("refused", True)


def test_an_output_without_an_end_waits_until_nobody_writes_it(outputs, store, tmp_path):
    notebook = json.loads((outputs / "out_good.ipynb").read_text())
    notebook["metadata"]["papermill"]["end_time"] = None
    path = tmp_path / "open.ipynb"
    path.write_text(json.dumps(notebook))
    [told] = import_papermill([path], store)
    assert (told.outcome, "papermill may be at it" in told.text) == ("refused", True)
    os.utime(path, (1, 1))
    [told] = import_papermill([path], store)
    assert (told.outcome, told.state) == ("imported", "failed")


def test_parameters_are_read_and_not_run(outputs, store, tmp_path):
    notebook = json.loads((outputs / "out_good.ipynb").read_text())
    injected = next(c for c in notebook["cells"] if "injected-parameters" in c["metadata"]["tags"])
    injected["source"] = f"lr = __import__('os').mkdir({str(tmp_path / 'sprung')!r})"
    path = tmp_path / "hostile.ipynb"
    path.write_text(json.dumps(notebook))
    [told] = import_papermill([path], store)
    assert (told.outcome, (tmp_path / "sprung").exists()) == ("imported", False)


def test_the_command_counts_and_refuses(outputs, tmp_path, capsys):
    shutil.copytree(outputs, tmp_path / "out")
    (tmp_path / "out" / "broken.ipynb").write_text('{"papermill"')
    words = ["import-papermill", str(tmp_path / "out"), "--store", str(tmp_path / "runs"), "--tag", "old"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert ("3 imported, 0 known before, 1 refused" in said.out, "broken.ipynb" in said.err) == (True, True)
    assert main([*words, "--json"]) == 1
    outcomes = [one["outcome"] for one in json.loads(capsys.readouterr().out)]
    assert sorted(outcomes) == ["known"] * 3 + ["refused"]
    assert Store(tmp_path / "runs").list_runs()[0]["tags"] == ["old"]
    assert main(["import-wandb", str(tmp_path / "out"), "--store", str(tmp_path / "runs")]) == 2
