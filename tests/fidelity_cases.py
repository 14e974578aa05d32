"""Small notebooks that touch what a kernel can do, and a form of their outputs to compare two kernels by.

A kernel is faithful when every case ends as `run_stock` ends it: same outputs, errors and execution counts.
"""

import re
from contextlib import suppress
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4

# Name -> cells. A cell that fails ends its notebook.
CASES: dict[str, list[str]] = {
    # text
    "print and result": ["print('a'); 1 + 1"],
    "stderr": ["import sys\nsys.stderr.write('err\\n')"],
    "logging": ["import logging\nlogging.warning('w')"],
    "warnings": ["import warnings\nwarnings.warn('careful')"],
    "print from a thread": [
        "import threading\nt = threading.Thread(target=lambda: print('thr'))\nt.start()\nt.join()"
    ],
    "output below Python: os.system": ["import os\nos.system('echo fdout')\n0"],
    "output below Python: subprocess": ["import subprocess\nsubprocess.run(['echo', 'fdsub'])\n0"],
    "output below Python: C": [
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.puts(b'cputs')\nlibc.fflush(None)\n0"
    ],
    # magics
    "line magic": ["%time x = 1\nx"],
    "cell magic": ["%%timeit -n1 -r1\npass"],
    "bash cell": ["%%bash\necho hi"],
    "shell line": ["!echo hi"],
    "capture": ["%%capture c\nprint(1)", "c.stdout"],
    "help": ["len?"],
    # display
    "html": ["from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))"],
    "latex and svg": [
        "from IPython.display import SVG, Latex\ndisplay(Latex('$x$'))\n"
        "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')"
    ],
    "data frame": ["import pandas as pd\npd.DataFrame({'a': [1]})"],
    "updated display": [
        "from IPython.display import display\nh = display('a', display_id='q')\nh.update('b')"
    ],
    "cleared output": ["from IPython.display import clear_output\nprint(1)\nclear_output()\nprint(2)"],
    "figure": ["import matplotlib.pyplot as plt\nplt.plot([1, 2]);"],
    "figure with show": ["%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"],
    "widget": ["import ipywidgets as w\nw.IntSlider()"],
    "output widget": ["import ipywidgets as w\no = w.Output()\ndisplay(o)\nwith o:\n    print('in out')"],
    "progress bar": ["from tqdm.auto import tqdm\nfor i in tqdm(range(3)):\n    pass"],
    # async
    "await": ["import asyncio\nawait asyncio.sleep(0.01)\n5"],
    "task over two cells": [
        "import asyncio\nr = []\nasync def f():\n    await asyncio.sleep(0.01)\n    r.append(1)\n"
        "t = asyncio.create_task(f())",
        "await t\nr",
    ],
    "running loop": ["import asyncio\nasyncio.get_event_loop().is_running()"],
    # errors
    "exception": ["def f():\n    1 / 0\nf()"],
    "syntax error": ["x = = 1"],
    "sys.exit": ["import sys\nsys.exit(3)", "print('after')"],
    "KeyboardInterrupt raised": ["raise KeyboardInterrupt"],
    "input": ["input('x')"],
    # processes
    "spawned process": [
        "import multiprocessing as mp, os\np = mp.get_context('spawn').Process(target=os.getpid)\n"
        "p.start()\np.join()\np.exitcode"
    ],
    "forked pool": [
        "import multiprocessing as mp\nwith mp.get_context('fork').Pool(2) as p:\n"
        "    r = p.map(abs, [-1, -2])\nr"
    ],
    "DataLoader workers": [
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "data = TensorDataset(torch.arange(100.0))\n"
        "sum(len(b[0]) for b in DataLoader(data, batch_size=10, num_workers=2))"
    ],
    "joblib": [
        "from joblib import Parallel, delayed\nParallel(n_jobs=2)(delayed(abs)(-i) for i in range(3))"
    ],
    # what the process is
    "Out": ["41 + 1", "_ + 1, Out[1]"],
    "get_ipython": ["type(get_ipython()).__name__, get_ipython().kernel is not None"],
    "__name__": ["__name__, '__file__' in globals()"],
    "namespace": ["sorted(k for k in globals() if not k.startswith('_'))"],
    "pickled class": [
        "import pickle\nclass A:\n    pass\ntype(pickle.loads(pickle.dumps(A()))).__name__"
    ],
    "inspect": ["def f():\n    return 1", "import inspect\ninspect.getsource(f)"],
    "folder": ["import os\nos.path.basename(os.getcwd())"],
    "argv": ["import sys\nsys.argv[0].split('/')[-1]"],
    "threads of torch": ["import torch\ntorch.get_num_threads()"],
}


def make_notebook(
    cells: list[str],  # Code
) -> NotebookNode:
    "A notebook for the Python kernel"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel})


def run_stock(
    cells: list[str],  # Code
    folder: str = ".",  # Working folder
) -> list:  # See `normalise`
    "Outputs of a notebook that nbclient runs in a kernel of its own"
    notebook = make_notebook(cells)
    with suppress(CellExecutionError):  # the error is among the outputs
        NotebookClient(notebook, timeout=200, resources={"metadata": {"path": folder}}).execute()
    return normalise(notebook)


def normalise(
    notebook: dict[str, Any],  # After a run
) -> list:  # Execution count and outputs of each code cell, then whether there are widgets
    "What must be equal, without times, addresses and the names of temporary files"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    widgets = notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    outputs = [(cell["execution_count"], _join(cell["outputs"])) for cell in cells]
    return [*outputs, bool(widgets.get("state"))]


def _join(outputs: list[dict]) -> list[tuple]:
    "Outputs in an order that does not depend on when a stream was flushed"
    streams: dict[str, str] = {}
    others = []
    for kind, name, text in map(_reduce, outputs):
        if kind == "stream":
            streams[name] = streams.get(name, "") + text
        else:
            others.append((kind, name, text))
    return [*others, *(("stream", name, text) for name, text in sorted(streams.items()))]


def _reduce(output: dict) -> tuple[str, Any, str]:
    if output["output_type"] == "stream":
        text = re.sub(r"\d[\d.e+]* ?(µs|μs|ns|us|ms|s|it/s)\b", "T", _text(output["text"]))
        return "stream", output["name"], re.sub(r"\S*ipykernel_\d+/\d+|/\S*\.py:\d+", "F", text)
    if output["output_type"] == "error":
        return "error", output["ename"], re.sub(r"\x1b\[[0-9;]*m", "", output["evalue"])
    plain = re.sub(r"0x[0-9a-f]+", "0x", _text(output["data"].get("text/plain", "")))[:80]
    kinds = sorted(output["data"])
    return output["output_type"], kinds, "" if any("widget" in kind for kind in kinds) else plain


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
