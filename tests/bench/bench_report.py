"""How long a report takes, and how large it is.  `python tests/bench/bench_report.py`"""

import json
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from figures import Figure, seconds

from scalekit.book import write_sweep_report
from scalekit.core import human_bytes
from scalekit.reporting.page import frame_page, write_run_page
from scalekit.runner import Run
from scalekit.store import Store

N_TRIALS, N_STEPS = 500, 200
N_REPEATS = 3


def fill_sweep(store: Store) -> None:
    "A search of `N_TRIALS`, each with two curves; some failed, some pruned"
    random.seed(0)
    for number in range(N_TRIALS):
        lr, width = 10 ** random.uniform(-4, -1), random.choice((32, 64, 128))
        asked = {"parameters": {"lr": lr, "width": width, "seed": number % 3}, "sweep": "search"}
        bundle = store.create_run({"notebook": "train.ipynb", "trial": number, **asked})
        bundle.set_state("running")
        lines = []
        for step in range(N_STEPS):
            values = {
                "loss": 2 * math.exp(-lr * step) + random.random() / 9,
                "accuracy": 1 - math.exp(-step / 40),
            }
            event = {"time": "2026-05-01T12:00:00.000000Z", "event": "log", "step": step, "values": values}
            lines.append(json.dumps(event) + "\n")
        with open(bundle.path / "events.jsonl", "a") as file:
            file.writelines(lines)
        bundle.set_state("failed" if number % 20 == 7 else "pruned" if number % 9 == 4 else "succeeded")
        store.index(bundle)


def fill_run(store: Store) -> Run:
    "A run of a hundred cells and 100,000 steps"
    cells = [
        {
            "cell_type": "code", "source": f"table_{number} = make({number})\n" * 12, "id": str(number),
            "metadata": {"scalekit": {"status": "completed", "seconds": number / 10, "memory": 10**9}},
            "outputs": [_show_table(number)],
            "execution_count": number,
        }
        for number in range(100)
    ]  # fmt: skip
    bundle = store.create_run({"notebook": "long.ipynb", "parameters": {"lr": 0.1}})
    bundle.notebook.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    bundle.set_state("running")
    with open(bundle.path / "events.jsonl", "a") as file:
        for step in range(100_000):
            values = {"loss": 1 / (1 + step), "accuracy": random.random()}
            event = {"time": "2026-05-01T12:00:00.000000Z", "event": "log", "step": step, "values": values}
            file.write(json.dumps(event) + "\n")
    bundle.set_state("succeeded")
    store.index(bundle)
    return Run(bundle.summary(), bundle)


def _show_table(number: int) -> dict:
    rows = "".join(f"<tr><td>{row}</td><td>{row * number}</td></tr>" for row in range(30))
    data = {"text/html": f"<table><tbody>{rows}</tbody></table>"}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def time_page(work, page: Path | None = None) -> tuple[float, int]:
    "Median time [s] and size [bytes]"
    times = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        made = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(made) if isinstance(made, str) else made.stat().st_size


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as folder:
        store = Store(f"{folder}/runs")
        fill_sweep(store)
        page = Path(folder) / "sweep.html"
        rows = store.list_runs(sweep="search")
        took, size = time_page(lambda: write_sweep_report(page, "Search", rows, ("minimize", "loss"))[0])
        yield Figure(
            f"Page and notebook of a sweep of {N_TRIALS} trials with {N_STEPS} steps each",
            f"{seconds(took)}, {human_bytes(size)}", "", None, "under 10 s and 3 MB",
        )  # fmt: skip
        run = fill_run(store)
        took, size = time_page(lambda: write_run_page(run.bundle))
        yield Figure(
            "Page of a run with 100 cells and 100,000 steps of two metrics",
            f"{seconds(took)}, {human_bytes(size)}", "", None, "under 3 MB",
        )  # fmt: skip
        took, size = time_page(lambda: frame_page(run.bundle))
        yield Figure(
            "The same inside of a notebook", f"{seconds(took)}, {human_bytes(size)}", "", None, "small"
        )


if __name__ == "__main__":
    for figure in measure():
        print(figure.line())
