"""How late jobs fire, and what ten thousand of them cost.  `python tests/bench jobs`

An attempt here is a process that ends at once; how long a notebook takes stands in other tables.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from figures import Figure, seconds

from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec

N_JOBS, N_FIRINGS, IDLE = 10_000, 200, 30.0
DAEMON = """
import sys
from scalekit.jobs.beside import Hooks
from scalekit.jobs.serve import serve
serve(
    sys.argv[1], hooks=Hooks(), max_running=400, make=lambda book, attempt: ["true"],
    log=lambda event, **fields: None,
)
"""


def start(store: Path) -> psutil.Process:
    process = psutil.Process(subprocess.Popen([sys.executable, "-c", DAEMON, str(store)]).pid)
    while not (store / "jobs" / "leader.json").exists():
        time.sleep(0.05)
    return process


def end(process: psutil.Process) -> None:
    process.terminate()
    process.wait(10)


def make_specs(n: int, **more: str) -> list[JobSpec]:
    return [
        JobSpec(f"job-{i:05d}", "/bench/none.ipynb", {"lr": 0.01}, timezone="UTC", **more) for i in range(n)
    ]


def time_book(folder: Path) -> Iterator[Figure]:
    book = Ledger(folder / "many")
    specs = make_specs(N_JOBS, cron="0 2 * * *")
    begin = time.perf_counter()
    book.put_jobs(specs, "cli")
    took = time.perf_counter() - begin
    yield Figure(f"{N_JOBS:,} jobs put into the book at once", seconds(took), "", took, "without trouble")
    times = []
    for spec in make_specs(50, cron="0 3 * * *"):
        begin = time.perf_counter()
        book.put_job(spec, "cli")
        times.append(time.perf_counter() - begin)
    took = statistics.median(times)
    yield Figure("one of them changed, on disk", f"{took * 1000:.1f} ms", "", took, "without trouble")
    begin = time.perf_counter()
    book.list_jobs()
    took = time.perf_counter() - begin
    yield Figure(f"{N_JOBS:,} jobs listed", seconds(took), "", took, "without trouble")
    times = []
    for _ in range(1000):
        begin = time.perf_counter()
        book.version()
        times.append(time.perf_counter() - begin)
    took = statistics.median(times)
    yield Figure("to see whether anything has changed", f"{took * 1e6:.0f} us", "", took, "little")


def time_idle(folder: Path) -> Iterator[Figure]:
    "CPU time of a daemon that has nothing to do"
    begin = time.perf_counter()
    daemon = start(folder / "many")
    before = 0.0
    while (now := sum(daemon.cpu_times()[:2])) - before > 0.05:  # it reads its jobs
        before = now
        time.sleep(1.0)
    ready = time.perf_counter() - begin
    before = sum(daemon.cpu_times()[:2])
    time.sleep(IDLE)
    share = (sum(daemon.cpu_times()[:2]) - before) / IDLE
    end(daemon)
    yield Figure(f"a daemon with {N_JOBS:,} jobs is up", seconds(ready), "", ready, "without trouble")
    yield Figure("its share of a core while nothing is due", f"{share:.2%}", "", share, "little")


def time_firings(folder: Path) -> Iterator[Figure]:
    "From a job's due time to the start of its process, one job a tenth of a second"
    book = Ledger(folder / "due")
    begin = datetime.now(UTC) + timedelta(seconds=4)
    for i in range(N_FIRINGS):
        at = begin + timedelta(seconds=0.1 * i)
        book.put_job(JobSpec(f"due-{i}", "/bench/none.ipynb", at=at.isoformat(), timezone="UTC"), "cli")
    daemon = start(folder / "due")
    time.sleep(max(0.0, (begin - datetime.now(UTC)).total_seconds()) + 0.1 * N_FIRINGS + 3.0)
    end(daemon)
    late = sorted((one.attempts[0].created - one.due).total_seconds() for one in book.list_firings())
    assert len(late) == N_FIRINGS
    middle, worst = statistics.median(late), late[int(0.99 * N_FIRINGS)]
    yield Figure(f"from due to its start, median of {N_FIRINGS}", seconds(middle), "", middle, "within 1 s")
    yield Figure("the same, 99 % of them within", seconds(worst), "", worst, "within 1 s")


def measure() -> Iterator[Figure]:
    "The figures of the table"
    with TemporaryDirectory() as name:
        yield from time_book(Path(name))
        yield from time_idle(Path(name))
        yield from time_firings(Path(name))


if __name__ == "__main__":
    for figure in measure():
        print(f"{figure.what:55} {figure.ours}", flush=True)
