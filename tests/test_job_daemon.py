"""The daemon and its attempts, real processes with real notebooks: kills, restarts, limits, two daemons."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import job_faults
import pytest
from job_faults import Torture
from notebooks import write_notebook
from processes import wait_until

from scalekit.jobs.attempt import tell_end
from scalekit.jobs.beside import Chore, Hooks
from scalekit.jobs.daemon import Daemon
from scalekit.jobs.ends import End
from scalekit.jobs.firing import Firing
from scalekit.jobs.leader import AnotherDaemon, find_leader
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.serve import serve
from scalekit.jobs.spec import JobSpec, Retries
from scalekit.store import Store

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


# Real processes


@contextmanager
def serving(store: str = "runs", **more: str) -> Iterator[subprocess.Popen]:
    "A daemon in a process of its own"
    words = "".join(f", {name}={value}" for name, value in more.items())
    code = f"from scalekit.jobs.serve import serve; serve({store!r}{words})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=120)


@pytest.fixture
def book(place: Path) -> Ledger:
    return Ledger(place / "runs")


def wait_for_end(book: Ledger, firing_id: str) -> Firing:
    wait_until(lambda: not book.get_firing(firing_id).is_open)
    return book.get_firing(firing_id)


def wait_for(book: Ledger, firing_id: str, condition: Callable[[Firing], object]) -> Firing:
    wait_until(lambda: condition(book.get_firing(firing_id)))
    return book.get_firing(firing_id)


def find_pid(book: Ledger, firing_id: str) -> int:
    return wait_for(book, firing_id, lambda one: one.last and one.last.holder).last.holder["pid"]


def wait_for_file(name: str) -> None:
    wait_until(Path(name).exists)


def test_an_order_runs_once_and_its_run_says_which_job_it_is_of(place, book):
    (place / "helper.py").write_text("value = 7")
    write_notebook(place / "a.ipynb", ("x: int = 1", "parameters"), "import helper, scalekit as sk",
                   "sk.record(y=x + helper.value)")  # fmt: skip
    spec = JobSpec("a", str(place / "a.ipynb"), {"x": 2}, tags=("by hand",))
    with serving():
        firing_id = book.submit(spec, token="once")
        assert book.submit(spec, token="once") == firing_id
        firing = wait_for_end(book, firing_id)
    assert (firing.state, len(firing.attempts)) == ("succeeded", 1)
    run = Store("runs").open_run(firing.last.run_id)
    assert run.records() == {"y": 9}
    assert (run.asked["job"]["firing_id"], run.asked["job"]["attempt"]) == (firing_id, 1)
    assert (run.summary()["tags"], run.verify()) == (["by hand"], [])


def test_a_run_outlives_its_daemon_and_the_next_one_finds_it(place, book):
    write_notebook(place / "slow.ipynb", "open('begun', 'w').close()",
                   "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)")  # fmt: skip
    with serving() as first:
        firing_id = book.submit(JobSpec("slow", str(place / "slow.ipynb")))
        wait_for_file("begun")
        first.terminate()
        assert first.wait(120) == 0
        pid = find_pid(book, firing_id)
        os.kill(pid, 0)
    with serving():
        wait_until(lambda: find_leader("runs"))
        (place / "go").touch()
        firing = wait_for_end(book, firing_id)
    assert (firing.state, [one.state for one in firing.attempts]) == ("succeeded", ["succeeded"])


def test_a_killed_attempt_is_tried_again_and_goes_on_where_it_was(place, book):
    write_notebook(
        place / "train.ipynb",
        "import time\nopen('begun', 'a').write('x')\nwhile len(open('begun').read()) < 2: time.sleep(0.05)",
    )
    spec = JobSpec("train", str(place / "train.ipynb"), retries=Retries(1, backoff=0.1))
    with serving():
        firing_id = book.submit(spec)
        wait_until(lambda: Path("begun").exists() and Path("begun").read_text())
        os.kill(find_pid(book, firing_id), signal.SIGKILL)
        firing = wait_for_end(book, firing_id)
    first, second = firing.attempts
    assert (firing.state, first.state, first.cause, second.state) == (
        "succeeded",
        "failed",
        "lost",
        "succeeded",
    )
    assert Store("runs").open_run(second.run_id).asked["resumed"] == first.run_id
    assert (place / "begun").read_text() == "xx"


def test_a_second_daemon_stands_by_and_takes_over_when_the_first_is_killed(place, book):
    write_notebook(place / "a.ipynb", "1 + 1")
    with serving() as first:
        wait_until(lambda: find_leader("runs"))
        with pytest.raises(AnotherDaemon, match=f"has a daemon already: process {first.pid} on"):
            serve("runs", wait=False)
        with serving() as second:
            first.kill()
            wait_until(lambda: (leader := find_leader("runs")) and leader.pid == second.pid)
            firing = wait_for_end(book, book.submit(JobSpec("a", str(place / "a.ipynb"))))
    assert firing.state == "succeeded"
    assert find_leader("runs") is None


def test_what_takes_too_long_is_ended_by_the_attempt_itself(place, book):
    write_notebook(place / "long.ipynb", "import time; time.sleep(600)")
    with serving():
        firing_id = book.submit(JobSpec("long", str(place / "long.ipynb"), timeout=0.5))
        firing = wait_for_end(book, firing_id)
    assert (firing.state, firing.last.cause) == ("failed", "timeout")
    assert "the run took longer than" in firing.reason


def test_a_stopped_firing_is_cancelled_and_so_is_its_run(place, book):
    write_notebook(place / "long.ipynb", "open('begun', 'w').close()\nimport time; time.sleep(600)")
    with serving():
        firing_id = book.submit(JobSpec("long", str(place / "long.ipynb"), retries=Retries(3)))
        wait_for_file("begun")
        book.stop(firing_id, "no longer wanted")
        firing = wait_for_end(book, firing_id)
    assert (firing.state, firing.reason, len(firing.attempts)) == ("cancelled", "no longer wanted", 1)
    assert Store("runs").open_run(firing.last.run_id).state == "cancelled"


def test_a_spent_budget_ends_a_run_and_is_not_tried_again(place, book):
    (place / "scalekit.toml").write_text('[profiles.dear]\nkind = "cpu"\nprice_per_hour = 7200000\n')
    write_notebook(place / "long.ipynb", "import time; time.sleep(600)")
    spec = JobSpec(
        "long", str(place / "long.ipynb"), profile="dear", workers=2, max_cost=1.0, retries=Retries(3)
    )
    with serving():
        firing = wait_for_end(book, book.submit(spec))
    assert (firing.state, firing.last.cause, len(firing.attempts)) == ("failed", "cost", 1)
    assert "max_cost 1 is reached" in firing.reason


def test_a_run_makes_way_when_its_window_closes_and_goes_on_in_the_next(place, tmp_path):
    write_notebook(
        place / "train.ipynb",
        "import time\nopen('begun', 'a').write('x')\nwhile len(open('begun').read()) < 2: time.sleep(0.05)",
    )
    spec = JobSpec("train", str(place / "train.ipynb"), window="12:00-22:00", timezone="UTC")
    with Torture(tmp_path, datetime(2026, 5, 1, 21, tzinfo=UTC), rate=1.0, mode="run") as night:
        night.start_daemon()
        firing_id = night.book.submit(spec)
        wait_until(lambda: Path("begun").exists() and Path("begun").read_text())
        night.clock.jump(timedelta(minutes=61))
        held = wait_for(night.book, firing_id, lambda one: one.state == "waiting" and one.next_try is None)
        wait_until(lambda: "waits for its window" in str(night.book.get_firing(firing_id).reason))
        night.clock.jump(timedelta(hours=14))
        firing = wait_for_end(night.book, firing_id)
        assert night.stop() == [0]
    assert (held.last.state, held.last.cause) == ("preempted", "window")
    assert (firing.state, len(firing.attempts)) == ("succeeded", 2)
    assert Store("runs").open_run(firing.last.run_id).asked["resumed"] == held.last.run_id


def test_mistakes_are_told_in_a_sentence_and_are_not_tried_again(place, book):
    write_notebook(place / "a.ipynb", ("lr: float = 0.1", "parameters"))
    write_notebook(place / "bad.ipynb", "1 / 0")
    specs = [
        JobSpec("gone", str(place / "gone" / "a.ipynb"), retries=Retries(2, backoff=0.1)),
        JobSpec("wrong", str(place / "a.ipynb"), {"rl": 1.0}, retries=Retries(2, backoff=0.1)),
        JobSpec("bad", str(place / "bad.ipynb"), retries=Retries(1, backoff=0.1, on=("oom",))),
    ]
    with serving():
        ended = [wait_for_end(book, firing_id) for firing_id in [book.submit(spec) for spec in specs]]
    assert [(one.state, one.last.cause, len(one.attempts)) for one in ended] == [
        ("failed", "mistake", 1), ("failed", "mistake", 1), ("failed", "error", 1),
    ]  # fmt: skip
    assert "has no parameter 'rl'" in ended[1].reason
    assert "ZeroDivisionError" in ended[2].reason


def test_each_firing_of_a_sweep_is_a_sweep_of_its_own(place, book, slots):
    write_notebook(place / "s.ipynb", ("x: int = 0", "parameters"), "open('done', 'a').write(f'{x} ')",
                   "import scalekit as sk\nsk.record(y=x)")  # fmt: skip
    sweep = {"grid": {"x": [1, 2]}, "goal": "max y"}
    spec = JobSpec("s", str(place / "s.ipynb"), sweep=sweep, profile=slots)
    with serving():
        ended = [wait_for_end(book, firing_id) for firing_id in [book.submit(spec) for _ in range(2)]]
    assert [one.state for one in ended] == ["succeeded"] * 2
    assert sorted((place / "done").read_text().split()) == ["1", "1", "2", "2"]
    rows = Store("runs").list_runs(sweep=ended[1].last.sweep_id)
    assert {row["parameters"]["x"] for row in rows} == {1, 2}
    assert Store("runs").open_run(rows[0]["run_id"]).asked["job"]["firing_id"] == ended[1].firing_id


def test_jobs_of_scalekit_toml_fire_and_a_changed_file_is_read_again(place, book):
    write_notebook(place / "a.ipynb", "1 + 1")
    toml = place / "scalekit.toml"
    toml.write_text('[job.quick]\nnotebook = "a.ipynb"\nevery = "1s"\n')
    with serving():
        wait_until(lambda: any(one.state == "succeeded" for one in book.list_firings()))
        toml.write_text('[job.other]\nnotebook = "a.ipynb"\ncron = "0 2 * * *"\n')
        wait_until(lambda: [job.name for job in book.list_jobs()] == ["other"])
        for firing in book.list_firings():
            wait_for_end(book, firing.firing_id)


# Turns of a daemon with a clock that is set by hand, and attempts that are ended by hand


class ByHand:
    "A daemon whose attempts start no process"

    def __init__(self, folder: Path, **more) -> None:
        self.now = NOON
        self.book = Ledger(folder, clock=lambda: self.now)
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self.more = more
        self.restart()

    def restart(self) -> None:
        hooks = Hooks(tell=lambda book, firing, events: self.told.append((firing.name, events)))
        self.daemon = Daemon(self.book, hooks, log=lambda event, **fields: None, **self.more)
        self.daemon.room = {"cores": 4, "gpus": 0, "elsewhere": 4}
        self.daemon._tending.start = lambda firing, attempt: None
        self.daemon._tending.look = lambda firings: None

    def put(self, name: str = "a", **more) -> str:
        timed = (
            more
            if {"after", "files", "every"} & more.keys()
            else {"cron": "0 * * * *", "timezone": "UTC", **more}
        )
        return self.book.put_job(JobSpec(name, "/kit/a.ipynb", **timed), "cli")

    def go(self, by: timedelta = HOUR) -> list[tuple[str, str]]:
        self.now += by
        self.daemon.turn()
        firings = sorted(self.book.list_firings(), key=lambda one: (one.due, one.firing_id))
        return [(one.name, one.state) for one in firings]

    def end(self, state: str = "succeeded", cause: str | None = None) -> None:
        for firing in self.book.list_firings(states=("running", "stopping")):
            tell_end(self.book, firing.firing_id, firing.last.number, End(state, cause, "so"))
        self.daemon.turn()
        self.daemon._helper.wait(120)


@pytest.fixture
def hand(tmp_path: Path) -> ByHand:
    return ByHand(tmp_path)


def test_a_job_that_follows_another_starts_once_after_each_success(hand):
    hand.put("ingest")
    hand.put("train", after="ingest")
    assert hand.go(0 * HOUR) == []
    hand.go()
    hand.end("failed", "error")
    assert hand.go(0 * HOUR) == [("ingest", "failed")]
    hand.go()
    hand.end()
    hand.restart()
    for _ in range(3):
        found = hand.go(0 * HOUR)
    assert found == [("ingest", "failed"), ("ingest", "succeeded"), ("train", "running")]


def test_people_are_told_of_starts_retries_ends_and_recoveries(hand):
    hand.put(retries=Retries(1, backoff=1.0))
    hand.go(0 * HOUR)
    hand.go()
    hand.end("failed", "error")
    hand.go(2 * timedelta(seconds=1))
    hand.end("failed", "error")
    hand.go()
    hand.end()
    assert [events for _, events in hand.told] == [
        ("started",), ("retrying",), ("failed",), ("started",), ("succeeded", "recovered"),
    ]  # fmt: skip


def tell_all(hand) -> None:
    "Turn by turn until people were told of all that has ended"
    while hand.book.list_unfollowed():
        hand.daemon.turn()
        assert hand.daemon._helper.wait(5)


def test_a_notifier_that_fails_loses_no_run_and_is_not_asked_for_ever(hand, monkeypatch):
    asked = []

    def fail(book, firing, events):
        asked.append(events)
        raise OSError("no mail today")

    monkeypatch.setattr("scalekit.jobs.daemon._TELL_AGAIN", 0.0)
    monkeypatch.setattr("scalekit.jobs.daemon._MOST_TELLS", 3)
    hand.daemon.hooks = Hooks(tell=fail)
    hand.put()
    hand.go(0 * HOUR)
    hand.go()
    hand.end()
    tell_all(hand)
    assert hand.go(0 * HOUR) == [("a", "succeeded")]
    assert asked == [("started",)] + 3 * [("succeeded",)]


def test_people_who_could_not_be_told_of_an_end_are_told_of_it_later(hand, monkeypatch):
    failing, told = ["full"], []

    def tell(book, firing, events):
        if events != ("started",) and failing:
            raise OSError(f"the disk is {failing.pop()}")
        told.append(events)

    monkeypatch.setattr("scalekit.jobs.daemon._TELL_AGAIN", 0.0)
    hand.daemon.hooks = Hooks(tell=tell)
    hand.put()
    hand.go(0 * HOUR)
    hand.go()
    hand.end()
    tell_all(hand)
    assert told == [("started",), ("succeeded",)]


def test_an_end_that_is_being_told_while_it_is_read_is_told_once(hand, monkeypatch):
    listed, told = threading.Event(), []

    def tell(book, firing, events):
        if events != ("started",):
            listed.wait(20)
            told.append(events)

    hand.daemon.hooks = Hooks(tell=tell)
    hand.put()
    hand.go(0 * HOUR)
    hand.go()
    for firing in hand.book.list_firings(states=("running",)):
        tell_end(hand.book, firing.firing_id, 1, End("succeeded"))
    hand.daemon.turn()  # people are being told
    list_unfollowed = hand.book.list_unfollowed

    def list_slowly():
        found = list_unfollowed()
        listed.set()
        assert hand.daemon._helper.wait(5)
        return found

    monkeypatch.setattr(hand.book, "list_unfollowed", list_slowly)
    for _ in range(2):
        hand.daemon.turn()
    assert hand.daemon._helper.wait(5) and told == [("succeeded",)]


def test_a_daemon_that_follows_an_end_again_stops_nothing_that_runs_for_it(hand, monkeypatch):
    hand.put("ingest")
    hand.put("train", after="ingest", overlap="cancel-running")
    hand.go(0 * HOUR)
    hand.go()
    with monkeypatch.context() as killed:
        killed.setattr(Ledger, "mark_followed", lambda self, firings: None)
        hand.end()
        assert hand.go(0 * HOUR) == [("ingest", "succeeded"), ("train", "running")]
    hand.restart()
    assert hand.go(0 * HOUR) == [("ingest", "succeeded"), ("train", "running")]


def test_a_chore_that_fails_or_hangs_stops_no_firing(tmp_path):
    hang = threading.Event()
    chores = [Chore("bad", 3600, lambda book: 1 / 0), Chore("slow", 3600, lambda book: hang.wait(120))]
    hand = ByHand(tmp_path)
    hand.daemon.hooks = Hooks(chores)
    hand.daemon._chores = {"bad": 0.0, "slow": 0.0}
    hand.put()
    hand.go(0 * HOUR)
    assert hand.go() == [("a", "running")]
    hang.set()


def test_a_bad_job_keeps_its_trouble_and_stops_no_other(hand):
    hand.put("bad")
    hand.put("good")
    hand.go(0 * HOUR)
    with hand.book.file.write() as (db, version):
        sql = "UPDATE jobs SET spec = replace(spec, '0 * * * *', ?), version = ? WHERE name = 'bad'"
        db.execute(sql, ("now and then", version))
    assert hand.go() == [("good", "running")]
    assert "now and then" in hand.book.get_job("bad").trouble


def test_a_clock_set_back_fires_nothing_twice_and_set_forward_follows_catch_up(hand):
    hand.put(catch_up="last", overlap="queue")
    hand.go(0 * HOUR)
    hand.go()
    hand.end()
    assert hand.go(-2 * HOUR) == [("a", "succeeded")]
    assert hand.go(2 * HOUR) == [("a", "succeeded")]
    assert hand.go(3 * HOUR) == [("a", "succeeded"), ("a", "missed"), ("a", "missed"), ("a", "running")]


def test_a_firing_that_was_deleted_does_not_come_back_with_the_clock(hand):
    hand.put()
    hand.go(0 * HOUR)
    hand.go()
    hand.end()
    hand.book.remove_firing(hand.book.list_firings()[0].firing_id)
    hand.restart()
    assert hand.go(-2 * HOUR) == hand.go(2 * HOUR) == []


def test_a_clock_that_was_years_ahead_and_comes_back_fires_again(hand):
    hand.put(catch_up="none")
    hand.go(0 * HOUR)
    hand.go(timedelta(days=900, minutes=30))
    hand.go(-timedelta(days=900))
    found = hand.go(HOUR / 2)
    assert found[0] == ("a", "running") and hand.book.list_firings(limit=1)[0].due == NOON + HOUR


def test_what_arrives_in_a_folder_fires_once_and_not_while_it_grows(hand, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "old.csv").write_text("was there")
    os.utime(inbox / "old.csv", (1, 1))
    hand.put("load", files=f"{inbox}/*.csv")

    def look():
        hand.daemon._due._next_look = 0.0
        return hand.go(0 * HOUR)

    assert look() == look() == []
    (inbox / "new.csv").write_text("half")
    assert look() == []
    (inbox / "new.csv").write_text("half and half")
    assert look() == []
    assert look() == [("load", "running")]
    hand.end()
    assert look() == look() == [("load", "succeeded")]
    assert hand.book.list_firings()[0].reason is None
    hand.restart()
    assert look() == look() == [("load", "succeeded")]


def test_ten_thousand_jobs_cost_nothing_while_none_is_due(hand, monkeypatch):
    specs = [JobSpec(f"job {n}", "/kit/a.ipynb", cron="0 2 * * *", timezone="UTC") for n in range(500)]
    hand.book.put_jobs(specs, "cli")
    hand.go(0 * HOUR)

    def read(*words, **more):
        raise AssertionError("nothing has changed")

    monkeypatch.setattr(hand.book, "list_jobs", read)
    monkeypatch.setattr(hand.book, "list_firings", read)
    monkeypatch.setattr("scalekit.jobs.due.look_ahead", read)
    assert hand.daemon.turn() is None


def test_a_turn_that_goes_wrong_is_not_the_last_one(hand, monkeypatch):
    stop, turns = threading.Event(), []

    def turn(self):
        turns.append(1)
        if len(turns) == 1:
            raise OSError("the disk is away")
        stop.set()

    monkeypatch.setattr(Daemon, "turn", turn)
    monkeypatch.setattr("scalekit.jobs.daemon._PAUSE", 0.01)
    hand.daemon.run(stop)
    assert len(turns) == 2


def test_an_attempt_that_cannot_even_begin_says_why(tmp_path):
    book = Ledger(tmp_path)
    daemon = Daemon(book, make=lambda book, attempt: ["sh", "-c", "echo no such module >&2; exit 3"],
                    log=lambda event, **fields: None)  # fmt: skip
    firing_id = book.submit(JobSpec("a", "/kit/a.ipynb"))

    def turn() -> bool:
        daemon.turn()
        return not book.get_firing(firing_id).is_open

    wait_until(turn)
    reason = book.get_firing(firing_id).reason
    assert reason == "its process ended with exit code 3 before it began: no such module"


def test_of_several_processes_for_one_attempt_one_does_the_work(tmp_path):
    with Torture(tmp_path, NOON, rate=1.0) as torture:
        spec = JobSpec("a", "/torture/none.ipynb", {"seconds": 0.3})
        firing_id = torture.book.submit(spec)
        torture.book.begin_attempt(firing_id, "20260501-120000-000-9f2c1a")
        words = [
            sys.executable,
            job_faults.__file__,
            "play",
            torture.clock.path,
            torture.book.store,
            firing_id,
            "1",
        ]
        processes = [subprocess.Popen(words) for _ in range(3)]
        assert [process.wait() for process in processes] == [0, 0, 0]
        assert subprocess.run(words).returncode == 0  # long after
        lines = (torture.book.folder / "work.log").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["begin", "end"]
    assert torture.book.get_firing(firing_id).state == "succeeded"


def test_a_reserved_attempt_whose_daemon_died_is_started_by_the_next(tmp_path):
    book = Ledger(tmp_path)
    firing_id = book.submit(JobSpec("a", "/kit/a.ipynb"))
    reserved = book.begin_attempt(firing_id, "20260501-120000-000-9f2c1a")
    started = []

    def make(book, attempt):
        started.append((attempt.number, attempt.run_id))
        return ["true"]

    Daemon(book, make=make, log=lambda event, **fields: None).turn()
    assert started == [(1, reserved.run_id)]
