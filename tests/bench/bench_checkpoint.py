"""What a checkpoint of 300 MB costs a training, beside what plain torch.save does."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from figures import Figure, compare, pair, seconds

from scalekit.train.saver import Saver
from scalekit.train.state import take_own, take_state

N_PAIRS = int(os.environ.get("BENCH_PAIRS", "7"))


def make_training() -> dict:
    "25 million weights and Adam's two moments: 302 MB"
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(24)])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 1024)).square().mean().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def blocked(folder: Path, objects: dict) -> Iterator[Figure]:
    "How long `save` holds the training up, beside the bare copy of as many bytes in one thread"
    n_bytes = sum(p.nbytes for p in objects["model"].parameters()) * 3
    source, target = torch.ones(n_bytes, dtype=torch.uint8), torch.zeros(n_bytes, dtype=torch.uint8)
    with Saver(folder / "blocked", keep_last=1) as saver:

        def save() -> None:
            saver.save(1, take_state(objects), take_own())

        def copy() -> None:
            target.numpy()[...] = source.numpy()

        def clock(work: Callable[[], None]) -> tuple[float, float]:
            "Time [s], and the part of it in which this thread had a core"
            start, begin = time.perf_counter(), time.thread_time()
            work()
            return time.perf_counter() - start, time.thread_time() - begin

        first, _ = clock(save)
        pairs = []
        for _ in range(N_PAIRS):
            saver.wait()
            pairs.append((clock(save), clock(copy)))
    (ours, busy), (copies, copying) = (zip(*each, strict=True) for each in zip(*pairs, strict=True))
    goal = "at most 50 ms"
    yield compare("training waits for a save of 302 MB, against a plain copy", ours, copies, goal, False)
    yield compare("the same, time that it had a core", busy, copying, goal, False)
    yield Figure("the first save, which gets its memory from the system", seconds(first), "", None, "")


def written(folder: Path, objects: dict) -> Iterator[Figure]:
    "Until it is on disk, with a checksum for each file"
    saver = Saver(folder / "written", keep_last=1, asynchronous=False)

    def ours() -> None:
        saver.save(1, take_state(objects), take_own())

    def theirs() -> None:
        path = folder / "plain.pt"
        with open(path.with_suffix(".new"), "wb") as file:
            torch.save({name: item.state_dict() for name, item in objects.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".new"), path)

    with saver:
        goal = "at most 1.5"
        yield compare(
            "save, fsync and checksum, against torch.save and fsync",
            *pair(ours, theirs, N_PAIRS),
            goal,
            False,
        )

        def load() -> None:
            assert saver.load()

        def load_plain() -> None:
            torch.load(folder / "plain.pt", weights_only=True)

        yield compare(
            "load with every checksum, against torch.load", *pair(load, load_plain, N_PAIRS), "little", False
        )


def measure() -> Iterator[Figure]:
    objects = make_training()
    with TemporaryDirectory() as name:
        for part in (blocked, written):
            yield from part(Path(name), objects)
            shutil.rmtree(name, ignore_errors=True)
            os.makedirs(name, exist_ok=True)
