"""A sweep in which things go wrong on purpose, for tests and for `tests/torture/sweeps.py`."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from notebooks import write_notebook
from processes import start_scalekit

from scalekit.store import Store

PARAMETERS = ("lr: float = 0.1\nseconds: float = 0.5\nshare: float = 0.1", "parameters")

# A share of the trials fails once: by an exception, by a kill of its own kernel, or by a limit of memory
FAIL_ONCE = """
import os, resource, signal, time
from pathlib import Path
import scalekit as sk
asked = __import__("json").loads((sk.current_run().path / "run.json").read_text())
number = asked["trial"]
faulty = int((number + 1) * share) > int(number * share)
mark = Path(f"mark-{number}")
if faulty and not mark.exists():
    mark.touch()
    time.sleep(seconds / 4)
    kind = int(number * share) % 3
    if kind == 0:
        raise ValueError("an injected failure")
    if kind == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    bytearray(1 << 36)
time.sleep(seconds)
"""
RECORD = "sk.record(score=1 - abs(lr - 0.01))"


def write_faulty(folder: Path) -> Path:
    "A notebook in which a share of the trials fails at the first attempt"
    return write_notebook(folder / "faulty.ipynb", PARAMETERS, FAIL_ONCE, RECORD)


@dataclass
class Outcome:
    "What became of a sweep whose controller was killed again and again"

    rows: list[dict[str, Any]]  # Of all runs, also of failed attempts
    lives: list[tuple[float, float]]  # Start and end of each controller [s since 1970]
    code: int  # Exit code of the last one
    said: str  # And what it said at the end


def run_and_kill(
    words: list[str | Path],  # Of the `scalekit` command that starts the sweep
    kill_when: list[
        Callable[[list[dict[str, Any]]], bool]
    ],  # Given all runs: whether to kill the controller now
    timeout: float,  # Of each life [s]
) -> Outcome:
    "Start a sweep, kill its controller, go on by the same words, and let the last one end"
    lives, store = [], Store("runs")
    for is_time in [*kill_when, None]:
        start, process = time.time(), start_scalekit(*words)
        while is_time and process.poll() is None and not is_time(store.list_runs()):
            assert time.time() - start < timeout, "it was never time to kill the controller"
            time.sleep(0.05 + 0.1 * random.random())
        if is_time:
            process.kill()
        _, said = process.communicate(timeout=timeout)
        lives.append((start, time.time()))
    return Outcome(store.list_runs(), lives, process.returncode, said)


def have_ended(n: int) -> Callable[[list[dict[str, Any]]], bool]:
    "Whether `n` trials have succeeded or were pruned"
    return lambda rows: sum(row["state"] in ("succeeded", "pruned") for row in rows) >= n


def find_idle(
    rows: list[dict[str, Any]],
    lives: list[tuple[float, float]],
    n_slots: int,
) -> float:  # Between 0 and 1
    "Share of the slots' time without a run, while trials waited: from a life's first run to its last start"
    spans = [tuple(_seconds(row[name]) for name in ("started", "ended")) for row in rows if row["started"]]
    busy = whole = 0.0
    for start, end in lives:
        begun = [one for one, _ in spans if start <= one <= end]
        if len(begun) > n_slots:
            first, last = min(begun), max(begun)
            whole += (last - first) * n_slots
            busy += sum(max(0.0, min(stop, last) - max(one, first)) for one, stop in spans)
    return 1 - busy / whole


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
