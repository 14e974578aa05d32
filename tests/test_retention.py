"""What of a job's past goes, and what stays."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from scalekit.bundle import create_bundle
from scalekit.cli import main
from scalekit.core import write_atomic
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.retention import DailyRetention, apply_retention, plan_retention, run_retention
from scalekit.jobs.spec import JobSpec, Keep
from scalekit.store import Store

pytestmark = pytest.mark.timeout(60)
START = datetime(2026, 5, 1, 2, tzinfo=UTC)


class Past:
    "Nights of a job, one after the other"

    def __init__(self, folder, **spec):
        self.now = START
        self.store = Store(folder / "runs", folder)
        self.store.folder.mkdir()
        self.book = Ledger(self.store.folder, clock=lambda: self.now)
        self.spec = JobSpec("nightly", "/kit/train.ipynb", **spec)
        self.job_id = self.book.put_job(self.spec, "python")

    def night(self, state="succeeded", sweep=None, score=0.5, **asked):
        "A firing with one run, or with two trials; a day passes"
        firing = self.book.trigger("nightly", due=self.now)
        names = [f"{self.now:%Y%m%d-%H%M%S}-000-{number:06x}" for number in range(2 if sweep else 1)]
        self.book.begin_attempt(firing, None if sweep else names[0], sweep)
        for number, name in enumerate(names):
            about = asked | ({"sweep": sweep} if sweep else {})
            self.make_bundle(name, state, {"score": score + number}, **about)
        if state != "running":
            self.book.end_attempt(firing, 1, state, lambda ended: {"state": state})
        self.now += timedelta(days=1)
        return names[0]

    def make_bundle(self, name, state, metrics, **asked):
        about = {"notebook": "train.ipynb", "parameters": {}, "run_id": name, **asked}
        bundle = create_bundle(self.store.folder / name, about)
        bundle.set_state("running")
        bundle.append("log", values=metrics)
        if state != "running":
            bundle.set_state(state)
            bundle.seal()
        return bundle

    def open(self, run_id):
        return self.store.open_run(run_id)

    @property
    def run_ids(self):
        return sorted(row["run_id"] for row in self.store.list_runs())

    def why(self, **more):
        return {one.run_id: one.stays for one in plan_retention(self.store, self.now, **more)}


@pytest.fixture
def past(tmp_path):
    return Past(tmp_path, keep=Keep(runs=2))


def test_the_newest_stay_and_the_others_go_from_the_disk_and_from_the_table(past):
    nights = [past.night() for _ in range(5)]
    size = sum(file.stat().st_size for file in past.open(nights[0]).path.rglob("*") if file.is_file())
    plan = plan_retention(past.store, past.now)
    assert [(one.run_id, one.goes) for one in plan] == [(run, run in nights[:3]) for run in nights]
    assert plan[0].n_bytes == size and past.run_ids == nights  # nothing was done yet
    assert [one.run_id for one in apply_retention(past.store, plan)] == nights[:3]
    assert past.run_ids == nights[3:] and not (past.store.folder / nights[0]).exists()
    assert len(past.book.list_firings()) == 5 and run_retention(past.store, past.now) == []


def test_days_keep_what_is_young_and_one_of_both_is_enough(tmp_path):
    past = Past(tmp_path, keep=Keep(runs=1, days=2.5))
    nights = [past.night() for _ in range(5)]
    assert [run for run, stays in past.why().items() if stays is None] == nights[:3]


def test_without_keep_everything_stays(tmp_path):
    past = Past(tmp_path)
    past.night()
    past.now += timedelta(days=1000)
    assert list(past.why().values()) == ["its job keeps everything"]


def test_what_the_job_keeps_today_counts_and_a_job_that_is_gone_keeps_what_it_kept(past):
    nights = [past.night() for _ in range(4)]
    past.book.put_job(JobSpec("nightly", "/kit/train.ipynb", keep=Keep(runs=3)), "python")
    assert [run for run, stays in past.why().items() if stays is None] == nights[:1]
    past.book.remove_job("nightly")
    assert [run for run, stays in past.why().items() if stays is None] == nights[:2]


def test_the_last_that_succeeded_stays_however_many_have_failed_since(past):
    good = [past.night() for _ in range(2)]
    for _ in range(4):
        past.night("failed")
    why = past.why()
    assert (why[good[0]], why[good[1]]) == (None, "the last that succeeded")


def test_what_people_have_marked_stays_but_not_for_the_tags_of_its_job(past):
    plain, tagged, noted = [past.night(tags=["nightly"]) for _ in range(3)]
    past.open(tagged).tag("shown to the board")
    past.open(noted).note("odd loss")
    for _ in range(2):
        past.night()
    why = past.why()
    assert (why[plain], why[tagged], why[noted]) == (None, "tagged shown to the board", "it has a note")


def test_what_a_run_that_stays_went_on_with_stays_too_along_the_whole_chain(past):
    first = past.night("failed")
    second = past.night("failed", resumed=first)
    other = past.night("failed")
    for _ in range(2):
        past.night()
    past.make_bundle("20260601-000000-000-00000a", "failed", {}, resumed=second)
    why = past.why()
    assert why[second] == "run 20260601-000000-000-00000a went on with it"
    assert why[first] == f"run {second} went on with it" and why[other] is None


def test_what_a_tracker_has_not_got_stays_until_it_has(past):
    run = past.night(track=["wandb"])
    first = past.night("failed", track=["mlflow"])
    second = past.night(track=["mlflow"], resumed=first)
    for _ in range(2):
        past.night()
    assert past.why()[run] == "not sent to wandb yet"
    bundles = {name: past.open(name) for name in (run, first, second)}
    for holder, tracker, names in ((run, "wandb", [run]), (second, "mlflow", [first, second])):
        seen = {f"{name}/events": bundles[name].size for name in names}
        (bundles[holder].path / "later").mkdir()
        write_atomic(bundles[holder].path / "later" / f"{tracker}.json", json.dumps({"seen": seen}))
    assert [past.why()[name] for name in (run, first, second)] == [None, None, None]


def test_what_runs_or_may_be_tried_again_stays(past):
    running = past.night("running")
    for _ in range(3):
        past.night()
    assert past.why()[running] == "it is running"


def test_of_a_sweep_its_best_stays_and_a_sweep_without_a_best_goes_with_its_page(past):
    for name, goal in (("good", ["maximize", "score"]), ("plain", None)):
        folder = past.store.folder / "sweeps" / name
        folder.mkdir(parents=True)
        write_atomic(folder / "sweep.json", json.dumps({"sweep_id": name, "goal": goal}))
    past.night(sweep="good")
    past.night("failed", sweep="plain")
    for _ in range(2):
        past.night()
    removed = run_retention(past.store, past.now)
    assert len(removed) == 3
    (best,) = past.store.list_runs(sweep="good")
    assert best["metrics"]["score"] == 1.5
    assert sorted(os.listdir(past.store.folder / "sweeps")) == ["good"]


def test_logs_of_attempts_go_with_their_runs(past):
    for _ in range(3):
        past.night()
    for firing in past.book.list_firings():
        log = past.book.log_path(firing.firing_id, 1)
        log.parent.mkdir(exist_ok=True)
        log.write_text("said")
    run_retention(past.store, past.now)
    assert len(list((past.book.folder / "logs").iterdir())) == 2


def test_a_kill_at_any_moment_leaves_whole_runs_only_and_the_next_time_finishes(past):
    nights = [past.night() for _ in range(30)]
    script = f"""
from datetime import datetime
from scalekit.jobs.retention import run_retention
from scalekit.store import Store
print("begins", flush=True)
run_retention(Store({str(past.store.folder)!r}), datetime.fromisoformat({past.now.isoformat()!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    while process.poll() is None and all((past.store.folder / run).exists() for run in nights):
        time.sleep(0.0005)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    for run in past.run_ids:
        assert past.open(run).verify() == []
    run_retention(past.store, past.now)
    past.night()
    run_retention(past.store, past.now)
    assert len(past.run_ids) == 2 and not (past.store.folder / ".trash").exists()


def test_the_daemon_does_it_once_a_day_in_a_thread(past):
    for _ in range(3):
        past.night()
    daily = DailyRetention()
    daily.look(past.book)
    daily._thread.join(120)
    assert len(past.run_ids) == 2
    first = daily._thread
    past.night()
    past.now -= timedelta(hours=20)  # less than a day since
    daily.look(past.book)
    assert daily._thread is first
    past.now += timedelta(days=2)
    daily.look(past.book)
    daily._thread.join(120)
    assert daily._thread is not first and len(past.run_ids) == 2


def test_gc_shows_first_and_removes_only_when_it_is_told_to(past, monkeypatch, capsys):
    monkeypatch.chdir(past.store.folder.parent)
    nights = [past.night() for _ in range(3)]
    assert main(["gc", "--store", str(past.store.folder)]) == 0
    told = capsys.readouterr().out
    assert nights[0] in told and "1 runs of jobs may go" in told and "one of the newest 2" in told
    assert "scalekit gc --apply" in told and past.run_ids == nights
    assert main(["gc", "--apply", "--json", "--store", str(past.store.folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["run_id"] for one in told["runs"]["gone"]] == nights[:1] and past.run_ids == nights[1:]


def test_gc_without_jobs_makes_no_book(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["gc", "--apply", "--store", str(tmp_path / "runs")]) == 0
    assert not (tmp_path / "runs" / "jobs").exists()
