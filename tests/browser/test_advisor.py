"""The advisor in a real JupyterLab: a saved study, the keyboard, the run form."""

from pathlib import Path

from lab import Lab, LabPage, press
from playwright.sync_api import Locator, expect

STUDY = """
from scalekit.measuring.study import Study, save_study
from scalekit.measuring.windows import Probe
from scalekit.notebook import read_source
from scalekit.store import Store

def probe(n, rate, batch):
    windows = (rate, 1.005 * rate, 0.995 * rate)
    shares = {"data": 0.05, "communication": 0.02 * n, "checkpoint": 0.0}
    return Probe(n, batch, windows, 102_400_000 // batch, 30.0, None, **shares)

speeds = {256: {1: 1000.0, 2: 1900.0, 4: 3500.0}, 512: {1: 1100.0, 2: 2150.0, 4: 4100.0}}
probes = tuple(probe(n, rate, batch) for batch, known in speeds.items() for n, rate in known.items())
machine = {"cores": 64, "gpus": ["H100"] * 8}
sha256 = read_source("train.ipynb")[1]
about = "20260501-120000-000-ab12", "train.ipynb", sha256, {"lr": 0.5}, None, machine, "2026-05-01"
save_study(Study(*about, probes), Store("runs"))
"""
SHOW = "import scalekit as sk\nsk.advisor('ab12', '12h', 250, 6.88, devices_per_node=8, store='runs')"
PARAMETERS = "lr: float = 0.1\nn_ranks: int = 1\nbatch_size: int = 64"


def show(lab: Lab, lab_page: LabPage) -> Locator:
    "The panel of a saved study"
    lab.write_notebook("train.ipynb", "print(lr, n_ranks, batch_size)", parameters=PARAMETERS)
    lab_page.open(lab.write_notebook("advice.ipynb", STUDY + SHOW)).run_all()
    panel = lab_page.page.locator(".skp-panel").first
    expect(panel.get_by_role("status").first).to_contain_text("live")
    return panel


def photograph(panel: Locator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    panel.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-output')]").screenshot(
        path=path, animations="disabled"
    )


def test_a_slider_moved_by_the_keyboard_changes_the_sentence_and_the_run_form_takes_the_numbers(
    lab, lab_page, picture
):
    panel = show(lab, lab_page)
    chosen, page = panel.locator(".skp-chosen"), lab_page.page
    expect(chosen).to_contain_text("4 GPUs, global batch 512")
    expect(panel.locator("figure svg")).to_have_count(4)
    ranks = page.get_by_role("slider").nth(0)
    ranks.focus()
    ranks.press("ArrowRight")
    expect(chosen).to_contain_text("8 GPUs, global batch 512")
    page.set_viewport_size({"width": 1400, "height": 1200})
    photograph(panel, picture / "advisor.png")
    lab_page.change_theme("Dark")
    photograph(panel, picture / "advisor-dark.png")
    page.set_viewport_size({"width": 700, "height": 1800})
    photograph(panel, picture / "advisor-narrow.png")
    page.set_viewport_size({"width": 1400, "height": 900})
    lab_page.change_theme("Light")
    advice = panel.locator(".skp-advice")
    deadline = page.get_by_role("slider").nth(2)
    deadline.focus()
    for _ in range(6):
        deadline.press("ArrowLeft")
    expect(advice).to_contain_text("8 GPUs, global batch 512")
    press(page.get_by_role("button", name="Run it"))
    expect(page.get_by_role("textbox", name="n_ranks")).to_have_value("8")
    expect(page.get_by_role("textbox", name="lr")).to_have_value("0.5")
    expect(page.locator(".skp-panel").last).to_contain_text("succeeded")
    expect(page.locator(".skp-panel").last).to_contain_text("0.5 8 512")
