"""Measure and write the table of figures.  `python tests/bench [NAME ...]`, as `python tests/bench start`

Each benchmark runs in a process of its own. The table goes to nbs/benchmarks.md, with machine and versions.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

here = Path(__file__).parent
table = here.parents[1] / "nbs" / "benchmarks.md"
INTRODUCTION = """Written by `make bench`: medians, both ways in turn on the same machine. It was
shared, so the ratios tell more than the times. It had no GPU: what `tests/gpu` holds is not measured."""
packages = ("scalekit", "papermill", "nbclient", "ipykernel", "distributed", "torch")


def measure_one(name: str) -> None:
    sys.path.insert(0, str(here))
    for figure in importlib.import_module(f"bench_{name}").measure():
        print("FIGURE", json.dumps(figure.line()), flush=True)


def read_figures(name: str) -> list[dict]:
    "Run one benchmark and show what it says while it says it"
    command = [sys.executable, "-u", __file__, "--one", name]
    figures = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("FIGURE "):
                figures.append(json.loads(line.removeprefix("FIGURE ")))
                print("{what}: {ours} | {theirs} | {ratio}".format(**figures[-1]), flush=True)
    if process.returncode:
        sys.exit(f"bench_{name} failed")
    return figures


def describe_machine() -> str:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    cores = f"{len(os.sched_getaffinity(0))} cores of {cpu or platform.machine()}"
    return f"{cores}, Python {platform.python_version()}, {versions}"


def read_sections() -> dict[str, str]:
    "The table as it is, by heading"
    parts = table.read_text().split("\n## ")[1:] if table.exists() else []
    return {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}


def format_section(figures: list[dict]) -> str:
    lines = ["| what | scalekit | compared to | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    for f in figures:
        ratio = "" if f["ratio"] is None else f"{f['ratio']:.2f}"
        lines.append(f"| {f['what']} | {f['ours']} | {f['theirs']} | {ratio} | {f['goal']} |")
    return "\n".join(lines)


def write_table(parts: dict[str, list[dict]]) -> None:
    "Replace what was measured; what was not stays, with its figures of another day"
    sections = read_sections() | {name: format_section(figures) for name, figures in parts.items()}
    head = ["# How fast it is", "", INTRODUCTION, "", f"Machine and versions: {describe_machine()}.", ""]
    body = [f"## {name}\n\n{text.strip()}\n" for name, text in sections.items()]
    table.write_text("\n".join([*head, *body]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure_one(sys.argv[2])
    else:
        names = sys.argv[1:] or sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
        for name in names:  # each is kept at once
            write_table({name: read_figures(name)})
