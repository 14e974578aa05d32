"""Published scaling curves, and how well one part of them predicts the other."""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from scalekit.scaling.fitted import ScalingFit, fit_scaling
from scalekit.scaling.posterior import Prior

TABLE = Path(__file__).parent / "data" / "scaling.csv"


@dataclass
class Curve:
    "One workload on more and more devices"

    name: str
    source: str
    devices_per_node: int
    throughput: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    "Some points of a curve are known, another one is asked for"

    curve: str
    source: str
    regime: str  # "in a node", "nodes" or "two nodes"
    known: tuple[tuple[int, float], ...]
    n: int
    rate: float


@dataclass(frozen=True)
class Answer:
    "What was said, and whether it held"

    task: Task
    error: float  # Of the median, as a share
    is_inside: bool  # The truth lies in the interval
    can_tell: bool
    width: float  # High over low
    score: float  # Logarithm of the density of what was measured, relative to it


@cache
def read_curves(path: Path = TABLE) -> tuple[Curve, ...]:
    curves: dict[str, Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curve = Curve(row["curve"], row["source"], int(row["devices_per_node"]))
            curves.setdefault(row["curve"], curve).throughput[int(row["n"])] = float(row["throughput"])
    return tuple(curves.values())


def split_curve(curve: Curve) -> dict[str, dict[int, float]]:
    "Its points inside a node, and those of whole nodes"
    size = curve.devices_per_node
    inside = {n: x for n, x in curve.throughput.items() if n <= size}
    return {
        "in a node": inside,
        "nodes": {n // size: x for n, x in curve.throughput.items() if n % size == 0},
    }


def list_tasks(curves: Iterable[Curve], reach: float = 4.0) -> list[Task]:
    "In one regime: at least 3 points, and each later one up to `reach` times the largest of them"
    tasks = []
    for curve in curves:
        for regime, points in split_curve(curve).items():
            known = sorted(points.items())
            for k in range(3, len(known)):
                later = [it for it in known[k:] if it[0] <= reach * known[k - 1][0]]
                tasks += [Task(curve.name, curve.source, regime, tuple(known[:k]), n, x) for n, x in later]
    return tasks


def list_crossings(curves: Iterable[Curve]) -> list[Task]:
    "One and two nodes are known, and each larger number is asked for"
    tasks = []
    for curve in curves:
        nodes = split_curve(curve)["nodes"]
        if {1, 2} <= set(nodes):
            known = tuple((n, nodes[n]) for n in (1, 2))
            tasks += [Task(curve.name, curve.source, "two nodes", known, n, x)
                      for n, x in sorted(nodes.items()) if n > 2]  # fmt: skip
    return tasks


def list_largest(curves: Iterable[Curve]) -> list[Task]:
    "The largest of a regime is asked for, from at least 3 points up to a quarter of it"
    tasks = []
    for curve in curves:
        for regime, points in split_curve(curve).items():
            n, x = max(points.items(), default=(0, 0.0))
            known = tuple(sorted(it for it in points.items() if it[0] <= n / 4))
            if len(known) >= 3:
                tasks.append(Task(curve.name, curve.source, regime, known, n, x))
    return tasks


def answer_all(tasks: Sequence[Task], law: str = "average", prior: Prior | None = None) -> list[Answer]:
    fits: dict[tuple, ScalingFit] = {}
    answers = []
    for task in tasks:
        if task.known not in fits:
            fits[task.known] = fit_scaling(dict(task.known), law=law, prior=prior)
        fit = fits[task.known]
        said, draws = fit.predict(task.n), np.log(fit.draw_rates(task.n))
        middle = float(np.exp(np.median(draws)))
        width = 1.06 * max(draws.std(), 1e-3) * len(draws) ** -0.2  # of a kernel; Silverman's rule
        z = (np.log(task.rate) - draws) / width
        density = np.exp(-0.5 * z * z).mean() / (width * np.sqrt(2 * np.pi))
        is_inside = said.low <= task.rate <= said.high
        answers.append(Answer(task, abs(middle / task.rate - 1), is_inside, said.can_tell,
                              said.high / said.low, float(np.log(max(density, 1e-2)))))  # fmt: skip
    return answers


def cover(answers: Sequence[Answer]) -> float:
    "Share of intervals that hold the truth"
    return statistics.fmean(answer.is_inside for answer in answers)


def cover_sources(answers: Sequence[Answer]) -> dict[str, float]:
    "That share by source"
    sources = sorted({answer.task.source for answer in answers})
    return {source: cover([it for it in answers if it.task.source == source]) for source in sources}


def errors(answers: Sequence[Answer]) -> tuple[float, float]:
    "Median and 90th percentile of the error"
    found = [answer.error for answer in answers]
    return float(np.median(found)), float(np.quantile(found, 0.9))


# Simple ways to compare with: no interval, one line each


def hold_last(task: Task) -> float:
    n, x = task.known[-1]
    return x * task.n / n


def least_squares(task: Task, law: str) -> float:
    "USL or Amdahl by relative least squares, as they are fitted in books"
    from scipy.optimize import least_squares

    n, x = (np.array(values, float) for values in zip(*task.known, strict=True))

    def curve(at: np.ndarray, n: np.ndarray) -> np.ndarray:
        beta = at[2] if law == "usl" else 0.0
        return at[0] * n / (1 + at[1] * (n - 1) + beta * n * (n - 1))

    start = [x[0] / n[0], 0.02, 0.001][: 3 if law == "usl" else 2]
    found = least_squares(lambda at: np.log(curve(at, n) / x), start, bounds=(0, np.inf), x_scale=start)
    return float(curve(found.x, np.array([task.n]))[0])


# Which beliefs to ship: chosen without the source that is then predicted

CANDIDATES = [
    Prior(loss, loss_spread, noise, wander, noise_spread)
    for loss in (0.005, 0.008, 0.013)
    for loss_spread in (1.0,)
    for noise in (0.006,)
    for wander in (0.007, 0.014, 0.02)
    for noise_spread in (0.7, 1.0, 1.3)
]
ALIKE = 0.05  # Log scores that differ by less are the same


def leave_sources_out(
    tasks: Sequence[Task], candidates: Sequence[Prior] = CANDIDATES
) -> tuple[list[Answer], list[Prior]]:
    "Each source predicted with the beliefs that the others chose, and what they chose"
    tables = [answer_all(tasks, prior=prior) for prior in candidates]
    sources = np.array([task.source for task in tasks])
    scores = np.array([[answer.score for answer in answers] for answers in tables])
    widths = np.log([[answer.width for answer in answers] for answers in tables])
    held, chosen = [], []
    for source in sorted(set(sources)):
        others = sorted(set(sources) - {source})
        weights = np.sqrt([(sources == it).sum() for it in others])
        means = np.array([scores[:, sources == it].mean(1) for it in others])
        score = weights @ means / weights.sum()
        alike = np.flatnonzero(score > score.max() - ALIKE)
        best = alike[np.argmax(widths[alike][:, sources != source].mean(1))]
        held += [answer for answer in tables[best] if answer.task.source == source]
        chosen.append(candidates[best])
    return held, chosen
