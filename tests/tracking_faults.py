"""What may happen to runs on their way to a tracker, and what must be true afterwards."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
from fake_wandb import FakeWandb
from faults import small_disk
from notebooks import write_notebook
from processes import MARK, SCALEKIT, wait_until

from scalekit.bundle import Bundle
from scalekit.store import Store
from scalekit.track.mirror import make_mirror
from scalekit.track.plan import find_chains

N_ROWS = 400  # Of a run's notebook, half by each way
_TALKS = f"""
import os, time, wandb
import scalekit as sk
run = wandb.init(config={{"a": 1}})
for number in range({N_ROWS // 2}):
    sk.log(step=number, loss=1 / (number + 1))
    run.log({{"mine": number}})
    time.sleep(0.004)
run.finish()
"""


@dataclass
class Scene:
    "A store, a server, and what was started"

    folder: Path
    server: FakeWandb
    chance: Random
    mark: str
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs", self.folder)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.server.environment, MARK: self.mark, "SCALEKIT_PRELOAD": "json"}

    def start(self, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [SCALEKIT, *words], cwd=self.folder, env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def start_run(self) -> subprocess.Popen:
        "A run that speaks to wandb and to scalekit, as soon as it speaks"
        write_notebook(self.folder / "talks.ipynb", _TALKS)
        process = self.start("run", "talks.ipynb", "--track", "wandb")
        wait_until(lambda: process.poll() is not None or self.n_logged() > 0, 60)
        return process

    def n_logged(self) -> int:
        files = self.folder.glob("runs/*/events.jsonl")
        return sum(path.read_bytes().count(b'"event": "log"') for path in files)

    def make_runs(self, n: int) -> None:
        "Runs that have ended, with rows and a file"
        for _ in range(n):
            asked = {
                "notebook": "train.ipynb",
                "parameters": {},
                "track": ["wandb"],
                "wandb": {"project": "p"},
            }
            bundle = self.store.create_run(asked)
            write_notebook(bundle.notebook, "1")
            bundle.set_state("running")
            for number in range(self.chance.choice([10, 300, 3000])):
                bundle.append("log", step=number, values={"loss": 1 / (number + 1)})
            (bundle.artifacts / "model.pt").write_bytes(os.urandom(100))
            bundle.set_state("succeeded")
            bundle.seal()

    def pause(self, longest: float) -> float:
        seconds = self.chance.uniform(0, longest)
        time.sleep(seconds)
        return seconds

    def kill_group(self, process: subprocess.Popen) -> None:
        "As a machine that loses power: everything that the command has started"
        for one in self._children(process.pid):
            _kill(one.pid)
        _kill(process.pid)
        process.wait()

    def _children(self, pid: int) -> list[psutil.Process]:
        try:
            return psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def find(self, pid: int, word: str) -> list[int]:
        "Processes below one, by a word of their command"
        found = []
        for one in self._children(pid):
            try:
                if word in " ".join(one.cmdline()):
                    found.append(one.pid)
            except psutil.Error:
                continue
        return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it was faster


# The faults. Each leaves the store as it may be found, and the server in good health.


def kill_run(scene: Scene) -> None:
    process = scene.start_run()
    scene.pause(2.0)
    scene.kill_group(process)


def kill_kernel(scene: Scene) -> None:
    process = scene.start_run()
    scene.pause(1.5)
    events = [event for path in scene.folder.glob("runs/2*") for event in Bundle(path).events()]
    for event in events:
        if event["event"] == "kernel":
            _kill(event["pid"])
    process.wait()


def kill_run_while_it_is_sent(scene: Scene) -> None:
    process = scene.start_run()
    sync = scene.start("sync")
    scene.pause(3.0)
    scene.kill_group(process)
    sync.wait()


def kill_sync(scene: Scene) -> None:
    scene.make_runs(3)
    sync = scene.start("sync")
    scene.pause(8.0)
    _kill(sync.pid)
    sync.wait()


def kill_courier(scene: Scene) -> None:
    scene.make_runs(2)
    sync = scene.start("sync", "--workers", "1")
    wait_until(lambda: sync.poll() is not None or scene.find(sync.pid, "track.courier"), 30)
    scene.pause(6.0)
    for pid in scene.find(sync.pid, scene.chance.choice(["track.courier", "wandb-core"])):
        _kill(pid)
    sync.wait()


def server_dies(scene: Scene) -> None:
    scene.make_runs(2)
    sync = scene.start("sync")
    scene.pause(6.0)
    scene.server.die()
    sync.wait()
    scene.server.start()


def server_dies_and_comes_back(scene: Scene) -> None:
    scene.make_runs(2)
    sync = scene.start("sync")
    scene.pause(6.0)
    scene.server.die()
    time.sleep(1.5)
    scene.server.start()
    sync.wait()


def _stumble(scene: Scene, **faults: object) -> None:
    scene.make_runs(2)
    for name, value in faults.items():
        setattr(scene.server.faults, name, value)
    scene.server.faults.only = scene.chance.choice(["", "file_stream", "graphql|Upsert|Resume|Artifact"])
    scene.start("sync").wait()


def answers_500(scene: Scene) -> None:
    _stumble(scene, n_bad=scene.chance.randint(1, 12), status=500)


def answers_429(scene: Scene) -> None:
    _stumble(scene, n_bad=scene.chance.randint(1, 12), status=429)


def cuts_connections_after(scene: Scene) -> None:
    _stumble(scene, n_cut=scene.chance.randint(1, 8))


def cuts_connections_before(scene: Scene) -> None:
    _stumble(scene, n_lost=scene.chance.randint(1, 8))


def answers_late(scene: Scene) -> None:
    _stumble(scene, delay=scene.chance.uniform(0.5, 3.0))


def disk_full_in_a_run(scene: Scene) -> None:
    with _full_after(scene, room=3_000):
        process = scene.start_run()
        process.wait()


def disk_full_in_a_sync(scene: Scene) -> None:
    scene.make_runs(2)
    with _full_after(scene, room=0):
        scene.start("sync").wait()


@contextmanager
def _full_after(scene: Scene, room: int) -> Iterator[None]:
    "A disk that has room for so many bytes more, a moment from now"
    filler = scene.folder / "filler"
    if room:
        (scene.folder / "runs").mkdir(exist_ok=True)
        threading.Thread(target=_fill_later, args=(scene, filler, room), daemon=True).start()
    else:
        _fill(filler, 0)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)


def _fill_later(scene: Scene, filler: Path, room: int) -> None:
    wait_until(lambda: scene.n_logged() > 20, 60)
    _fill(filler, room)


def _fill(filler: Path, room: int) -> None:
    free = shutil.disk_usage(filler.parent).free
    try:
        filler.write_bytes(b"\0" * max(0, free - room))
    except OSError:
        return  # it is full


FAULTS: dict[str, Callable[[Scene], None]] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        kill_run, kill_kernel, kill_run_while_it_is_sent, kill_sync, kill_courier, server_dies,
        server_dies_and_comes_back, answers_500, answers_429, cuts_connections_after, cuts_connections_before,
        answers_late, disk_full_in_a_run, disk_full_in_a_sync,
    )
}  # fmt: skip


# What must be true afterwards


def strike(name: str, chance: Random, folder: Path) -> list[str]:
    "One fault, then syncs until all is said; what is wrong then"
    with small_disk(folder, "200m"), FakeWandb() as server:
        scene = Scene(folder, server, chance, f"{chance.randrange(10**12)}")
        FAULTS[name](scene)
        server.faults.__init__()
        for _ in range(3):
            last = scene.start("sync")
            _, told = last.communicate()
            if last.returncode == 0:
                break
        wrong = (
            [] if last.returncode == 0 else [f"the last sync ended with {last.returncode}: {told.strip()}"]
        )
        return [*wrong, *check(scene), *server.unknown, *server.odd, *list_processes(scene.mark)]


def check(scene: Scene) -> list[str]:
    "What a server has that it should not have, or the other way around"
    wrong = []
    chains = find_chains(Bundle(path.parent) for path in scene.folder.glob("runs/2*/run.json"))
    for chain in chains:
        mirror = make_mirror(chain, "wandb")
        rows = [row.values | ({} if row.step is None else {"step": row.step}) for row in mirror.rows]
        found = scene.server.rows(chain[0].run_id)
        if found != rows:
            wrong.append(f"{chain[0].run_id}: {len(found)} rows at the server, {len(rows)} in the bundle")
        wrong += [f"{one.run_id}: {finding}" for one in chain if one.sealed for finding in one.verify()]
    return wrong if chains else ["no run was made"]


def list_processes(mark: str, seconds: float = 15.0) -> list[str]:
    "What is left of a fault, but the server of warm kernels, which goes by itself"
    from processes import list_marked

    end = time.monotonic() + seconds
    while (left := list_marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return [f"left: {one}" for one in left]
