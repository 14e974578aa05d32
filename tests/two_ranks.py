"""Two real ranks over gloo.  `python tests/two_ranks.py RANK SIZE FOLDER CASE...` is one of them."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch

from scalekit.ranks.world import Exchange, Preempted, World, enter_world

CPU = torch.device("cpu")
CASES = (
    "ddp", "ddp_accumulated", "averaged", "fsdp", "fsdp_resumed", "resized", "halved", "preempted", "refused",
    "unequal", "evaluated", "accelerate_untold", "fabric_untold", "accelerated", "fabricated",
)  # fmt: skip


def run_ranks(folder: Path, *cases: str, size: int = 2) -> list[dict]:
    "What the named functions below return on each rank, by their names"
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), *cases], stderr=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    told = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(told)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(size)]


def be_rank(rank: int, size: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "group"), size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    words = torch.distributed.FileStore(str(folder / "words"), size)
    told = {}
    for case in cases:
        control = Exchange(rank, size, torch.distributed.PrefixStore(case, words), timeout=120)
        with enter_world(World(rank, size, CPU, folder=folder / case, control=control)) as world:
            told[case] = find_case(case)(world)
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def find_case(name: str):
    return globals().get(name) or getattr(import_module("two_recipes"), name)


# What the ranks do


def make(width: int = 8):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def make_data(n: int = 50):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1, keepdim=True) > 0).float()


def fit(model=None, leave_at=None, **options):
    "Weights after a training, and the job; rank 1 may be asked to leave"
    from scalekit.train.loop import training

    model, optimizer = make() if model is None else model
    with training(model, optimizer, make_data(), **{"batch_size": 12, "n_epochs": 3, **options}) as job:
        for batch in job:
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
            if job.n_steps == leave_at and job.world.rank == 1:
                job.world.reason = "SIGTERM"
    return gather(model), job


def gather(model) -> list[float]:
    whole = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in model.parameters()]
    return torch.cat([w.detach().flatten() for w in whole]).tolist()


def ddp(world):
    return fit(accumulate=1)[0]


def ddp_accumulated(world):
    return fit(accumulate=3, clip=0.5)[0]


def averaged(world):
    "For each micro-batch: whether it is its step's last, and whether ranks spoke to each other in `step`"
    from torch.distributed.tensor.debug import CommDebugMode

    from scalekit.train.loop import training

    seen = {}
    for strategy in ("ddp", "fsdp"):
        model, optimizer = make()
        options = {"batch_size": 12, "n_epochs": 1, "accumulate": 3, "strategy": strategy, "name": strategy}
        with training(model, optimizer, make_data(), **options, checkpoint_every=None) as job:
            for batch in job:
                loss = torch.nn.functional.mse_loss(job.model(batch.x), batch.y)
                with CommDebugMode() as words:
                    job.step(loss)
                seen.setdefault(strategy, []).append([job.ends_step, words.get_total_counts() > 0])
    return seen


def fsdp(world):
    weights, job = fit(strategy="fsdp")
    return {"weights": weights, "kind": type(next(job.module.parameters())).__name__}


def fsdp_resumed(world):
    fit(strategy="fsdp", max_steps=7)
    return fit(strategy="fsdp")[0]


def preempted(world):
    "Rank 1 is asked to leave; a second attempt ends the training"
    options = {"n_epochs": 60, "checkpoint_every": None}
    try:
        fit(leave_at=40, **options)
    except Preempted as error:
        told = str(error)
    world.reason = None
    weights, job = fit(**options)
    return {"told": told, "weights": weights, "steps": job.n_steps}


def resized(world):
    "Two ranks, then one, then two: weights at the end, and the samples of this rank's steps"
    seen = []

    def go_on(size, max_steps, accumulate=1):
        from scalekit.train.loop import training

        own = World(world.rank % size, size, CPU, folder=world.folder, control=world.control)
        model, optimizer = make()
        data = (*make_data(), torch.arange(50))
        options = {"batch_size": 12, "n_epochs": 3, "max_steps": max_steps, "accumulate": accumulate}
        with enter_world(own), training(model, optimizer, data, **options) as job:
            for x, y, index in job:
                job.step(torch.nn.functional.mse_loss(job.model(x), y))
                seen.append((job.epoch, (job.n_steps - job.ends_step) % 5, index.tolist()))
        return model

    go_on(2, 4)
    if world.rank == 0:
        go_on(1, 9, accumulate=2)
    world.control.barrier("alone")
    return {"weights": gather(go_on(2, 15)), "seen": seen}


def halved(world):
    "Autocast inside of DDP"
    kinds = set()
    model, optimizer = make()
    model.register_forward_hook(lambda module, given, out: kinds.add(str(out.dtype)))
    return {"weights": fit((model, optimizer), precision="bf16")[0], "kinds": sorted(kinds)}


def refused(world):
    "What goes wrong on several ranks only, each with its sentence"
    from torchdata.stateful_dataloader import StatefulDataLoader

    from scalekit.core import ScaleKitError
    from scalekit.train.loop import training

    x, y = make_data()
    told = {}

    def attempt(name, data=(x, y), call=None, **options):
        model, optimizer = make()
        options = {"batch_size": 12, "n_epochs": 1, "checkpoint_every": None, **options}
        try:
            with training(model, optimizer, data, name=name, **options) as job:
                for batch in job:
                    job.step(torch.nn.functional.mse_loss((call or job.model)(batch.x), batch.y))
        except ScaleKitError as error:
            told[name] = str(error)

    attempt("undivided", batch_size=13)
    attempt("around", call=make()[0])
    loader = StatefulDataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    attempt("blind", loader, batch_size=None)
    return told


def unequal(world):
    "A loader of the user's that gives one rank more batches than the other, of other sizes"
    from torchdata.stateful_dataloader import StatefulDataLoader

    from scalekit.train.loop import training

    x, y = make_data()
    own = torch.utils.data.TensorDataset(*((t[:20] if world.rank == 0 else t[20:]) for t in (x, y)))
    batches = torch.utils.data.BatchSampler(range(len(own)), 4 if world.rank == 0 else 2, False)
    model, _ = make()
    optimizer, loader = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        StatefulDataLoader(own, batch_sampler=batches),
    )
    with training(model, optimizer, loader, n_epochs=1) as job:
        for batch in job:
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y))
    return {"weights": gather(model), "steps": job.n_steps}


def evaluated(world):
    model, _ = make()
    from scalekit.train.loop import training

    optimizer = torch.optim.SGD(model.parameters())
    with training(model, optimizer, make_data(), batch_size=12, n_epochs=1) as job:
        return job.evaluate(make_data(), lambda batch: {"mse": ((model(batch.x) - batch.y) ** 2).mean()})[
            "mse"
        ]


if __name__ == "__main__":
    be_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    sys.stdout.flush()
    os._exit(0)
