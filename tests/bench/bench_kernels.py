"""What a warm kernel costs beside a stock one: memory while it lives, CPU and time from start to end."""

import os
import resource
import statistics
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from figures import Figure, compare, pair

from scalekit.config import Settings
from scalekit.core import human_bytes
from scalekit.kernels.client import WarmKernel, hold_server, start_kernel
from scalekit.kernels.stock import StockKernel, start_stock_kernel

N_LIVE, N_TURNS = 6, 10
CELL = "import numpy, pandas, torch\nfloat(torch.from_numpy(numpy.ones((100, 100))).sum())"
SERVER = Settings.preload, 20.0  # Modules, seconds to linger

Kernel = WarmKernel | StockKernel


def start_warm() -> WarmKernel:
    return start_kernel(*SERVER, "/", dict(os.environ))


def start_stock() -> StockKernel:
    return start_stock_kernel("python3", "/", dict(os.environ))


def run_cell(kernel: Kernel) -> None:
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "s", "version": "5.4"}
    content = {"code": CELL, "silent": False, "store_history": True, "stop_on_error": False}
    kernel.send({"header": header, "parent_header": {}, "metadata": {}, "content": content})
    while (message := kernel.receive(60))["parent_header"].get("msg_id") != header["msg_id"] or (
        message["content"].get("execution_state") != "idle"
    ):
        pass


def take_turn(start: Callable[[], Kernel]) -> None:
    "A kernel from its start to its end"
    kernel = start()
    run_cell(kernel)
    kernel.close(grace=5)


# Memory


def read_pss(pid: int) -> int:
    "Memory of a process [bytes]; pages that several have count in parts"
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def find_server(kernel: Kernel) -> int:
    "The process that forked a kernel"
    return int(Path(f"/proc/{kernel.pid}/stat").read_text().rpartition(")")[2].split()[1])


def measure_memory(start: Callable[[], Kernel]) -> tuple[float, float]:
    "PSS of a kernel among several that live [bytes], without and with its part of the server"
    with ExitStack() as stack:
        kernels = []
        for _ in range(N_LIVE):
            kernels.append(kernel := start())
            stack.callback(kernel.close)
            run_cell(kernel)
        own = [read_pss(kernel.pid) for kernel in kernels]
        server = read_pss(find_server(kernels[0])) if kernels[0].kind == "warm" else 0
        return statistics.mean(own), (sum(own) + server) / N_LIVE


# CPU


def read_cpu(pid: int) -> float:
    "CPU time of a process and of its children that have ended [s]"
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def read_own_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_cpu(start: Callable[[], Kernel], read: Callable[[], float]) -> float:
    "CPU time of a kernel from its start to its end, and of what made it [s]"
    before = read()
    for _ in range(N_TURNS):
        take_turn(start)
    return (read() - before) / N_TURNS


def measure() -> Iterator[Figure]:
    with hold_server(*SERVER):
        take_turn(start_warm)
        warm, stock = measure_memory(start_warm), measure_memory(start_stock)
        for what, ours in zip(("", " and its part of the server"), warm, strict=True):
            yield Figure(
                f"memory of a kernel{what}, {N_LIVE} alive (PSS)",
                human_bytes(ours), human_bytes(stock[0]), stock[0] / ours, "at least 3 times less",
            )  # fmt: skip
        kernel = start_warm()
        server = find_server(kernel)
        kernel.close()
        ours = measure_cpu(start_warm, lambda: read_cpu(server))
        theirs = measure_cpu(start_stock, read_own_children)
        yield Figure(
            "CPU of a kernel from start to end", f"{ours * 1000:.0f} ms", f"{theirs * 1000:.0f} ms",
            theirs / ours, "as little as can be",
        )  # fmt: skip
        times = pair(lambda: take_turn(start_warm), lambda: take_turn(start_stock), N_TURNS)
        yield compare("time of a kernel from start to end", *times, "as little as can be")
