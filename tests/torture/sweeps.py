"""The whole form of the proofs about sweeps: `python tests/torture/sweeps.py [faults linear asha overhead]`.

Prints figures; exits with 1 if a promise is broken. Takes about a quarter of an hour on two cores.
"""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

import processes
from notebooks import write_notebook
from processes import MARK, list_marked
from sweep_faults import find_idle, have_ended, run_and_kill, write_faulty

import scalekit as sk
from scalekit.progress import SweepProgress
from scalekit.search import Search
from scalekit.store import Store
from scalekit.study import Study

TEMPLATE = Path(__file__).parents[2] / "templates" / "train.ipynb"
N_SLOTS = 2


@contextmanager
def place() -> Iterator[Path]:
    "A new folder to work in, and a mark on every process that is started from here"
    before = Path.cwd()
    with TemporaryDirectory(prefix="sk-") as folder:
        os.chdir(folder)
        os.environ[MARK] = folder
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def tell(what: str, value: object, holds: bool | None = None) -> bool:
    "A line of the report"
    print(f"  {'' if holds is None else 'ok  ' if holds else 'FAIL'}  {what}: {value}", flush=True)
    return holds is not False


def block_network() -> bool:
    "Start commands where there is no network but loopback; only root can"
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip"))):
        return False
    own = Path("offline.sh")
    own.write_text(
        f'#!/bin/sh\nexec unshare -n sh -c \'ip link set lo up; exec "$@"\' - {processes.SCALEKIT} "$@"\n'
    )
    own.chmod(0o755)
    processes.SCALEKIT = str(own.absolute())
    return True


def faults() -> bool:
    "64 trials, a tenth of them fails at first, and the controller is killed three times"
    command = processes.SCALEKIT
    with place() as folder:
        is_offline = block_network()
        write_faulty(folder)
        words = ["sweep", "faulty.ipynb", "-s", "lr=log_uniform(1e-4, 1e-1)", "--goal", "maximize score"]
        words += ["--trials", "64", "--retries", "2", "--profile", "cpu", "--workers", N_SLOTS]
        words += ["-p", "seconds=2.0"]
        outcome = run_and_kill(words, [have_ended(n) for n in (12, 28, 45)], timeout=400)
        end = time.monotonic()
        while list_marked(folder.as_posix()) and time.monotonic() < end + 60:
            time.sleep(0.2)
        left, gone = list_marked(folder.as_posix()), time.monotonic() - end
        processes.SCALEKIT = command
    succeeded = Counter(row["trial"] for row in outcome.rows if row["state"] == "succeeded")
    failed = [str(row["error"]) for row in outcome.rows if row["state"] == "failed"]
    lost = sum(error.startswith("lost: ") for error in failed)
    idle = find_idle(outcome.rows, outcome.lives, N_SLOTS)
    tried, twice = {row["parameters"]["lr"] for row in outcome.rows}, sum(n > 1 for n in succeeded.values())
    return all([
        tell("network", "blocked" if is_offline else "open (only root can block it)"),
        tell("exit code of the last controller", outcome.code, outcome.code == 0),
        tell("trials that succeeded", len(succeeded), sorted(succeeded) == list(range(64))),
        tell("succeeded more than once", twice, twice == 0),
        tell("different values tried", len(tried), len(tried) == 64),
        tell("failed by injection", len(failed) - lost, len(failed) - lost >= 6),
        tell("lost with a controller, and made again", lost),
        tell("slots idle while trials waited", f"{idle:.1%}", idle < 0.05),
        tell("processes left after the end", f"{left or 0}, after {gone:.1f} s", not left),
    ])  # fmt: skip


def linear() -> bool:
    "2,000 trivial trials; what the controller costs is CPU time, as a busy machine blurs the wall clock"
    with place() as folder:
        head = ("x: float = 0.0", "parameters")
        write_notebook(folder / "trivial.ipynb", head, "import scalekit as sk\nsk.record(score=x)")
        os.environ["SCALEKIT_PRELOAD"] = "json"
        n, moments = int(os.environ.get("TORTURE_TRIALS", 2000)), []

        def note(progress: SweepProgress) -> None:
            now = time.monotonic(), time.process_time()
            moments.extend([now] * (progress.n_done - len(moments)))

        start = time.monotonic()
        found = sk.sweep(
            "trivial.ipynb", x=sk.uniform(0, 1), goal="maximize score", n_trials=n, sampler="random",
            profile="cpu", n_workers=N_SLOTS, on_progress=note,
        )  # fmt: skip
        whole = time.monotonic() - start
        del os.environ["SCALEKIT_PRELOAD"]
    hundreds = [(moments[at + 99], moments[at - 1]) for at in (100, n - 100)]  # not the first: workers start
    (first, first_cpu), (last, last_cpu) = ((b[0] - a[0], b[1] - a[1]) for b, a in hundreds)
    done = sum(row["state"] == "succeeded" for row in found.rows)
    return all([
        tell("trials", f"{done} in {whole:.0f} s, {done / whole:.1f} a second", done == n),
        tell("wall time of the second and the last hundred [s]", f"{first:.1f}, {last:.1f}"),
        tell("the controller's CPU time [s]", f"{first_cpu:.2f}, {last_cpu:.2f}", last_cpu < 1.3 * first_cpu),
    ])  # fmt: skip


def asha() -> bool:
    "The digits of the template: the same 32 proposals with and without pruning"
    space = {
        "lr": sk.log_uniform(1e-4, 0.3), "width": sk.choice(16, 32, 64), "model": sk.choice("mlp", "cnn"),
        "dropout": sk.uniform(0, 0.6),
    }  # fmt: skip
    reached, epochs, seconds = {}, {}, {}
    for pruner in ("none", "asha(min_resource=2, reduction_factor=3)"):
        with place():
            start = time.monotonic()
            found = sk.sweep(
                TEMPLATE, space, parameters={"epochs": 27}, goal="maximize val_accuracy", n_trials=32,
                sampler="random", search_seed=0, pruner=pruner, profile="cpu", n_workers=N_SLOTS,
                store="runs", on_progress=lambda progress: None,
            )  # fmt: skip
            seconds[pruner] = time.monotonic() - start
            runs = [Store("runs").open_run(row["run_id"]) for row in found.rows]
            epochs[pruner] = sum(len(run.curves().get("val_accuracy", ())) for run in runs)
            reached[pruner] = found.best.metrics["val_accuracy"]
            states = Counter(row["state"] for row in found.rows)
    full, pruned = reached
    loss, share = 100 * (reached[full] - reached[pruned]), epochs[pruned] / epochs[full]
    for name, which in (("of all", full), ("with pruning", pruned)):
        figures = f"{reached[which]:.4f} in {epochs[which]} epochs, {seconds[which]:.0f} s"
        tell(f"best val_accuracy {name}", figures)
    tell("what became of the trials", dict(states))
    return all([
        tell("lost by pruning [points]", f"{loss:.2f}", loss <= 0.5),
        tell("share of the epochs", f"{share:.0%}", share <= 0.4),
    ])  # fmt: skip


def overhead() -> bool:
    "Optuna's part of a trial: to be asked, to be told ten points and the end"
    space = {"lr": sk.log_uniform(1e-4, 0.3), "width": sk.choice(16, 32, 64), "dropout": sk.uniform(0, 0.6)}
    holds = []
    for sampler, n in (("random", 2000), ("tpe", 500)):
        with place() as folder:
            search = Search(space, (("maximize", "score"),), sampler, "asha", seed=0)
            study, taken, reports = Study(folder / "search.log", search), [], []
            for number in range(n):
                start = time.perf_counter()
                proposal = study.ask()
                asked = time.perf_counter()
                study.report(proposal, [(step, number % 17 + step) for step in range(10)])
                reported = time.perf_counter()
                study.tell(proposal.number, [float(number % 17)])
                taken.append(asked - start + time.perf_counter() - reported)
                reports.append((reported - asked) / 10)
            first, last = 1000 * mean(taken[:100]), 1000 * mean(taken[-100:])
            what = f"{sampler}: ask and tell, first and last hundred of {n} [ms]"
            holds.append(tell(what, f"{first:.1f}, {last:.1f}", last < 30))
            tell(f"{sampler}: a reported point, last hundred [ms]", f"{1000 * mean(reports[-100:]):.1f}")
    return all(holds)


def main(names: list[str]) -> int:
    known: dict[str, Callable[[], bool]] = {each.__name__: each for each in (overhead, faults, asha, linear)}
    held = []
    for name in names or known:
        print(f"{name}: {known[name].__doc__}", flush=True)
        held.append(known[name]())
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
