"""Every row is predicted once, whatever happens on the way."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, Schema, convert_to_deltalake, write_deltalake
from onnx import TensorProto, helper

import scalekit as sk
from scalekit import compress
from scalekit.inference import ledger as ledgers
from scalekit.inference.columns import BadBatch
from scalekit.inference.delta import BadOutput
from scalekit.inference.given import open_source
from scalekit.inference.model import BadModel
from scalekit.inference.output import HOME
from scalekit.inference.source import BadData
from scalekit.inference.task import predict_on_worker

N = 1000
WEIGHTS = np.array([0.5, -2.0], dtype="float32")
FRAME = pd.DataFrame({"id": range(N), "a": np.linspace(0, 1, N), "b": np.sin(np.arange(N))})
EXPECTED = FRAME[["a", "b"]].to_numpy("float32") @ WEIGHTS + 1
COMMON: dict[str, Any] = {"keep": "id", "partition_rows": 100, "progress": False}


def _make_module() -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(0.5))
    with torch.no_grad():
        module[0].weight[:] = torch.from_numpy(WEIGHTS)
        module[0].bias[:] = 1
    return module


def _add(frame: pd.DataFrame) -> np.ndarray:
    return frame[["a", "b"]].to_numpy("float32") @ WEIGHTS + 1


def _export(folder: Path, static: bool) -> Path:
    path = folder / f"model-{static}.pt2"
    shapes = None if static else ({0: torch.export.Dim("rows")},)
    program = torch.export.export(_make_module().eval(), (torch.rand(64, 2),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def _write_onnx(folder: Path) -> Path:
    path = folder / "model.onnx"
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"])
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [2, 1], WEIGHTS),
        helper.make_tensor("c", 1, [1], [1.0]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", k]) for name, k in (("x", 2), ("y", 1))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    torch.set_num_threads(1)
    return {
        "module": _make_module(),
        "exported": _export(folder, static=False),
        "exported for 64 rows": _export(folder, static=True),
        "onnx": _write_onnx(folder),
        "function": _add,
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def _check_rows(done: Any, expected: np.ndarray = EXPECTED) -> pd.DataFrame:
    "All rows, once, in the order of the data, with the right prediction"
    rows = done.to_pandas()
    assert rows["id"].tolist() == list(range(len(expected)))
    assert np.allclose(rows["prediction"], expected, atol=1e-5)
    return rows


def _stop_after(n: int) -> Any:
    def stop(progress: Any) -> None:
        if progress.n_done >= n:
            raise KeyboardInterrupt

    return stop


def _identify(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("part-*.parquet")}


# Models and data


@pytest.mark.parametrize("kind", ["module", "exported", "exported for 64 rows", "onnx", "function"])
def test_every_kind_of_model_gives_what_a_plain_call_gives(kind, models, out):
    done = sk.predict(models[kind], FRAME, out, **COMMON)
    _check_rows(done)
    assert (done.n_rows, done.n_partitions, done.n_reused) == (N, 10, 0)
    assert (out / "_SUCCESS").exists()
    assert len(pd.read_parquet(out)) == N  # other readers pass over the ledger


def _write_data(kind: str, folder: Path) -> Any:
    "The same rows in many forms"
    path = folder / "data"
    if kind == "a file of one row group":
        FRAME.to_parquet(path)
    elif kind == "a file of small row groups":
        FRAME.to_parquet(path, row_group_size=30)
    elif kind == "a list of files":
        path.mkdir()
        for i in range(7):
            FRAME[i * 150 : (i + 1) * 150].to_parquet(path / f"{9 - i}.parquet")
        return [path / f"{9 - i}.parquet" for i in range(7)]
    elif kind == "a partitioned folder":
        FRAME.assign(year=2013 + FRAME["id"] // 600).to_parquet(path, partition_cols=["year"])
    elif kind == "a Delta table":
        write_deltalake(path, FRAME[:400].assign(day="a b"), partition_by="day")
        write_deltalake(path, FRAME[400:].assign(day="c"), mode="append")
    else:
        made = {"a DataFrame": FRAME, "an Arrow table": pa.Table.from_pandas(FRAME)}
        return made[kind]
    return path


@pytest.mark.parametrize(
    "kind",
    ["a file of one row group", "a file of small row groups", "a list of files", "a partitioned folder",
     "a Delta table", "a DataFrame", "an Arrow table"],
)  # fmt: skip
def test_every_kind_of_table_gives_every_row_once(kind, tmp_path, out):
    data = _write_data(kind, tmp_path)
    done = sk.predict(_add, data, out, batch_size=64, **COMMON)
    rows = done.to_pandas().sort_values("id")
    assert rows["id"].tolist() == list(range(N))
    assert np.allclose(rows["prediction"], EXPECTED, atol=1e-5)
    assert all(receipt.n_rows <= 100 for receipt in done.partitions)
    again = sk.predict(_add, data, out, **COMMON)
    assert (again.n_reused, again.n_new) == (again.n_partitions, 0)


def test_a_column_that_stands_in_the_folders_name_is_a_column(tmp_path, out):
    data = _write_data("a partitioned folder", tmp_path)
    rows = sk.predict(lambda frame: frame["year"] + 0.5, data, out, columns="year", **COMMON).to_pandas()
    assert (rows["prediction"] == 2013.5 + rows["id"] // 600).all()


def test_files_of_one_name_in_the_folders_of_a_delta_table_are_told_apart(tmp_path, out):
    data = _write_data("a partitioned folder", tmp_path)  # pandas gives all of them one name
    years = Schema.from_arrow(pa.schema([("year", pa.int32())]))
    convert_to_deltalake(data, partition_by=years, partition_strategy="hive")
    assert len({Path(uri).name for uri in DeltaTable(data).file_uris()}) == 1
    rows = sk.predict(lambda frame: frame["year"] + 0.5, data, out, columns="year", **COMMON).to_pandas()
    assert sorted(rows["id"]) == list(range(N))
    assert (rows["prediction"] == 2013.5 + rows["id"] // 600).all()


def test_a_delta_table_is_found_whatever_stands_in_its_path_and_its_values(tmp_path, out):
    data = tmp_path / "two words 100%"
    write_deltalake(data, FRAME.assign(day=np.where(FRAME["id"] < 600, "a b", "c/d%20")), partition_by="day")
    rows = sk.predict(lambda frame: frame["day"].str.len(), data, out, columns="day", **COMMON).to_pandas()
    assert sorted(rows["id"]) == list(range(N))
    assert (rows["prediction"] == np.where(rows["id"] < 600, 3, 6)).all()


def test_a_delta_table_that_lacks_a_file_says_so_before_anything_is_predicted(tmp_path, out):
    write_deltalake(tmp_path / "data", FRAME)
    Path(DeltaTable(tmp_path / "data").file_uris()[0]).unlink()
    with pytest.raises(BadData, match="its version needs a file that can't be read"):
        sk.predict(_add, tmp_path / "data", out, **COMMON)
    assert not out.exists()


@pytest.mark.parametrize("named", [False, True])
def test_arrays_have_no_columns_and_keep_their_order(named, out):
    images = np.random.default_rng(0).random((250, 1, 4, 4))
    data = {"left": images, "right": images} if named else torch.from_numpy(images)

    def total(batch):
        return batch["left"].sum((1, 2, 3)) if named else batch.reshape(len(batch), -1).sum(1)

    rows = sk.predict(total, data, out, ordered=True, partition_rows=40, batch_size=16).to_pandas()
    assert rows["row"].tolist() == list(range(250))
    assert np.allclose(rows["prediction"], images.sum((1, 2, 3)))


def test_prepare_makes_what_the_model_is_called_with(models, out):
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return {"sum": a + b, "embedding": torch.stack([a, b], 1)}

    def prepare(frame):
        return {"a": frame["a"].to_numpy(), "b": torch.tensor(frame["b"].to_numpy())}

    rows = sk.predict(Two(), FRAME, out, prepare=prepare, **COMMON).to_pandas()
    assert np.allclose(rows["sum"], FRAME["a"] + FRAME["b"], atol=1e-6)
    assert np.allclose(np.stack(rows["embedding"]), FRAME[["a", "b"]], atol=1e-6)


def test_a_model_in_training_mode_predicts_without_dropout_and_goes_on_training(out):
    module = _make_module()
    module[1].eval()
    module[0].train()
    before = [part.training for part in module.modules()]
    _check_rows(sk.predict(module, FRAME, out, **COMMON))
    assert [part.training for part in module.modules()] == before
    with pytest.raises(BadBatch):
        sk.predict(module, FRAME, out.with_name("bad"), columns=["a"], **COMMON)
    assert [part.training for part in module.modules()] == before


def test_a_half_precision_model_gets_its_own_kind_of_number(out):
    done = sk.predict(_make_module().bfloat16(), FRAME, out, **COMMON)
    assert np.allclose(done.to_pandas()["prediction"], EXPECTED, atol=0.05)


def test_memory_is_bounded_by_batches_and_not_by_the_data(tmp_path, out):
    rows, width = 800_000, 20
    table = pa.table({f"x{i}": np.random.default_rng(i).random(rows) for i in range(width)})
    pq.write_table(table, tmp_path / "data", row_group_size=rows)
    size = table.nbytes
    del table
    peaks = []
    before = pa.total_allocated_bytes()

    def model(frame):  # answers with a view of what it was given
        peaks.append(pa.total_allocated_bytes() - before)
        return frame["x0"].to_numpy()

    sk.predict(model, tmp_path / "data", out, partition_rows=rows, batch_size=1000, progress=False)
    assert max(peaks) < size
    assert max(peaks[-50:]) < max(peaks[:50]) + size / 4  # constant, whatever lies behind


# Cut off and gone on


KILLED = """
import sys, time
import numpy as np
import scalekit as sk

def model(frame):
    time.sleep(0.004)
    return frame[["a", "b"]].to_numpy("float32") @ np.array([0.5, -2.0], "float32") + 1

print("begin", flush=True)
sk.predict(model, sys.argv[1], sys.argv[2], keep="id", partition_rows=20, progress=False)
"""


def test_a_prediction_that_is_killed_at_any_moment_goes_on_and_touches_nothing_that_was_done(tmp_path, out):
    FRAME.to_parquet(tmp_path / "data")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(out)]
    seen: dict[str, tuple[int, int]] = {}
    chance, n_cut = random.Random(os.getpid()), 0
    for _ in range(30):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while process.poll() is None and len(_identify(out)) < min(50, len(seen) + 20):
                time.sleep(0.01)
            time.sleep(chance.random() * 0.02)
            process.kill()
        n_cut += process.returncode == -signal.SIGKILL
        now = _identify(out)
        assert {name: now[name] for name in seen} == seen
        seen = now
        if process.returncode == 0 or len(seen) == 50:
            break
    assert n_cut >= 2
    subprocess.run(command, check=True)
    assert {name: facts for name, facts in _identify(out).items() if name in seen} == seen
    rows = pd.read_parquet(out)
    assert rows["id"].tolist() == list(range(N))
    assert np.allclose(rows["prediction"], EXPECTED, atol=1e-5)
    assert list(out.glob(f"{HOME}/*/attempt-*")) == []


@pytest.mark.parametrize("after", ["noting", "moving"])
def test_a_crash_between_note_and_move_loses_nothing(after, out, monkeypatch):
    calls, replace = [], os.replace

    def crash(source, target):
        if Path(target).name.startswith("part-"):
            calls.append(target)
            if len(calls) == 3:
                if after == "moving":
                    replace(source, target)
                raise SystemExit
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(ledgers.os, "replace", crash)
        patch.setattr(ledgers.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing
        with pytest.raises(SystemExit):
            sk.predict(_add, FRAME, out, **COMMON)
    before = _identify(out)
    done = sk.predict(_add, FRAME, out, **COMMON)
    _check_rows(done)
    assert done.n_reused == 3
    assert {name: facts for name, facts in _identify(out).items() if name in before} == before


def test_a_ledger_that_was_cut_off_in_a_line_is_read_up_to_there(out):
    with pytest.raises(KeyboardInterrupt):
        sk.predict(_add, FRAME, out, **{**COMMON, "progress": _stop_after(4)})
    path = next(out.glob(f"{HOME}/*/ledger.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    done = sk.predict(_add, FRAME, out, **COMMON)
    assert done.n_reused == 3
    _check_rows(done)
    assert sk.predict(_add, FRAME, out, **COMMON).n_reused == 10


def test_a_flipped_byte_in_a_finished_part_is_found_and_only_that_part_is_done_again(out):
    with pytest.raises(KeyboardInterrupt):
        sk.predict(_add, FRAME, out, **{**COMMON, "progress": _stop_after(5)})
    part = sorted(out.glob("part-*"))[2]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 4
    part.write_bytes(content)
    before = _identify(out)
    with pytest.warns(UserWarning, match="partition 2 is predicted again"):
        done = sk.predict(_add, FRAME, out, **COMMON)
    assert done.n_reused == 4
    _check_rows(done)
    same = {name for name, facts in _identify(out).items() if before.get(name) == facts}
    assert same == set(before) - {part.name}


def test_a_part_that_somebody_deleted_is_made_again(out):
    sk.predict(_add, FRAME, out, **COMMON)
    sorted(out.glob("part-*"))[7].unlink()
    with pytest.warns(UserWarning, match="is gone: partition 7"):
        _check_rows(sk.predict(_add, FRAME, out, **COMMON))


def test_a_second_driver_is_refused_while_the_first_one_works(out):
    began, go_on = threading.Event(), threading.Event()

    def wait(progress: Any) -> None:
        began.set()
        assert go_on.wait(120)

    first = threading.Thread(target=lambda: sk.predict(_add, FRAME, out, **{**COMMON, "progress": wait}))
    first.start()
    assert began.wait(120)
    with pytest.raises(BadOutput, match=rf"process {os.getpid()} .* predicts into it now"):
        sk.predict(_add, FRAME, out, **COMMON)
    go_on.set()
    first.join()
    assert sk.predict(_add, FRAME, out, **COMMON).n_reused == 10


# What is refused


def test_another_model_other_data_or_other_arguments_are_refused_and_fresh_replaces(out):
    module = _make_module()
    sk.predict(module, FRAME, out, **COMMON)
    assert sk.predict(module, FRAME, out, batch_size=7, **COMMON).n_reused == 10  # batches decide no row
    with pytest.raises(BadOutput, match="the data is another"):
        sk.predict(module, FRAME[:-1], out, **COMMON)
    with pytest.raises(BadOutput, match="the data changed"):
        sk.predict(module, FRAME.assign(a=0.0), out, **COMMON)
    with pytest.raises(BadOutput, match=r"names was None and is \['p'\]"):
        sk.predict(module, FRAME, out, names="p", **COMMON)
    with torch.no_grad():
        module[0].bias += 1
    with pytest.raises(BadOutput, match="the model is another .*fresh=True begins again"):
        sk.predict(module, FRAME, out, **COMMON)
    done = sk.predict(module, FRAME, out, fresh=True, **COMMON)
    assert done.n_reused == 0
    _check_rows(done, EXPECTED + 1)
    assert len(list(out.glob("part-*"))) == 10


def test_a_function_is_another_one_if_what_it_refers_to_is(out):
    def make(shift: float) -> Any:
        def model(frame: pd.DataFrame) -> Any:
            return [value + shift for value in frame["a"]]

        return model

    sk.predict(make(1.0), FRAME, out, **COMMON)
    assert sk.predict(make(1.0), FRAME, out, **COMMON).n_reused == 10
    with pytest.raises(BadOutput, match="the model is another"):
        sk.predict(make(2.0), FRAME, out, **COMMON)


def test_an_output_without_locks_is_refused(out, monkeypatch):
    def flock(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("scalekit.inference.output.fcntl.flock", flock)
    with pytest.raises(BadOutput, match="file system with locks, got: .*not supported"):
        sk.predict(_add, FRAME, out, **COMMON)


def test_a_plan_that_somebody_damaged_is_named(out):
    sk.predict(_add, FRAME, out, **COMMON)
    plan = next(out.glob(f"{HOME}/*/plan.json"))
    plan.write_text("{")
    with pytest.raises(BadOutput, match=f"{plan} must say what was predicted here"):
        sk.predict(_add, FRAME, out, **COMMON)


def test_what_fresh_forgets_is_forgotten_even_if_it_is_cut_off(out, monkeypatch, recwarn):
    sk.predict(_add, FRAME, out, **COMMON)
    with monkeypatch.context() as patch:

        def cut_off(folder: Path) -> None:
            (folder / "plan.json").unlink()
            raise KeyboardInterrupt

        patch.setattr("scalekit.inference.output.shutil.rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            sk.predict(_add, FRAME, out, fresh=True, **COMMON)
    _check_rows(sk.predict(_add, FRAME, out, **COMMON))
    assert not [warning for warning in recwarn if "predicted again" in str(warning.message)]


def test_a_first_try_that_failed_binds_nobody(out):
    with pytest.raises(BadBatch, match=r"partition 0 \(rows 0 to 99 of the data\): RuntimeError"):
        sk.predict(_make_module(), FRAME, out, columns="a", **COMMON)
    _check_rows(sk.predict(_make_module(), FRAME, out, **COMMON))


@pytest.mark.parametrize(
    ("error", "words", "model", "data", "options"),
    [
        (BadData, "Did you mean 'a'", _add, FRAME, {"columns": ["aa"]}),
        (BadData, "column 'c' is large_string", torch.nn.Linear(2, 1), FRAME.assign(c="x"), {}),
        (BadData, "has no rows", _add, FRAME[:0], {}),
        (BadData, "no such file", _add, "gone.parquet", {}),
        (BadData, "got list", _add, [1, 2], {}),
        (BadData, "same number of rows", _add, {"a": np.zeros(2), "b": np.zeros(3)}, {"keep": ()}),
        (BadData, "different texts, got 0", _add, pd.DataFrame(np.zeros((2, 2))), {}),
        (BadModel, "must end in .pt2", "model.pt", FRAME, {}),
        (BadModel, "must be a torch module", {"a": 1}, FRAME, {}),
        (BadOutput, "append=True adds to a Delta table", _add, FRAME, {"append": True}),
        (BadBatch, "100 went in, and 'prediction' has 99", lambda frame: frame["a"][1:], FRAME, {}),
        (BadBatch, "has one value", lambda frame: 0.5, FRAME, {}),
        (BadBatch, "'id' is predicted, and there already", lambda frame: {"id": frame["a"]}, FRAME, {}),
        (BadBatch, "prepare failed: KeyError", _add, FRAME, {"prepare": lambda frame: frame["c"]}),
    ],
)
def test_a_mistake_is_one_sentence(error, words, model, data, options, out):
    with pytest.raises(error) as caught:
        sk.predict(model, data, out, **{**COMMON, **options})
    assert words in str(caught.value)
    assert not list(out.glob("part-*"))


def test_a_failing_batch_says_which_rows_it_was_and_keeps_what_was_done(out):
    def model(frame: pd.DataFrame) -> Any:
        if (frame["a"] > 0.63).any():
            raise ValueError("too large")
        return _add(frame)

    with pytest.raises(BadBatch, match=r"partition 6 \(rows 625 to 649 of the data\): ValueError: too large"):
        sk.predict(model, FRAME, out, batch_size=25, version="1", **COMMON)
    assert len(list(out.glob("part-*"))) == 6
    done = sk.predict(_add, FRAME, out, version="1", **COMMON)
    assert done.n_reused == 6
    _check_rows(done)


def test_an_exported_model_wants_the_batches_that_it_was_made_for(models, out):
    with pytest.raises(BadModel, match="exported for batches of 64 rows, got batch_size=32"):
        sk.predict(models["exported for 64 rows"], FRAME, out, batch_size=32, **COMMON)


def test_an_onnx_model_says_which_inputs_it_takes(models, out):
    with pytest.raises(BadBatch, match=r"rows 0 to 99 .* takes x, got 2 of 1 inputs. Name them: prepare="):
        sk.predict(models["onnx"], FRAME, out, prepare=lambda df: (df["a"], df["b"]), **COMMON)


def test_a_disk_that_is_full_is_named_with_the_rows_and_the_same_call_goes_on(out, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("scalekit.inference.part.Part.close", refuse)
        with pytest.raises(
            BadOutput, match=r"partition 0 \(rows 0 to 99 .* can't be written to .*No space left"
        ):
            sk.predict(_add, FRAME, out, **COMMON)
    assert not list(out.glob(f"{HOME}/*/attempt-*/*"))
    _check_rows(sk.predict(_add, FRAME, out, **COMMON))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    "part", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/weights/model_weights_config.json",
             "data/aotinductor/model/net.so", "version"],
)  # fmt: skip
def test_an_exported_file_that_would_run_code_is_refused_and_runs_none(part, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(({"x": Trap()},), buffer)
    with ZipFile(models["exported"]) as whole, ZipFile("bad.pt2", "w") as bad:
        root = whole.namelist()[0].partition("/")[0]
        for name in whole.namelist():
            if not name.endswith(part):
                bad.writestr(name, whole.read(name))
            elif part.endswith("json"):
                bad.writestr(name, whole.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
        if not part.endswith("json"):
            bad.writestr(part if part == "version" else f"{root}/{part}", buffer.getvalue())
    named = part.replace("model_weights_config.json", "weight_0")  # what the table calls a pickle
    words = "written by torch 2.7 or older" if part == "version" else f"its part {named} would be unpickled"
    with pytest.raises(BadModel, match=words):
        sk.predict("bad.pt2", FRAME, "out", **COMMON)
    assert not Path("sprung").exists()


def test_int8_weights_predict_from_their_file_and_a_trap_among_them_does_not_spring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    small = compress.to_int8(torch.nn.Linear(2, 1).eval(), compile=False)
    x = torch.tensor(FRAME[["a", "b"]].to_numpy("float32"))
    compress.export_model(small, "int8", x, forms=["pt2"])
    done = sk.predict("int8/model.pt2", FRAME, "out", **COMMON)
    with torch.no_grad():
        np.testing.assert_allclose(done.to_pandas()["prediction"], small(x)[:, 0], rtol=1e-5)

    buffer = io.BytesIO()
    torch.save((small.model.weight, Trap()), buffer)
    with ZipFile("int8/model.pt2") as whole, ZipFile("bad.pt2", "w") as bad:
        for name in whole.namelist():
            bad.writestr(name, buffer.getvalue() if name.endswith("weight_0") else whole.read(name))
    with pytest.raises(BadModel, match="its part data/weights/weight_0 would be unpickled"):
        sk.predict("bad.pt2", FRAME, "other", **COMMON)
    assert not Path("sprung").exists()


def test_what_lies_in_the_way_stays(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    (out / "thesis").mkdir(parents=True)
    with pytest.raises(BadOutput, match="is a file"):
        sk.predict(_add, FRAME, tmp_path / "file", **COMMON)
    with pytest.raises(BadOutput, match="holds something else"):
        sk.predict(_add, FRAME, out, fresh=True, **COMMON)
    data = _write_data("a partitioned folder", tmp_path)
    with pytest.raises(BadOutput, match="lies in the data"):
        sk.predict(_add, data, data / "predictions", **COMMON)
    assert (out / "thesis").is_dir() and (tmp_path / "file").read_text() == "mine"


def test_answers_that_are_no_numbers_are_counted(out):
    with pytest.warns(UserWarning, match="3 of 1,000 rows have no number in 'prediction'"):
        data = FRAME.assign(a=FRAME["a"].where(FRAME["id"] >= 3))
        done = sk.predict(_make_module(), data, out, **COMMON)
    assert done.nans == {"prediction": 3}


# Delta


def _commits(path: Path) -> int:
    return DeltaTable(path).version() + 1


def test_a_delta_table_gets_all_rows_in_one_commit_and_a_repeat_adds_none(out):
    with pytest.raises(KeyboardInterrupt):
        sk.predict(_add, FRAME, out, format="delta", ordered=True, **{**COMMON, "progress": _stop_after(3)})
    assert not DeltaTable.is_deltatable(str(out))
    for n_reused in (3, 10):
        done = sk.predict(_add, FRAME, out, format="delta", ordered=True, **COMMON)
        assert (done.n_reused, _commits(out)) == (n_reused, 1)
    rows = done.to_pandas().sort_values("row")
    assert rows["id"].tolist() == rows["row"].tolist() == list(range(N))
    assert np.allclose(rows["prediction"], EXPECTED, atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_commit_appends_once(when, out, monkeypatch):
    commit = ledgers.commit_parts

    def crash(*given: Any) -> None:
        if when == "after":
            commit(*given)
        raise SystemExit

    write_deltalake(out, pd.DataFrame({"id": [-1], "prediction": np.zeros(1, "float32")}))
    options = {**COMMON, "append": True}
    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "commit_parts", crash)
        with pytest.raises(SystemExit):
            sk.predict(_add, FRAME, out, **options)
    for _ in range(2):
        sk.predict(_add, FRAME, out, **options)
    assert (DeltaTable(out).count(), _commits(out)) == (N + 1, 2)


def test_days_are_appended_to_a_delta_table_each_once_and_fresh_replaces_all_of_them(out):
    sk.predict(_add, FRAME[:500], out, format="delta", **COMMON)
    with pytest.raises(BadOutput, match="append=True adds to it"):
        sk.predict(_add, FRAME[500:], out, **COMMON)
    for _ in range(2):
        sk.predict(_add, FRAME[500:], out, append=True, **COMMON)
    assert DeltaTable(out).count() == N
    sk.predict(_add, FRAME[:300], out, fresh=True, **COMMON)
    assert DeltaTable(out).count() == 300
    assert DeltaTable(out, version=1).count() == N


def test_a_table_of_other_columns_is_refused_at_the_first_part(out):
    write_deltalake(out, pd.DataFrame({"id": [1], "score": [0.5]}))
    with pytest.raises(BadOutput, match="score is double, predicted not at all"):
        sk.predict(_add, FRAME, out, append=True, **COMMON)
    assert (DeltaTable(out).count(), list(out.glob("part-*-????????.parquet"))) == (1, [])


def test_types_that_delta_does_not_know_become_the_nearest(out):
    def model(frame: pd.DataFrame) -> Any:
        n = len(frame)
        return {
            "half": frame["a"].to_numpy("float16"),
            "small": np.ones(n, "uint8"),
            "two": np.ones((n, 2), "float32"),
            "word": pd.Categorical(["x"] * n),
        }

    rows = sk.predict(model, FRAME, out, format="delta", **COMMON).to_pandas()
    assert (rows["small"].dtype, rows["half"].dtype, rows["word"][0]) == ("int16", "float32", "x")
    assert list(rows["two"][0]) == [1, 1]


# On a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[sk.Cluster]:
    with sk.open_cluster("cpu", n_workers=2) as opened:
        yield opened


def test_a_cluster_gives_the_same_rows_and_the_model_travels_once_to_each_worker(cluster, tmp_path, out):
    class Loud(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, folder: str) -> None:
            super().__init__()
            self.inner, self.folder = inner, folder

        def forward(self, x):
            return self.inner(x)

        def __setstate__(self, state):
            self.__dict__.update(state)
            with open(f"{self.folder}/{os.getpid()}", "a") as file:
                file.write("unpacked\n")

    (tmp_path / "unpacked").mkdir()
    FRAME.to_parquet(tmp_path / "data")
    module = Loud(_make_module(), str(tmp_path / "unpacked"))
    cluster.client.amm.stop()  # Dask takes a copy from a worker that has nothing to do for a moment
    done = sk.predict(module, tmp_path / "data", out, cluster=cluster, **COMMON)
    _check_rows(done)
    counts = [path.read_text().count("unpacked") for path in (tmp_path / "unpacked").iterdir()]
    assert 1 <= len(counts) <= 2 and set(counts) == {1}
    assert {receipt.worker for receipt in done.partitions} <= {slot.worker for slot in cluster.slots}


def test_each_of_the_first_partitions_is_meant_for_another_worker(cluster, out, monkeypatch):
    submit, wishes = cluster.client.submit, []

    def note(function, *given, **options):
        if function is predict_on_worker:
            wishes.append((*options["workers"], options["allow_other_workers"]))
        return submit(function, *given, **options)

    monkeypatch.setattr(cluster.client, "submit", note)
    sk.predict(_add, FRAME, out, cluster=cluster, version="1", **COMMON)
    workers = sorted(slot.worker for slot in cluster.slots)
    assert sorted(wishes[:4]) == [(worker, True) for worker in workers for _ in range(2)]
    assert sorted(wishes[:2]) == [(worker, True) for worker in workers]


def test_rows_of_a_table_in_memory_travel_and_come_back_in_order(cluster, out):
    scale = 2.0
    rows = sk.predict(
        lambda frame: frame["a"] * scale, FRAME, out, cluster=cluster, format="delta", ordered=True, **COMMON
    ).to_pandas()
    rows = rows.sort_values("row")
    assert rows["id"].tolist() == list(range(N))
    assert np.allclose(rows["prediction"], FRAME["a"] * 2)


def test_an_error_on_a_worker_names_the_rows_and_a_corrected_call_goes_on(cluster, out):
    def model(frame: pd.DataFrame) -> Any:
        return 1 / 0 if (frame["a"] > 0.95).any() else _add(frame)

    with pytest.raises(BadBatch, match=r"partition 9 \(rows 900 to 999 .*ZeroDivisionError"):
        sk.predict(model, FRAME, out, cluster=cluster, version="1", **COMMON)
    n_done = len(list(out.glob("part-*")))
    done = sk.predict(_add, FRAME, out, cluster=cluster, version="1", **COMMON)
    assert done.n_reused == n_done > 0
    _check_rows(done)


def test_all_parts_are_of_one_type_also_those_that_began_together(cluster, out):
    def model(frame: pd.DataFrame) -> Any:
        return frame["id"].to_numpy("int64" if frame["id"].iloc[0] < 100 else "float64")

    sk.predict(model, FRAME, out, columns="id", cluster=cluster, **{**COMMON, "keep": ()})
    kinds = {str(pq.read_schema(part).field("prediction").type) for part in out.glob("part-*")}
    assert len(kinds) == 1


def test_a_worker_that_is_killed_in_the_middle_loses_and_doubles_no_row(cluster, tmp_path, out):
    flag = tmp_path / "killed"

    def model(frame: pd.DataFrame) -> Any:
        if (frame["a"] > 0.5).any() and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return _add(frame)

    FRAME.to_parquet(tmp_path / "data")
    done = sk.predict(model, tmp_path / "data", out, cluster=cluster, version="1", **COMMON)
    cluster.client.wait_for_workers(2)
    assert flag.exists()
    _check_rows(done)
    assert len(list(out.glob("part-*"))) == 10


# Small things


def test_partitions_are_the_same_whatever_the_batches(tmp_path):
    FRAME.to_parquet(tmp_path / "data", row_group_size=170)
    source = open_source(tmp_path / "data", 100)
    for size in (1, 33, 170, 5000):
        batches = [list(source.cut(part).read(["id"], size)) for part in source.partitions]
        found = [i for part in batches for batch in part for i in batch["id"].to_pylist()]
        assert found == list(range(N))
        assert all(batch.num_rows == size for part in batches for batch in part[:-1])
