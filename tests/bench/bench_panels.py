"""What a panel takes of the kernel that shows it.  `python tests/bench/bench_panels.py`

A real kernel, a real scheduler in it, and a hundred real Dask workers, which share one other process: their
heartbeats come as from anywhere. What the panel takes is the kernel's time with it less that without it.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from panel_kernel import Kernel

WORKERS = """
import asyncio, sys
from distributed import Worker

async def main(address, n):
    private = {"nthreads": 1, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    workers = [Worker(address, name=str(at), **private) for at in range(n)]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
PREPARE = """
import subprocess, sys, time
from distributed import LocalCluster
from scalekit.cluster import Cluster
from scalekit.panels.cluster import ClusterPanel
from scalekit.profile import Profile

def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen")
        time.sleep(0.05)

plain = {{"dashboard_address": None, "scheduler_kwargs": {{"dashboard": False}}}}
local = LocalCluster(n_workers=0, host="127.0.0.1", **plain)
words = [sys.executable, "-c", {workers!r}, local.scheduler_address, "{n}"]
others = subprocess.Popen(words, stderr=subprocess.DEVNULL)
wait_for(lambda: len(local.scheduler.workers) == {n})
cluster = Cluster(Profile("cpu", kind="cpu"), local.get_client(), local)

def share(seconds=10):
    "Of a core that this process takes [%]"
    time.sleep(1)
    start, of_core = time.monotonic(), time.process_time()
    time.sleep(seconds)
    return 100 * (time.process_time() - of_core) / (time.monotonic() - start)

def find_slowest(panel, n=50):
    "Longest time that one of 4 n handlers took [ms]"
    orders = [{{"do": "fold", "host": "nowhere"}}, {{"do": "pause"}}, {{"do": "continue"}}]
    times = []
    for at in range(n):
        clicks = [lambda order=order: panel._take(None, order, []) for order in orders]
        for click in (lambda: setattr(panel._slider, "value", at % 7), *clicks):
            start = time.perf_counter()
            click()
            times.append(1000 * (time.perf_counter() - start))
    return max(times)
"""


def ask(kernel: Kernel, expression: str) -> float:
    return float(kernel.run(expression)["execute_result"]["data"]["text/plain"])


def bytes_a_tick(kernel: Kernel) -> float:
    "Median size of the panel's messages that come while a cell sleeps, as JSON"
    sizes = [
        len(json.dumps(content)) for content in kernel.overhear("import time; time.sleep(6)", "comm_msg")
    ]
    return statistics.median(sizes)


def measure(n: int = 100) -> Iterator[Figure]:
    "The figures of the table"
    with Kernel() as kernel:
        kernel.run(PREPARE.format(workers=WORKERS, n=n))
        try:
            without = ask(kernel, "share()")
            kernel.run("panel = ClusterPanel(cluster); panel", cell="a")
            kernel.run("wait_for(lambda: panel._link is not None and not panel.is_busy('dashboard'))")
            for how in ("a row for their machine", "a row for each"):
                if how == "a row for each":
                    kernel.run("panel._take(None, {'do': 'fold', 'host': '127.0.0.1'}, [])")
                kernel.run(f"wait_for(lambda: panel.view.body.get('n_workers') == {n})")
                more = ask(kernel, "share()") - without
                yield Figure(
                    f"cluster panel of {n} workers at 1 Hz, {how}",
                    f"{more:.1f} % of a core, {bytes_a_tick(kernel) / 1000:.1f} kB a tick",
                    f"{without:.1f} % without it",
                    None,
                    "at most 3 % of a core more",
                )
            kernel.run("panel.work = lambda *order, **more: None")  # else fifty workers would start
            slowest = ask(kernel, "find_slowest(panel)")
            yield Figure("the slowest of 200 clicks", f"{slowest:.1f} ms", "", None, "under 50 ms")
        finally:
            kernel.run("others.kill(); others.wait(); panel.close(); cluster.close()")


if __name__ == "__main__":
    for figure in measure():
        print(figure)
