"""Pages of hostile notebooks in a real browser: nothing in them runs, and nothing is asked for."""

import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import nh3
import pytest
from browser import needs_browser, open_browser
from hostile import CASES, find_faults, make_run

from scalekit.bundle import Bundle
from scalekit.reporting.page import frame_page, write_run_page
from scalekit.store import Store

pytestmark = [needs_browser, pytest.mark.slow]

# What a reader may do: point at things, click on them, walk through them by the keyboard
TOUCH = """(() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const element of [...document.querySelectorAll("main *, body > *, svg *")].slice(0, 3000)) {
    for (const name of ["mouseover", "focus", "click", "toggle", "pointerenter", "start", "load", "error"])
      element.dispatchEvent(new Event(name, {bubbles: true}));
  }
  for (const link of document.querySelectorAll("a"))
    if (!/^(https?:|mailto:|file:)/i.test(link.href)) link.click?.();
  for (const button of document.querySelectorAll("form button, form input")) button.click();
  for (const field of document.querySelectorAll("input, select, a")) field.focus?.();
})()"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    "Address of a server on loopback, and the requests that it has seen"
    seen = []

    class Counter(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *about):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Counter) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hit", seen
        server.shutdown()
        thread.join()


def watch(browser, page, seen, touch=True, patience=0.1):
    "What the page did: its scripts, and its requests"
    seen.clear()
    browser.open(page.as_uri(), wait=0.02)
    done = []
    try:
        if touch:
            browser.evaluate(TOUCH)
        end = time.monotonic() + patience
        while not done and time.monotonic() < end:
            done = find_deeds(browser, seen, page)
    except AssertionError as error:  # the page went elsewhere while it was looked at
        done = [f"went: {error}"]
    return done or find_deeds(browser, seen, page)


def find_deeds(browser, seen, page):
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    own = page.as_uri()
    deeds = [f"asked for {url[:60]}" for url in asked if not url.startswith(("data:", own))]
    if browser.evaluate("document.title") == "RAN":
        deeds.append("ran")
    if not browser.evaluate("location.href").startswith(own):
        deeds.append("went elsewhere")
    return deeds + [f"hit {path}" for path in seen]


LIVE = [case for case in CASES if case.is_live]


@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
def test_shown_raw_it_acts(case, browser, server, tmp_path):
    hit, seen = server
    page = tmp_path / "raw.html"
    raw = case.html.replace("HIT", hit).encode("utf-8", "replace").decode()
    page.write_text(f"<!doctype html><title>raw</title><body>{raw}")
    assert watch(browser, page, seen, patience=3), "a case that does nothing proves nothing"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_a_report_it_does_nothing(case, browser, server, tmp_path):
    hit, seen = server
    page = write_run_page(make_run(tmp_path / "runs", case, hit))
    text = page.read_text()
    assert find_faults(text) == []
    assert watch(browser, page, seen) == []
    assert "hostile" in browser.evaluate("document.body.textContent") or case.asked
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    assert watch(browser, page, seen) == [], "the cleaning alone must do, without the browser's policy"


@pytest.mark.parametrize("name", ["an image that fails", "frames", "styles", "going elsewhere"])
def test_without_the_cleaning_the_checks_would_tell(name, browser, server, tmp_path, monkeypatch):
    hit, seen = server
    case = next(case for case in CASES if case.name == name)
    monkeypatch.setattr(nh3, "clean", lambda text, **options: text)
    page = write_run_page(make_run(tmp_path / "runs", case, hit))
    text = page.read_text()
    assert find_faults(text)
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    assert watch(browser, page, seen, patience=3)


def test_inside_a_notebook_it_does_nothing_either(browser, server, tmp_path):
    hit, seen = server
    page = tmp_path / "lab.html"
    frames = [frame_page(make_run(tmp_path / "runs", case, hit)) for case in LIVE[:8]]
    page.write_text(f"<!doctype html><title>lab</title><body>{''.join(frames)}")
    assert watch(browser, page, seen, patience=0.5) == []


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    "Page of a run with one long curve; at step 5,005 it has a spike"
    store = tmp_path_factory.mktemp("curves") / "runs"
    bundle = Store(store).create_run({"notebook": "train.ipynb"})
    bundle.set_state("running")
    lines = [f'{{"time": "2026-05-01T12:00:00.000000Z", "event": "log", "step": {step}, "values": {{"loss": '
             f'{9 if step == 5005 else 1 / (1 + step)}}}}}\n' for step in range(10_000)]  # fmt: skip
    with open(bundle.path / "events.jsonl", "a") as file:
        file.writelines(lines)
    return write_run_page(Bundle(bundle.path))


WHERE = """(() => {
  const box = document.querySelector("figure.zoom svg").getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
})()"""
LABELS = "[...document.querySelectorAll('figure.zoom .axes text.x')].map(t => +t.textContent)"


def find_frame(browser):
    browser.evaluate("document.querySelector('figure.zoom').scrollIntoView({block: 'center'})")
    return browser.evaluate(WHERE)


def test_a_drag_with_the_mouse_looks_closer_and_a_double_click_shows_all(browser, curves):
    browser.resize(1000, 800)
    browser.open(curves.as_uri())
    x, y, width, height = find_frame(browser)
    whole = browser.evaluate(LABELS)
    browser.drag([(x + width * share, y + height / 2) for share in (0.5, 0.53, 0.56)])
    closer = browser.evaluate(LABELS)
    assert max(whole) - min(whole) > 5000 > 1000 > max(closer) - min(closer)
    assert browser.evaluate("document.querySelector('figure.zoom').classList.contains('zoomed')")
    browser.evaluate("document.querySelector('figure.zoom svg').dispatchEvent(new MouseEvent('dblclick'))")
    assert browser.evaluate(LABELS) == whole


def test_buttons_do_it_for_the_keyboard(browser, curves):
    browser.open(curves.as_uri())
    whole = browser.evaluate(LABELS)
    press = "document.querySelector('figure.zoom [aria-label^=\"{}\"]').click()"
    browser.evaluate(press.format("Look closer"))
    closer = browser.evaluate(LABELS)
    assert max(closer) - min(closer) < 0.7 * (max(whole) - min(whole))
    browser.evaluate(press.format("Show all"))
    assert browser.evaluate(LABELS) == whole


def test_two_fingers_look_closer_and_one_moves_along(browser, curves):
    browser.resize(375, 800, is_phone=True)
    try:
        browser.open(curves.as_uri())
        x, y, width, height = find_frame(browser)
        middle = y + height / 2
        apart = [
            [(x + width * (0.55 - d), middle), (x + width * (0.55 + d), middle)]
            for d in (0.05, 0.1, 0.2, 0.3)
        ]
        whole = browser.evaluate(LABELS)
        browser.touch(*apart)
        closer = browser.evaluate(LABELS)
        assert 0 < max(closer) - min(closer) < 0.5 * (max(whole) - min(whole))
        browser.touch(*[[(x + width * share, middle)] for share in (0.8, 0.6, 0.4, 0.3)])
        assert min(browser.evaluate(LABELS)) > min(closer)
    finally:
        browser.resize(1000, 800)


def test_pointing_at_a_curve_tells_its_numbers(browser, curves):
    browser.open(curves.as_uri())
    x, y, width, height = find_frame(browser)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x + width * 0.5, y=y + height / 2)
    step, value = browser.evaluate("document.querySelector('figure.zoom output').textContent").split(": ")
    assert 4000 < float(step) < 6000 and float(value.replace("\u2212", "-")) < 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser, curves, tmp_path, scheme):
    pages = [
        curves,
        write_run_page(make_run(tmp_path / "runs", next(c for c in CASES if c.name == "names and values"))),
    ]
    browser.resize(375, 800, is_phone=True)
    browser.dress(scheme)
    try:
        for page in pages:
            browser.open(page.as_uri())
            assert browser.evaluate("document.documentElement.scrollWidth") <= 375
    finally:
        browser.resize(1000, 800)
        browser.dress()
