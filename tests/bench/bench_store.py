"""What the store and the calls from a notebook cost.  `python tests/bench/bench_store.py [N_RUNS ...]`"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from figures import Figure, seconds

from scalekit import context
from scalekit.bundle import Bundle
from scalekit.core import new_run_id
from scalekit.store import Store

PARAMETERS = {"lr": 0.01, "seed": 7, "epochs": 10, "model": "mlp"}
METRICS = {"loss": 0.31, "accuracy": 0.97, "val_loss": 0.35, "epoch": 9}


def median_ms(work: Callable[[], object], n: int) -> float:
    "Median time of `work` [ms]"
    times = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def finish(bundle: Bundle, n_steps: int = 10) -> None:
    with bundle.lease():
        bundle.set_state("running")
        for step in range(n_steps):
            bundle.append("log", step=step, values=METRICS)
        bundle.set_state("succeeded")
    bundle.seal()


def one_run(store: Store) -> None:
    bundle = store.create_run({"notebook_sha256": "ab", "parameters": PARAMETERS})
    bundle.notebook.write_text("x" * 50_000)
    finish(bundle)
    store.index(bundle)


def copy_runs(store: Store, n: int) -> None:
    "Fill a store without waiting for the disk: folders with what a sealed run has"
    model = store.create_run({"notebook_sha256": "ab", "parameters": PARAMETERS})
    finish(model)
    texts = {name: (model.path / name).read_bytes() for name in ("run.json", "events.jsonl", "SHA256SUMS")}
    for _ in range(n - 1):
        folder = store.folder / new_run_id()
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_bytes(text)


def time_listing(folder: Path, n: int) -> None:
    store = Store(folder / f"listed-{n}")
    copy_runs(store, n)
    start = time.perf_counter()
    store.rebuild_index()
    rebuilt = time.perf_counter() - start
    repeat = max(5, 100_000 // n)
    print(f"{n:>7,} runs: index rebuilt in {rebuilt:.1f} s ({rebuilt / n * 1000:.2f} ms a run)")
    print(f"{'':15}list_runs()          {median_ms(store.list_runs, repeat):8.1f} ms")
    print(f"{'':15}list_runs(limit=20)  {median_ms(lambda: store.list_runs(limit=20), repeat):8.1f} ms")
    print(f"{'':15}in a new Store       {median_ms(lambda: Store(store.folder).list_runs(), repeat):8.1f} ms")
    print(f"{'':15}open_run('latest')   {median_ms(lambda: store.open_run('latest'), repeat):8.1f} ms")
    print(f"{'':15}find(fingerprint)    {median_ms(lambda: store.find('none'), repeat):8.1f} ms")
    print(f"{'':15}reap()               {median_ms(store.reap, repeat):8.1f} ms")


def time_log(folder: Path, n: int) -> None:
    bundle = Store(folder / "logged").create_run({})
    start = time.perf_counter()
    for step in range(n):
        context.log(loss=0.3, step=step)
    print(f"{n:,} calls of log without a run: {time.perf_counter() - start:.2f} s")
    os.environ["SCALEKIT_BUNDLE"] = str(bundle.path)
    start = time.perf_counter()
    for step in range(n):
        context.log(loss=0.3, accuracy=0.97, step=step)
    print(f"{n:,} calls of log in a run:      {time.perf_counter() - start:.2f} s")
    del os.environ["SCALEKIT_BUNDLE"]
    print(f"{'':15}summary of that run  {median_ms(bundle.summary, 3):8.1f} ms")
    print(f"{'':15}its state            {median_ms(lambda: bundle.state, 5):8.1f} ms")
    print(f"{'':15}curves               {median_ms(bundle.curves, 3):8.1f} ms")


def measure() -> Iterator[Figure]:
    "The figures of the table"
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "made")
        whole = median_ms(lambda: one_run(store), 50) / 1000
        yield Figure("a run made, begun, ended, sealed and indexed", seconds(whole), "", whole, "")
        os.environ["SCALEKIT_BUNDLE"] = str(store.create_run({}).path)
        start = time.perf_counter()
        for step in range(100_000):
            context.log(loss=0.3, accuracy=0.97, step=step)
        del os.environ["SCALEKIT_BUNDLE"]
        logged = time.perf_counter() - start
        yield Figure("100,000 calls of sk.log", seconds(logged), "", logged, "under 5 s")
        for n, goal in ((10_000, "under 100 ms"), (100_000, "without trouble")):
            listed = Store(folder / f"listed-{n}")
            copy_runs(listed, n)
            listed.rebuild_index()
            took = median_ms(listed.list_runs, 9) / 1000
            yield Figure(f"{n:,} runs listed", seconds(took), "", took, goal)


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [1_000, 10_000, 100_000]
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "made")
        asked = {"parameters": PARAMETERS}
        print(f"one run made          {median_ms(lambda: store.create_run(asked), 50):8.2f} ms")
        print(f"made, run and sealed  {median_ms(lambda: one_run(store), 50):8.2f} ms")
        bundle = store.create_run(asked)
        print(f"index(bundle)         {median_ms(lambda: store.index(bundle), 50):8.2f} ms")
        time_log(folder, 100_000)
        for n in sizes:
            time_listing(folder, n)


if __name__ == "__main__":
    main()
