"""A training on two ranks that something happens to; for tests and for `tests/torture/training.py`."""

import hashlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from faults import can_mount, fill, small_disk
from processes import MARK, wait_until

import scalekit as sk
from scalekit.core import ScaleKitError, write_atomic

N_STEPS, INTERVAL, PAUSE = 60, 8, 0.02
VARIANTS = ("tensors", "loader", "sharded")  # Where samples come from, or what the ranks share
HEARTBEAT = 1.0

# What the ranks do


def train(folder: str, variant: str) -> None:
    "Dropout, shuffling, augmentation and noise draw from every stream of random numbers"
    import numpy as np
    import torch

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, index):
            return x[index] + 0.1 * torch.randn(8), y[index]

    world, place = sk.current_world(), Path(folder)
    write_atomic(place / f"pid-{world.attempt}-{world.rank}", str(os.getpid()))
    torch.manual_seed(3)
    x = torch.randn(188, 8)
    y = (x[:, :1] * x[:, 1:2] > 0).float()
    norm = [] if variant == "sharded" else [torch.nn.BatchNorm1d(16)]  # it has buffers
    layers = torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), *norm, torch.nn.Linear(16, 1)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, N_STEPS)
    data = Noisy() if variant == "loader" else (x, y)
    how = {"n_workers": 1} if variant == "loader" else {"strategy": "fsdp"} if variant == "sharded" else {}
    with sk.training(
        model, optimizer, data, batch_size=16, max_steps=N_STEPS, accumulate=2, clip=1.0, scheduler=schedule,
        checkpoint_every=INTERVAL, **how,
    ) as job, open(place / f"steps-{world.rank}", "a", buffering=1) as steps:  # fmt: skip
        for batch in job:
            noise = 0.1 * (random.random() + float(np.random.normal()))
            job.step(torch.nn.functional.mse_loss(job.model(batch.x), batch.y + noise))
            if job.ends_step:
                steps.write(f"{world.attempt} {job.n_steps} {time.time()}\n")
                time.sleep(PAUSE)
        streams = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1]]
    own = [*optimizer.state_dict()["state"].values(), streams]
    if world.rank == 0:  # with each forward pass the other ranks take its buffers
        own += list(model.buffers())
    told = {"weights": digest(list(model.parameters())), "all": digest(own)}
    write_atomic(place / f"end-{world.rank}", json.dumps(told))


def digest(content: Any) -> str:
    "Of every bit of tensors, arrays and numbers"
    import torch

    def show(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            whole = item.full_tensor() if hasattr(item, "full_tensor") else item
            return str(whole.dtype), whole.detach().contiguous().numpy().tobytes()
        if isinstance(item, dict):
            return [(name, show(value)) for name, value in item.items()]
        if isinstance(item, list | tuple):
            return [show(value) for value in item]
        return item.tobytes() if hasattr(item, "tobytes") else item

    return hashlib.sha256(repr(show(content)).encode()).hexdigest()


# The notebook and the cluster, each a process of its own


def drive() -> None:
    "Launch trainings one after the other, as they are asked for on stdin"
    for line in sys.stdin:
        order = json.loads(line)
        place = Path(order["place"])
        try:
            sk.launch(
                train, order["place"], order["variant"], n_ranks=2, cluster=order["cluster"], quiet=True,
                folder=place / "checkpoints", heartbeat=HEARTBEAT, timeout=60, retries=5, patience=60,
            )  # fmt: skip
            told = {"kind": "done", "text": ""}
        except ScaleKitError as error:
            told = {"kind": type(error).__name__, "text": str(error)}
        write_atomic(place / f"told-{order['call']}", json.dumps(told))


def serve() -> None:
    "Have a cluster until stdin ends"
    with sk.open_cluster("cpu", n_workers=2) as cluster:
        logging.getLogger("distributed.nanny").setLevel(logging.INFO)
        write_atomic(Path(sys.argv[2]), cluster.address)
        sys.stdin.read()


class Team:
    "A cluster of two workers, and a process that launches trainings on it"

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_calls = folder, 0
        self.cluster = self.driver = None
        self.variables = {
            **os.environ, MARK: folder.as_posix(), "XDG_RUNTIME_DIR": folder.as_posix(),
            "SCALEKIT_PRELOAD": "torch", "SCALEKIT_LINGER": "20", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self) -> None:
        "Whatever of the two does not live"
        if self.cluster is None or self.cluster.poll() is not None:
            file = self.folder / "address"
            file.unlink(missing_ok=True)
            self.cluster = self._start("serve", file)
            wait_until(file.exists)
            self.address = file.read_text()
        if self.driver is None or self.driver.poll() is not None:
            self.driver = self._start("drive")

    def _start(self, *words: str | Path) -> subprocess.Popen:
        log = open(self.folder / "log", "a")  # noqa: SIM115  # its end is the process's
        return subprocess.Popen(
            [sys.executable, "-u", __file__, *map(str, words)], env=self.variables, cwd=self.folder,
            text=True, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def call(self, place: Path, variant: str) -> Path:  # Where the end of it will be told
        "Launch a training, or go on with it"
        self.start()
        self.n_calls += 1
        order = {"place": str(place), "variant": variant, "cluster": self.address, "call": self.n_calls}
        self.driver.stdin.write(json.dumps(order) + "\n")
        self.driver.stdin.flush()
        return place / f"told-{self.n_calls}"

    @property
    def workers(self) -> list[int]:
        "Processes of the Dask workers"
        return [
            child.pid
            for child in psutil.Process(self.cluster.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]

    def log(self) -> str:
        "What all of them have said"
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for process in (self.driver, self.cluster):
            if process is not None and process.poll() is None:
                process.stdin.close()
                process.wait(60)

    def list_left(self) -> list[str]:
        "Living processes that no team needs: of ranks, of clusters that are gone"
        needed = {os.getpid(), self.driver.pid, self.cluster.pid}
        with suppress(psutil.NoSuchProcess):
            needed |= {child.pid for child in psutil.Process(self.cluster.pid).children(recursive=True)}
        marked = list(_list_marked(self.folder.as_posix()))
        servers = {one.pid for one in marked if "scalekit.kernels.server" in _show(one)}
        servers -= {one.pid for one in marked if _parent(one) in servers}  # those are forked from one
        left = [one for one in marked if one.pid not in needed | servers]
        return [f"{one.pid} {_show(one)}" for one in left if "resource_tracker" not in _show(one)]


def _list_marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _show(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:150]
    except psutil.NoSuchProcess:
        return ""


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def open_team() -> Iterator[Team]:
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o700)
        team = Team(Path(name))
        try:
            yield team
        finally:
            team.close()


# What happens to it


@dataclass
class Scene:
    "A training under way"

    team: Team
    place: Path
    chance: Random
    variant: str
    filler: Path | None = None  # What fills its disk

    def find_rank(self, rank: int) -> int:
        "Process of the newest attempt"
        return int(max(self.place.glob(f"pid-*-{rank}"), key=_attempt_of).read_text())

    def send(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _attempt_of(path: Path) -> int:
    return int(path.name.split("-")[1])


def signal_rank(rank: int, number: int) -> Callable[[Scene], None]:
    return lambda scene: scene.send(scene.find_rank(rank), number)


def kill_worker(scene: Scene) -> None:
    scene.send(scene.chance.choice(scene.team.workers), signal.SIGKILL)


def stop_worker(then: int) -> Callable[[Scene], None]:
    "Some time later it comes back by itself, or whoever looks after the machine ends it"

    def stop(scene: Scene) -> None:
        pid = scene.chance.choice(scene.team.workers)
        scene.send(pid, signal.SIGSTOP)
        time.sleep(scene.chance.uniform(0.5, 4))
        scene.send(pid, then)

    return stop


def kill_reader(scene: Scene) -> None:
    "A process of a rank's DataLoader"
    children = psutil.Process(scene.find_rank(scene.chance.choice([0, 1]))).children()
    scene.send(scene.chance.choice(children).pid, signal.SIGKILL)


def kill_scheduler(scene: Scene) -> None:
    scene.send(scene.team.cluster.pid, signal.SIGKILL)
    scene.team.cluster.wait()


def restart_scheduler(scene: Scene) -> None:
    "As `client.restart()` of another notebook does it: it forgets all tasks, and restarts all workers"
    from distributed import Client

    with Client(scene.team.address, set_as_default=False) as client:
        client.restart(wait_for_workers=False)


def kill_driver(scene: Scene) -> None:
    scene.send(scene.team.driver.pid, signal.SIGKILL)
    scene.team.driver.wait()


def kill_all(scene: Scene) -> None:
    "As where a kernel is killed that had the cluster in itself"
    kill_driver(scene)
    kill_scheduler(scene)


def ask_to_leave(scene: Scene) -> None:
    scene.send(scene.team.driver.pid, signal.SIGTERM)


def fill_disk(scene: Scene) -> None:
    disk = scene.place / "checkpoints"
    scene.filler = disk / "filler"
    with suppress(OSError):  # the ranks may be writing too
        fill(disk, but=scene.chance.choice([0, 4096, 16384]))


def make_space(scene: Scene) -> None:
    scene.filler.unlink()


def flip_byte(scene: Scene) -> None:
    "In the newest checkpoint"
    saved = [path for path in (scene.place / "checkpoints" / "training").glob("[!.]*") if path.is_dir()]
    newest = max(saved, key=lambda path: (path.stat().st_mtime_ns, int(path.name.partition(".")[0])))
    file = scene.chance.choice([path for path in sorted(newest.rglob("*")) if path.is_file()])
    data = bytearray(file.read_bytes())
    data[scene.chance.randrange(len(data))] ^= 1 << scene.chance.randrange(8)
    file.write_bytes(data)


@dataclass(frozen=True)
class Fault:
    act: Callable[[Scene], None]
    ends: str | None = None  # How the launch may end by it; None: it goes on by itself
    before_next: Callable[[Scene], None] = lambda scene: None  # Between the two calls
    says: str = ""  # What the log must tell then
    variant: str | None = None  # The only one that it makes sense for


_GONE = r"ClusterError: .*scheduler"
FAULTS = {
    "kill -9 of rank 0": Fault(signal_rank(0, signal.SIGKILL)),
    "kill -9 of rank 1": Fault(signal_rank(1, signal.SIGKILL)),
    "SIGSTOP of rank 0": Fault(signal_rank(0, signal.SIGSTOP)),
    "SIGSTOP of rank 1": Fault(signal_rank(1, signal.SIGSTOP)),
    "kill -9 of a worker": Fault(kill_worker),
    "SIGSTOP of a worker, SIGCONT": Fault(stop_worker(signal.SIGCONT)),
    "SIGSTOP of a worker, SIGKILL": Fault(stop_worker(signal.SIGKILL)),
    "kill -9 of a loader's process": Fault(kill_reader, variant="loader"),
    "scheduler killed": Fault(kill_scheduler, _GONE),
    "scheduler restarted": Fault(restart_scheduler, f"done|{_GONE}", lambda scene: scene.team.close()),
    "disk full": Fault(fill_disk, "^(RankFailed|StoreError): .*the disk is full", make_space),
    "byte flipped": Fault(ask_to_leave, "Preempted", flip_byte, "a checkpoint is passed over"),
    "notebook killed": Fault(kill_driver, "gone"),
    "notebook and cluster killed": Fault(kill_all, "gone"),
    "SIGTERM to the notebook": Fault(ask_to_leave, "Preempted: .*saved after step"),
    "SIGTERM to a rank": Fault(signal_rank(1, signal.SIGTERM), "Preempted: .*saved after step"),
}


@dataclass(frozen=True)
class Outcome:
    "What became of a training that a fault has hit"

    fault: str
    at: int  # Steps done when it struck
    lost: int  # Steps that were done again
    wrong: list[str]  # Promises that were broken
    pause: float  # Longest time from one step to the next [s]
    seconds: float  # Until the training was done


def run_undisturbed(team: Team, variant: str) -> list[dict[str, str]]:
    "How each rank ends"
    place = team.folder / f"undisturbed-{variant}"
    place.mkdir()
    told = team.call(place, variant)
    _wait_for_end(team, told)
    assert _read_told(team, told) == "done: ", _read_told(team, told)
    return _read_ends(place)


def run_with_fault(
    team: Team,
    name: str,  # Of the fault
    variant: str,
    chance: Random,
    expected: list[dict[str, str]],  # From `run_undisturbed`
) -> Outcome | None:  # None if the training was done before it struck
    "Let a training begin, let something happen to it, and let it go on until it is done"
    fault, place = FAULTS[name], team.folder / f"{team.n_calls:04d}"
    place.mkdir()
    disk = small_disk(place / "checkpoints", "4m") if fault.act is fill_disk else nullcontext()
    with disk:
        scene = Scene(team, place, chance, variant)
        told, begin = team.call(place, variant), time.monotonic()
        after = _choose_moment(chance)
        wait_until(lambda: count_steps(place) >= after or told.exists(), every=0.002)
        time.sleep(chance.uniform(0, 2 * PAUSE))
        at = count_steps(place)
        if told.exists() or at >= N_STEPS - 1:
            _wait_for_end(team, told)
            return None
        fault.act(scene)
        wrong = _go_on(scene, fault, told)
        if _read_told(team, told) == "done: " and _was_late(fault, place):
            return None
        wrong += _compare(place, expected)
        left = _wait_until_gone(team)
        wrong += [f"left: {left}"] * bool(left)
        if wrong or fault.act is restart_scheduler:  # Dask's nannies don't always survive it
            team.close()
        return Outcome(name, at, count_lost(place), wrong, measure_pause(place), time.monotonic() - begin)


def strike(team: Team, name: str, variant: str, chance: Random, expected: list[dict[str, str]]) -> Outcome:
    "The same, until it came in time"
    for _ in range(9):
        if outcome := run_with_fault(team, name, variant, chance, expected):
            return outcome
    return Outcome(name, 0, 0, ["nine trainings in a row took no notice of it"], 0.0, 0.0)


def _choose_moment(chance: Random) -> int:
    "A step; every other one is one after which a checkpoint is being written"
    step = chance.randrange(1, N_STEPS - 6)
    return step if chance.random() < 0.5 else max(1, step // INTERVAL) * INTERVAL


def _was_late(fault: Fault, place: Path) -> bool:
    "The training was over before the fault could reach it"
    attempts = {attempt for attempt, _, _ in _read_steps(place, 0)}
    return len(attempts) == 1 and (fault.ends is not None or measure_pause(place) < HEARTBEAT / 2)


def _go_on(scene: Scene, fault: Fault, told: Path) -> list[str]:
    "The same call once more where the first one ended; what is wrong"
    team, wrong = scene.team, []
    _wait_for_end(team, told)
    found = _read_told(team, told)
    if not re.match(fault.ends or "done", found) and not (fault.ends and re.search(fault.ends, found)):
        wrong.append(f"it ended with {found!r}")
    if found != "done: ":
        fault.before_next(scene)
        before = len(team.log())
        told = team.call(scene.place, scene.variant)
        _wait_for_end(team, told)
        if (again := _read_told(team, told)) != "done: ":
            wrong.append(f"the same call again ended with {again!r}")
        if fault.says not in team.log()[before:]:
            wrong.append(f"nobody said {fault.says!r}")
    return wrong


def _wait_for_end(team: Team, told: Path) -> None:
    wait_until(lambda: told.exists() or team.driver.poll() is not None, 120)


def _read_told(team: Team, told: Path) -> str:
    if not told.exists():
        return "gone"
    found = json.loads(told.read_text())
    return f"{found['kind']}: {found['text']}"


def _read_ends(place: Path) -> list[dict[str, str]]:
    return [json.loads((place / f"end-{rank}").read_text()) for rank in (0, 1)]


def _compare(place: Path, expected: list[dict[str, str]]) -> list[str]:
    if not all((place / f"end-{rank}").exists() for rank in (0, 1)):
        return ["it did not come to its end"]
    ends = _read_ends(place)
    wrong = ["ranks have other weights"] * (ends[0]["weights"] != ends[1]["weights"])
    return wrong + [f"rank {rank} ends otherwise" for rank in (0, 1) if ends[rank] != expected[rank]]


def _wait_until_gone(team: Team, seconds: float = 60.0) -> list[str]:
    end = time.monotonic() + seconds
    while (left := team.list_left()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _read_steps(place: Path, rank: int) -> list[tuple[int, int, float]]:
    "Attempt, number and time of each step, as they were done"
    file = place / f"steps-{rank}"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split() for line in lines]
    return [(int(attempt), int(step), float(at)) for attempt, step, at in found]


def count_steps(place: Path) -> int:
    "The newest step of rank 0"
    return max((step for _, step, _ in _read_steps(place, 0)), default=0)


def count_lost(place: Path) -> int:
    "The most steps that were done again after one stop"
    lost = [0]
    for rank in (0, 1):
        steps = _read_steps(place, rank)
        lost += [a[1] + 1 - b[1] for a, b in pairwise(steps) if a[0] != b[0]]
    return max(lost)


def measure_pause(place: Path) -> float:
    "The longest time from one step to the next [s]"
    return max((b[2] - a[2] for a, b in pairwise(_read_steps(place, 0))), default=0.0)


def list_faults() -> list[str]:
    "Those that can be made here"
    return [name for name, fault in FAULTS.items() if can_mount or fault.act is not fill_disk]


if __name__ == "__main__":
    {"drive": drive, "serve": serve}[sys.argv[1]]()
