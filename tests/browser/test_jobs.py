"""JupyterLab's own job form and lists, with scalekit behind them: made, watched, killed under, scheduled."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import PATIENCE, Hold, Lab, open_page
from playwright.sync_api import Locator, Page, expect

WORK = "for step in range(steps):\n    print('step', step, flush=True)"


def open_form(lab, lab_page, name, work=WORK):
    "Create Notebook Job, for a notebook that does some work"
    path = lab.write_notebook(f"{name}.ipynb", work, "print('all done')", parameters="steps: int = 3")
    page = lab_page.open(path).page
    lab_page.wait_for_kernel()
    lab_page.command("scheduling:create-from-notebook")
    expect(page.get_by_label("Input file")).to_have_value(path)
    return page


def find_row(page: Page, name: str) -> Locator:
    "A row of the list in front"
    return page.locator("#notebook-jobs-panel tr").filter(has_text=name)


def reload_until(page: Page, row: Locator, text: str, seconds: float = PATIENCE) -> None:
    "The list of jupyter-scheduler does not refresh itself"
    end = time.monotonic() + seconds
    while True:
        try:
            expect(row.filter(has_text=text).first).to_be_visible(timeout=1000)
            return
        except AssertionError:
            if time.monotonic() > end:
                raise
        page.get_by_role("button", name="Reload").first.click()


def create(page: Page) -> None:
    button = page.get_by_role("button", name="Create", exact=True)
    expect(button).to_be_enabled()
    button.click()


def open_output(page: Page, row: Locator) -> Locator:
    "Download, then the link to the executed notebook"
    row.get_by_role("button", name="download").click()
    row.get_by_role("link", name="Notebook").click()
    output = page.locator(".jp-NotebookPanel:visible")
    expect(output).to_contain_text("all done")
    return output


def test_create_notebook_job_leads_to_the_finished_output(lab, lab_page, picture):
    page = open_form(lab, lab_page, "evening")
    create(page)
    row = find_row(page, "evening")
    reload_until(page, row, "Completed")
    lab_page.photograph(picture / "jobs.png")
    open_output(page, row)
    lab_page.photograph(picture / "job-output.png")


def test_a_job_outlives_its_server_and_the_browser_finds_it_again(chromium):
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder, Lab(Path(folder)) as lab:
        for lab_page in open_page(chromium, lab):
            hold = Hold(lab.folder / "hold")
            page = open_form(lab, lab_page, "long", hold.code)
            create(page)
            row = find_row(page, "long")
            reload_until(page, row, "In progress")
            lab.kill()
            lab.start()
            page = lab_page.open().page
            lab_page.command("scheduling:list-jobs-from-launcher")
            row = find_row(page, "long")
            expect(row.first).to_contain_text("In progress")
            hold.release()
            reload_until(page, row, "Completed")
            open_output(page, row)
            lab_page.wait_for_kernel()  # a Jupyter server that is told to end while it starts one never does


def test_a_schedule_from_the_form_fires(lab, lab_page, picture):
    page = open_form(lab, lab_page, "nightly")
    page.get_by_role("radio", name="Run on a schedule").check()
    page.get_by_label("Interval").click()
    page.get_by_role("option", name="Minute").click()
    lab_page.photograph(picture / "schedule.png")
    create(page)
    row = find_row(page, "nightly")
    expect(row.first).to_contain_text("Active")
    lists = page.locator("#notebook-jobs-panel").get_by_role("tablist")
    lists.get_by_role("tab", name="Jobs", exact=True).click()
    reload_until(page, find_row(page, "nightly"), "Completed", 60 + PATIENCE)
    lists.get_by_role("tab", name="Job Definitions").click()
    page.get_by_role("button", name='Pause "nightly"').click()
    expect(find_row(page, "nightly").first).to_contain_text("Paused")
