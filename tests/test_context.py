"""What notebook code calls: harmless without a run, and nothing lost within one."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from enum import IntEnum
from multiprocessing import Pipe
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as plotly
import pyarrow
import pytest
import torch
from faults import can_mount, count_told, fill, run_together, small_disk, started

from scalekit import context
from scalekit.artifacts import BadValue
from scalekit.bundle import SealedBundle
from scalekit.events import StoreError
from scalekit.store import Store


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    "The run that this test is in"
    bundle = Store(tmp_path / "runs").create_run({"parameters": {"lr": 0.1, "shape": {"$tuple": [2, 3]}}})
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
    return bundle


def logged(bundle):
    return [event for event in bundle.events() if event["event"] == "log"]


# Without a run

OUTSIDE = """
import os, sys
from scalekit import context
before = sorted(os.listdir("."))
context.log(loss=object()); context.log(7); context.record(x=object()); context.log({"a": 1}, step=object())
assert context.artifact("/no/such/file") is None
run = context.current_run()
assert (bool(run), run.run_id, run.path, run.parameters) == (False, None, None, {})
run.log(a=1); run.record(b=2); run.artifact(b"", name="c")
assert sorted(os.listdir(".")) == before
heavy = {"numpy", "pandas", "torch", "matplotlib", "pyarrow", "sqlite3", "IPython", "pydantic", "papermill"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_without_a_run_every_call_is_silent_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALEKIT_BUNDLE", raising=False)
    said = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


# Logging


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int8(-3), -3),
        (np.bool_(False), False),
        (np.str_("a"), "a"),
        (np.array([7]), 7),
        (torch.tensor(2), 2),
        (torch.tensor([[0.5]], dtype=torch.bfloat16, requires_grad=True), 0.5),
        (Decimal("0.25"), 0.25),
        (Level.HIGH, 3),
        (10**30, 10**30),
        (True, True),
        (None, None),
        ("ü\ud800\n", "ü\ud800\n"),
    ],
)
def test_a_metric_arrives_as_a_plain_value(bundle, value, kept):
    context.log(x=value)
    (event,) = logged(bundle)
    assert event["values"] == {"x": kept}
    assert type(event["values"]["x"]) is type(kept)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(-math.inf)])
def test_what_is_no_number_survives_in_valid_json(bundle, value):
    context.log(loss=value, step=value)
    context.record(report={"nested": [value, {"deep": value}]})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    for line in (bundle.path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    expected = pytest.approx(float(value), nan_ok=True)
    assert bundle.curves()["loss"][0][1] == expected
    assert bundle.summary()["metrics"]["loss"] == expected
    assert bundle.records()["report"]["nested"][1]["deep"] == expected


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1, 2], "a list"),
        ({"a": 1}, "a dict"),
        (np.zeros((2, 3)), r"a numpy.ndarray of shape \(2, 3\)"),
        (torch.zeros(4), r"a torch.Tensor of shape \(4,\)"),
        (pd.Series([1, 2]), r"a pandas.Series of shape \(2,\)"),
        (pd.Timestamp("2026-05-01"), "a pandas.Timestamp"),
        (1j, "a complex"),
        (b"x", "a bytes"),
        (Path("x"), "a pathlib.PosixPath"),
        (np.float32, "a type"),
        (print, "a builtin_function_or_method"),
    ],
)
def test_what_is_no_metric_is_refused_with_its_name_its_type_and_the_way_out(bundle, value, what):
    with pytest.raises(BadValue, match=rf"^log: metric 'x' is {what}, but .* record\(x=...\)$"):
        context.log(x=value)
    assert logged(bundle) == []


def test_names_may_be_anything_that_is_a_text(bundle):
    context.log({"val/loss": 1, "step": 2, "self": 3}, step=4, values=5)
    (event,) = logged(bundle)
    assert (event["step"], event["values"]) == (4, {"val/loss": 1, "step": 2, "self": 3, "values": 5})
    with pytest.raises(BadValue, match="the name of a metric is a text, got 1. Write '1'"):
        context.log({1: 2})
    with pytest.raises(BadValue, match=r"log: 3 has no name. Write log\(loss=3\); a step is log\(step=...\)"):
        context.log(3)
    context.log()
    context.log({}, step=3)
    assert len(logged(bundle)) == 1


def log_many(writer, n):
    for number in range(n):
        context.log(writer=writer, number=number, step=number)


def check_all_there(bundle, writers, n):
    events = logged(bundle)
    assert len(events) == writers * n
    for writer in range(writers):
        mine = [event["values"]["number"] for event in events if event["values"]["writer"] == writer]
        assert mine == list(range(n))


def test_threads_log_at_once(bundle):
    threads = [threading.Thread(target=log_many, args=(writer, 300)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_all_there(bundle, 8, 300)


def log_before():
    context.log(before=1)


def test_forked_processes_log_at_once(bundle):
    assert run_together(log_many, [(writer, 300) for writer in range(8)], log_before) == [0] * 8
    context.log(after=1)
    events = [event["values"] for event in logged(bundle)]
    assert (events[0], events[-1], len(events)) == ({"before": 1}, {"after": 1}, 2402)


class Noted(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, number):
        context.log(number=number)
        return number


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_belong_to_the_run(bundle, method):
    loader = torch.utils.data.DataLoader(Noted(), num_workers=2, multiprocessing_context=method)
    assert len(list(loader)) == 40
    assert sorted(event["values"]["number"] for event in logged(bundle)) == list(range(40))


def close_all_and_log(other):
    context.log(writer=0, number=-1)
    os.closerange(3, 200)
    handles = [os.open(other, os.O_RDWR) for _ in range(20)]  # these get the numbers that were closed
    log_many(0, 5)
    assert len(handles) == 20


def test_code_that_closes_all_descriptors_does_not_lead_the_log_astray(bundle, tmp_path):
    other = tmp_path / "other"
    other.touch()
    assert run_together(close_all_and_log, [(other,)]) == [0]
    assert (other.read_bytes(), len(logged(bundle))) == (b"", 6)


def test_a_cell_may_change_the_working_folder(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context.log(a=1)
    os.chdir("/")
    context.log(a=2)
    context.record(table=pd.DataFrame({"a": [1]}))
    assert [event["values"] for event in logged(bundle)] == [{"a": 1}, {"a": 2}]
    assert bundle.records()["table"].is_file()


def log_and_tell(told):
    for number in range(10**9):
        context.log(loss=0.5, step=number)
        told.send(number)


def test_a_killed_kernel_loses_nothing_that_was_logged(bundle):
    hear, tell = Pipe(duplex=False)
    with started(log_and_tell, tell) as child:
        tell.close()
        while hear.recv() < 100:
            pass
        os.kill(child.pid, signal.SIGKILL)
        promised = 101 + count_told(hear)
    steps = [event["step"] for event in logged(bundle)]
    assert steps[:promised] == list(range(promised))


def test_a_warm_process_serves_one_run_after_the_other(bundle, tmp_path, monkeypatch):
    context.log(run=1)
    second = Store(tmp_path / "runs").create_run({})
    monkeypatch.setenv("SCALEKIT_BUNDLE", str(second.path))
    context.log(run=2)
    monkeypatch.delenv("SCALEKIT_BUNDLE")
    context.log(run=3)
    assert [event["values"]["run"] for event in logged(bundle) + logged(second)] == [1, 2]


@pytest.mark.skipif(not can_mount, reason="only root can mount a small disk")
def test_a_full_disk_stops_the_training_in_one_sentence_and_loses_no_earlier_point(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk") as disk:
        store = Store(disk / "runs")
        bundle = store.create_run({})
        monkeypatch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
        filler = fill(disk, but=50_000)
        full = "the disk is full. Free some space"
        with pytest.raises(OSError, match=f"^run {bundle.run_id} can't write down what happens: {full}"):
            log_many(0, 10_000)
        n_points = len(logged(bundle))
        with pytest.raises(OSError, match=f"^run {bundle.run_id} can't keep an artifact: {full}"):
            context.artifact(b"x" * 200_000, name="big.bin")
        with pytest.raises(OSError, match="the disk is full"):
            context.record(big=np.zeros(100_000))
        assert list(bundle.artifacts.rglob("*")) == []
        filler.unlink()
        log_many(0, 10)
        assert len(logged(bundle)) == n_points + 10 > 100
        store.close()


def add_each_way():
    yield lambda: context.log(a=1)
    yield lambda: context.record(a=np.zeros(3))
    yield lambda: context.artifact(b"", "x")


def test_a_run_that_is_over_or_gone_says_so(bundle):
    bundle.set_state("running")
    bundle.set_state("failed")
    bundle.seal()
    for add in add_each_way():
        with pytest.raises(SealedBundle, match="is failed and sealed; nothing can be added to it"):
            add()
    assert bundle.verify() == []
    bundle.path.rename(bundle.path.with_name("away"))
    for add in add_each_way():
        with pytest.raises(StoreError, match="its folder is gone"):
            add()
    assert not bundle.path.exists()


# Recording


def test_results_come_back_as_they_were(bundle):
    results = {
        "accuracy": 0.97,
        "split": (80, 20),
        "names": {0: "no", 1: "yes"},
        "when": pd.Timestamp("2026-05-01").date(),
        "report": {"macro avg": {"f1": 0.9}, "rows": [1, None, True, "x"]},
        "long": "x" * 100_000,
        "bytes": b"\x00\xff",
        "data": Path("data/digits"),
    }
    context.record(**results)
    assert bundle.records() == results
    assert bundle.summary()["metrics"] == {"accuracy": 0.97}
    context.record({"accuracy": np.float32(0.5), "a/b": np.arange(3).sum()})
    assert bundle.records()["accuracy"] == 0.5
    assert bundle.summary()["metrics"] == {"accuracy": 0.5, "a/b": 3}


def test_numbers_deep_in_a_report_become_plain_ones(bundle):
    context.record(report={"matrix": np.eye(2, dtype=int), "f1": np.float64(0.5), "t": [torch.tensor(1.5)]})
    found = bundle.records()["report"]
    assert found == {"matrix": [[1, 0], [0, 1]], "f1": 0.5, "t": [1.5]}
    assert '"matrix": [[1, 0], [0, 1]]' in (bundle.path / "events.jsonl").read_text()


def test_a_recorded_secret_is_masked(bundle):
    from pydantic import SecretStr

    context.record(password=SecretStr("hunter2"))
    assert bundle.records() == {"password": "**********"}


DAYS = pd.to_datetime(["2026-05-01", "2026-05-02"])
TABLE = pd.DataFrame({"label": ["a", "b"], "n": [1.5, math.nan], "day": DAYS}, index=[7, 9])


def test_tables_come_back_as_they_were(bundle):
    context.record(table=TABLE, column=TABLE["n"], arrow=pyarrow.table({"a": [1, 2]}))
    found = bundle.records()
    pd.testing.assert_frame_equal(pd.read_parquet(found["table"]), TABLE)
    pd.testing.assert_series_equal(pd.read_parquet(found["column"])["n"], TABLE["n"])
    assert pd.read_parquet(found["arrow"])["a"].tolist() == [1, 2]
    assert {path.name for path in found.values()} == {"table.parquet", "column.parquet", "arrow.parquet"}


def test_arrays_come_back_as_they_were(bundle):
    context.record(a=np.arange(6).reshape(2, 3), t=torch.ones(2, requires_grad=True))
    found = bundle.records()
    assert np.load(found["a"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (np.load(found["t"]).tolist(), np.load(found["t"]).dtype) == ([1.0, 1.0], np.float32)


def test_figures_are_pictures_and_pages_that_need_no_network(bundle):
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    axes.plot([1, 2])
    context.record(figure=figure, axes=axes, page=plotly.Figure(plotly.Scatter(y=[1, 2])))
    context.artifact(plotly.Figure(), name="plots/second")
    found = bundle.records()
    assert found["figure"].read_bytes()[:8] == found["axes"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = found["page"].read_text()
    assert found["page"].suffix == ".html" and "https://cdn" not in page
    assert 'src="plotly.min.js"' in page and len(page) < 100_000
    assert (bundle.artifacts / "plotly.min.js").stat().st_size > 1_000_000
    context.artifact(figure, name="vector.svg")
    assert b"<svg" in (bundle.artifacts / "vector.svg").read_bytes()


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (Odd(), r"^record: 'x' can't be kept: .*artifact\(path\)$"),
        ([1, [Odd()]], r"^record: 'x' can't be kept: .*artifact\(path\)$"),
        (lambda: None, r"^record: 'x' can't be kept"),
        (np.array([Odd()]), r"^'x' is a numpy.ndarray .* can't be kept as .npy: .*artifact\(path\)$"),
        (pd.DataFrame({1: [2], "mixed": [Odd()]}), r"^'x' is a pandas.DataFrame .* can't be kept as .parq"),
        (torch.nn.Linear(2, 2), r"^record: 'x' can't be kept"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(bundle, value, sentence):
    with pytest.raises(BadValue, match=sentence):
        context.record(fine=1, x=value)
    assert list(bundle.artifacts.iterdir()) == []
    assert bundle.records() == {}


# Artifacts


def test_files_and_folders_are_copied_and_replaced(bundle, tmp_path):
    source = tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.txt").write_text("one")
    assert context.artifact(source) == bundle.artifacts / "out"
    assert context.artifact(str(source / "deep" / "a.txt"), name="texts/b.txt").read_text() == "one"
    (source / "deep" / "a.txt").rename(source / "c.txt")
    context.artifact(source)
    (source / "c.txt").write_text("two")
    context.artifact(source / "c.txt", name="texts/b.txt")
    context.artifact(source, name="texts/b.txt")  # a folder in place of a file
    files = sorted(path.relative_to(bundle.artifacts) for path in bundle.artifacts.rglob("*.txt"))
    assert files == [Path("out/c.txt"), Path("texts/b.txt"), Path("texts/b.txt/c.txt")]
    kept = [event["file"] for event in bundle.events() if event["event"] == "artifact"]
    assert kept == ["artifacts/out", "artifacts/texts/b.txt", "artifacts/out"] + ["artifacts/texts/b.txt"] * 2


def test_content_becomes_a_file(bundle):
    assert context.artifact(b"\x00\xff", name="a.bin").read_bytes() == b"\x00\xff"
    assert context.artifact("two\nlines", name="b.txt").read_text() == "two\nlines"
    assert context.artifact("x" * 10_000, name="c.txt").stat().st_size == 10_000
    assert context.artifact(TABLE, name="d").name == "d.parquet"
    assert context.artifact(TABLE, name="e.v2").name == "e.v2.parquet"
    assert context.artifact(TABLE, name="f.parquet").name == "f.parquet"


def test_a_file_written_into_the_runs_folder_is_only_noted(bundle):
    (bundle.artifacts / "deep").mkdir()
    own = bundle.artifacts / "deep" / "own.txt"
    own.write_text("mine")
    inode = own.stat().st_ino
    assert context.artifact(own) == own
    assert (own.stat().st_ino, bundle.events()[-1]["file"]) == (inode, "artifacts/deep/own.txt")


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        ("no/such.pt", None, "there is no file or folder 'no/such.pt' in "),
        ("no/such.pt", "model.pt", "there is no file or folder 'no/such.pt' in "),
        (Path("no/such.pt"), "notes.txt", "there is no file or folder 'no/such.pt' in "),
        (b"content", None, r"a bytes needs a name: artifact\(..., name='x'\)"),
        (b"content", "../../run.json", "no name inside the run's folder. Write, say, 'plots/loss.png'"),
        (b"content", "/etc/passwd", "no name inside the run's folder"),
        (b"content", ".", "no name inside the run's folder"),
        (42, "answer", r"a int is no content for a file. Try record\(answer=...\)"),
        (TABLE, "table.csv", "a table is kept as .parquet. Name it so"),
        (TABLE, None, r"a pandas.DataFrame of shape \(2, 3\) needs a name"),
    ],
)
def test_a_mistake_with_an_artifact_is_one_sentence(bundle, source, name, sentence):
    with pytest.raises(BadValue, match=sentence):
        context.artifact(source, name)
    assert list(bundle.artifacts.iterdir()) == []
    assert bundle.asked["parameters"]["lr"] == 0.1


def test_a_folder_around_the_run_is_refused_before_it_copies_itself_into_itself(bundle, monkeypatch):
    monkeypatch.chdir(bundle.path.parent)
    for source in (".", "..", bundle.path):
        with pytest.raises(BadValue, match="is a folder around this run's own. Name a part of it"):
            context.artifact(source)


def copy_for_ever(source):
    while True:
        context.artifact(source, name="model")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_copy_that_is_killed_is_whole_or_absent_and_sealing_passes_over_its_rest(bundle, tmp_path, kind):
    source = tmp_path / "model"
    if kind == "file":
        source.write_bytes(b"x" * 5_000_000)
    else:
        source.mkdir()
        for number in range(50):
            (source / str(number)).write_bytes(b"x" * 100_000)
    for _ in range(4):
        with started(copy_for_ever, source):
            time.sleep(0.03)
    target = bundle.artifacts / "model"
    if target.exists():
        files = [target] if kind == "file" else list(target.iterdir())
        assert sum(path.stat().st_size for path in files) == 5_000_000
    bundle.set_state("running")
    bundle.set_state("failed")
    bundle.seal()
    assert bundle.verify() == []
    assert all("/.model." not in line for line in (bundle.path / "SHA256SUMS").read_text().splitlines())


# The run


def test_code_can_ask_which_run_it_is_in(bundle):
    run = context.current_run()
    assert bool(run) is True
    assert (run.run_id, run.path) == (bundle.run_id, bundle.path)
    assert run.parameters == {"lr": 0.1, "shape": (2, 3)}
    run.log(a=1)
    run.record(b=2)
    run.artifact(b"c", name="c")
    assert [event["event"] for event in bundle.events()] == ["state", "log", "record", "artifact"]


def test_a_process_started_afresh_is_in_the_run_too(bundle):
    subprocess.run([sys.executable, "-c", "from scalekit import context; context.log(child=1)"], check=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(context.log, (), {"pool": 1})
    assert [event["values"] for event in logged(bundle)] == [{"child": 1}, {"pool": 1}]
