"""The run form and the sweep panel in a real JupyterLab: filled in, started, watched, stopped by keyboard."""

import re
from pathlib import Path

from lab import Hold, Lab, LabPage, press
from playwright.sync_api import Locator, expect

PARAMETERS = """from typing import Annotated, Literal
from pydantic import Field
lr: Annotated[float, Field(gt=0, le=1)] = 0.01  # step of the optimizer
epochs: int = 4  # how often all data is seen
optimizer: Literal["adam", "sgd"] = "adam"  # rule of the steps
layers: list[int] = [64, 32]  # width of each hidden layer
smoke: bool = False  # tiny run that only shows that every cell works"""
TRAIN = """import time
import scalekit as sk
for epoch in range(1 if smoke else epochs):
    time.sleep(0.4)
    loss = 1 / (epoch + 1) + lr
    print(f"epoch {epoch}: loss {loss:.3f}", flush=True)
    sk.log(loss=loss, accuracy=1 - loss / 2, step=epoch)"""


def write_training(lab: Lab, name: str, *more: str) -> str:
    return lab.write_notebook(name, TRAIN, "sk.record(accuracy=1 - lr)", *more, parameters=PARAMETERS)


def show(lab: Lab, lab_page: LabPage, name: str, code: str) -> Locator:
    "Run a notebook of one cell; its output"
    lab_page.open(lab.write_notebook(name, code)).run_all()
    lab_page.command("application:toggle-left-area")
    return lab_page.page.locator(".jp-OutputArea-output").first


def photograph(lab_page: LabPage, output: Locator, picture: Path, name: str) -> None:
    "Light, dark and narrow"
    for suffix, theme, width in (("", "Light", 1400), ("-dark", "Dark", 1400), ("-narrow", "Light", 560)):
        lab_page.change_theme(theme)
        lab_page.page.set_viewport_size({"width": width, "height": 1100})
        expect(output).to_be_visible()
        box = output.bounding_box()
        assert box is not None
        lab_page.photograph(picture / f"{name}{suffix}.png", clip={**box, "height": min(box["height"], 960)})
    lab_page.page.set_viewport_size({"width": 1400, "height": 900})


def test_a_form_is_filled_with_the_keyboard_checked_while_typing_run_and_followed(lab, lab_page, picture):
    hold = Hold(lab.folder / "hold")
    write_training(lab, "train.ipynb", hold.code)
    form = show(lab, lab_page, "form.ipynb", 'import scalekit as sk\nsk.form("train.ipynb")')
    rate = form.get_by_label("lr")
    rate.focus()
    rate.fill("-1")
    expect(form.get_by_role("alert").first).to_contain_text("lr must be > 0, got -1. Allowed: 0 < lr <= 1")
    button = form.get_by_role("button", name="Run", exact=True)
    press(button)
    lab_page.settle()
    assert not list(lab.store.glob("2*"))
    rate.fill("0.2")
    expect(form.get_by_text("✕")).to_have_count(0)
    rate.press("Tab")
    expect(form.get_by_label("epochs")).to_be_focused()
    press(button)
    expect(form.get_by_text(re.compile(r"cell \d of \d"))).to_be_visible()
    expect(form.get_by_role("button", name="Cancel")).to_be_visible()
    expect(form.get_by_text("printed last")).to_be_visible()
    hold.release()
    expect(form.get_by_text("succeeded")).to_be_visible()
    expect(form.get_by_text("epoch 3: loss 0.450")).to_be_visible()
    photograph(lab_page, form, picture, "run-form")
    form.get_by_role("link", name="executed notebook").click()
    expect(lab_page.page.locator(".jp-NotebookPanel:visible").get_by_text("lr = 0.2")).to_be_visible()


def test_a_run_survives_a_restart_of_the_kernel_and_the_form_made_again_cancels_it(lab, lab_page):
    write_training(lab, "long.ipynb")
    code = 'import scalekit as sk\nsk.form("long.ipynb", epochs=1000)'
    form = show(lab, lab_page, "again.ipynb", code)
    press(form.get_by_role("button", name="Run", exact=True))
    expect(form.get_by_text(re.compile(r"cell \d of \d"))).to_be_visible()
    lab_page.page.evaluate("""async () => {
        await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }""")
    lab_page.run_all()
    press(form.get_by_role("button", name="Cancel"))
    expect(form.get_by_text("cancelled").first).to_be_visible()
    lab_page.errors[:] = [
        error for error in lab_page.errors if "Comm not found" not in error
    ]  # of the restart


def test_a_form_hands_a_job_to_the_daemon_and_shows_the_next_times_of_a_schedule(lab, lab_page):
    from scalekit.jobs.book import JobBook

    write_training(lab, "nightly.ipynb")
    form = show(lab, lab_page, "job.ipynb", 'import scalekit as sk\nsk.form("nightly.ipynb", epochs=1)')
    press(form.get_by_role("button", name="On a schedule"))
    form.get_by_label("time", exact=True).fill("0 2 1 1 *")
    form.get_by_label("time zone").fill("Europe/Berlin")
    expect(form.get_by_text(re.compile(r"next: \w+ 20\d\d-01-01 02:00 CET, ")).first).to_be_visible()
    press(form.get_by_role("button", name="Schedule", exact=True))
    expect(form.get_by_text("job nightly is due")).to_be_visible()
    press(form.get_by_role("button", name="As a job"))
    press(form.get_by_role("button", name="Submit"))
    expect(form.get_by_text("job nightly is succeeded")).to_be_visible()
    book = JobBook(lab.store)
    assert [job.spec.cron for job in book.list_jobs()] == ["0 2 1 1 *"]
    assert [(firing.name, firing.state) for firing in book.list_firings()] == [("nightly", "succeeded")]


def test_a_sweep_is_watched_while_it_runs_pruned_and_stopped(lab, lab_page, picture):
    write_training(lab, "sweep_me.ipynb")
    code = """import scalekit as sk
sk.start_sweep("sweep_me.ipynb", lr=[0.05, 0.1, 0.2, 0.4], epochs=[1, 2, 3, 900], goal="max accuracy",
               profile="cpu", n_workers=2)"""
    sweep = show(lab, lab_page, "sweep.ipynb", code)
    expect(sweep.get_by_text(re.compile(r"[4-9]/16 trials"))).to_be_visible()
    long = sweep.locator("tr", has_text="running").filter(
        has=lab_page.page.get_by_role("cell", name="900", exact=True)
    )
    press(long.get_by_role("button", name="Prune").first)
    expect(sweep.get_by_text("1 pruned")).to_be_visible()
    expect(sweep.get_by_role("img", name="Best accuracy so far by trial")).to_be_visible()
    photograph(lab_page, sweep, picture, "sweep-panel")
    press(sweep.get_by_role("button", name="Stop sweep"))
    expect(sweep.get_by_text(re.compile(r"sweep_me-\w+: cancelled"))).to_be_visible()
    sweep.get_by_role("link", name="notebook").first.click()
    expect(lab_page.page.locator(".jp-NotebookPanel:visible").get_by_text("epochs = ").first).to_be_visible()
