"""What the memory of a training is said to be, against what it is.  `python tests/bench memory`, as root

The tensors' peak is the resident size of a process whose libraries give freed memory back at once. The
largest batch is then tried fifty times, each time in a control group that kills who takes more, with
libraries as they are.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
from figures import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
import workloads
from workloads import WORKLOADS

from scalekit.core import human_bytes
from scalekit.footprint.estimate import estimate_memory
from scalekit.footprint.probe import calibrate, probe_step

cloudpickle.register_pickle_by_value(workloads)  # the processes of probes do not know this folder
GROUPS = Path("/sys/fs/cgroup/memory")
N_RUNS = 50


def measure() -> Iterator[Figure]:
    for name, (build, sizes) in WORKLOADS.items():
        start = time.perf_counter()
        estimate = estimate_memory(build)
        took = time.perf_counter() - start
        for size in sizes:
            said, is_ = estimate.at(size), probe_step(build, size, exact=True, timeout=600)
            usual = probe_step(build, size, timeout=600)
            yield Figure(
                f"Memory of a step: {name}, {size} samples",
                f"{human_bytes(said)} by {took:.1f} s of traces",
                f"{human_bytes(is_)}; {human_bytes(usual)} with what libraries keep for later",
                said / is_,
                f"within 3 %; got {said / is_ - 1:+.1%}",
            )
    if os.access(GROUPS, os.W_OK):
        yield measure_limits()


def measure_limits() -> Figure:
    "Runs at the recommended batch, each with as much memory as was said to be there"
    random.seed(0)
    killed, shares, estimates = 0, [], {}
    for number in range(N_RUNS):
        name = list(WORKLOADS)[number % len(WORKLOADS)]
        build, memory = WORKLOADS[name][0], random.randrange(300, 700) << 20
        if name not in estimates:
            estimates[name] = estimate_memory(build)
        batch_size = calibrate(estimates[name], build, memory).largest(memory)  # as `sk.largest_batch` does
        ended, peak = run_limited(build, batch_size, memory)
        killed += not ended
        shares.append(peak / memory)
        how = f"{peak / memory:.0%} used{'' if ended else ', killed'}"
        print(f"  {name}, {human_bytes(memory)}: batch {batch_size}, {how}", file=sys.stderr)
    shares.sort()
    return Figure(
        f"{N_RUNS} trainings at the largest batch, each in a control group of that memory",
        f"{killed} killed",
        f"they used {shares[0]:.0%} to {shares[-1]:.0%} of it, {shares[N_RUNS // 2]:.0%} in the median",
        None,
        "none killed",
    )


CHILD = """
import os, sys
import cloudpickle
build, batch_size, group = cloudpickle.load(sys.stdin.buffer)
build(2)()  # what libraries take once is not the training's
with open(group + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
step = build(batch_size)
for _ in range(3):
    step()
"""


def run_limited(build, batch_size: int, memory: int) -> tuple[bool, int]:
    "Three steps in a process that may take `memory` from now on: whether it lived, and its peak [bytes]"
    group = GROUPS / f"scalekit-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(memory))
        order = cloudpickle.dumps((build, batch_size, str(group)))
        done = subprocess.run([sys.executable, "-c", CHILD], input=order)
        return done.returncode == 0, int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
