"""A real browser for tests of pages: Chromium without a window, driven over its DevTools socket on loopback.

Where none is installed the tests that need one say so and are skipped; a static check beside each of them
always runs.
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
needs_browser = pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="no Chromium on this machine")

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--disable-dev-shm-usage",
]  # fmt: skip


class Browser:
    "One tab"

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(
            address, suppress_origin=True, timeout=30, enable_multithread=False
        )
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        "One command and its answer; events on the way are kept"
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, address: str, wait: float = 0.0) -> None:
        "Load a page; `wait` for what it may do afterwards [s]"
        self.events.clear()
        self.ask("Page.navigate", url=address)
        end = time.monotonic() + 20
        while (
            self.evaluate("document.readyState") != "complete"
            or self.evaluate("location.href") == "about:blank"
        ):
            assert time.monotonic() < end, f"{address} is not loaded"
            time.sleep(0.01)
        time.sleep(wait)

    def evaluate(self, expression: str) -> Any:
        "Value of JavaScript in the page, whatever the page's own policy"
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int, is_phone: bool = False) -> None:
        "Size of the window, in pixels of CSS"
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_phone,
        )
        self.ask("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def dress(self, scheme: str = "light", media: str = "") -> None:
        "As a reader with these settings sees it"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)

    def photograph(self, path: Path) -> None:
        "Save the whole page as a PNG"
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def drag(self, points: list[tuple[float, float]]) -> None:
        "Press the mouse at the first point, let it go at the last one"
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, *moments: list[tuple[float, float]]) -> None:
        "Fingers: where they are at each moment; none at the last one"
        kinds = ["touchStart", *["touchMove"] * (len(moments) - 1), "touchEnd"]
        for kind, places in zip(kinds, [*moments, []], strict=True):
            fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
            self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)


@contextmanager
def open_browser() -> Iterator[Browser]:
    "A browser with a profile of its own, gone afterwards"
    program = next(filter(None, map(shutil.which, NAMES)))
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield Browser(_find_tab(Path(folder) / "DevToolsActivePort", process))
        finally:
            process.terminate()
            process.wait(20)


def _find_tab(file: Path, process: subprocess.Popen) -> str:
    from urllib.request import urlopen

    end = time.monotonic() + 30
    while not (file.exists() and file.read_text().count("\n")):
        assert time.monotonic() < end and process.poll() is None, "the browser did not start"
        time.sleep(0.02)
    port = file.read_text().splitlines()[0]
    while time.monotonic() < end:
        with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        if tabs:
            return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.02)
    raise AssertionError("the browser has no tab")
