"""A week of jobs in minutes: real daemons and attempts on a clock that runs fast, killed at random moments.

The daemon is `scalekit.jobs.serve.serve` in a process of its own, with another clock. An attempt is
`scalekit.jobs.attempt.carry_out` in a process of its own, with its locks, its lease, its bundle under
the reserved id and its word to the book; only the notebook is replaced, by a few lines that write down
that they were there.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from scalekit.core import write_atomic
from scalekit.jobs.attempt import carry_out
from scalekit.jobs.beside import Hooks
from scalekit.jobs.calendar import due_times
from scalekit.jobs.ends import End
from scalekit.jobs.firing import Attempt, Firing
from scalekit.jobs.leader import find_leader
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.serve import serve
from scalekit.jobs.spec import JobSpec
from scalekit.jobs.work import describe_job
from scalekit.store import Store


class FastClock:
    "A clock that all processes of a torture read from one file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, now: datetime, rate: float) -> None:
        write_atomic(self.path, json.dumps([time.time(), now.isoformat(), rate]))

    def jump(self, by: timedelta) -> None:
        begin, at, rate = json.loads(self.path.read_bytes())
        write_atomic(self.path, json.dumps([begin, (datetime.fromisoformat(at) + by).isoformat(), rate]))

    def __call__(self) -> datetime:
        begin, at, rate = json.loads(self.path.read_bytes())
        return datetime.fromisoformat(at) + timedelta(seconds=(time.time() - begin) * rate)


def work(book: Ledger, firing: Firing, attempt: Attempt) -> End:
    "What the torture's attempts do in the place of a notebook"
    log = os.open(book.folder / "work.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(what: str) -> None:
        os.write(log, f"{what} {firing.firing_id} {attempt.run_id} {time.time()}\n".encode())

    store = Store(book.store)
    with store.lease() as owner:
        asked = {"job": describe_job(firing, attempt.number)}
        bundle = store.create_run(asked, owner, run_id=attempt.run_id)
        with bundle.lease():
            tell("begin")
            bundle.set_state("running")
            time.sleep(float(firing.spec.parameters["seconds"]))
            tell("end")
            bundle.set_state("succeeded")
    return End("succeeded")


@dataclass
class Torture:
    "Daemons that are killed, jobs, and a clock"

    folder: Path
    begin: datetime
    rate: float  # Simulated seconds a second
    mode: str = "play"  # Of attempts: "run" runs their notebooks
    daemons: list[subprocess.Popen] = field(default_factory=list)
    n_kills: int = 0
    n_attempts_killed: int = 0

    def __post_init__(self) -> None:
        self.clock = FastClock(self.folder / "clock.json")
        self.clock.set(self.begin, self.rate)
        self.book = Ledger(self.folder / "runs", self.clock)

    def __enter__(self) -> "Torture":
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()

    def put(self, specs: Sequence[JobSpec]) -> None:
        self.book.put_jobs(specs, "cli")

    def start_daemon(self) -> None:
        words = [sys.executable, __file__, "daemon", str(self.clock.path), str(self.book.store), self.mode]
        with open(self.folder / "daemon.log", "ab") as log:
            self.daemons.append(subprocess.Popen(words, stdout=log, stderr=log))

    def kill_a_daemon(self, chance: random.Random) -> None:
        "Mostly the leader; another one is started, which stands by or leads"
        leader = find_leader(self.book.store)
        found = [daemon for daemon in self.daemons if leader and daemon.pid == leader.pid]
        victim = found[0] if found and chance.random() < 0.9 else chance.choice(self.daemons)
        victim.kill()
        victim.wait()
        self.daemons.remove(victim)
        self.n_kills += 1
        self.start_daemon()

    def kill_an_attempt(self, chance: random.Random) -> None:
        running = [one.last for one in self.book.list_firings(states=("running", "stopping"))]
        holders = [last.holder["pid"] for last in running if last and last.holder and not last.ended]
        if holders:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(holders), signal.SIGKILL)
                self.n_attempts_killed += 1

    def settle(self, seconds: float) -> None:
        "Let the daemons finish what is open, without new due times"
        for job in self.book.list_jobs():
            self.book.set_active(job.job_id, False)
        end = time.monotonic() + seconds
        while self.book.list_firings(states=("waiting", "running", "stopping"), limit=1):
            assert time.monotonic() < end, [
                (one.name, one.due.isoformat(), one.state, one.reason)
                for one in self.book.list_firings(states=("waiting", "running", "stopping"))
            ]
            time.sleep(0.2)

    def stop(self) -> list[int]:
        "End the daemons by SIGTERM"
        for daemon in self.daemons:
            daemon.terminate()
        codes = [daemon.wait(120) for daemon in self.daemons]
        self.daemons.clear()
        return codes


@dataclass
class Audit:
    "What became of all due times"

    states: Counter
    n_due: int
    forgotten: list[str]  # Due times without a firing
    unasked: list[str]  # Firings that were never due
    unexplained: list[str]  # Firings without a run and without a reason
    twice: list[str]  # Firings whose work was done twice, or by two at once
    n_attempts: int

    @property
    def holds(self) -> bool:
        return not (self.forgotten or self.unasked or self.unexplained or self.twice)


def audit(book: Ledger, until: datetime, margin: timedelta, end: datetime | None = None) -> Audit:
    "Account for every due time of every job; those of the last moment, up to `end`, may be there or not"
    firings = book.list_firings()
    forgotten, unasked, n_due = [], [], 0
    for job in book.list_jobs():
        may_be = set(due_times(job.spec, job.created, end or until + margin))
        due = {when for when in may_be if when <= until - margin}
        told = Counter(one.due for one in firings if one.job_id == job.job_id)
        n_due += len(due)
        forgotten += [f"{job.name} {when}" for when in due - told.keys()]
        unasked += [f"{job.name} {when} {n}" for when, n in told.items() if n > 1 or when not in may_be]
    unexplained = [
        f"{one.name} {one.due} {one.state}" for one in firings
        if (one.state == "succeeded") != any(attempt.state == "succeeded" for attempt in one.attempts)
        or (one.state != "succeeded" and not one.reason)
    ]  # fmt: skip
    return Audit(
        Counter(one.state for one in firings), n_due, forgotten, unasked, unexplained, find_twice(book),
        sum(len(one.attempts) for one in firings),
    )  # fmt: skip


def find_twice(book: Ledger) -> list[str]:
    "Firings whose work was done more than once, or by two processes at a time"
    log = book.folder / "work.log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    begun = Counter(run for what, _, run, _ in lines if what == "begin")
    done = Counter(firing for what, firing, _, _ in lines if what == "end")
    return [name for count in (begun, done) for name, n in count.items() if n > 1]


def main(mode: str, clock: str, store: str, *words: str) -> None:
    if mode == "daemon":
        own = [sys.executable, __file__, words[0], clock, store]
        serve(
            store, clock=FastClock(Path(clock)), hooks=Hooks(), late=3600.0,
            make=lambda book, attempt: [*own, attempt.firing_id, str(attempt.number)],
        )  # fmt: skip
    else:
        carry_out(store, words[0], int(words[1]), FastClock(Path(clock)), work if mode == "play" else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
