"""The page of a run: what it tells, what it leaves out, and that nothing in it can act."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nbformat
import nh3
import numpy as np
import pandas as pd
import pytest
from hostile import CASES, code, find_faults, make_run, say, show, stream
from notebooks import write_notebook
from PIL import Image

import scalekit as sk
from scalekit.bundle import Bundle
from scalekit.cli import main
from scalekit.events import StoreError
from scalekit.planfile import write_plan
from scalekit.reporting.book import open_story
from scalekit.reporting.page import LARGEST, frame_page, write_run_page
from scalekit.reporting.story import Story
from scalekit.runner import Run
from scalekit.store import Store, UnknownRun
from scalekit.trials import plan_sweep

CLOCK = "2026-05-01T12:00:{:02d}.000000Z"


def read_text(page):
    "What a reader sees"
    texts = []
    parser = HTMLParser()
    hidden = []
    parser.handle_starttag = lambda name, _: hidden.append(name) if name in ("style", "script") else None
    parser.handle_endtag = lambda name: hidden.clear()
    parser.handle_data = lambda data: None if hidden else texts.append(data)
    parser.feed(page if isinstance(page, str) else Path(page).read_text())
    return " ".join(" ".join(texts).split())


def titles(page):
    return re.findall(r"<h2>(.*?)</h2>", Path(page).read_text())


def section(page, name):
    "Text of one part"
    text = Path(page).read_text()
    return read_text(re.search(rf'<section id="{name}">.*?</section>', text, re.S)[0])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def make(store):
    "Function that makes a finished run"

    def make(
        cells=(), state="succeeded", events=(), error=None, parameters=None, metrics=None, seal=True, **asked
    ):
        bundle = store.create_run({"notebook": "train.ipynb", "parameters": parameters or {}, **asked})
        notebook = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        bundle.notebook.write_text(json.dumps(notebook))
        bundle.set_state("running", host="node-1")
        for event in events:
            bundle.append(**event)
        if metrics:
            bundle.append("record", values=metrics)
        bundle.set_state(state, **({"error": error} if error else {}))
        if seal:
            bundle.seal()
        store.index(bundle)
        return bundle

    return make


def log(n, **values):
    return [
        {"event": "log", "step": step, "values": {k: v(step) for k, v in values.items()}} for step in range(n)
    ]


# --- What it tells ----------------------------------------------------------------------------------------


def test_the_page_tells_the_story_of_a_run(make):
    make(parameters={"lr": 0.2}, metrics={"accuracy": 0.95})
    make(parameters={"lr": 0.1}, metrics={"accuracy": 0.9, "n": 3})
    cells = [
        say("# Digits\n\nReads digits."),
        code("import torch", scalekit={"status": "completed", "seconds": 2.5, "memory": 3 << 30}),
        code("lr: float = 1e-3  # Step\nwidth: int = 8", tags=["parameters"]),
        code("table", show("text/html", "<table><tr><td>0.97</td></tr></table>"),
             scalekit={"status": "completed", "seconds": 65.0}),
    ]  # fmt: skip
    code_state = {"commit": "c0ffee" * 7, "changed": True}
    bundle = make(
        cells, events=log(5, loss=lambda step: 1 / (1 + step)), parameters={"lr": 0.3},
        metrics={"accuracy": 0.97},
        price_per_hour=3600.0, profile="night", code=code_state, notebook_sha256="ab" * 32, tags=["baseline"],
    )  # fmt: skip
    bundle.note("labels of class 3 were wrong")
    page = write_run_page(bundle)
    wanted = [
        "Notes",
        "Result",
        "Curves",
        "Parameters",
        "Model card",
        "Notebook",
        "Time and memory by cell",
        "Code",
        "Environment",
    ]
    assert titles(page) == wanted
    text = read_text(page)
    assert "with accuracy 0.97: the best of 3 runs of this notebook." in text
    for told in (
        "baseline",
        "labels of class 3 were wrong",
        "ab" * 32,
        "changed files that are not committed",
        "night",
        "node-1",
    ):
        assert told in text
    assert "accuracy 0.97 0.95 +0.02 (+2.1%) 0.9 +0.07 (+7.8%)" in section(page, "result")
    assert "lr 0.3 given 0.1" in section(page, "parameters") and "width 8 default 8" in section(
        page, "parameters"
    )
    assert "1:05" in section(page, "time") and "3 GiB" in section(page, "time")
    assert find_faults(page.read_text()) == [] and bundle.verify() == []


def test_the_parent_is_the_run_it_goes_on_with(make):
    first = make(metrics={"loss": 3.0}, state="failed", error="killed")
    make(metrics={"loss": 2.0})
    last = make(metrics={"loss": 1.0}, resumed=first.run_id)
    story = Story(last)
    assert (story.parent["run_id"], story.best["metrics"]["loss"]) == (first.run_id, 2.0)
    assert f"The run it goes on with is {first.run_id}." in read_text(write_run_page(last))


def test_trials_of_the_same_sweep_are_no_parents(make):
    make(metrics={"loss": 2.0}, sweep="a")
    assert Story(make(metrics={"loss": 1.0}, sweep="a")).parent is None


def test_runs_of_other_notebooks_are_not_compared(make):
    make(metrics={"loss": 0.1}, notebook="pretrain.ipynb")
    story = Story(make(metrics={"loss": 1.0}))
    assert (story.others, story.best, story.parent) == ([], None, None)


def test_what_failed_stands_first_with_the_last_words_and_the_traceback(make):
    printed = stream("".join(f"epoch {n}\n" for n in range(500)))
    trace = {"output_type": "error", "ename": "ValueError", "evalue": "loss is nan",
             "traceback": ["\x1b[31mValueError\x1b[0m: loss is nan"]}  # fmt: skip
    banner = say("This run failed") | {"metadata": {"tags": ["scalekit-error"]}}
    cells = [
        banner,
        code("x = 1"),
        banner,
        code("train()", printed, trace, scalekit={"status": "failed", "seconds": 3.0}),
        code("never"),
    ]
    bundle = make(cells, state="failed", error="ValueError: loss is nan")
    page = write_run_page(bundle)
    told = section(page, "failure")
    assert titles(page)[0] == "What went wrong" and "It stands in cell 2 : train()" in told
    assert "epoch 499" in told and "epoch 400" not in told and "ValueError : loss is nan" in told
    assert f"scalekit run train.ipynb --resume {bundle.run_id}" in told
    assert "Failed in cell 2 after" in read_text(page) and "This run failed" not in read_text(page)


@pytest.mark.parametrize("state", ["queued", "running", "cancelled", "pruned", "preempted"])
def test_every_state_has_a_page(store, state):
    bundle = store.create_run({"notebook": "train.ipynb"})
    for one in ("running", state) if state not in ("queued", "running") else (state,) * (state == "running"):
        bundle.set_state(one)
    page = write_run_page(bundle)
    assert state.capitalize() in read_text(page) and find_faults(page.read_text()) == []
    assert "there is no notebook" in section(page, "notebook")


def test_the_machine_is_drawn_where_it_was_measured(make):
    values = {
        "cpu": 1.5,
        "memory": 2 << 30,
        "gpu0/utilization": 0.5,
        "gpu1/utilization": 0.7,
        "gpu0/memory": 1 << 30,
    }
    bundle = make(events=[{"event": "system", "values": values} for _ in range(3)])
    page = write_run_page(bundle)
    told = section(page, "machine")
    for title in ("cores in use", "memory of the kernel", "share of GPUs in use", "memory of GPUs"):
        assert title in told
    assert "GPU 2 busy 60%" in read_text(page) and "memory 2 GiB" in read_text(page)
    assert "GPU unknown nothing was measured" in read_text(write_run_page(make()))


def test_packages_that_differ_from_the_run_before_are_named(make):
    first, second = make(seal=False), make(seal=False)
    (first.path / "environment.txt").write_text("# Python 3.11 on Linux\nnumpy==1.0\ntorch==2.0\n")
    (second.path / "environment.txt").write_text("# Python 3.11 on Linux\nnumpy==2.0\ntorch==2.0\n")
    told = section(write_run_page(second), "environment")
    assert "package before this run numpy 1.0 2.0" in told and "All 2 packages" in told


def test_data_are_known_by_their_checksum_and_by_what_was_recorded(make):
    bundle = make(metrics={"data_version": 7, "accuracy": 0.9}, seal=False)
    place = bundle.path / "checkpoints" / "default" / "3"
    place.mkdir(parents=True)
    about = {"training": {"data": "TensorDataset of 3", "content of the data": "c0ffee"}}
    (place / "manifest.json").write_text(json.dumps({"manifest": {"about": about}}))
    (place / "tensors.safetensors").write_bytes(b"0" * 2048)
    page = write_run_page(bundle)
    assert "Data as the run has recorded kind TensorDataset of 3 content c0ffee data_version 7" in section(
        page, "card"
    )
    assert "checkpoint default/3 2.1 KiB" in section(page, "files")


# --- The model card ---------------------------------------------------------------------------------------


def test_gaps_of_the_card_are_marked_and_not_hidden(make):
    told = section(write_run_page(make([say("# Digits\n\nReads digits.")])), "card")
    assert told.count("not stated") == 6 and "Purpose from the notebook's first lines Reads digits." in told


def test_the_card_comes_from_a_cell_and_from_the_code(make, store):
    card = say("## Model card\n\nOwner: Ann\n\n### Limits\n\n- *other* hands\n\n### Licence\nCC0") | {
        "metadata": {"tags": ["card"]}
    }
    bundle = make([card], seal=False, metrics={"accuracy": 0.9})
    bundle = Bundle(bundle.path)
    pd.DataFrame({"n": [9], "f1": [0.5]}, index=pd.Index(["old <b>"], name="age")).to_parquet(
        bundle.artifacts / "t.parquet"
    )
    bundle.append("record", values={}, files={"metrics_by_slice": "artifacts/t.parquet"})
    page = write_run_page(bundle)
    told = section(page, "card")
    for one in (
        "Owner Ann",
        "Limits other hands",
        "Licence CC0",
        "Metrics accuracy 0.9",
        "age n f1 old <b> 9 0.5",
    ):
        assert one in told
    assert "Model card" not in section(page, "notebook"), "it is not shown twice"
    assert find_faults(page.read_text()) == []


def test_a_table_of_slices_that_is_damaged_says_so(make):
    bundle = make(seal=False)
    (bundle.artifacts / "t.parquet").write_bytes(b"PAR1 nothing")
    bundle.append("record", values={}, files={"metrics_by_slice": "artifacts/t.parquet"})
    assert "t.parquet can't be read" in section(write_run_page(bundle), "card")


# --- What may be in it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_notebook_leaves_nothing_that_acts(case, tmp_path):
    bundle = make_run(tmp_path / "runs", case, "http://127.0.0.1:9/hit")
    page = write_run_page(bundle)
    assert find_faults(page.read_text()) == []
    assert page.stat().st_size < LARGEST
    frame = frame_page(bundle)
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame, "all of the page is one attribute"


@pytest.mark.parametrize(
    "name", ["script tags", "an image that fails", "styles", "frames", "javascript in links"]
)
def test_the_static_check_would_tell(name, tmp_path, monkeypatch):
    monkeypatch.setattr(nh3, "clean", lambda text, **options: text)
    case = next(case for case in CASES if case.name == name)
    assert find_faults(
        write_run_page(make_run(tmp_path / "runs", case, "http://127.0.0.1:9/hit")).read_text()
    )


def test_the_names_in_the_page_of_a_sweep_stay_text_too(tmp_path):
    case = next(case for case in CASES if case.name == "names and values")
    bundles = [make_run(tmp_path / "runs", case) for _ in range(2)]
    page = sk.report("state == 'succeeded'", store=bundles[0].path.parent)
    assert not re.search(r"<script(?!>\nconst)|<img|onerror=\"", page.read_text())


def test_a_link_to_the_web_stays_and_tells_nobody_where_it_came_from(make):
    text = write_run_page(
        make([code("a", show("text/html", '<a href="https://pytorch.org">torch</a>'))])
    ).read_text()
    assert '<a href="https://pytorch.org" rel="noopener noreferrer">torch</a>' in text
    assert '<meta name="referrer" content="no-referrer"/>' in text


# --- Size -------------------------------------------------------------------------------------------------


def draw_noise(side, seed):
    out = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
        out, "PNG"
    )
    return base64.b64encode(out.getvalue()).decode()


def test_large_pictures_become_small_ones_and_the_rest_is_named(make):
    cells = [code(f"plot({n})", show("image/png", draw_noise(600, n))) for n in range(9)]
    bundle = make(cells)
    page = write_run_page(bundle)
    text = page.read_text()
    assert page.stat().st_size < LARGEST < bundle.notebook.stat().st_size
    assert text.count("<img") + text.count("A picture of") == 9 and text.count("<img") > 2
    assert len(frame_page(bundle)) < 500_000


def test_many_large_tables_make_no_endless_page(make):
    rows = "".join(f"<tr><td>{number}</td><td>{number * 7}</td></tr>" for number in range(4_000))
    page = write_run_page(
        make([code(f"table_{n}", show("text/html", f"<table>{rows}</table>")) for n in range(20)])
    )
    assert page.stat().st_size < LARGEST
    assert 2 <= page.read_text().count("<table>") - 2 < 20 and "An output of 1" in read_text(page)


def test_very_many_points_make_a_small_page_and_keep_the_spike(store):
    bundle = store.create_run({"notebook": "train.ipynb"})
    bundle.set_state("running")
    event = '{{"time": "{}", "event": "log", "step": {}, "values": {{"loss": {}, "accuracy": 0.5}}}}\n'
    losses = [9 if step == 77_777 else 0.1 for step in range(100_000)]
    lines = [event.format(CLOCK.format(0), step, loss) for step, loss in enumerate(losses)]
    with open(bundle.path / "events.jsonl", "a") as file:
        file.writelines(lines)
    page = write_run_page(bundle)
    assert page.stat().st_size < 300_000
    assert ";77777,9;" in page.read_text()


def test_many_metrics_make_no_endless_page(make):
    names = {f"layer{n}/norm": lambda step: step for n in range(200)}
    page = write_run_page(make(events=log(300, **names)))
    assert page.stat().st_size < LARGEST
    assert page.read_text().count('class="zoom"') == 24 and "Not drawn: layer24/norm" in read_text(page)


# --- Doors ------------------------------------------------------------------------------------------------


def test_report_finds_a_run_a_sweep_or_a_condition(make, store, tmp_path, capsys):
    runs = [make(parameters={"lr": lr}, metrics={"accuracy": lr}) for lr in (0.1, 0.2, 0.3)]
    where = str(store.folder)
    assert sk.report("latest", store=where) == runs[2].path / "later" / "report.html"
    assert sk.report(Run(runs[0].summary(), runs[0])) == runs[0].path / "later" / "report.html"
    assert Run(runs[1].summary(), runs[1]).report(tmp_path / "a.html").parent == tmp_path
    page = sk.report("metrics.accuracy > 0.15", tmp_path / "b.html", store=where)
    assert "2 trials" in read_text(page) or "0.3000" in read_text(page)
    assert (
        main(
            [
                "report",
                runs[0].run_id,
                "-o",
                str(tmp_path / "c.html"),
                "--store",
                where,
                "--notebook",
                "--json",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told == {"page": str(tmp_path / "c.html"), "notebook": str(tmp_path / "c.ipynb"),
                    "bytes": (tmp_path / "c.html").stat().st_size}  # fmt: skip
    nbformat.validate(nbformat.read(tmp_path / "c.ipynb", as_version=4))
    assert [bundle.verify() for bundle in runs] == [[], [], []]


def test_a_sweep_has_its_page_by_a_part_of_its_name(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "a.ipynb", ("lr: float = 0.1", "parameters"), "lr")
    plan = plan_sweep("a.ipynb", {"lr": [0.1, 0.2]}, goal="maximize accuracy")
    folder = store.folder / "sweeps" / plan.sweep_id
    folder.mkdir(parents=True)
    write_plan(plan, folder, {"profile": None, "n_workers": None})
    for work, trial in plan.trials.items():
        asked = {"parameters": trial.parameters, "fingerprint": work, "sweep": plan.sweep_id}
        bundle = store.create_run({"notebook": "a.ipynb", **asked})
        bundle.set_state("running")
        bundle.append("record", values={"accuracy": 1 - trial.values["lr"]})
        bundle.set_state("succeeded")
        store.index(bundle)
    page = sk.report(plan.sweep_id[:-2], store=store.folder)
    assert page == folder / "index.html" and page.with_suffix(".ipynb").exists()
    assert "best accuracy 0.9" in read_text(page)
    other = sk.report(plan.sweep_id, tmp_path / "b.html", goal="minimize accuracy", store=store.folder)
    assert "best accuracy 0.8" in read_text(other)
    with pytest.raises(UnknownRun, match="Nor is it a sweep"):
        sk.report("b-123", store=store.folder)


def test_report_says_what_it_did_not_find(make, store, tmp_path, capsys):
    make(metrics={"accuracy": 0.5})
    where = ["--store", str(store.folder)]
    assert main(["report", "nobody", *where]) == 2
    assert "Nor is it a sweep" in capsys.readouterr().err
    assert main(["report", "metrics.accuracy > 1", *where]) == 2
    assert "no run fits 'metrics.accuracy > 1'" in capsys.readouterr().err
    assert main(["report", "latest", "--goal", "accuracy", *where]) == 2
    assert 'like "maximize accuracy"' in capsys.readouterr().err
    with pytest.raises(StoreError, match="there is no folder"):
        sk.report("latest", tmp_path / "no" / "folder.html", store=store.folder)
    with pytest.raises(UnknownRun):
        sk.report("nobody", store=store.folder)


def test_the_goal_can_be_said(make):
    make(metrics={"accuracy": 0.9, "seconds_per_step": 1.0})
    bundle = make(metrics={"accuracy": 0.8, "seconds_per_step": 0.5})
    page = sk.report(Run(bundle.summary(), bundle), goal="minimize seconds_per_step")
    assert "with seconds_per_step 0.5: the best of 2 runs" in read_text(page)


def test_the_notebook_beside_the_page_runs_as_it_stands(make, store):
    cells = [code("x = 1", scalekit={"status": "completed", "seconds": 1.0})]
    bundle = make(
        cells, events=log(3, loss=lambda step: step), metrics={"accuracy": 0.9}, parameters={"lr": 0.1}
    )
    page = sk.report("latest", notebook=True, store=store.folder)
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(page.parent)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            exec(cell.source, names)
    assert names["story"].row["run_id"] == bundle.run_id
    story = open_story(store.folder, "latest")
    assert (story.results["this run"]["accuracy"], list(story.spent["seconds"])) == (0.9, [1.0])


def test_a_bundle_that_was_copied_away_has_a_page_and_gets_no_index(make, tmp_path):
    bundle = make(metrics={"accuracy": 0.9})
    (tmp_path / "alone").mkdir()
    copy = shutil.copytree(bundle.path, tmp_path / "alone" / bundle.run_id)
    page = write_run_page(Bundle(copy))
    assert "the first run of this notebook" in read_text(page)
    assert [path.name for path in (tmp_path / "alone").iterdir()] == [bundle.run_id]


def test_in_a_notebook_a_run_shows_its_page_below_its_table(make, monkeypatch):
    bundle = make(metrics={"accuracy": 0.9})
    shown = Run(bundle.summary(), bundle)._repr_html_()
    assert shown.startswith("<table>") and shown.count("<iframe") == 1 and "<script" not in shown
    monkeypatch.setattr("scalekit.reporting.page.frame_page", lambda bundle: "x" * 1_000_000)
    assert "<code>run.report()</code>" in Run(bundle.summary(), bundle)._repr_html_()

    def fail(bundle):
        raise StoreError("its folder is gone <b>")

    monkeypatch.setattr("scalekit.reporting.page.frame_page", fail)
    assert "can't be shown: its folder is gone &lt;b&gt;" in Run(bundle.summary(), bundle)._repr_html_()
