"""One run and many, against papermill's API and nbclient."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import books
from figures import Figure, compare, pair, seconds

import scalekit as sk

N_RUNS = int(os.environ.get("BENCH_RUNS", "200"))  # For the throughput of papermill and of a sweep
N_PAIRS = int(os.environ.get("BENCH_PAIRS", "7"))


def by_papermill(notebook: Path, output: Path, n: int = 0) -> None:
    import papermill

    papermill.execute_notebook(str(notebook), str(output), {"n": n}, progress_bar=False)


def by_nbclient(notebook: Path) -> None:
    import nbclient
    import nbformat

    nbclient.NotebookClient(nbformat.read(notebook, 4), kernel_name="python3").execute()


def single_runs(folder: Path) -> Iterator[Figure]:
    for name, cells, goal in (
        ("trivial", books.TRIVIAL, "6 times faster"),
        ("torch", books.TORCH, "12 times faster"),
    ):
        notebook = books.write_notebook(folder / f"{name}.ipynb", cells)
        times = pair(
            lambda nb=notebook: sk.run(nb, n=1),
            lambda nb=notebook: by_papermill(nb, folder / "out.ipynb"),
            N_PAIRS,
        )
        yield compare(f"one run, {name} notebook, against papermill's API in a warm process", *times, goal)


def long_notebooks(folder: Path) -> Iterator[Figure]:
    many = books.write_notebook(folder / "many.ipynb", books.MANY)
    times = pair(lambda: sk.run(many), lambda: by_papermill(many, folder / "out.ipynb"), 2, warm_up=0)
    yield compare("500 trivial cells, against papermill", *times, "at most 5 % of its time", faster=False)
    for name, cells in (("20 MB of print", books.LOUD), ("200 images", books.IMAGES)):
        notebook = books.write_notebook(folder / "long.ipynb", cells)
        times = pair(
            lambda nb=notebook: sk.run(nb), lambda nb=notebook: by_nbclient(nb), max(3, N_PAIRS // 2)
        )
        yield compare(
            f"{name}, against nbclient without saving", *times, "at most 1.05 of its time", faster=False
        )


def throughput(folder: Path) -> Iterator[Figure]:
    notebook = books.write_notebook(folder / "torch.ipynb", books.TORCH)
    start = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        outputs = [folder / f"out-{n}.ipynb" for n in range(N_RUNS)]
        list(pool.map(by_papermill, [notebook] * N_RUNS, outputs, range(N_RUNS)))
    theirs = time.perf_counter() - start
    sweep = sk.sweep(notebook, n=range(N_RUNS), profile="cpu", n_workers=2, store=folder / "runs")
    begun, ended = zip(*[(_time(row["started"]), _time(row["ended"])) for row in sweep.rows], strict=True)
    ours = max(ended) - min(begun)
    what = f"{N_RUNS} torch notebooks on 2 slots, against papermill's API in 2 processes"
    yield Figure(what, seconds(ours), seconds(theirs), theirs / ours, "12 times the throughput, aim 15")
    busy = sum(row["seconds"] for row in sweep.rows) / (2 * ours)
    yield Figure(
        "idle share of the slots in that sweep", f"{100 * (1 - busy):.1f} %", "", 1 - busy, "under 5 %"
    )


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def many_queued(folder: Path) -> Iterator[Figure]:
    notebook = books.write_notebook(folder / "trivial.ipynb", books.TRIVIAL)
    import psutil

    memory: list[int] = []
    process = psutil.Process()
    sweep = sk.sweep(notebook, n=range(1000), profile="cpu", n_workers=2, store=folder / "queued",
                     on_progress=lambda progress: memory.append(process.memory_info().rss))  # fmt: skip
    ends = sorted(_time(row["ended"]) for row in sweep.rows)
    first, last = ends[99] - ends[0], ends[-1] - ends[-100]
    grown = (max(memory) - memory[0]) / 1e6
    yield Figure(
        "1,000 queued runs: growth of the controller's memory", f"{grown:.0f} MB", "", grown, "under 50 MB"
    )
    yield Figure(
        "1,000 queued runs: the last hundred against the first",
        seconds(last),
        seconds(first),
        last / first,
        "at most 1",
    )


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for part in (single_runs, long_notebooks, throughput, many_queued):
            yield from part(folder)
