"""What the journal of cells costs, and what it saves."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import books
from figures import Figure, compare, pair

import scalekit as sk

N_PAIRS = int(os.environ.get("BENCH_PAIRS", "7"))
# Cells as a data scientist has them: data, features, a model, training, results
TRAINING = [
    "import numpy as np, pandas as pd, torch, time\ntorch.manual_seed(0); np.random.seed(0)",
    "names = [f'c{i}' for i in range(20)]\nframe = pd.DataFrame(np.random.rand(200_000, 20), columns=names)\n"
    "time.sleep(0.3)",
    "frame['target'] = (frame.c0 * frame.c1 > 0.25).astype('float32')\ntime.sleep(0.3)",
    "X = torch.tensor(frame.drop(columns='target').to_numpy(), dtype=torch.float32)\n"
    "y = torch.tensor(frame.target.to_numpy())",
    "X = (X - X.mean(0)) / X.std(0)\ntime.sleep(0.3)",
    "model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))\n"
    "opt = torch.optim.Adam(model.parameters(), lr=0.01); history = []",
    "for epoch in range(3):\n    for batch in torch.randperm(len(X)).split(512):\n        opt.zero_grad()\n"
    "        out = model(X[batch]).squeeze(1)\n"
    "        loss = torch.nn.functional.binary_cross_entropy_with_logits(out, y[batch])\n"
    "        loss.backward(); opt.step()\n    history.append(loss.item())",
    "scores = torch.sigmoid(model(X)).squeeze(1).detach()\ntime.sleep(0.3)",
    "table = frame.assign(score=scores.numpy()).groupby(frame.c0.round(1)).score.mean()\ntime.sleep(0.3)",
    "accuracy = float(((scores > 0.5) == y.bool()).float().mean())\naccuracy",
]


def as_cells(sources: list[str]) -> list[tuple[str, ...]]:
    return [(source,) for source in sources]


def overhead(folder: Path) -> Iterator[Figure]:
    (folder / "without").mkdir()
    (folder / "without" / "scalekit.toml").write_text("journal = false")
    for name, cells, goal in (
        ("trivial notebook", books.TRIVIAL, "within noise"),
        ("500 trivial cells", books.MANY, "at most 5 % or 2 s more"),
        ("10 cells of training", as_cells(TRAINING), "at most 5 % or 2 s more"),
    ):
        pages = [books.write_notebook(folder / part / "book.ipynb", cells) for part in ("", "without")]

        def run(page: Path) -> None:
            os.chdir(page.parent)
            sk.run(page)

        times = pair(lambda p=pages: run(p[0]), lambda p=pages: run(p[1]), N_PAIRS)
        yield compare(f"{name}, with a journal against without", *times, goal, faster=False)


def resumed(folder: Path) -> Iterator[Figure]:
    os.chdir(folder)
    whole = books.write_notebook(folder / "book.ipynb", as_cells(TRAINING))
    broken = sk.run(
        books.write_notebook(folder / "book.ipynb", as_cells([*TRAINING[:-1], "1 / 0"])), check=False
    )
    books.write_notebook(folder / "book.ipynb", as_cells(TRAINING))
    n_bytes = sum(path.stat().st_size for path in (broken.path / "cells").rglob("*") if path.is_file())
    times = pair(lambda: sk.run(whole, resume=broken.run_id), lambda: sk.run(whole), max(3, N_PAIRS // 2))
    yield compare("10 cells of training, resumed at the last against run anew", *times, "as little as can be")
    yield Figure("its journal on disk", f"{n_bytes / 1e6:.0f} MB", "", n_bytes / 1e6, "")


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as name:
        for part in (overhead, resumed):
            yield from part(Path(name))
