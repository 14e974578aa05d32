"""Processes that a test starts: the `scalekit` command, and a look for what is left of them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

import psutil

MARK = "SCALEKIT_TEST_MARK"  # Environment variable that everything a test starts inherits
SCALEKIT = str(Path(sys.executable).with_name("scalekit"))


def wait_until(condition: Callable[[], object], seconds: float = 120.0, every: float = 0.02) -> None:
    "Wait for something to come true, far longer than it takes on a machine that others crowd"
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(every)


def start_scalekit(*words: str | Path, **variables: str) -> subprocess.Popen:
    "The command in a process group of its own, as a terminal or a batch system would start it"
    return subprocess.Popen(
        [SCALEKIT, *map(str, words)], env={**os.environ, **variables}, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port() -> int:
    "A port that nobody listens on, and that the system gives nobody who asks for any"
    while True:
        port = SystemRandom().randrange(20_000, 32_000)  # Linux gives away those from 32768 on
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def is_alive(pid: int) -> bool:
    "Whether a process runs; one that is only not waited for doesn't"
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def list_marked(mark: str) -> list[str]:
    "Living processes that a test has started, by number and command"
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                words = " ".join(process.cmdline())
                ends_itself = "resource_tracker" in words or "scalekit.kernels.server" in words
                if process.status() != psutil.STATUS_ZOMBIE and not ends_itself:
                    found.append(f"{process.pid} {words[:150]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def list_left(mark: str, seconds: float = 60.0) -> list[str]:
    "What is still there of a test after `seconds`: processes by their mark, and kernels of the shared server"
    from scalekit.kernels.client import describe_server

    end = time.monotonic() + seconds
    while True:
        kernels = [f"kernel {pid}" for pid in describe_server(("json",), 3.0)["kernels"]]
        left = list_marked(mark) + kernels
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)
