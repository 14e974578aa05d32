"""How long the advisor takes from a slider to its answer.  `python tests/bench/bench_advisor.py`

A study of three batch sizes on 1 to 8 GPUs, of which none was fitted before. A slider is moved in the panel's
own process; the answer is there when the panel's view has the new numbers. What the network and the browser
take on top is not in it.
"""

import statistics
import time
from collections.abc import Iterator

from figures import Figure

from scalekit.advice.advising import _fit
from scalekit.measuring.study import Study
from scalekit.measuring.windows import Probe
from scalekit.panels.advisor import AdvisorPanel, advisor

SPEEDS = {1: 1000.0, 2: 1900.0, 4: 3500.0, 8: 6300.0}


def make_study() -> Study:
    probes = []
    for batch in (256, 512, 1024):
        for n, rate in SPEEDS.items():
            rates = tuple(rate * batch**0.1 * wobble for wobble in (1.0, 1.005, 0.995))
            probes.append(
                Probe(n, batch, rates, 102_400_000 // batch, 30.0, None, data=0.05, communication=0.02 * n)
            )
    machine = {"cores": 64, "gpus": ["H100"] * 8}
    about = "20260501-120000-000-ab12", "train.ipynb", "0" * 64, {}, None, machine, "2026-05-01"
    return Study(*about, tuple(probes))


def time_slider(panel: AdvisorPanel, slider, options: list) -> list[float]:  # Each in [ms]
    "From each place of a slider to the view's next numbers"
    times = []
    for value in options:
        before = panel.view.body
        start = time.perf_counter()
        slider.value = value
        while panel.view.body is before:
            if time.perf_counter() - start > 2:  # a place that changes nothing
                break
            time.sleep(0.0005)
        else:
            times.append(1000 * (time.perf_counter() - start))
    return times


def measure() -> Iterator[Figure]:
    "The figures of the table"
    start = time.perf_counter()
    panel = advisor(make_study(), "12h", 250, 6.88, devices_per_node=8)
    panel.picture()
    first = 1000 * (time.perf_counter() - start)
    yield Figure("advisor, first picture, nothing fitted yet", f"{first:.0f} ms", "", None, "")
    panel.open()
    while not panel.view.body:
        time.sleep(0.01)
    controls, times = panel._controls, []
    hits = _fit.cache_info().misses
    for slider, values in (
        (controls.ranks, [2, 8, 16, 1, 4]), (controls.batch, [256, 1024, 512]),
        (controls.deadline, [3600.0 * h for h in (4, 3, 2, 8, 16)]), (controls.own, [2.2, 4.7, 8.2, 1.0]),
        (controls.away, [1 / 24, 1 / 6, 0.0]),
    ):  # fmt: skip
        times += time_slider(panel, slider, values)
    assert _fit.cache_info().misses == hits, "a slider has made a fit anew"
    panel.close(forget=True)
    middle, worst = statistics.median(times), max(times)
    yield Figure(
        f"advisor, from a slider to its answer, {len(times)} moves",
        f"{middle:.0f} ms, at most {worst:.0f} ms", "", None, "under 100 ms",
    )  # fmt: skip


if __name__ == "__main__":
    for figure in measure():
        print(figure)
