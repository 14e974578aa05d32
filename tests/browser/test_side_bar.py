"""The side bar of jobs: runs that a test tells step by step, so that each picture is the same every time."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lab import Lab
from playwright.sync_api import expect

from scalekit.jobs.leader import lead
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec
from scalekit.store import Store


@pytest.fixture(scope="module")
def lab():
    "A server whose store has this process for its daemon: nothing runs unless a test says so"
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder:
        server = Lab(Path(folder))
        with lead(server.store), server:
            yield server


class Told:
    "A firing whose run is told step by step by a test"

    def __init__(self, lab, name, source, parameters):
        self.book, self.store = Ledger(lab.store), Store(lab.store, lab.root)
        spec = JobSpec(name, str(lab.root / f"{name}.ipynb"), parameters, profile="gpu")
        self.firing = self.book.submit(spec, source="lab")
        self.path = lab.root / lab.write_notebook(f"{name}.ipynb", *source)
        self.parameters = parameters

    def begin(self):
        asked = {"notebook": str(self.path), "notebook_sha256": "ab", "parameters": self.parameters}
        self.bundle = self.store.create_run(asked)
        self.bundle.notebook.write_bytes(self.path.read_bytes())
        self.book.begin_attempt(self.firing, self.bundle.run_id)
        self.bundle.set_state("running")
        self.store.index(self.bundle)

    def do_cells(self, *seconds):
        "Cells from the first on, and how long they took"
        for index, time in enumerate(seconds):
            self.bundle.append("cell", index=index, status="running")
            self.bundle.append("cell", index=index, status="completed", seconds=time)

    def show(self, index, text):
        "Let a cell run and print"
        self.bundle.append("cell", index=index, status="running")
        notebook = json.loads(self.bundle.notebook.read_text())
        notebook["cells"][index]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
        self.bundle.notebook.write_text(json.dumps(notebook))

    def end(self, state, **why):
        self.bundle.set_state(state, **why)
        self.bundle.seal()
        self.store.index(self.bundle)
        ended = {"state": state, "reason": why.get("error")}
        self.book.end_attempt(self.firing, 1, state, lambda firing: ended, error=why.get("error"))


CELLS = ["import torch", "data = load()", "for epoch in range(20):\n    fit(model, data)", "score(model)"]


@pytest.fixture
def panel(lab_page):
    "The side bar of jobs"
    lab_page.open()
    lab_page.command("scalekit:show-jobs")
    return lab_page.page.get_by_role("region", name="Jobs of scalekit")


def test_the_side_bar_follows_a_run_from_its_first_cell_to_its_output(lab, lab_page, panel, picture):
    page = lab_page.page
    before = Told(lab, "digits", CELLS, {"lr": 0.1})
    before.begin()
    before.do_cells(2.0, 1.0, 40.0, 5.0)
    before.end("succeeded")
    failed = Told(lab, "evaluate", CELLS, {"model": "resnet"})
    failed.begin()
    failed.end("failed", error="cell 1: FileNotFoundError: test.parquet")
    told = Told(lab, "digits", CELLS, {"lr": 0.1, "epochs": 20})

    job = panel.get_by_role("listitem").filter(has_text="digits").first
    expect(job).to_contain_text("waiting")
    told.begin()
    told.do_cells(2.0, 1.0)
    expect(job).to_contain_text("cell 2 of 4")
    told.show(2, "".join(f"epoch {epoch:2d}  loss {1.2 / (epoch + 1):.3f}\n" for epoch in range(12)))
    told.bundle.append("log", step=12, values={"loss": 0.1, "accuracy": 0.947})
    expect(job).to_contain_text("cell 3 of 4")
    expect(job).to_contain_text("left (by 1 earlier run)")
    head = job.get_by_role("button", name="digits running")
    head.focus()
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-expanded", "true")
    expect(job.get_by_role("log")).to_contain_text("epoch 11")
    expect(job.get_by_role("row", name="accuracy")).to_contain_text("0.947")
    expect(job.get_by_role("progressbar")).to_have_attribute("value", "2")

    job.get_by_role("button", name="Open output").click()
    output = page.locator(".jp-NotebookPanel:visible")
    expect(output).to_contain_text("epoch 11")
    lab_page.photograph(picture / "jobs-panel.png", clip=PANEL)
    assert lab.ask("/api/sessions") == []  # what is only read needs no kernel
    told.show(2, "the end\n")
    told.do_cells(2.0, 1.0, 30.0, 5.0)
    told.end("succeeded")
    expect(job).to_contain_text("succeeded")
    expect(output).to_contain_text("the end")  # the open tab was read anew
    job.get_by_role("button", name="Open report").click()
    expect(page.frame_locator("iframe").get_by_role("heading", level=1)).to_contain_text("digits")
    bad = panel.get_by_role("listitem").filter(has_text="evaluate")
    expect(bad).to_contain_text("FileNotFoundError: test.parquet")


def test_a_job_is_stopped_from_the_side_bar(lab, panel):
    told = Told(lab, "forever", CELLS, {})
    told.begin()
    job = panel.get_by_role("listitem").filter(has_text="forever")
    job.get_by_role("button", name="Stop: forever").click()
    expect(job).to_contain_text("stopping")
    assert told.book.get_firing(told.firing).state == "stopping"
    told.end("cancelled")
    expect(job).to_contain_text("cancelled")


def test_a_text_of_a_notebook_is_never_markup(lab, panel):
    told = Told(lab, "hostile", ["print()"], {"name": "<img src=x onerror=alert(1)>"})
    told.begin()
    told.show(0, "<script>document.title = 'owned'</script>")
    job = panel.get_by_role("listitem").filter(has_text="hostile")
    job.get_by_role("button", expanded=False).click()
    expect(job.get_by_role("log")).to_contain_text("<script>")
    expect(job.get_by_role("row", name="name")).to_contain_text("<img")
    assert panel.locator("img").count() == 0
    told.end("failed", error="<b>no</b>")
    expect(job).to_contain_text("<b>no</b>")


def test_nobody_asks_while_nobody_looks(lab, lab_page, panel):
    asked = []
    lab_page.page.on("request", lambda request: "/scalekit/api/live" in request.url and asked.append(1))
    with lab_page.page.expect_request(lambda request: "/scalekit/api/live" in request.url):
        expect(panel).to_contain_text("live")
    lab_page.command("filebrowser:activate")
    expect(panel).to_be_hidden()
    asked.clear()
    lab_page.page.wait_for_timeout(4500)  # there is nothing to be seen of what nobody does
    assert not asked


def test_the_side_bar_comes_back_with_its_server(lab, lab_page, panel):
    expect(panel.get_by_role("status")).to_have_text("live")
    lab.kill()
    expect(panel.get_by_role("status")).to_have_text("retrying")
    told = Told(lab, "meanwhile", CELLS, {})
    told.begin()
    lab.start()
    expect(panel.get_by_role("status")).to_have_text("live")
    expect(panel.get_by_role("listitem").filter(has_text="meanwhile")).to_contain_text("running")
    lab_page.errors.clear()  # JupyterLab's own, of a server that is gone


PANEL = {"x": 0, "y": 0, "width": 1100, "height": 620}
