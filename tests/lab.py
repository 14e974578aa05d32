"""A real JupyterLab for tests: on loopback, with a token and folders of its own, in a windowless Chromium.

    def test_a_notebook_runs(lab, lab_page):    # fixtures of tests/browser: the server, a fresh tab
        lab_page.open(lab.write_notebook("train.ipynb", "1 + 1")).run_all()
        lab_page.command("scheduling:create-from-notebook")
        press(lab_page.page.get_by_role("button", name="Create"))

    with Lab(folder) as lab:                    # a server of one's own
        lab.kill(), lab.start()                 # comes back on its port, in its folders

What a test asserts about, it reads from the page as a user would: by role, name and text. What only leads
there (open this, run that) goes through JupyterLab's own commands, which don't move about.

Other work may crowd the machine, so a test waits for what it will see next, and never for a time. A run that
has to be seen while it goes on does so until the test says otherwise (`Hold`).
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from processes import MARK, free_port

from scalekit.lab.setup import list_options

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

PATIENCE = 120.0  # Longest time for one step on a crowded machine [s]; only what fails takes as long

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip

# What JupyterLab itself says on every visit, what its server going away makes of it, and what ipywidgets says
# of each notebook that has no kernel
HARMLESS = [
    re.compile(pattern)
    for pattern in (
        r"favicon",
        r"ResizeObserver loop",
        r"reading 'kernel'(.|\n)*@jupyter-widgets/jupyterlab-manager",
        r"Cannot send(.|\n)*jlab_core",  # JupyterLab's own, to a kernel that restarts
        r"net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|NETWORK_CHANGED)",
    )
]

LAB = (sys.executable, "-m", "jupyterlab", *list_options())  # As `scalekit lab` starts it

READY = """() => window.jupyterapp && document.querySelector('#jp-main-dock-panel')
    && !document.querySelector('#jupyterlab-splash')"""

IDLE = """() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"""

THEME = """theme => document.body.dataset.jpThemeName === theme
    && !document.querySelector('#jupyterlab-splash')"""

RUN_CODE = """code => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
    .requestExecute({code}).done"""

SETTLE = """
import time
from scalekit.panels.cells import open_panels
while any(panel._work.names for panel in open_panels):
    time.sleep(0.01)
"""

# A command may open a dialog and wait for its answer: so nobody waits for the command for ever
COMMAND = """([name, words, patience]) => Promise.race([
    window.jupyterapp.commands.execute(name, words).then(() => 'done'),
    new Promise(resolve => setTimeout(() => resolve('waits for an answer'), patience)),
])"""


def missing() -> str:
    "Why there can be no browser here; empty where there can"
    if CHROMIUM is None:
        return "no Chromium on this machine"
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "playwright is not installed"
    return ""


def find_marked(mark: str) -> list[psutil.Process]:
    "Living processes that have inherited `mark`"
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _isolate(folder: Path) -> dict[str, str]:
    "This environment, with everything that Jupyter or scalekit keeps for a user inside `folder`"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "SCALEKIT"))}
    places = {
        "HOME": "home", "XDG_RUNTIME_DIR": "xdg", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "config/settings", "JUPYTERLAB_WORKSPACES_DIR": "config/workspaces",
    }  # fmt: skip
    own = {name: f"{folder}/{place}" for name, place in places.items()}
    return {**kept, **own, "JUPYTER_PLATFORM_DIRS": "1", "SCALEKIT_PRELOAD": "json", "SCALEKIT_LINGER": "3"}


def _make_cell(number: int, told: tuple[str, list[str]]) -> dict[str, Any]:
    source, tags = told
    about = {"cell_type": "code", "id": f"cell-{number}", "execution_count": None, "outputs": []}
    return {**about, "metadata": {"tags": tags} if tags else {}, "source": source}


class Lab:
    "A JupyterLab server; `root` is the folder that it shows, `store` where its runs and jobs go"

    def __init__(
        self,
        folder: Path,  # Short, as sockets lie below it; home, configuration and the rest are made there
        *options: str,  # More words for the command
        command: tuple[str, ...] = LAB,
        **variables: str,  # More environment
    ) -> None:
        self.folder, self.root, self.store = folder, folder / "work", folder / "work" / "runs"
        self.port, self.token, self.mark = free_port(), secrets.token_hex(16), secrets.token_hex(8)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process: subprocess.Popen | None = None
        for name in ("work", "home", "xdg", "config/labconfig"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (folder / "config/labconfig/page_config.json").write_text(json.dumps(news))
        self.environment = {
            **_isolate(folder),
            "SCALEKIT_STORE": str(self.store),
            MARK: self.mark,
            **variables,
        }
        self.words = [
            *command, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None",
            *options,
        ]  # fmt: skip

    def __enter__(self) -> "Lab":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def start(self, seconds: float = 200) -> None:
        "Start the server, also once more on the port and in the folders that it had; it answers afterwards"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words, cwd=self.root, env=self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"the server did not start: {self.log.read_text()[-3000:]}"
            try:
                self.ask("/api/status")
                return
            except OSError:
                time.sleep(0.05)

    def stop(self, seconds: float = 60) -> bool:
        "End the server as a service manager does, by SIGTERM; False when it took longer and had to be killed"
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        "SIGKILL to the server alone: its kernels, and what it has started for itself, live on or find out"
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        "End the server, and whatever it and its notebooks have started"
        if self.process is not None and self.process.poll() is None:
            self.stop()
        left = find_marked(self.mark)
        for process in left:
            process.terminate()
        for process in psutil.wait_procs(left, 20)[1]:
            process.kill()

    def write_notebook(self, name: str, *cells: str, parameters: str = "") -> str:
        "A notebook in `root` with these cells of code; that tagged `parameters` comes first. Its path in Lab"
        tagged = [(parameters, ["parameters"])] if parameters else []
        made = [_make_cell(*one) for one in enumerate([*tagged, *((cell, []) for cell in cells)])]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": made}
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(notebook))
        return name

    def ask(self, path: str, method: str = "GET", body: Any = None, token: str | None = None) -> Any:
        "Answer to a request, as JSON where it is; raises `HTTPError`, which is an `OSError`"
        headers = {"Authorization": f"token {self.token if token is None else token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            content = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
        return json.loads(content) if is_json and content else content

    def refuse(
        self, path: str, method: str = "GET", body: Any = None, token: str | None = None
    ) -> tuple[int, Any]:
        "Status of a request that must fail, and what the answer says"
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.ask(path, method, body, token)
        with refused.value as answer:
            content = answer.read()
        try:
            return answer.code, json.loads(content)
        except ValueError:
            return answer.code, content.decode(errors="replace")


class LabPage:
    "A tab of the browser with JupyterLab in it; `page` is Playwright's"

    def __init__(self, page: "Page", lab: Lab) -> None:
        self.page, self.lab = page, lab
        self.errors: list[str] = []  # What went wrong in the page; a test that expects some clears it
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self._keep(f"{error}\n{getattr(error, 'stack', '')}"))
        page.on("console", self._hear)

    def _hear(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self._keep(f"{message.text} ({message.location.get('url', '')})")

    def _keep(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in HARMLESS):
            self.errors.append(text)

    def open(self, path: str = "", workspace: str = "") -> "LabPage":
        "Load JupyterLab in a fresh workspace, and a file in it; what was restored is there afterwards"
        workspace = workspace or f"t{secrets.token_hex(3)}"
        self.page.goto(f"{self.lab.url}/lab/workspaces/{workspace}?token={self.lab.token}")
        self.page.wait_for_function(READY)
        self.page.evaluate("async () => { await window.jupyterapp.restored; }")
        if path:
            self.command("docmanager:open", path=path)
        return self

    def command(self, name: str, **words: Any) -> None:
        "Carry out one of JupyterLab's commands"
        came = self.page.evaluate(COMMAND, [name, words, PATIENCE * 1000])
        assert came == "done", f"{name} {came}"

    def wait_for_kernel(self) -> None:
        "Until the kernel of the notebook in front is idle"
        self.page.wait_for_function(IDLE)

    def run_all(self) -> None:
        "Run every cell of the notebook in front, and wait for the last one"
        self.wait_for_kernel()
        self.command("notebook:run-all-cells")
        self.wait_for_kernel()

    def run_code(self, code: str) -> None:
        "In the kernel of the notebook in front, without a cell"
        self.page.evaluate(RUN_CODE, code)

    def settle(self) -> None:
        "Until panels have done what was clicked: a click reaches the kernel before this does"
        self.run_code(SETTLE)

    def change_theme(
        self,
        name: str,  # "Light" or "Dark"
    ) -> None:
        """Until it is there, without JupyterLab's splash screen, which goes 200 ms later

        Two themes within that time remove the screen twice, and JupyterLab's page complains.
        """
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        self.page.wait_for_function(THEME, arg=f"JupyterLab {name}")

    def photograph(self, path: Path, **words: Any) -> None:
        "Save what the window shows, or `clip` of it, as a PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, animations="disabled", **words)


def press(button: "Locator") -> None:
    "By keyboard, once it can be: where it clicks, Playwright waits for that itself"
    from playwright.sync_api import expect

    expect(button).to_be_enabled()
    button.press("Enter")


class Hold:
    "A file; `code` in a notebook waits until it is gone, so a run can be looked at for as long as it takes"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.code = f"import os, time\nwhile os.path.exists({str(path)!r}):\n    time.sleep(0.1)"
        path.touch()

    def release(self) -> None:
        self.path.unlink()


def open_browser() -> "Iterator[Browser]":
    "One Chromium without a window"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def open_page(browser: "Browser", lab: Lab, width: int = 1400, height: int = 900) -> "Iterator[LabPage]":
    "A tab with no cookies of others, gone afterwards"
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
    yield LabPage(context.new_page(), lab)
    context.close()
