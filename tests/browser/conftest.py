"""One JupyterLab and one browser for all tests in this folder; a fresh tab and workspace for each.

`make browser` runs them. `--pictures DIR` saves the screenshots of the docs there.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from lab import PATIENCE, Lab, LabPage, missing, open_browser, open_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, help="folder for the screenshots that the docs show")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (reason := missing()):
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE * 1000)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    "A tab is photographed where its test has failed"
    report = yield
    if (
        report.when == "call"
        and report.failed
        and isinstance(page := getattr(item, "funcargs", {}).get("lab_page"), LabPage)
    ):
        picture = item.config.rootpath / "build" / "browser" / f"{item.name}.png"
        page.photograph(picture)
        report.sections.append(("the page", "\n".join([str(picture), *page.errors])))
    return report


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    "The server, folder and store that the tests of a file share; a test that kills one makes its own `Lab`"
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder, Lab(Path(folder)) as lab:
        yield lab


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    "The browser that all tests share"
    yield from open_browser()


@pytest.fixture
def lab_page(lab: Lab, chromium: "Browser") -> Iterator[LabPage]:
    "A tab for one test; nothing may have gone wrong in it afterwards"
    for page in open_page(chromium, lab):
        yield page
        assert page.errors == []


@pytest.fixture
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    "Folder for screenshots: that of the docs when `--pictures` names it"
    return request.config.getoption("--pictures") or tmp_path
