"""Advice against what a run then takes.  `python tests/bench advice`, on a machine that does nothing else

Each training is probed for a minute, advice is asked, and then it runs to its end three times with one rank
and with two, in turn.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from figures import Figure, seconds

import scalekit as sk
from scalekit.costs.plan import Plan

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooks import write_notebook

TEMPLATE = Path(__file__).parents[2] / "templates" / "train_distributed.ipynb"
PRICE = 2.5  # Money a core and hour
N_RUNS = 3  # Of each number of ranks, in turn

TRANSFORMER = (
    ("n_ranks: int = 1\nbatch_size: int = 32\nsteps: int = 100", "parameters"),
    """
import torch
from torch.nn import functional as F
import scalekit as sk

def fit(batch_size, steps):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(
        torch.nn.Embedding(500, 128), torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        torch.nn.Linear(128, 500),
    )
    words = torch.randint(500, (4096, 65))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = words[:, :-1], words[:, 1:]
    with sk.training(model, optimizer, data, batch_size=batch_size, max_steps=steps) as job:
        for batch in job:
            job.step(F.cross_entropy(job.model(batch.x).flatten(0, 1), batch.y.flatten()))
""",
    "sk.launch(fit, batch_size, steps, n_ranks=n_ranks)",
)


def list_trainings(folder: Path) -> Iterator[tuple[str, Path, dict]]:
    "Name, notebook and parameters of each, long enough that a minute of probes is worth it"
    for data, epochs in (("digits", 700), ("flights", 5)):
        yield data, TEMPLATE, {"data": data, "epochs": epochs, "batch_size": 64}
    notebook = write_notebook(folder / "transformer.ipynb", *TRANSFORMER)
    yield "transformer", notebook, {"steps": 400, "batch_size": 32}


def measure() -> Iterator[Figure]:
    with TemporaryDirectory(prefix="sk-") as folder:
        os.chdir(folder)
        for name, notebook, parameters in list_trainings(Path(folder)):
            batch = parameters.pop("batch_size")
            study = sk.measure(notebook, n_ranks=[1, 2], batch=[batch], budget=60, parameters=parameters)
            plans = study.advise(prices=PRICE, n_ranks=[1, 2]).plans
            took: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(N_RUNS):
                for n_ranks, seen in took.items():
                    seen.append(
                        sk.run(notebook, {**parameters, "n_ranks": n_ranks, "batch_size": batch}).seconds
                    )
            for plan in plans:
                yield compare(name, plan, took[plan.n], study.noise)


def compare(name: str, plan: Plan, took: list[float], noise: float | None) -> Figure:
    what = f"{name} with {plan.n} rank{'s' * (plan.n > 1)}, probed and then run {len(took)} times"
    known, each = median(took), ", ".join(f"{one:.0f}" for one in sorted(took))
    if plan.seconds is None:
        return Figure(what, f"cannot tell: {plan.reason}", seconds(known), None, "within 15 %")
    ratio = plan.seconds.median / known
    said = f"{seconds(plan.seconds.median)} ({seconds(plan.seconds.low)} to {seconds(plan.seconds.high)})"
    money = f"money {plan.money.median:.4f} of {known / 3600 * plan.rate:.4f}"
    return Figure(
        what,
        f"{said}, {money}",
        f"{seconds(known)} ({each})",
        ratio,
        f"within 15 %; got {ratio - 1:+.0%}; noise of the probes {noise or 0:.0%}",
    )
