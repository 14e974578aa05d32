"""What it costs to find runs by a condition among many.  `python tests/bench/bench_query.py [N_RUNS]`"""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from figures import Figure, seconds

from scalekit.core import new_run_id
from scalekit.index import Index, put_rows
from scalekit.query import find_frame, find_runs
from scalekit.store import Store
from scalekit.summary import summarize

WHERE = "state == 'succeeded' and metrics.accuracy > 0.97"


def make_row(number: int, rng: random.Random) -> dict[str, Any]:
    "A row like those of a year of sweeps"
    run_id = new_run_id()
    asked = {
        "run_id": run_id, "notebook": rng.choice(["nbs/train.ipynb", "eval.ipynb"]), "profile": "gpu",
        "created": f"2026-{1 + number % 12:02d}-11T14:50:33.123456Z", "sweep": f"train-{number % 40:08x}",
        "trial": number // 40, "fingerprint": rng.randbytes(32).hex(), "price_per_hour": 2.5,
        "parameters": {"lr": rng.random(), "seed": number, "epochs": 10, "model": rng.choice(["mlp", "cnn"])},
        "tags": ["baseline"] if number % 100 == 0 else [],
    }  # fmt: skip
    values = {"loss": rng.random(), "accuracy": rng.random(), "val/loss": rng.random(), "epoch": 9}
    state = rng.choice(["succeeded"] * 8 + ["failed", "pruned"])
    events = [
        {"event": "state", "state": "running", "time": "2026-11-22T14:50:33.123456Z"},
        {"event": "record", "values": values, "time": "2026-11-22T14:50:34.123456Z"},
        {"event": "state", "state": state, "time": "2026-11-22T15:50:34.123456Z"},
    ]
    return summarize(asked, events) | {"sealed": True}


def make_store(folder: Path, n: int) -> Store:
    "A store whose index knows all of its runs"
    rng = random.Random(0)
    rows = [make_row(number, rng) for number in range(n)]
    for row in rows:
        (folder / row["run_id"]).mkdir(parents=True)
    with Index(folder / ".index" / "runs.sqlite").session() as db:
        put_rows(db, [(row, 1000) for row in rows])
    return Store(folder)


def medians(work: Callable[[], object], n: int = 15) -> tuple[float, float]:
    "Median time of `work` after a first time, and of what it had of a core [s]"
    work()
    times, of_core = [], []
    for _ in range(n):
        start, start_of_core = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - start)
        of_core.append(time.process_time() - start_of_core)
    return statistics.median(times), statistics.median(of_core)


def measure(n: int = 10_000) -> Iterator[Figure]:
    "The figures of the table"
    import pandas  # noqa: F401  # imported once, in whoever asks

    with TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "runs", n)
        n_found = len(find_runs(store, WHERE))
        for what, work in {
            f"{n_found} of {n:,} runs found by state and metric": lambda: find_runs(store, WHERE),
            "as a data frame, best first": lambda: find_frame(store, WHERE, "-metrics.accuracy"),
            "all that have a tag": lambda: find_runs(store, "'baseline' in tags"),
            f"{n:,} runs as a data frame": lambda: find_frame(store),
            f"{n:,} runs sorted, as a data frame": lambda: find_frame(store, None, "metrics.loss"),
        }.items():
            took, of_core = medians(work)
            load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            yield Figure(what, f"{seconds(took)}, {seconds(of_core)} of a core", load, took, "under 0.2 s")


if __name__ == "__main__":
    for figure in measure(int(sys.argv[1]) if sys.argv[1:] else 10_000):
        print(f"{figure.what}: {figure.ours}")
