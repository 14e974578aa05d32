"""The browser's half: launcher, "Mark as Parameters", the job form with typed inputs, and a job."""

import re

from lab import Hold
from playwright.sync_api import expect

PARAMETERS = """from typing import Annotated, Literal
from pydantic import Field
lr: Annotated[float, Field(gt=0, le=1)] = 0.01  # step of the optimizer
steps: int = 5  # how often it prints
optimizer: Literal["adam", "sgd"] = "adam"
mixed: bool = False  # half precision
"""

WORK = """for step in range(steps):
    print(f"step {step} with lr={lr}", flush=True)"""

TAGS = """expected => {
    const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells];
    return JSON.stringify(cells.map(cell => cell.getMetadata('tags') ?? [])) === JSON.stringify(expected);
}"""


def expect_tags(lab_page, *tags):
    "Those of each cell of the notebook in front"
    lab_page.page.wait_for_function(TAGS, arg=list(tags))


def test_a_template_in_the_launcher_becomes_a_notebook(lab, lab_page):
    page = lab_page.open().page
    page.locator(".jp-LauncherCard", has_text="From scalekit template").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("radio").first).to_be_focused()
    dialog.get_by_role("radio", name="A small network learns").check()
    dialog.get_by_role("button", name="Create").click()
    expect(page.get_by_role("tab", name="train.ipynb")).to_be_visible()
    lab_page.wait_for_kernel()
    assert (lab.root / "train.ipynb").exists()


def test_modules_are_asked_for_under_their_checksum(lab_page):
    "An old file in the browser's store never meets a new one"
    asked = []
    lab_page.page.on("request", lambda request: "scalekit-lab" in request.url and asked.append(request.url))
    lab_page.open()
    plain = [name for name in asked if not re.search(r"\.(js|css)\?v=[0-9a-f]{16}$", name)]
    assert len(asked) > 6 and [name.rpartition("/")[2] for name in plain] == ["remoteEntry.js"]


def test_one_cell_is_marked_as_parameters_and_undo_takes_it_back(lab, lab_page):
    page = lab_page.open(lab.write_notebook("mark.ipynb", "a = 1", "b = 2")).page
    lab_page.wait_for_kernel()
    for number, tags in enumerate(([["parameters"], []], [[], ["parameters"]])):
        page.locator(".jp-CodeCell").nth(number).click(button="right")
        page.locator(".lm-Menu-item", has_text="Mark as Parameters").click()
        expect_tags(lab_page, *tags)
    lab_page.command("notebook:undo-cell-action")
    expect_tags(lab_page, ["parameters"], [])
    lab_page.command("notebook:redo-cell-action")
    expect_tags(lab_page, [], ["parameters"])
    lab_page.command("scalekit:mark-parameters")  # the active cell is the first one
    expect_tags(lab_page, ["parameters"], [])
    lab_page.command("scalekit:mark-parameters")
    expect_tags(lab_page, [], [])


def open_form(lab, lab_page, name, work=WORK):
    "The job form for a notebook with typed parameters"
    path = lab.write_notebook(f"jobs/{name}.ipynb", work, "print('all done')", parameters=PARAMETERS)
    page = lab_page.open(path).page
    lab_page.wait_for_kernel()
    page.get_by_role("button", name="Run as Job").click()
    expect(page.get_by_label("Input file")).to_have_value(path)
    return page


def test_a_wrong_value_is_refused_in_the_form_with_its_sentence(lab, lab_page):
    page = open_form(lab, lab_page, "wrong")
    create = page.get_by_role("button", name="Create", exact=True)
    lr = page.get_by_label("lr", exact=True)
    expect(lr).to_have_attribute("type", "number")
    expect(page.get_by_label("optimizer")).to_have_value("adam")
    expect(page.get_by_text("step of the optimizer · float, 0 < lr <= 1")).to_be_visible()
    expect(create).to_be_enabled()
    lr.fill("7")
    expect(page.get_by_role("alert")).to_have_text(
        "lr must be <= 1, got 7. Allowed: 0 < lr <= 1; for example 0.01"
    )
    expect(create).to_be_disabled()
    lr.fill("0.5")
    expect(create).to_be_enabled()
    page.get_by_label("Time-out").fill("soon")
    expect(page.get_by_role("alert")).to_contain_text("timeout must be a duration")
    expect(create).to_be_disabled()


def test_a_job_shows_its_progress_and_its_output_is_opened(lab, lab_page, picture):
    hold = Hold(lab.folder / "hold")
    page = open_form(lab, lab_page, "digits", f"{WORK}\n{hold.code}")
    page.get_by_label("lr", exact=True).fill("0.5")
    page.get_by_label("steps").fill("20")
    page.get_by_label("mixed").check()
    page.get_by_label("Retries").fill("1")
    page.set_viewport_size({"width": 1400, "height": 1560})
    lab_page.photograph(picture / "create-job.png", clip=FORM)
    page.set_viewport_size({"width": 1400, "height": 900})
    page.get_by_role("button", name="Create", exact=True).click()
    lab_page.command("scalekit:show-jobs")
    panel = page.get_by_role("region", name="Jobs of scalekit")
    job = panel.get_by_role("listitem").filter(has_text="digits")
    expect(job).to_contain_text("running")
    job.get_by_role("button", expanded=False).click()
    expect(job).to_contain_text("cell 3 of 4")  # one more than was written: the values of this job
    expect(job.get_by_role("log")).to_contain_text("with lr=0.5")
    expect(job.get_by_role("progressbar")).to_be_visible()
    job.get_by_role("button", name="Open output").click()
    output = page.locator(".jp-NotebookPanel:visible")
    expect(output).to_contain_text("with lr=0.5")
    hold.release()
    expect(job).to_contain_text("succeeded")
    expect(output).to_contain_text("step 0 with lr=0.5 step 1 with lr=0.5")
    expect(output).to_contain_text("all done")
    expect(page.get_by_role("button", name="Run as Job").last).to_be_disabled()  # it is the output of one


FORM = {"x": 290, "y": 66, "width": 560, "height": 1300}
