"""What a benchmark tells, and how two ways are compared fairly."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    "One line of the table"

    what: str  # What was measured
    ours: str  # With scalekit, with its unit
    theirs: str  # With what it is compared to
    ratio: float | None  # The one that the goal is about
    goal: str  # What was hoped for

    def line(self) -> dict:
        return asdict(self)


def pair(
    ours: Callable[[], object], theirs: Callable[[], object], n: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    "Times [s] of two ways in turn, so that a slow minute of the machine meets both"
    first, second = take_turns((ours, theirs), n, warm_up)
    return first, second


def take_turns(ways: Sequence[Callable[[], object]], n: int, warm_up: int = 1) -> list[list[float]]:
    "Times [s] of several ways in turn"
    for _ in range(warm_up):
        for work in ways:
            work()
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(n):
        for work, kept in zip(ways, times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return times


def compare(what: str, ours: list[float], theirs: list[float], goal: str, faster: bool = True) -> Figure:
    "Medians of both, and the median of their ratios pair by pair with its range"
    ratios = sorted(t / o if faster else o / t for o, t in zip(ours, theirs, strict=True))
    middle = statistics.median(ratios)
    spread = f"{middle:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    return Figure(
        what,
        seconds(statistics.median(ours)),
        seconds(statistics.median(theirs)),
        middle,
        f"{goal}; got {spread}",
    )


def seconds(value: float) -> str:
    "A time as people read it"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
