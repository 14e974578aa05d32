"""What goes wrong outside a program, for tests: killed processes and full disks."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import MARK

can_mount = os.geteuid() == 0


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    "A disk of its own at `folder`, full after `size`; only root can have one"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, but: int) -> Path:
    "A file that leaves `but` bytes free on a small disk"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    filler = disk / "filler"
    filler.write_bytes(b"x" * (free - but))
    return filler


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["pytest", "nbdev.test", "torch", "pandas", "pyarrow"])


def _start_server() -> None:
    "The server outlives the test that needs it first, so it must not bear that test's mark"
    mark = os.environ.pop(MARK, None)
    try:
        forkserver.ensure_running()
    finally:
        if mark is not None:
            os.environ[MARK] = mark


def _act(folder: str, variables: dict[str, str], work: Callable[..., object], args: tuple) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    work(*args)


@contextmanager
def started(work: Callable[..., object], *args: Any) -> Iterator[BaseProcess]:
    "A child that does `work` here and now; killed at the end if it still lives"
    # A fork of this process would inherit locks that threads of earlier tests hold, and might wait for ever
    _start_server()
    process = _server.Process(target=_act, args=(os.getcwd(), dict(os.environ), work, args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def count_told(hear: Any) -> int:
    "How many messages come through a pipe before its end, whole ones"
    told = 0
    with suppress(EOFError, OSError):  # the second one for half a message
        while hear.recv() is not None:
            told += 1
    return told


def run_together(
    work: Callable[..., object], each: list[tuple], prepare: Callable[..., object] | None = None, *args: Any
) -> list[int]:
    "Exit codes of one fork for each tuple of arguments, all at once; forked from a child that did `prepare`"
    hear, tell = _server.Pipe(duplex=False)
    with started(_fork_each, tell, work, each, prepare, args) as child:
        tell.close()
        try:
            return hear.recv()
        except EOFError:
            child.join()
            raise AssertionError(f"the process that forks ended with {child.exitcode}") from None


def _fork_each(
    tell: Any,
    work: Callable[..., object],
    each: list[tuple],
    prepare: Callable[..., object] | None,
    args: tuple,
) -> None:
    if prepare:
        prepare(*args)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=item) for item in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    tell.send([process.exitcode or 0 for process in processes])


def die_at_disk(nth: int) -> None:
    "Let this process be killed at the `nth` time that something reaches the disk"
    calls = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            calls.append(call)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return act

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
