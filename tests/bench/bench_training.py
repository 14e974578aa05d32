"""What the loop costs, beside one written by hand, Lightning Fabric and Accelerate."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from figures import Figure
from torch.nn.functional import mse_loss

from scalekit.train.loop import training

N_STEPS, N_ROUNDS = 300, 31  # Short and many: a noisy neighbour spoils a round, not the median


def make(width: int) -> tuple:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    x = torch.randn(4096, 8)
    return model, torch.optim.SGD(model.parameters(), lr=0.01), x, x.sum(1, keepdim=True)


def by_hand(width: int, n: int) -> float:
    model, optimizer, x, y = make(width)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + n * 32 // len(x))])
    begin = time.thread_time()
    for step in range(n):
        at = order[32 * step : 32 * step + 32]
        loss = mse_loss(model(x[at]), y[at])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.thread_time() - begin


def by_scalekit(width: int, n: int) -> float:
    model, optimizer, x, y = make(width)
    with training(model, optimizer, (x, y), batch_size=32, max_steps=n) as job:
        begin = time.thread_time()
        for batch in job:
            job.step(mse_loss(job.model(batch.x), batch.y))
        return time.thread_time() - begin


def by_fabric(width: int, n: int) -> float:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer, x, y = make(width)
    model, optimizer = fabric.setup(model, optimizer)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + n * 32 // len(x))])
    begin = time.thread_time()
    for step in range(n):
        at = order[32 * step : 32 * step + 32]
        fabric.backward(mse_loss(model(x[at]), y[at]))
        optimizer.step()
        optimizer.zero_grad()
    return time.thread_time() - begin


def by_accelerate(width: int, n: int) -> float:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, x, y = make(width)
    model, optimizer = accelerator.prepare(model, optimizer)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + n * 32 // len(x))])
    begin = time.thread_time()
    for step in range(n):
        at = order[32 * step : 32 * step + 32]
        with accelerator.accumulate(model):
            accelerator.backward(mse_loss(model(x[at]), y[at]))
            optimizer.step()
            optimizer.zero_grad()
    return time.thread_time() - begin


def overheads(
    width: int, n: int, n_rounds: int, ways: list[Callable]
) -> tuple[list[list[float]], list[float]]:
    "Time a step [us] beyond the loop by hand, of each way round by round; and of the loop by hand"
    plain: list[float] = []
    found: list[list[float]] = [[] for _ in ways]
    for number in range(n_rounds + 1):
        times = [way(width, n) / n * 1e6 for way in (by_hand, *ways)]
        if number:  # the first warms up
            plain.append(times[0])
            for kept, own in zip(found, times[1:], strict=True):
                kept.append(own - times[0])
    return found, plain


def measure() -> Iterator[Figure]:
    torch.set_num_threads(1)
    ways = [by_scalekit, by_fabric, by_accelerate]
    found, plain = overheads(16, N_STEPS, N_ROUNDS, ways)
    ours, *others = (statistics.median(own) for own in found)
    step = statistics.median(plain)
    for name, other in zip(("Lightning Fabric", "Accelerate"), others, strict=True):
        yield Figure(
            f"a step of a tiny network ({step:.0f} us by hand), beyond it; {name}",
            f"{ours:.1f} us", f"{other:.1f} us", ours / other, "at most 15 us, shuffling in it",
        )  # fmt: skip
    (own,), plain = overheads(20_000, 100, 9, [by_scalekit])
    ratios = sorted((o + p) / p for o, p in zip(own, plain, strict=True))
    middle, step = statistics.median(ratios), statistics.median(plain) / 1000
    yield Figure(
        f"a step of {step:.1f} ms by hand", f"{step * middle:.2f} ms", f"{step:.2f} ms", middle,
        f"within noise; got {middle:.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})",
    )  # fmt: skip
