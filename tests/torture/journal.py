# ruff: noqa: E501  # cells of notebooks are as long as they are
"""Kill runs at random moments, and change what they depend on: `python tests/torture/journal.py [KILLS [MUTATIONS]]`

A run that is killed and resumed, as often as it takes, must end with the very bits of an unbroken run, and no cell
that was kept may run twice. After a change of a cell, a parameter, a file, a module or the environment, a resumed run
must end as a fresh one: anything else would be a stale result.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebooks import write_notebook

import scalekit as sk
from scalekit.bundle import Bundle

# Each cell notes that it ran, and how far it got, where no journal looks: in a file descriptor's file, by the system.
NOTE = "import os\ndef note(n):\n    with open(os.environ['NOTES'], 'a') as f: f.write(f'{n}\\n')"
CELLS = [
    "seed: int = 3",
    f"import time, numpy as np, torch, scalekit as sk\n{NOTE}",
    "note(2); torch.manual_seed(seed); np.random.seed(seed); torch.use_deterministic_algorithms(True); time.sleep(0.25)",
    "note(3); X = torch.randn(256, 8); y = (X[:, 0] * X[:, 1] > 0).float(); time.sleep(0.25)",
    "note(4); mean, std = X.mean(0), X.std(0); X.sub_(mean).div_(std); view = X[:64]; time.sleep(0.25)",
    "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1))\n"
    "    def forward(self, x): return self.net(x).squeeze(1)\nnote(5); model = Net(); opt = torch.optim.Adam(model.parameters(), lr=0.01); history = []",
    """note(6)
slot = sk.checkpoint(model=model, opt=opt, history=history)
for epoch in range(slot.step, 12):
    order = torch.randperm(256)
    for batch in order.split(32):
        opt.zero_grad(); loss = torch.nn.functional.binary_cross_entropy_with_logits(model(X[batch]), y[batch]); loss.backward(); opt.step()
    history.append(loss.item()); sk.log(loss=loss.item(), step=epoch); time.sleep(0.12)
    slot.save(epoch + 1)""",
    "note(7); model.eval(); scores = model(X).detach(); time.sleep(0.25)",
    "note(8); lines = (s for s in scores.tolist()); first = next(lines); time.sleep(0.25)",
    "note(9); noise = torch.randn(4) + np.random.rand(); best = {'scores': scores, 'noise': noise}; time.sleep(0.25)",
    "note(10); second = next(lines); best['noise'] += second; time.sleep(0.25)",
    "total = float(scores.sum() + noise.sum() + view.sum() + sum(history) + first + second)\nsk.record(total=total.hex())",
]
PATIENT = {2, 3, 4, 6, 7, 9}  # Cells whose values can all be kept and that take their time


def start_run(folder: Path, notes: Path, *words: str) -> subprocess.Popen:
    "One run in a process group of its own"
    main = "import sys; from scalekit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", main, "run", "book.ipynb", "--store", "runs", *words]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "NOTES": str(notes)}, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def newest(folder: Path) -> Bundle:
    return Bundle(max(path for path in (folder / "runs").iterdir() if path.name[:2] == "20"))


def kill_somewhere(
    process: subprocess.Popen, folder: Path, n_runs: int, after: float, chance: random.Random
) -> bool:
    "SIGKILL the run, or only its kernel, some time after its bundle has come to be; false if it ended before"
    while process.poll() is None and len(list((folder / "runs").glob("20*"))) <= n_runs:
        time.sleep(0.01)
    end = time.monotonic() + after
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    kernels = [event["pid"] for event in newest(folder).events() if event["event"] == "kernel"]
    if kernels and chance.random() < 0.5:
        os.killpg(kernels[-1], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def kept_cells(bundle: Bundle) -> set[int]:
    "Cells that this run has on record, and that need not run again"
    records = sk_records(bundle)
    return {record["last"] for record in records if not record["again"] and not record["lost"]}


def sk_records(bundle: Bundle) -> list[dict]:
    from scalekit.journal.lookup import list_stored
    from scalekit.journal.records import Records

    return [stored.record for stored in list_stored(Records(bundle.path / "cells"))]


def torture_by_kills(n_kills: int, seed: int = 0) -> Iterator[str]:
    chance = random.Random(seed)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_notebook(folder / "book.ipynb", (CELLS[0], "parameters"), *CELLS[1:])
        start_run(folder, folder / "unbroken.txt").wait()
        unbroken = newest(folder).records()["total"]
        n_done = n_runs_total = n_twice = 0
        while n_done < n_kills:
            notes = folder / f"notes-{n_runs_total}.txt"
            words: tuple[str, ...] = ()
            while True:
                n_runs = len(list((folder / "runs").glob("20*")))
                before = Counter(map(int, notes.read_text().split())) if notes.exists() else Counter()
                kept = kept_cells(newest(folder)) if words else set()
                process = start_run(folder, notes, *words)
                killed = (
                    kill_somewhere(process, folder, n_runs, chance.uniform(0.1, 3.5), chance)
                    if n_done < n_kills
                    else False
                )
                process.wait()
                now = Counter(map(int, notes.read_text().split())) if notes.exists() else Counter()
                twice = {cell: n for cell, n in (now - before).items() if cell in kept & PATIENT}
                if twice:
                    yield f"TWICE: cells {sorted(twice)} in {newest(folder).run_id}"
                n_twice += len(twice)
                n_done += killed
                if newest(folder).state == "succeeded":
                    break
                sk.runs(folder / "runs", limit=1)  # ends what was killed
                words = ("--resume", newest(folder).run_id)
            n_runs_total += 1
            total = newest(folder).records()["total"]
            steps = [step for step, _ in newest(folder).curves()["loss"]]
            if total != unbroken or steps != list(range(12)):
                yield f"DIFFERENT after {n_done} kills: {total} for {unbroken}, steps {steps}"
            yield f"{n_done} kills, {n_runs_total} runs brought to their end, {n_twice} kept cells ran twice"


# What a run depends on
BOOK = [
    ("rate: float = 0.5\nlabel: str = 'a'", "parameters"),
    "import json, os, time\nimport numpy as np\nfrom pathlib import Path\nimport helper_of_torture as helper",
    "data = json.loads(Path('data.json').read_text())\nvalues = np.array(data['values'])",
    "def scale(x): return x * rate + helper.offset(x)\nscaled = scale(values)",
    "np.random.seed(1)\nnoise = np.random.rand(len(values))",
    "names = [label + str(i) for i in range(3)]\nlines = sorted(os.listdir('parts'))",
    "class Box:\n    def __init__(self, v): self.v = v\n    def sum(self): return float(self.v.sum()) + data['bias']\nbox = Box(scaled + noise)",
    "mode = os.environ.get('TORTURE_MODE', 'none')\ntexts = [Path('parts', p).read_text() for p in lines]",
    "answer = [box.sum(), names, lines, texts, mode, float(noise.sum())]",
    "import scalekit as sk\nsk.record(answer=json.dumps(answer))",
]


def prepare(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "one.txt").write_text("1")
    (folder / "data.json").write_text(json.dumps({"values": [1.0, 2.0, 3.0], "bias": 1.0}))
    (folder / "helper_of_torture.py").write_text("def offset(x): return 1\n")


def mutate(folder: Path, book: list, chance: random.Random, number: int) -> tuple[list, dict]:
    "Change one thing; returns the notebook's cells and parameters of the resumed run"
    kind = chance.choice(
        ["cell", "parameter", "file", "module", "environment", "part", "default", "function", "class"]
    )
    cells = [list(cell) if isinstance(cell, tuple) else [cell] for cell in book]
    parameters: dict = {}
    if kind == "cell":
        cells[8][0] = cells[8][0].replace("mode,", f"mode, {number},")
    elif kind == "parameter":
        parameters = {"rate": 0.5 + number} if chance.random() < 0.5 else {"label": f"l{number}"}
    elif kind == "file":
        (folder / "data.json").write_text(json.dumps({"values": [1.0, 2.0, float(number)], "bias": 1.0}))
    elif kind == "module":
        (folder / "helper_of_torture.py").write_text(f"def offset(x): return {number}\n")
    elif kind == "environment":
        os.environ["TORTURE_MODE"] = str(number)
    elif kind == "part":
        (folder / "parts" / f"p{number}.txt").write_text(str(number))
    elif kind == "default":
        cells[0][0] = f"rate: float = {number}\nlabel: str = 'a'"
    elif kind == "function":
        cells[3][0] = cells[3][0].replace("* rate", f"* rate * {number}")
    else:
        cells[6][0] = cells[6][0].replace("+ data", f"+ {number} + data")
    return [tuple(cell) if len(cell) > 1 else cell[0] for cell in cells], parameters


def torture_by_mutations(n_mutations: int, seed: int = 0) -> Iterator[str]:
    chance = random.Random(seed)
    n_stale = n_restored = 0
    for number in range(1, n_mutations + 1):
        with TemporaryDirectory() as name:
            folder = Path(name)
            before = Path.cwd()
            os.chdir(folder)
            os.environ.pop("TORTURE_MODE", None)
            prepare(folder)
            cached = chance.random() < 0.3
            cells = [*BOOK[:-1], "1 / 0"]
            broken = sk.run(
                write_notebook(folder / "book.ipynb", *cells), check=False, store="runs", cache=cached
            )
            changed, parameters = mutate(folder, BOOK, chance, number + 1)
            notebook = write_notebook(folder / "book.ipynb", *changed)
            how = {"cache": True} if cached else {"resume": broken.run_id}
            resumed = sk.run(notebook, parameters, store="runs", **how)
            fresh = sk.run(notebook, parameters, store="fresh")
            n_stale += resumed.bundle.records() != fresh.bundle.records()
            n_restored += sum(event.get("status") == "restored" for event in resumed.bundle.events())
            os.chdir(before)
        if number % 20 == 0 or number == n_mutations:
            yield f"{number} mutations: {n_stale} stale results; {n_restored} cells restored"


if __name__ == "__main__":
    import scalekit.resume

    n_kills, n_mutations = (
        (int(word) for word in [*sys.argv[1:], "100", "200"][:2])
        if len(sys.argv) < 3
        else map(int, sys.argv[1:3])
    )
    for line in torture_by_kills(n_kills):
        print(line, flush=True)
    scalekit.resume.WORTH = 0.0  # every cell counts
    for line in torture_by_mutations(n_mutations):
        print(line, flush=True)
