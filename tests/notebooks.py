"""Small notebooks for tests, and a look into executed ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A cell that an interrupt does not end
STUBBORN = """
import time
print("begins", flush=True)
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("not yet", flush=True)
"""


def code(source: str, *tags: str) -> dict[str, Any]:
    "A code cell"
    metadata = {"tags": list(tags)}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": source,
    }


def make_notebook(*cells: str | tuple[str, ...], kernel: str = "python3") -> dict[str, Any]:
    "A notebook of code cells: each a source, or a source and its tags"
    made = [code(cell) if isinstance(cell, str) else code(*cell) for cell in cells]
    for number, cell in enumerate(made):
        cell["id"] = f"cell-{number}"
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made}


def write_notebook(path: Path, *cells: str | tuple[str, ...], kernel: str = "python3") -> Path:
    "A notebook as a file"
    path.write_text(json.dumps(make_notebook(*cells, kernel=kernel)))
    return path


@dataclass(frozen=True)
class Cell:
    "What an executed code cell shows"

    source: str
    status: str
    text: str  # What it printed
    results: list[str]  # Plain text of what it displayed
    errors: list[tuple[str, str]]  # Name and message


def read_cells(path: Path) -> list[Cell]:
    "Code cells of a notebook file, without the one that holds the parameters"
    return show_cells(json.loads(path.read_text()))


def show_cells(notebook: dict[str, Any]) -> list[Cell]:
    "Code cells of a notebook, without the one that holds the parameters"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [_show(cell) for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]


def _show(cell: dict[str, Any]) -> Cell:
    outputs = cell["outputs"]
    return Cell(
        source="".join(cell["source"]),
        status=cell["metadata"].get("scalekit", {}).get("status", ""),
        text="".join("".join(out["text"]) for out in outputs if out["output_type"] == "stream"),
        results=["".join(out["data"].get("text/plain", "")) for out in outputs if "data" in out],
        errors=[(out["ename"], out["evalue"]) for out in outputs if out["output_type"] == "error"],
    )
