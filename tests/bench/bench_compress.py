"""What each way to compress saves and loses: templates/compress.ipynb with its defaults, run whole."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from figures import Figure

import scalekit as sk

TEMPLATE = Path(__file__).parents[2] / "templates" / "compress.ipynb"


def tell(one: pd.Series) -> str:
    "A row of the report card"
    found = f"{100 * one.accuracy:.1f} % right, {one.pt2_bytes / 1e3:,.0f} kB"
    for n in (1, 64):
        p50, p95 = (1e3 * one[f"{which}_ms_batch_{n}"] for which in ("p50", "p95"))
        found += f"; {p50:.0f} us for {n} (p95 {p95:.0f})"
    return found


def measure() -> Iterator[Figure]:
    with TemporaryDirectory() as folder:
        run = sk.run(TEMPLATE, store=folder)
        frame = pd.read_parquet(run.path / "artifacts" / "report_card.parquet")
    load, original = os.getloadavg()[0], frame.loc["original"]
    for name, one in frame.drop("original").iterrows():
        won = ", the winner" if name == run.metrics["winner"] else ""
        low, middle, high = (
            f"{100 * value:+.1f}" for value in (one.difference_low, one.difference, one.difference_high)
        )
        yield Figure(
            f"digits, {name}{won}: file against the original's",
            tell(one),
            tell(original),
            one.pt2_bytes / original.pt2_bytes,
            f"right answers {middle} points ({low} to {high}); load {load:.1f}",
        )
