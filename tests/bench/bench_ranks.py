"""How soon a training goes on after a rank was killed or has hung, and what a rank costs to start."""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from books import write_notebook
from figures import Figure

import scalekit as sk
from scalekit.cluster import Cluster
from scalekit.ranks.launcher import launch

N_FAULTS = int(os.environ.get("BENCH_FAULTS", "7"))
HEARTBEAT = 1.0


def figure(what: str, seconds: list[float], goal: float, promise: str) -> Figure:
    median = statistics.median(seconds)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f} s in {len(seconds)}"
    return Figure(what, f"{median:.2f} s", "", median / goal, f"{promise}; got {spread}".lstrip("; "))


def make_training(folder: Path, n_faults: int, fault: Callable[[], None]) -> Callable[[], None]:
    "A training of two ranks in which something happens in each attempt but the last"

    def train() -> None:
        import torch

        world = sk.current_world()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(10_000):
            optimizer.zero_grad()
            model(torch.ones(4, 8)).sum().backward()
            optimizer.step()
            world.beat(step + 1)
            if step == 0:
                (folder / f"step-{world.attempt}-{world.rank}").write_text(str(time.time()))
                (folder / f"pid-{world.attempt}-{world.rank}").write_text(str(os.getpid()))
            if world.attempt > n_faults:
                return
            if step == 50 and world.rank == world.attempt % 2:
                (folder / f"fault-{world.attempt}").write_text(str(time.time()))
                fault()
            time.sleep(0.002)

    return train


def time_faults(cluster: Cluster, fault: Callable[[], None], n: int = N_FAULTS) -> tuple[list[float], int]:
    "Seconds from each fault to the first step of the last rank after it, and how many processes are left"
    with TemporaryDirectory() as name:
        folder = Path(name)

        def read(file: str) -> float:
            return float((folder / file).read_text())

        launch(
            make_training(folder, n, fault), n_ranks=2, cluster=cluster, folder=folder / "checkpoints",
            retries=n, heartbeat=HEARTBEAT, quiet=True,
        )  # fmt: skip
        seconds = [
            max(read(f"step-{attempt + 1}-{rank}") for rank in (0, 1)) - read(f"fault-{attempt}")
            for attempt in range(1, n + 1)
        ]
        pids = [int(path.read_text()) for path in folder.glob("pid-*")]
        return seconds, sum(psutil.pid_exists(pid) for pid in pids)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def time_lost_workers(cluster: Cluster) -> list[float]:
    "The same where the worker of rank 0 is killed, and another one is there"
    cluster.scale(3)
    seconds = []
    for _ in range(min(N_FAULTS, 3)):
        while len(cluster.slots) < 3:  # the one that was killed last comes back
            time.sleep(0.1)
        pid = cluster.slots[0].process[1]
        seconds += time_faults(cluster, lambda pid=pid: os.kill(pid, signal.SIGKILL), 1)[0]
    return seconds


def time_starts(cluster: Cluster) -> list[float]:
    "Seconds of a launch of two ranks that do nothing"
    seconds = []
    for _ in range(max(3, N_FAULTS)):
        begin = time.monotonic()
        launch(os.getpid, n_ranks=2, cluster=cluster, quiet=True)
        seconds.append(time.monotonic() - begin)
    return seconds


KILLED_AGAIN = """
import os, signal, time
from pathlib import Path
import torch
import scalekit as sk

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters())
x = torch.ones(4000, 8)
n_kills = len(list(Path().glob("killed-*")))
with sk.training(model, optimizer, x, batch_size=4, n_epochs=1, checkpoint_every=20) as job:
    for batch in job:
        job.step(job.model(batch).sum())
        if not Path(f"stepped-{n_kills}").exists():
            Path(f"stepped-{n_kills}").write_text(str(time.time()))
        if n_kills < most and job.n_steps >= 60 * (n_kills + 1):
            Path(f"killed-{n_kills}").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
"""


def time_kernels() -> list[float]:
    "Seconds from each SIGKILL of a notebook's kernel to the next step of the training in it"
    write_notebook(Path("train.ipynb"), [(f"most: int = {N_FAULTS}", "parameters"), (KILLED_AGAIN,)])
    sk.run("train.ipynb", retries=N_FAULTS, store="runs")
    times = {path.name: float(path.read_text()) for path in Path().glob("*ed-*")}
    return [times[f"stepped-{n + 1}"] - times[f"killed-{n}"] for n in range(N_FAULTS)]


def measure_ranks(cluster: Cluster) -> Iterator[Figure]:
    launch(os.getpid, n_ranks=2, cluster=cluster, quiet=True)  # the warm server
    yield figure("two ranks that do nothing, from call to value", time_starts(cluster), 1.0, "")
    killed, left = time_faults(cluster, kill_self)
    yield figure("a rank is killed: until both train again", killed, 2.5, "at most 2.5 s")
    stopped, more = time_faults(cluster, stop_self)
    goal = HEARTBEAT + 1.0
    found = "a rank is stopped, heartbeat 1 s: until both train again"
    yield figure(found, stopped, goal + 2.5, "found within 2 s, then at most 2.5 s")
    lost = "a worker is killed, another is there: until both ranks train again"
    yield figure(lost, time_lost_workers(cluster), 2.5, "at most 2.5 s")
    yield Figure("processes of ranks that are left", str(left + more), "", float(left + more), "0")


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        promise = "at most 1 s"
        yield figure("the kernel of a training is killed: until its next step", time_kernels(), 1.0, promise)
        with sk.open_cluster("cpu", n_workers=2) as cluster:
            yield from measure_ranks(cluster)
