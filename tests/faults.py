"""What goes wrong outside a program, for tests: killed processes and full disks."""

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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


@contextmanager
def forked(work: Callable[..., object], *args: Any) -> Iterator[BaseProcess]:
    "A child that does `work`; killed at the end if it still lives"
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_together(work: Callable[..., object], each: list[tuple]) -> list[int]:
    "Exit codes of one child for each tuple of arguments, all at once"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=args) for args in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]
