"""What the run form and the sweep panel cost the kernel.  `python tests/bench/bench_forms.py`

A tick is measured by the time that it had of a core; the panels tick once a second.
"""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from figures import Figure

import scalekit as sk
from scalekit.bundle import Bundle
from scalekit.panels.followed import Followed
from scalekit.panels.following import RunFollower
from scalekit.store import Store

N_TRIALS, N_RUNNING, N_TICKS = 500, 8, 40
GOAL = "at most 0.03"


class Running:
    "A sweep of a search: most has ended, some runs, and one more ends each second"

    def __init__(self, folder: Path) -> None:
        self.store, self.rng = Store(folder), random.Random(0)
        home = folder / "sweeps" / "train-1"
        home.mkdir(parents=True)
        asked = {"goal": ["maximize", "accuracy"], "n_trials": N_TRIALS + N_TICKS}
        (home / "sweep.json").write_text(json.dumps(asked))
        self.number = 0
        for _ in range(N_TRIALS):
            self.end(self.begin())
        self.running = [self.begin() for _ in range(N_RUNNING)]

    def begin(self) -> Bundle:
        self.number += 1
        values = {name: self.rng.random() for name in ("lr", "decay", "dropout")} | {
            "width": self.number % 64
        }
        asked = {"notebook": "train.ipynb", "parameters": values, "sweep": "train-1", "trial": self.number}
        bundle = self.store.create_run(asked)
        bundle.set_state("running")
        return bundle

    def end(self, bundle: Bundle) -> None:
        for step in range(20):
            bundle.append("log", step=step, values={"accuracy": self.rng.random(), "loss": self.rng.random()})
        bundle.set_state("succeeded")
        bundle.seal()

    def pass_a_second(self) -> None:
        self.end(self.running.pop(0))
        self.running.append(self.begin())
        for bundle in self.running:
            bundle.append("log", step=1, values={"accuracy": self.rng.random()})


def share(tick: Callable[[], object], between: Callable[[], object], n: int) -> tuple[float, float]:
    "Median and mean time of a core that a tick takes [s]"
    times = []
    for _ in range(n):
        between()
        start = time.process_time()
        tick()
        times.append(time.process_time() - start)
    return statistics.median(times), statistics.fmean(times)


def measure_sweep() -> list[Figure]:
    with TemporaryDirectory() as folder:
        sweep = Running(Path(folder))
        panel = sk.watch("latest", store=folder)
        panel.make_controls()
        panel.read()
        size = len(json.dumps(panel.read()))
        panel._drawings._next = 0.0
        busy = share(panel.read, sweep.pass_a_second, N_TICKS)
        quiet = share(panel.read, lambda: None, N_TICKS)
        start = time.process_time()
        panel._drawings._next = 0.0
        sweep.pass_a_second()
        panel.read()
        drawn = time.process_time() - start
    return [
        _figure(f"sweep of {N_TRIALS} trials, {N_RUNNING} run, one ends each second", busy, GOAL),
        _figure(f"sweep of {N_TRIALS} trials, {N_RUNNING} run and say nothing", quiet, GOAL),
        Figure("its message of a second", f"{size / 1000:.0f} kB", "", size / 1000, ""),
        Figure("its drawings, at most once in fifty times as long", f"{drawn * 1000:.0f} ms", "", drawn, ""),
    ]


def measure_form() -> list[Figure]:
    with TemporaryDirectory() as folder:
        store = Store(folder)
        bundle = store.create_run({"notebook": "train.ipynb", "parameters": {"lr": 0.1}})
        bundle.set_state("running")
        cells = [{"cell_type": "code", "source": f"work({n})", "outputs": []} for n in range(30)]
        bundle.notebook.write_text(json.dumps({"cells": cells, "metadata": {}}))
        bundle.append("cell", index=0, status="running")
        followed = Followed(store)
        followed.run = RunFollower(bundle)
        step = iter(range(1_000_000))

        def log_some() -> None:
            for _ in range(50):
                bundle.append("log", step=next(step), values={"loss": 0.5, "accuracy": 0.5})

        return [_figure("run form, 50 logged points a second", share(followed.look, log_some, N_TICKS), GOAL)]


def _figure(what: str, times: tuple[float, float], goal: str) -> Figure:
    middle, mean = times
    told = f"{goal} of a core; mean {mean:.3f}"
    return Figure(f"{what}: share of a core", f"{middle:.3f}", "", middle, told)


def measure() -> list[Figure]:
    return measure_sweep() + measure_form()


if __name__ == "__main__":
    for figure in measure():
        print(figure)
