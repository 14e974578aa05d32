"""The fixture itself: a notebook opens, runs and shows its result in a real JupyterLab."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lab import Lab


def test_a_notebook_runs_in_the_page(lab, lab_page):
    lab_page.open(lab.write_notebook("sum.ipynb", "answer = 6 * 7\nanswer")).run_all()
    assert lab_page.page.locator(".jp-OutputArea-executeResult").inner_text().strip().endswith("42")


def test_an_error_in_the_page_is_noticed(lab_page):
    lab_page.open()
    with lab_page.page.expect_event("pageerror"):
        lab_page.page.evaluate("() => { setTimeout(() => { throw new Error('a fault') }) }")
    assert "a fault" in lab_page.errors[0]
    lab_page.errors.clear()


def test_a_killed_server_comes_back_on_its_port_with_its_files():
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder, Lab(Path(folder)) as lab:
        (lab.root / "kept.txt").write_text("still here")
        lab.kill()
        with pytest.raises(OSError):
            lab.ask("/api/status")
        lab.start()
        assert lab.ask("/api/contents/kept.txt")["content"] == "still here"
        assert lab.refuse("/api/contents", token="wrong")[0] == 403
