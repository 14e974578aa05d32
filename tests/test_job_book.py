"""The book of jobs: many writers, kills, damage, and what may happen only once."""

import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scalekit.jobs.book import JobBook, NameTaken, UnknownJob
from scalekit.jobs.bookfile import BookDamaged, BookError
from scalekit.jobs.firing import NewFiring
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def make_spec(name: str = "nightly", **more) -> JobSpec:
    return JobSpec(name, "/kit/train.ipynb", **{"cron": "0 2 * * *", **more})


@pytest.fixture
def now() -> list[datetime]:
    return [NOON]


@pytest.fixture
def book(tmp_path: Path, now: list[datetime]) -> Ledger:
    return Ledger(tmp_path / "runs", clock=lambda: now[0])


def fire(book: Ledger, job_id: str, due: datetime) -> str | None:
    made = book.consider([NewFiring(job_id, make_spec(), due, "schedule", "cli")], {job_id: due})
    return made[0] if made else None


def test_a_due_time_has_one_firing_whoever_tries_and_however_often(book):
    job_id = book.put_job(make_spec(), "cli")
    made = [fire(book, job_id, NOON) for _ in range(3)]
    assert [name is not None for name in made] == [True, False, False]
    assert fire(book, job_id, NOON + timedelta(microseconds=1)) is not None


def test_eight_processes_that_fire_the_same_due_times_make_each_once(book):
    job_id = book.put_job(make_spec(), "cli")
    code = f"""
from datetime import UTC, datetime, timedelta
from scalekit.jobs.firing import NewFiring
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec
book, noon = Ledger({str(book.store)!r}), datetime(2026, 5, 1, 12, tzinfo=UTC)
spec = JobSpec("nightly", "/kit/train.ipynb", cron="0 2 * * *")
for minute in range(20):
    due = noon + timedelta(minutes=minute)
    book.consider([NewFiring({job_id!r}, spec, due, "schedule", "cli")], {{{job_id!r}: due}})
    book.submit(spec, token=f"order {{minute}}")
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    assert len(book.list_firings(kinds=["schedule"])) == 20
    assert len(book.list_firings(kinds=["submit"])) == 20


def test_a_writer_that_is_killed_leaves_whole_changes_only(book):
    job_id = book.put_job(make_spec(), "cli")
    code = f"""
import sys
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec
book = Ledger({str(book.store)!r})
print("begin", flush=True)
while True:
    firing_id = book.submit(JobSpec("a", "/kit/a.ipynb"))
    book.begin_attempt(firing_id, "run")
"""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not book.list_firings(states=["running"], limit=1):
                pass
            process.kill()
    for firing in book.list_firings():
        assert (firing.state == "running") == (len(firing.attempts) == 1)
    with book.file.read() as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert book.get_job(job_id).name == "nightly"


def test_a_damaged_book_is_moved_aside_and_says_where_it_is(book):
    book.put_job(make_spec(), "cli")
    book.close()
    data = bytearray(book.path.read_bytes())
    data[:4096] = os.urandom(4096)
    book.path.write_bytes(data)
    with pytest.raises(BookDamaged, match=r"lies now at .*jobs\.sqlite\.damaged-\d{8}") as caught:
        book.list_jobs()
    away = next(path for path in book.folder.iterdir() if "damaged" in path.name)
    assert str(away) in str(caught.value) and away.read_bytes() == bytes(data)
    assert book.list_jobs() == []


def test_a_book_of_a_newer_scalekit_is_left_alone(book):
    book.put_job(make_spec(), "cli")
    book.close()
    db = sqlite3.connect(book.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(BookError, match="written by a newer scalekit"):
        book.list_jobs()
    assert not [path for path in book.folder.iterdir() if "damaged" in path.name]


def test_a_book_that_was_deleted_is_begun_anew_with_a_higher_version(book):
    book.put_job(make_spec(), "cli")
    before = book.version()
    for path in book.folder.glob("jobs.sqlite*"):
        path.unlink()
    assert (book.list_jobs(), book.version() > before) == ([], True)


def test_a_fork_reads_and_writes_by_a_connection_of_its_own(book):
    book.put_job(make_spec(), "cli")
    pid = os.fork()
    if not pid:
        try:
            book.submit(make_spec(), token="child")
        finally:
            os._exit(0 if book.list_firings() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [firing.token for firing in book.list_firings()] == ["child"]


def test_a_fork_that_lets_go_of_the_book_leaves_its_parents_connection_open(book):
    book.put_job(make_spec(), "cli")
    with book.file.read() as parents:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                book.close()
                parents.execute("SELECT 1")  # touches no file, and a closed connection refuses it
                code = 0 if book.file._db is None else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    assert len(book.list_jobs()) == 1


def test_a_spec_that_cannot_be_read_is_a_trouble_of_its_job_only(book):
    for name in ("good", "bad"):
        book.put_job(make_spec(name), "cli")
    for wrong in ("replace(spec, '0 2 * * *', '99 2 * * *')", "json_set(spec, '$.parameters', 5)", "'[]'"):
        with book.file.write() as (db, _):
            db.execute(f"UPDATE jobs SET spec = {wrong} WHERE name = 'bad'")
        bad, good = book.list_jobs()
        assert (good.trouble, good.active) == (None, True)
        assert (bad.active, "its spec can't be read" in bad.trouble) == (False, True)


def test_another_trigger_counts_from_now_and_other_values_do_not(book, now):
    job_id = book.put_job(make_spec(), "cli")
    now[0] += timedelta(days=1)
    book.put_job(make_spec(parameters={"lr": 0.1}), "cli")
    assert book.get_job(job_id).considered == NOON
    book.put_job(make_spec(cron="0 3 * * *"), "cli")
    assert book.get_job(job_id).considered == now[0]


def test_a_pause_is_not_made_up_for(book, now):
    job_id = book.put_job(make_spec(), "cli")
    book.set_active(job_id, False)
    now[0] += timedelta(days=9)
    book.set_active(job_id, True)
    assert book.get_job(job_id).considered == now[0]


def test_names_are_unique_until_a_job_is_removed(book):
    job_id = book.put_job(make_spec(), "cli")
    with pytest.raises(NameTaken, match="there is a job 'nightly' already"):
        book.put_job(make_spec(), "cli", new=True)
    with pytest.raises(NameTaken, match="is kept by `scalekit schedule`"):
        book.put_job(make_spec(), "lab")
    assert book.put_job(make_spec("other"), "cli", job_id=job_id) == job_id
    book.remove_job(job_id)
    assert book.put_job(make_spec("other"), "lab", new=True) != job_id
    with pytest.raises(UnknownJob, match="Did you mean 'other'"):
        book.get_job("othre")


def test_a_backfill_opens_again_what_was_left_out_and_nothing_that_succeeded(book):
    job_id = book.put_job(make_spec(), "cli")
    due = [NOON + timedelta(days=day) for day in range(3)]
    states = ("missed", "failed", "succeeded")
    for when, state in zip(due, states, strict=True):
        book.change_firing(fire(book, job_id, when), ("waiting",), state=state, reason="so")
    for when in due:
        book.trigger("nightly", due=when, kind="backfill")
    found = sorted(book.list_firings(), key=lambda one: one.due)
    assert [one.state for one in found] == ["waiting", "waiting", "succeeded"]


def test_what_is_opened_again_begins_anew_and_waits_for_no_pause_of_before(book, now):
    job_id = book.put_job(make_spec(), "cli")
    firing_id = fire(book, job_id, NOON)
    book.begin_attempt(firing_id, "run")
    again = {"state": "waiting", "next_try": NOON + timedelta(hours=6)}
    book.end_attempt(firing_id, 1, "failed", lambda firing: again)
    book.stop(firing_id)
    now[0] += timedelta(hours=1)
    assert book.trigger("nightly", due=NOON, kind="backfill") == firing_id
    firing = book.get_firing(firing_id)
    assert (firing.state, firing.next_try, firing.started, firing.spent) == ("waiting", None, None, 1)
    book.begin_attempt(firing_id, "another")
    assert book.get_firing(firing_id).started == now[0]


def test_two_triggers_in_one_moment_are_two_firings(book):
    book.put_job(make_spec(), "cli")
    assert len({book.trigger("nightly") for _ in range(3)}) == 3
    assert len({book.trigger("nightly", token="t") for _ in range(3)}) == 1


def test_only_what_has_ended_can_be_removed(book):
    firing_id = book.submit(make_spec())
    with pytest.raises(BookError, match="is waiting and can't be removed. End it first"):
        book.remove_firing(firing_id)
    book.stop(firing_id)
    book.remove_firing(firing_id)
    with pytest.raises(UnknownJob):
        book.get_firing(firing_id)


def test_readers_see_only_what_has_changed(tmp_path):
    reader, writer = JobBook(tmp_path), JobBook(tmp_path)
    for n in range(5):
        writer.put_job(make_spec(f"job {n}"), "cli")
    seen = reader.version()
    assert reader.list_jobs(since=seen) == [] and reader.version() == seen
    writer.set_active("job 3", False)
    writer.remove_job("job 4")
    assert [(job.name, job.gone) for job in reader.list_jobs(since=seen)] == [
        ("job 3", False),
        ("job 4", True),
    ]
