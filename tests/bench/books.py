"""Notebooks that the benchmarks run."""

import json
from pathlib import Path

PARAMETERS = ("n: int = 0", "parameters")
TRIVIAL = [PARAMETERS, ("n + 1",)]
WORK = "import time\nend = time.perf_counter() + 0.1\nwhile time.perf_counter() < end:\n    pass"
TORCH = [PARAMETERS, ("import torch, numpy, pandas",), (WORK,), ("n",)]
MANY = [PARAMETERS, *[(f"x{i} = {i}",) for i in range(500)]]
LOUD = [PARAMETERS, ("line = 'x' * 99\nfor i in range(200_000):\n    print(line)",)]
IMAGES = [
    PARAMETERS,
    ("import matplotlib.pyplot as plt\nimport numpy as np",),
    *[("plt.imshow(np.arange(100).reshape(10, 10)); plt.show()",)] * 200,
]


def write_notebook(path: Path, cells: list[tuple[str, ...]]) -> Path:
    "A notebook of code cells; each is a source and its tags"
    made = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": list(tags)}, "source": source,
         "outputs": [], "execution_count": None}
        for i, (source, *tags) in enumerate(cells)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    text = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made})
    path.write_text(text)
    return path
