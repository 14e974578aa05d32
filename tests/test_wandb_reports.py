"""Reports on a W&B server: the same parts as the page, built without a server, and saved once."""

import json
import re
from pathlib import Path

import pytest

import scalekit as sk
from scalekit.cli import main
from scalekit.findings import Findings
from scalekit.outline.blocks import Choice, EmptyPanel, Outline, Section, Weights, list_values
from scalekit.outline.find import FILE, find_outline, write_report
from scalekit.outline.spec import write_spec
from scalekit.outline.sweep import describe_findings
from scalekit.page import write_sweep_page
from scalekit.store import Store

TRACKED = {"track": ["wandb"], "wandb": {"project": "digits", "entity": "me"}}


def make_runs(folder: Path, n: int = 12, **about) -> Store:
    "A store with a sweep over two parameters and a seed; the last of its trials fails"
    store = Store(folder / "runs")
    for number in range(n):
        parameters = {"lr": 10.0 ** -(1 + number % 3), "width": 32 * (1 + number % 2), "seed": number // 6}
        asked = {"notebook": "train.ipynb", "parameters": parameters, "sweep": "first", "trial": number}
        bundle = store.create_run(asked | TRACKED | about)
        bundle.set_state("running")
        for step in range(3):
            bundle.append("log", step=step, values={"loss": 1 / (1 + step), "accuracy": 0.9 - number / 100})
        bundle.append("record", values={"samples_per_second": 1000.0 * parameters["width"]})
        failed = {"state": "failed", "error": "ValueError: <script>alert(1)</script> | `x`"}
        bundle.set_state(**failed if number == n - 1 else {"state": "succeeded"})
        bundle.seal()
        store.index(bundle)
    return store


def list_named(spec: dict) -> set[str]:
    "Parameters and metrics that the panels of a specification name"
    text = json.dumps([block for block in spec["blocks"] if block["type"] == "panel-grid"])
    named = re.findall(r'"(?:config:|summary:|summary_metrics\.)([\w/]+)(?:\.value)?"', text)
    metrics = re.findall(r'"metrics": \["(?!summary_metrics)([\w/]+)"\]', text)
    return {*named, *metrics, *re.findall(r'"targetKey": "([\w/]+)"', text)}


def list_panels(blocks: list[dict]) -> list[dict]:
    "Panels of a specification"
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]


@pytest.fixture
def offline(monkeypatch):
    "No server, no key, no way to ask"
    import socket

    def refuse(*_):
        raise AssertionError("something asked the network")

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)


def test_a_report_is_built_without_network_account_or_another_process(tmp_path, offline):
    make_runs(tmp_path)
    subject = find_outline("sweep == 'first'", goal="maximize accuracy", store=tmp_path / "runs")
    told = json.loads(write_report(subject).read_bytes())
    assert told["saved"] is None and told["target"] == TRACKED["wandb"]
    assert told["spec"] == write_spec(subject.outline)
    assert list_named(told["spec"]) == {"lr", "width", "seed", "accuracy", "loss"}


def test_a_report_has_the_parts_of_the_page_in_the_order_of_the_page(tmp_path):
    rows = make_runs(tmp_path).list_runs()
    page = write_sweep_page(tmp_path / "page.html", "First", rows, ("maximize", "accuracy")).read_text()
    outline = describe_findings(Findings(rows, ("maximize", "accuracy")), "First")
    head, *titles = [section.title for section in outline.sections]
    assert titles == re.findall("<h2>(.*?)</h2>", page)
    headings = [block for block in write_spec(outline)["blocks"] if block["type"] == "heading"]
    assert [block["children"][0]["text"] for block in headings] == [head, *titles]
    drawn = {"Parallel", "Weights", "Scatter", "Curve", "Number", "Comparer"}
    assert {type(panel).__name__ for panel in outline.panels} == drawn
    assert outline.summary in page


def test_panels_name_only_what_some_run_has(tmp_path):
    rows = make_runs(tmp_path).list_runs()
    outline = describe_findings(Findings(rows, ("maximize", "accuracy")), "First")
    known = {
        name for row in rows for name in [*row["parameters"], *row["metrics"], "created", "seconds", "trial"]
    }
    assert {value.name for panel in outline.panels for value in list_values(panel)} <= known
    wrong = Outline("Odd", "", (Section("Importance", (Weights("acuracy"),)),), Choice(sweeps=("first",)))
    subject = find_outline("sweep == 'first'", store=tmp_path / "runs")
    with pytest.raises(EmptyPanel, match="'Importance' would be empty: no run has the metric 'acuracy'"):
        write_report(type(subject)(wrong, rows, tmp_path, {}))


def test_what_a_notebook_said_is_text_in_the_report(tmp_path):
    rows = make_runs(tmp_path).list_runs()
    outline = describe_findings(Findings(rows, ("maximize", "accuracy")), "First <script>")
    blocks = write_spec(outline)["blocks"]
    assert not any("<script" in block.get("content", "") for block in blocks)
    code = [block["children"][0]["children"][0]["text"] for block in blocks if block["type"] == "code-block"]
    assert code[-1] == "ValueError: <script>alert(1)</script> | `x`"


def test_a_run_that_went_on_is_named_by_the_first_of_its_chain(tmp_path):
    store = Store(tmp_path / "runs")
    asked = {"notebook": "train.ipynb", "parameters": {}} | TRACKED
    first = store.create_run(asked)
    second = store.create_run(asked | {"resumed": first.run_id})
    for bundle in (first, second):
        bundle.set_state("failed" if bundle is first else "running", error="lost")
        store.index(bundle)
    assert find_outline(second.run_id, store=store.folder).outline.choice == Choice(runs=(first.run_id,))


def test_throughput_by_ranks_becomes_a_report_of_its_own(tmp_path):
    store = Store(tmp_path / "runs")
    for n in (1, 2, 4):
        bundle = store.create_run(
            {"notebook": "train.ipynb", "parameters": {"n_ranks": n}, "sweep": "s"} | TRACKED
        )
        bundle.set_state("running")
        bundle.append("record", values={"samples_per_second": 100 * n**0.5})
        bundle.set_state("succeeded")
        store.index(bundle)
    subject = find_outline("sweep == 's'", scaling=True, store=store.folder)
    assert "n_ranks 4 is 2 times as fast as n_ranks 1: 50% efficiency" in subject.outline.summary
    assert list_named(write_spec(subject.outline)) == {"n_ranks", "samples_per_second"}


def test_the_command_saves_a_report_and_the_next_time_replaces_it(
    tmp_path, wandb_server, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    store = make_runs(tmp_path, 4, sweep=None)
    for _ in range(2):
        assert main(["report", "latest", "--wandb", "--store", "runs"]) == 0
        page, address = capsys.readouterr().out.splitlines()
        assert page.endswith("report.html") and address.startswith(f"{wandb_server.url}/me/digits/reports/")
    ((identity, saved),) = wandb_server.views.saved.items()  # one report, saved twice
    assert (saved["entityName"], saved["projectName"], saved["type"]) == ("me", "digits", "runs")
    bundle = store.open_run("latest")
    told = json.loads((bundle.path / "later" / FILE).read_bytes())
    assert told["saved"]["id"] == identity and told["saved"]["url"] == address
    assert [block["type"] for block in json.loads(saved["spec"])["blocks"]] == [
        block["type"] for block in told["spec"]["blocks"]
    ]
    assert list_named(json.loads(saved["spec"])) == list_named(told["spec"]) == {"accuracy", "loss"}
    assert bundle.verify() == []


@pytest.mark.parametrize("trouble", ["no server", "no account"])
def test_without_a_server_or_an_account_there_is_one_sentence_and_the_page(
    trouble, tmp_path, monkeypatch, capsys
):
    make_runs(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if trouble == "no account":
        from fake_wandb import FakeWandb

        server = FakeWandb()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
    assert main(["report", "latest", "--wandb", "--store", "runs"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith("report.html")
    wanted = "can't be reached" if trouble == "no server" else "does not let this account in"
    (sentence,) = said.err.splitlines()
    assert (
        sentence.startswith("scalekit: the report is not saved: W&B at http://127.0.0.1:")
        and wanted in sentence
    )
    assert (
        Path(sk.load_settings().store) / Store("runs").open_run("latest").run_id / "later" / FILE
    ).exists()


def test_the_template_makes_the_page_and_the_report_with_the_same_parts(place, wandb_server):
    run = sk.run(sk.copy_template("report", place / "report.ipynb"), smoke=True, wandb=True)
    page = (run.path / "artifacts" / "report.html").read_text()
    told = json.loads((run.path / "artifacts" / "report.json").read_bytes())
    ((identity, saved),) = wandb_server.views.saved.items()
    assert told["saved"]["id"] == identity and saved["projectName"] == place.name
    blocks = json.loads(saved["spec"])["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings[1:] == re.findall("<h2>(.*?)</h2>", page)
    assert run.metrics["n_panels"] == len(list_panels(blocks)) > 8
    assert run.metrics["verdict"] in page.replace("&#x27;", "'")
