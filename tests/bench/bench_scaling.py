"""How well throughput is predicted on published curves.  `python tests/bench/bench_scaling.py`

Also chooses beliefs without each source in turn: what is predicted then was not seen in any way.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from figures import Figure

import scalekit as sk

sys.path.insert(0, str(Path(__file__).parents[1]))

from scaling_study import (
    Answer,
    Task,
    answer_all,
    cover,
    cover_sources,
    errors,
    hold_last,
    least_squares,
    leave_sources_out,
    list_crossings,
    list_largest,
    list_tasks,
    read_curves,
)

SIMPLE: dict[str, Callable[[Task], float]] = {
    "hold-last-efficiency": hold_last,
    "USL by least squares": lambda task: least_squares(task, "usl"),
    "Amdahl by least squares": lambda task: least_squares(task, "amdahl"),
}
GOALS = {
    "same regime": "median 3 %, p90 15 %, cover 88 %, worst source 75 % left out",
    "two nodes": "median 4 %, p90 12 %",
}


def tell(answers: Sequence[Answer]) -> str:
    middle, high = errors(answers)
    sources = cover_sources(answers)
    worst = min(sources, key=lambda source: sources[source])
    n = sum(answer.task.source == worst for answer in answers)
    return (
        f"median error {middle:.1%}, p90 {high:.1%}, cover {cover(answers):.0%}, "
        f"worst of {len(sources)} sources {sources[worst]:.0%} of {n}"
    )


def tell_simple(tasks: Sequence[Task], way: Callable[[Task], float]) -> tuple[float, str]:
    found = sorted(abs(way(task) / task.rate - 1) for task in tasks)
    middle, high = statistics.median(found), statistics.quantiles(found, n=10)[-1]
    return middle, f"median error {middle:.1%}, p90 {high:.1%}"


def compare(what: str, tasks: Sequence[Task], goal: str) -> Iterator[Figure]:
    "The average beside simple ways"
    answers = answer_all(tasks)
    middle = errors(answers)[0]
    for name, way in SIMPLE.items():
        theirs, words = tell_simple(tasks, way)
        yield Figure(f"{what}, {len(tasks)} predictions; {name}", tell(answers), words, middle / theirs, goal)


def measure() -> Iterator[Figure]:
    "The figures of the table"
    curves = read_curves()
    tasks, crossings = list_tasks(curves), list_crossings(curves)
    yield from compare(
        "same regime, at least 3 points, up to 4 times the largest", tasks, GOALS["same regime"]
    )
    yield from compare("the largest from up to a quarter of it", list_largest(curves), GOALS["same regime"])
    yield from compare("many nodes from one and two", crossings, GOALS["two nodes"])
    for regime in ("in a node", "nodes"):
        part = [task for task in tasks if task.regime == regime]
        yield Figure(f"same regime, {regime}, {len(part)} predictions", tell(answer_all(part)), "", None, "")
    for law in ("hold", "amdahl", "gustafson", "power", "usl", "ring+log"):
        yield Figure(f"same regime, {law} with its wandering", tell(answer_all(tasks, law)), "", None, "")
    held, chosen = leave_sources_out([*tasks, *crossings])
    words = f"{len(set(chosen))} of 27 beliefs chosen by 13 times 12 sources"
    for what, goal in (("same regime", tasks), ("two nodes", crossings)):
        part = [answer for answer in held if answer.task in goal]
        yield Figure(
            f"{what}, each source with beliefs chosen without it", tell(part), words, None, GOALS[what]
        )
    yield time_fit()


def time_fit(n: int = 25) -> Figure:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        sk.fit_scaling({1: 100.0, 2: 190.0, 4: 355.0, 8: 690.0, 16: 1150.0}, devices_per_node=8).predict(32)
        times.append(time.perf_counter() - start)
    took = statistics.median(times)
    words = f"{took * 1000:.0f} ms (up to {max(times) * 1000:.0f} ms)"
    return Figure("a fit in both regimes and an interval", words, "", took, "at most 50 ms")


if __name__ == "__main__":
    for figure in measure():
        print(f"{figure.what}: {figure.ours} | {figure.theirs}")
