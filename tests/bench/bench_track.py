"""What tracking costs a run, and whether everything arrives at the server: the project's own, on loopback."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import books
from figures import Figure, pair, seconds

import scalekit as sk
from scalekit.store import Store
from scalekit.track.sync import sync

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_wandb import FakeWandb
from processes import MARK, list_marked

N_PAIRS = int(os.environ.get("BENCH_PAIRS", "9"))
N_ROWS = int(os.environ.get("BENCH_ROWS", "100000"))
N_PARALLEL = int(os.environ.get("BENCH_PARALLEL", "60"))
TICK = "for i in range(1000):\n    sk.log(step=i, loss=1 / (i + 1))\n    time.sleep(0.001)"
LOGS = [("import scalekit as sk, time",), (TICK,)]
TALKS = [
    ("import wandb, scalekit as sk",),
    ("run = wandb.init(project='mine', config={'lr': 0.1})",),
    ("for i in range(300):\n    run.log({'loss': 1 / (i + 1)})",),
    ("run.finish()",),
]
TRIAL = [
    ("seed: int = 0", "parameters"),
    ("import wandb, scalekit as sk\nwandb.init(config={'seed': seed})",),
    ("for i in range(100):\n    wandb.log({'loss': seed + i})\n    sk.log(step=i, own=seed * i)",),
    ("wandb.finish()",),
]


def costs(folder: Path) -> Iterator[Figure]:
    "A run that is tracked against one that is not"
    for what, cells, n in (
        ("a run with 1,000 points, tracked, against one that is not", LOGS, N_PAIRS),
        ("a notebook with 300 calls of wandb.log offline, tracked, against one that is not", TALKS, 5),
    ):
        notebook = books.write_notebook(folder / "costs.ipynb", cells)
        ours, theirs = pair(lambda nb=notebook: sk.run(nb, track="wandb"), lambda nb=notebook: sk.run(nb), n)
        more, whole = median(ours) - median(theirs), median(theirs)
        goal = f"at most 2 % or 0.3 s more; got {more * 1000:.0f} ms ({more / whole:.1%})"
        yield Figure(what, seconds(median(ours)), seconds(whole), median(ours) / whole, goal)


def many_rows(folder: Path, server: FakeWandb) -> Iterator[Figure]:
    "Rows of one run, complete and in order"
    bundle = Store(folder / "runs", folder).create_run(
        {"notebook": "long.ipynb", "parameters": {}, "track": ["wandb"], "wandb": {"project": "long"}}
    )
    books.write_notebook(bundle.notebook, [("1",)])
    bundle.set_state("running")
    for number in range(N_ROWS):
        bundle.append("log", step=number, values={"loss": number / 7})
    bundle.set_state("succeeded")
    bundle.seal()
    start = time.perf_counter()
    result = sync(bundle.run_id, store=folder / "runs")
    took = time.perf_counter() - start
    assert not result.failed, result.failed
    rows = server.rows(bundle.run_id)
    right = rows == [{"step": number, "loss": number / 7} for number in range(N_ROWS)]
    told = f"complete and in order; got {len(rows):,} rows, {'in order' if right else 'NOT as they were'}"
    yield Figure(f"a sync of {N_ROWS:,} rows", seconds(took), f"{N_ROWS / took:,.0f} rows/s", None, told)
    start = time.perf_counter()
    assert sync(bundle.run_id, store=folder / "runs").n_same == 1
    again = time.perf_counter() - start
    yield Figure("the same sync again", seconds(again), "", None, "nothing to send, no request")


def many_runs(folder: Path, server: FakeWandb) -> Iterator[Figure]:
    "Runs beside each other on Dask workers, each with its own wandb.log"
    notebook = books.write_notebook(folder / "trial.ipynb", TRIAL)
    mark = f"bench{os.getpid()}"
    os.environ |= {MARK: mark, "SCALEKIT_PRELOAD": "json"}  # sixty times torch is another question
    start = time.perf_counter()
    with sk.open_cluster("cpu", n_workers=N_PARALLEL) as cluster:
        opened = time.perf_counter() - start
        start = time.perf_counter()
        found = sk.sweep(notebook, seed=list(range(N_PARALLEL)), profile=cluster.address, track="wandb",
                         store=folder / "runs", on_progress=lambda progress: None)  # fmt: skip
        ran = time.perf_counter() - start
    start = time.perf_counter()
    result = sync(store=folder / "runs")
    took = time.perf_counter() - start
    lost = 0
    for row in found.rows:
        seed, rows = row["parameters"]["seed"], server.rows(row["run_id"])
        losses = [one["loss"] for one in rows if "loss" in one]
        own = [one["own"] for one in rows if "own" in one]
        lost += (losses != [seed + i for i in range(100)]) + (own != [seed * i for i in range(100)])
    end = time.monotonic() + 20
    while (left := list_marked(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    succeeded = sum(row["state"] == "succeeded" for row in found.rows)
    got = (
        f"{succeeded} succeeded, {lost} curves not complete, {len(result.failed)} not sent, {len(left)} left"
    )
    yield Figure(
        f"{N_PARALLEL} runs at a time on {N_PARALLEL} Dask workers, each with wandb.log and sk.log",
        f"{seconds(ran)} after {seconds(opened)} for the workers", f"sync of all: {seconds(took)}", None,
        f"no row lost, no process left; got {got}",
    )  # fmt: skip


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as name, FakeWandb() as server:
        folder = Path(name)
        os.chdir(folder)
        os.environ.update(server.environment | {"WANDB_MODE": "offline", "WANDB_DIR": name})
        yield from costs(folder)
        yield from many_rows(folder, server)
        yield from many_runs(folder, server)
