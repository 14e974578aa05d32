"""Batch inference against the plain loop, and one worker against two.  `python tests/bench/bench_predict.py [N_BATCHES]`

The model computes 5 ms a batch on one thread, in memory that the C library keeps; without, a third of the time would go to the kernel, and sk.predict would look faster than
it is. The plain loop does what a good script does: it reads a parquet file by batches, predicts and writes a parquet file.  With fewer free cores than workers the second
worker can't help: beside each pair, the same workers only compute, which says what the machine had to give. What a call needs besides (handing over the model, the last
partition of which there is one too few) is the same for few rows and many, so two workers have three times the rows: 12 s of the model.
"""  # noqa: E501

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from figures import Figure, pair, seconds, take_turns

import scalekit as sk
from scalekit.inference.pump import keep_freed_memory

ROWS, WIDTH = 1024, 16  # Of a batch
COLUMNS = [f"x{i}" for i in range(WIDTH)]
GOAL = 0.005  # A batch [s]
N_LONGER = 3  # So many times the rows, where two workers share them


class OneThread(torch.nn.Sequential):
    "Stays on one core, also where its worker has the cores of two"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)
        return super().forward(x)


def make_model() -> torch.nn.Module:
    "Layers until a batch takes 5 ms on one thread"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    ends = torch.nn.Linear(WIDTH, 256), torch.nn.Linear(256, 1)
    middle = [torch.nn.Linear(256, 256) for _ in range(64)]
    for n in range(1, len(middle)):
        model = OneThread(ends[0], *middle[:n], ends[1]).eval()
        if time_batch(model) >= GOAL:
            break
    return model


def time_batch(model: torch.nn.Module) -> float:
    x, times = torch.rand(ROWS, WIDTH), []
    with torch.inference_mode():
        for _ in range(25):
            start = time.thread_time()  # of this core: others who compute here must not shrink the model
            model(x)
            times.append(time.thread_time() - start)
    return statistics.median(times)


def write_data(path: Path, n_batches: int) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.random((n_batches * ROWS, WIDTH), dtype="float32"), columns=COLUMNS)
    frame.insert(0, "id", np.arange(len(frame)))
    frame.to_parquet(path, row_group_size=25 * ROWS)


def loop_plainly(model: torch.nn.Module, data: Path, out: Path) -> None:
    "What one would write by hand"
    writer = None
    with torch.inference_mode(), pq.ParquetFile(data) as file:
        for batch in file.iter_batches(ROWS):
            x = np.column_stack([batch[name].to_numpy() for name in COLUMNS])
            answer = model(torch.from_numpy(x))[:, 0].numpy()
            rows = pa.table({"id": batch["id"], "prediction": answer})
            writer = writer or pq.ParquetWriter(out, rows.schema)
            writer.write_table(rows)
    writer.close()


def compute_only(cluster: sk.Cluster, model: torch.nn.Module, n_batches: int) -> None:
    "The model's part of the work, shared out evenly"
    workers = [slot.worker for slot in cluster.slots]
    send = cluster.client.submit
    n = n_batches // len(workers)
    for future in [send(call_often, model, n, workers=[worker], pure=False) for worker in workers]:
        future.result()


def call_often(model: torch.nn.Module, n_batches: int) -> None:
    x = torch.rand(ROWS, WIDTH)
    with torch.inference_mode():
        for _ in range(n_batches):
            model(x)


def measure(n_batches: int = 800, n_pairs: int = 5) -> Iterator[Figure]:
    "The figures of the table"
    model = make_model()
    options = {"columns": COLUMNS, "keep": "id", "batch_size": ROWS, "partition_rows": 25 * ROWS}
    options |= {"fresh": True, "progress": False}
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data.parquet"
        write_data(data, n_batches)

        def plainly() -> None:
            loop_plainly(model, data, folder / "plain.parquet")

        def here() -> None:
            sk.predict(model, data, folder / "here", **options)

        ours, theirs = pair(here, plainly, n_pairs)
        yield _compare("the same rows, plain loop against sk.predict in one process", ours, theirs, "0.95")
        write_data(data, N_LONGER * n_batches)
        with sk.open_cluster("cpu", n_workers=1) as one, sk.open_cluster("cpu", n_workers=2) as two:
            ways = (
                lambda: sk.predict(model, data, folder / "two", cluster=two, **options),
                lambda: sk.predict(model, data, folder / "one", cluster=one, **options),
                lambda: compute_only(two, model, n_batches),
                lambda: compute_only(one, model, n_batches),
            )
            ours, theirs, *bare = take_turns(ways, n_pairs)
        gain = statistics.median(t / o for o, t in zip(*bare, strict=True))
        what = f"{N_LONGER} times the rows, one worker against two that gain {gain:.2f} by computing only"
        yield _compare(what, ours, theirs, "1.8")


def _compare(what: str, ours: list[float], theirs: list[float], goal: str) -> Figure:
    "Throughput: how many times that of the other way, pair by pair"
    ratios = sorted(t / o for o, t in zip(ours, theirs, strict=True))
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    told = f"at least {goal} times; got {ratios[0]:.2f}-{ratios[-1]:.2f} (load {load:.1f} on {cores} cores)"
    middle = statistics.median(ratios)
    return Figure(what, seconds(statistics.median(ours)), seconds(statistics.median(theirs)), middle, told)


if __name__ == "__main__":
    for figure in measure(*(int(text) for text in sys.argv[1:])):
        print(f"{figure.what}: {figure.ours}, {figure.theirs}, {figure.ratio:.2f} times; {figure.goal}")
