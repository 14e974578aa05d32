"""Panels in a real JupyterLab: they scale, they say what is wrong, they follow the theme and the keyboard."""

import time
from pathlib import Path

from lab import PATIENCE, Lab, LabPage, press
from playwright.sync_api import Locator, expect

OPEN = "import scalekit as sk\ncluster = sk.open_cluster('cpu', n_workers=1)\ncluster"


def show(lab: Lab, lab_page: LabPage, name: str, *cells: str) -> Locator:
    "Run a notebook of these cells; its panel, once it is alive"
    lab_page.open(lab.write_notebook(name, *cells)).run_all()
    panel = lab_page.page.locator(".skp-panel").first
    expect_state(panel, "live")
    return panel


def expect_state(panel: Locator, word: str) -> None:
    expect(panel.get_by_role("status")).to_contain_text(word)


def photograph(panel: Locator, path: Path) -> None:
    "The output around a panel, with its controls"
    path.parent.mkdir(parents=True, exist_ok=True)
    panel.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')]").screenshot(
        path=path, animations="disabled"
    )


def test_a_cluster_is_scaled_with_the_keyboard_and_shows_its_new_workers(lab, lab_page, picture):
    panel = show(
        lab,
        lab_page,
        "cluster.ipynb",
        OPEN,
        "import time; waiting = cluster.client.map(time.sleep, [300] * 9, pure=False)",
    )
    slider = lab_page.page.get_by_role("slider").first
    for n_workers in (2, 3):
        slider.press("ArrowRight")
        expect(panel.locator("tbody tr")).to_have_count(n_workers)
        expect(slider).to_have_attribute("aria-valuetext", str(n_workers))
    expect(panel.get_by_text("3 workers, 3 tasks running, 6 waiting")).to_be_visible()
    photograph(panel, picture / "cluster-panel.png")
    lab_page.change_theme("Dark")
    photograph(panel, picture / "cluster-panel-dark.png")
    lab_page.page.set_viewport_size({"width": 700, "height": 900})
    photograph(panel, picture / "cluster-panel-narrow.png")
    press(panel.get_by_role("button", name="Pause"))
    expect_state(panel, "paused")
    press(panel.get_by_role("button", name="Continue"))
    expect_state(panel, "live")
    press(lab_page.page.get_by_role("button", name="Stop", exact=True))
    press(lab_page.page.get_by_role("button", name="Stop the cluster?"))
    expect_state(panel, "ended")
    expect(panel.get_by_role("alert")).to_have_text("The cluster was closed. Open another one to go on.")
    photograph(panel, picture / "cluster-panel-ended.png")


ELSEWHERE = """
import json, pathlib, subprocess, sys, time
words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
words += ["--no-dashboard", "--scheduler-file", "scheduler.json"]
scheduler = subprocess.Popen(words, stderr=subprocess.DEVNULL)
while not (told := pathlib.Path("scheduler.json")).exists() or not told.read_text():
    time.sleep(0.05)
import scalekit as sk
cluster = sk.open_cluster(json.loads(told.read_text())["address"])
cluster
"""


def test_a_cluster_whose_scheduler_was_lost_says_so_and_ends_when_it_does_not_come_back(lab, lab_page):
    "The scheduler runs in a process of its own, as somebody else's does"
    panel = show(lab, lab_page, "lost.ipynb", ELSEWHERE)
    expect(panel.get_by_text("0 workers, 0 tasks running, 0 waiting")).to_be_visible()
    lab_page.command("notebook:insert-cell-below")
    lab_page.run_code("scheduler.kill()")
    expect_state(panel, "retrying")
    expect(panel.get_by_role("alert")).to_contain_text("the scheduler is gone, or out of reach")
    expect_state(panel, "ended")
    expect(panel.get_by_role("alert")).to_contain_text("Open a cluster again to go on")


def run_until(lab_page: LabPage, code: str, path: Path, text: str) -> None:
    "Run code in the kernel until it has written this into a file"
    end = time.monotonic() + PATIENCE
    while not path.exists() or path.read_text() != text:
        assert time.monotonic() < end, path.read_text()
        lab_page.run_code(code)


def test_numbers_turn_grey_when_their_kernel_is_restarted_and_a_second_run_replaces_the_panel(lab, lab_page):
    panel = show(lab, lab_page, "again.ipynb", OPEN)
    lab_page.run_all()
    panel = lab_page.page.locator(".skp-panel")
    expect(panel).to_have_count(1)
    expect(panel).to_contain_text("another cluster")
    run_until(lab_page, THREADS, lab.root / "threads.txt", "1")
    press(lab_page.page.get_by_role("button", name="Stop the other one"))
    press(lab_page.page.get_by_role("button", name="Stop it?"))
    expect(panel).not_to_contain_text("another cluster")
    lab_page.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    )
    expect_state(panel, "stale")
    expect(panel.get_by_role("alert")).to_contain_text("The kernel is silent")


THREADS = (
    "import threading\n"
    "names = [one.name for one in threading.enumerate() if one.name == 'scalekit-panel-cluster']\n"
    "with open('threads.txt', 'w') as file: file.write(str(len(names)))"
)


RUNS = """
from scalekit.store import Store
store = Store("runs")
for number, accuracy in enumerate((0.96, 0.98, 0.97)):
    run = store.create_run({"notebook": "train.ipynb", "parameters": {"lr": 0.1 / 10**number, "epochs": 20}})
    run.notebook.write_text('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}')
    run.set_state("running")
    run.append("record", values={"accuracy": accuracy, "loss": 1 - accuracy})
    how = {"state": "failed", "error": "CUDA out of memory"} if number == 2 else {"state": "succeeded"}
    run.set_state(**how)
    run.tag("night")
    store.index(run)
import scalekit as sk
sk.show_runs(store="runs")
"""


def test_runs_are_filtered_compared_tagged_and_started_again_with_other_values(lab, lab_page, picture):
    lab.write_notebook("train.ipynb", "lr, epochs", parameters="lr: float = 0.1\nepochs: int = 3")
    panel = show(lab, lab_page, "runs.ipynb", RUNS)
    rows = panel.locator(".skp-runs tbody tr")
    expect(rows).to_have_count(3)
    query = lab_page.page.get_by_role("textbox", name="Filter")
    query.fill("metrics.accuracy >")
    expect(panel.get_by_role("alert")).to_contain_text("metrics.accuracy >")
    expect(rows).to_have_count(3)
    query.fill("metrics.accuracy > 0.965")
    expect(rows).to_have_count(2)
    expect(panel.get_by_role("alert")).to_be_empty()
    press(panel.get_by_role("button", name="accuracy"))
    expect(panel.get_by_role("columnheader", name="accuracy ↑")).to_be_visible()
    for at in (0, 1):
        press(rows.nth(at).get_by_role("button"))
        expect(rows.nth(at).get_by_role("button")).to_have_attribute("aria-pressed", "true")
    press(panel.get_by_role("button", name="Compare"))
    expect(panel.locator(".skp-pair")).to_contain_text("+0.01")
    lab_page.page.get_by_role("textbox", name="Tags").fill("accepted")
    press(lab_page.page.get_by_role("button", name="Tag the chosen"))
    expect(rows.nth(0)).to_contain_text("night, accepted")
    photograph(panel, picture / "runs-panel.png")
    lab_page.change_theme("Dark")
    photograph(panel, picture / "runs-panel-dark.png")
    lab_page.change_theme("Light")
    press(rows.nth(1).get_by_role("button"))
    press(panel.get_by_role("button", name="Run with changes"))
    expect(lab_page.page.get_by_role("textbox", name="epochs")).to_have_value("20")
    photograph(panel, picture / "runs-panel-rerun.png")
    lab_page.command("notebook:clear-all-cell-outputs")
    run_until(lab_page, SEEN, lab.root / "seen.txt", "False")


SEEN = """
from scalekit.panels import cells
with open("seen.txt", "w") as file:
    file.write(str(any(not panel._unseen for panel in cells.open_panels)))
"""
