"""Jobs on the command line: `scalekit schedule`, `jobs`, and what is done to a job."""

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
import tzlocal
from notebooks import write_notebook

import scalekit as sk
from scalekit.cli import main
from scalekit.core import ScaleKitError
from scalekit.jobs.leader import lead
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.schedule import open_book
from scalekit.verbs.joblist import human_time


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A project with one notebook, in a time zone that is nobody's usual one"
    write_notebook(tmp_path / "train.ipynb", ("lr: float = 0.1\nsmoke: bool = False", "parameters"), "lr")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    _read_zone_again()
    yield tmp_path
    monkeypatch.delenv("TZ")
    _read_zone_again()


def _read_zone_again():
    "A process looks for its zone once"
    time.tzset()
    tzlocal.reload_localzone()


def _do(capsys, *words):
    "Exit code, standard output, standard error"
    code = main(words)
    out = capsys.readouterr()
    return code, out.out, out.err


def _say(capsys, *words):
    code, out, _ = _do(capsys, *words)
    assert code == 0
    return out


def _blame(capsys, *words):
    "The one line after a mistake"
    code, out, err = _do(capsys, *words)
    assert (code, out) == (2, "") and err.startswith("scalekit: ") and err.count("\n") == 1
    return err


NIGHTLY = (
    "schedule",
    "train.ipynb",
    "--name",
    "nightly",
    "--cron",
    "0 2 * * *",
    "--timezone",
    "Europe/Berlin",
)


def test_options_become_a_job(home, capsys):
    more = ("-p", "lr=0.02", "--window", "22:00-06:00", "--window-end", "finish", "--timeout", "4h",
            "--retries", "3",
            "--backoff", "2m", "--retry-on", "oom, preempted", "--catch-up", "none", "--overlap", "queue",
            "--notify-webhook", "env:HOOK", "--notify-email", "me@example.org", "--notify-on", "failed",
            "--keep-runs", "30", "--keep-days", "90", "--profile", "cpu", "--workers", "2", "--tag", "night",
            "--track", "wandb", "--no-resume")  # fmt: skip
    assert "is due at 02:00 every day" in _say(capsys, *NIGHTLY, *more)
    spec = Ledger("runs").get_job("nightly").spec
    plain = spec.to_json()
    assert plain == {
        "name": "nightly", "notebook": str(home / "train.ipynb"), "parameters": {"lr": 0.02},
        "profile": "cpu",
        "workers": 2, "cron": "0 2 * * *", "timezone": "Europe/Berlin", "window": "22:00-06:00",
        "window_end": "finish", "timeout": 14_400.0, "catch_up": "none", "overlap": "queue", "resume": False,
        "retries": {"n": 3, "backoff": 120.0, "factor": 2.0, "on": ["oom", "preempted"]},
        "notify": [{"webhook": "env:HOOK", "on": ["failed"]}, {"email": "me@example.org", "on": ["failed"]}],
        "keep": {"runs": 30, "days": 90.0}, "tags": ["night"], "track": ["wandb"],
    }  # fmt: skip


def test_a_grid_and_spaces_make_a_sweep(home, capsys):
    _say(capsys, "schedule", "train.ipynb", "--every", "6h", "-g", "smoke=true,false",
         "-s", "lr=uniform(0.1, 1)",
         "--trials", "4", "--goal", "minimize loss", "--sampler", "random")  # fmt: skip
    spec = Ledger("runs").get_job("train").spec
    assert spec.sweep == {
        "grid": {"smoke": [True, False], "lr": "uniform(0.1, 1)"}, "goal": "minimize loss", "n_trials": 4,
        "sampler": "random",
    }  # fmt: skip


def test_the_same_name_again_is_the_same_job(home, capsys):
    for minute in ("0", "30"):
        _say(capsys, "schedule", "train.ipynb", "--cron", f"{minute} 2 * * *")
    (job,) = Ledger("runs").list_jobs()
    assert job.spec.cron == "30 2 * * *"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which notebook? scalekit schedule NOTEBOOK --cron"),
        (("trian.ipynb",), "there is no notebook trian.ipynb. Did you mean 'train.ipynb'?"),
        (("train.ipynb", "-p", "rl=1"), "has no parameter 'rl'"),
        (("train.ipynb", "-p", "lr=a"), "parameter lr must be float"),
        (("train.ipynb", "--cron", "0 25 * * *"), 'its hour is wrong). For example: --cron "0 2 * * *"'),
        (("train.ipynb", "--every", "0"), 'For example: --every "6h"'),
        (("train.ipynb", "--cron", "@daily", "--window-end", "wait"), "means nothing without window"),
        (("train.ipynb", "--timezone", "Europe/Berln"), "Did you mean 'Europe/Berlin'?"),
        (("train.ipynb", "--after", "ingest"), "after = 'ingest' is no job"),
        (("train.ipynb", "--backoff", "2m"), "--retries says how often"),
        (("train.ipynb", "--notify-on", "failed"), "goes with --notify-webhook or --notify-email"),
        (("train.ipynb", "--profile", "gpuu"), "no profile 'gpuu'. Did you mean 'gpu'?"),
        (("train.ipynb", "--at", "2020-01-01 10:00"), "is over"),
        (("train.ipynb", "--now", "--every", "6h"), "Leave one of them out"),
        (("--check", "nightyl"), "has no job 'nightyl'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_written(home, capsys, words, said):
    assert said in _blame(capsys, "schedule", *words)
    assert Ledger("runs").list_jobs() == [] and Ledger("runs").list_firings() == []


def test_a_time_of_day_is_the_next_one(home, capsys):
    _say(capsys, "schedule", "train.ipynb", "--at", "22:00", "--timezone", "UTC")
    due = datetime.fromisoformat(Ledger("runs").get_job("train").spec.at).replace(tzinfo=UTC)
    assert timedelta(0) < due - datetime.now(UTC) <= timedelta(days=1) and (due.hour, due.minute) == (22, 0)


def test_now_is_an_order_without_a_job(home, capsys):
    out = _say(capsys, "schedule", "train.ipynb", "--now", "--name", "quick", "-p", "lr=0.5")
    (firing,) = Ledger("runs").list_firings()
    assert (firing.name, firing.job_id, firing.kind, firing.source) == ("quick", None, "submit", "cli")
    assert firing.firing_id in out and firing.firing_id in _say(capsys, "jobs")
    assert "ran by hand" in _say(capsys, "jobs", "quick")


def test_jobs_are_listed_with_what_a_person_wants_to_know(home, capsys):
    assert "no jobs in runs" in _say(capsys, "jobs")
    _say(capsys, *NIGHTLY)
    _say(capsys, "pause", "nightly")
    (home / "scalekit.toml").write_text(
        '[job.often]\nnotebook = "train.ipynb"\nevery = "1h"\n[job.bad]\nnotebook = 5\n'
    )
    out = _say(capsys, "jobs")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "at 02:00 every day (Europe/Berlin)" in lines["nightly"] and "paused" in lines["nightly"]
    assert re.search(r"every 1h  +\w{3} \d+ \w{3} \d\d:00, in \d+ (min|s)", lines["often"])
    assert "scalekit.toml" in lines["often"] and "not read" in out
    assert lines["bad:"].startswith(f"bad: {home / 'scalekit.toml'}: job 'bad': notebook must be")
    rows = {row["name"]: row for row in json.loads(_say(capsys, "jobs", "--json"))}
    assert set(rows) == {"nightly", "often", "bad"} and len({frozenset(row) for row in rows.values()}) == 1
    assert (
        datetime.fromisoformat(rows["often"]["next"]) > datetime.now(UTC) and rows["nightly"]["next"] is None
    )


def test_the_next_due_times_of_all_jobs_come_in_their_order(home, capsys):
    _say(capsys, "schedule", "train.ipynb", "--every", "1h", "--name", "often")
    _say(capsys, "schedule", "train.ipynb", "--every", "3h", "--name", "seldom")
    _say(capsys, "schedule", "train.ipynb", "--name", "by-hand")
    coming = json.loads(_say(capsys, "jobs", "--next", "8", "--json"))
    assert [one["name"] for one in coming].count("often") == 6 and len(coming) == 8
    assert [one["due"] for one in coming] == sorted(one["due"] for one in coming)
    assert len(_say(capsys, "jobs", "--next", "3").splitlines()) == 4
    _say(capsys, "pause", "often")
    assert {one["name"] for one in json.loads(_say(capsys, "jobs", "--next", "8", "--json"))} == {"seldom"}


def test_who_has_no_daemon_is_told(home, capsys):
    assert "Start the daemon: scalekit serve" in _do(capsys, *NIGHTLY)[2]
    assert "Start the daemon: scalekit serve" in _do(capsys, "jobs")[2]
    with lead(home / "runs"):
        assert _do(capsys, "jobs")[2] == ""
    _say(capsys, "pause", "nightly")
    assert _do(capsys, "jobs")[2] == ""  # nothing waits for one


def test_a_job_is_paused_and_goes_on(home, capsys):
    _say(capsys, *NIGHTLY)
    assert "scalekit resume nightly" in _say(capsys, "pause", "nightly")
    assert sk.list_jobs()[0].active is False
    assert "nightly goes on: due" in _say(capsys, "resume", "nightly")
    assert sk.list_jobs()[0].active is True
    assert "Did you mean 'nightly'?" in _blame(capsys, "pause", "nigthly")


def test_a_job_of_the_file_is_edited_in_the_file(home, capsys):
    (home / "scalekit.toml").write_text('[job.often]\nnotebook = "train.ipynb"\nevery = "1h"\n')
    file = str(home / "scalekit.toml")
    assert f"is kept in {file} and can't be removed here" in _blame(capsys, "unschedule", "often")
    same = ("schedule", "train.ipynb", "--name", "often", "--every", "2h")
    assert f"is kept in {file} and can't be changed here. Edit [job.often] there" in _blame(capsys, *same)
    assert "is paused" in _say(capsys, "pause", "often")  # that is no edit
    (job,) = sk.list_jobs()
    assert (job.source, job.spec.every, job.active) == ("toml", "1h", False)


def test_a_name_belongs_to_where_it_was_made(home, capsys):
    _say(capsys, *NIGHTLY)
    with pytest.raises(ScaleKitError, match="kept by `scalekit schedule`"):
        sk.schedule("train.ipynb", name="nightly", cron="@daily")


def test_a_run_is_not_resumed_as_a_job(home, capsys):
    run = sk.Store("runs").create_run({"notebook": "train.ipynb", "parameters": {}})
    way = f"scalekit run train.ipynb --resume {run.run_id}"
    assert f"is a run, not a job. Go on with it: {way}" in _blame(capsys, "resume", run.run_id)


def test_a_sweep_is_not_resumed_as_a_job(home, capsys):
    os.makedirs("runs/sweeps/train-1a2b3c")
    assert "Go on with it: scalekit sweep --resume train-1a2b3c" in _blame(capsys, "resume", "train-1a2b3c")


def test_a_job_is_triggered_with_other_values(home, capsys):
    _say(capsys, *NIGHTLY, "-p", "lr=0.02")
    assert "shall run now" in _say(capsys, "trigger", "nightly", "-p", "smoke=true")
    (firing,) = Ledger("runs").list_firings("nightly")
    assert (firing.kind, firing.spec.parameters) == ("trigger", {"lr": 0.02, "smoke": True})
    assert "parameter lr must be float" in _blame(capsys, "trigger", "nightly", "-p", "lr=a")
    assert len(Ledger("runs").list_firings()) == 1


def test_each_due_time_of_a_backfill_has_one_firing(home, capsys):
    _say(capsys, *NIGHTLY)
    span = ("backfill", "nightly", "--from", "2026-03-28", "--to", "2026-03-30")
    assert "3 of 3 due times would run" in _say(capsys, *span, "--dry-run")
    assert Ledger("runs").list_firings() == []
    first = json.loads(_say(capsys, *span, "--json"))
    assert [one["due"] for one in first] == [
        f"2026-03-{day}:00:00+00:00" for day in ("28T01", "29T01", "30T00")
    ]
    again = json.loads(_say(capsys, *span, "--json"))
    assert [one["action"] for one in again] == ["left"] * 3
    assert [one["firing_id"] for one in again] == [one["firing_id"] for one in first]
    book = Ledger("runs")
    book.change_firing(first[1]["firing_id"], ["waiting"], state="failed")
    out = _say(capsys, *span)
    assert "2026-03-29 06:45  once more" in out and "1 of 3 due times shall run" in out
    assert len(book.list_firings()) == 3


def test_a_backfill_of_what_is_to_come_or_has_no_time_is_a_mistake(home, capsys):
    _say(capsys, *NIGHTLY)
    _say(capsys, "schedule", "train.ipynb", "--name", "hand")
    soon = ("--from", "2100-01-01", "--to", "2100-01-02")
    assert "lies no time that has passed" in _blame(capsys, "backfill", "nightly", *soon)
    assert "scalekit trigger hand" in _blame(
        capsys, "backfill", "hand", "--from", "2026-01-01", "--to", "2026-01-02"
    )
    assert "is written 2026-11-01" in _blame(
        capsys, "backfill", "nightly", "--from", "monday", "--to", "2026-01-02"
    )


def test_a_firing_and_all_of_a_job_can_be_stopped(home, capsys):
    _say(capsys, *NIGHTLY)
    for _ in range(3):
        _say(capsys, "trigger", "nightly")
    book = Ledger("runs")
    _say(capsys, "stop", book.list_firings()[0].firing_id)
    assert [one.state for one in book.list_firings()] == ["cancelled", "waiting", "waiting"]
    assert _say(capsys, "stop", "nightly").count("is asked to stop") == 2
    assert {one.state for one in book.list_firings()} == {"cancelled"}


def test_a_job_that_is_gone_leaves_its_firings(home, capsys):
    _say(capsys, *NIGHTLY)
    _say(capsys, "trigger", "nightly")
    assert "is no job any more; its runs stay" in _say(capsys, "unschedule", "nightly")
    assert sk.list_jobs() == [] and len(Ledger("runs").list_firings("nightly")) == 1


def test_times_are_shown_as_the_clock_here_shows_them(home):
    now = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
    assert human_time(datetime(2026, 11, 23, 1, tzinfo=UTC), now) == "Mon 23 Nov 06:45, in 7 h"
    assert human_time(datetime(2027, 1, 1, 1, 30, tzinfo=UTC), now) == "Fri 1 Jan 2027 07:15, in 39 days"
    assert human_time(datetime(2026, 11, 22, 17, 59, tzinfo=UTC), now) == "Sun 22 Nov 23:44, 1 min ago"


def test_thousands_of_jobs_are_listed_in_their_order(home, capsys):
    from scalekit.jobs.spec import JobSpec

    notebook, book = str(home / "train.ipynb"), open_book()
    book.put_jobs((JobSpec(f"job-{n:05}", notebook, cron=f"{n % 60} {n // 60 % 24} * * *", timezone="UTC")
                   for n in range(2_000)), "cli")  # fmt: skip
    coming = json.loads(_say(capsys, "jobs", "--next", "5", "--json"))
    assert len(coming) == 5 and [one["due"] for one in coming] == sorted(one["due"] for one in coming)


# Before the night


def test_the_rehearsal_runs_what_has_a_smoke_mode(home, capsys, warm_server, monkeypatch):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    write_notebook(home / "plain.ipynb", ("n: int = 3", "parameters"), "n")
    write_notebook(
        home / "broken.ipynb", ("smoke = False", "parameters"), "assert not smoke, 'no such column'"
    )
    tables = "".join(
        f'[job.{name}]\nnotebook = "{name}.ipynb"\ncron = "@daily"\n' for name in ("plain", "broken")
    )
    (home / "scalekit.toml").write_text(tables + '[job.bad]\nnotebook = "train.ipynb"\ncorn = ""\n')
    _say(capsys, *NIGHTLY, "-p", "lr=0.02")
    code, out, _ = _do(capsys, "schedule", "--check")
    assert code == 1 and "unknown key 'corn'" in out
    assert "nightly: notebook, values, profile and times are fine; its smoke run succeeded" in out
    assert (
        "plain.ipynb has no smoke mode" in out
        and "no such column" in out
        and "executed notebook: runs/" in out
    )
    assert "succeeded" in _say(capsys, "schedule", "--check", "nightly")
    found = json.loads(_do(capsys, "schedule", "--check", "broken", "--json")[1])
    assert [(one["name"], one["smoke"], one["fine"]) for one in found] == [("broken", "failed", False)]
    assert sk.runs().empty  # a rehearsal is no run that counts


def test_a_job_that_fails_its_rehearsal_is_not_made(home, capsys, warm_server, monkeypatch):
    for name, value in warm_server.items():
        monkeypatch.setenv(name, value)
    write_notebook(home / "broken.ipynb", ("smoke = False", "parameters"), "assert not smoke")
    code, out, _ = _do(capsys, "schedule", "broken.ipynb", "--cron", "@daily", "--check")
    assert code == 1 and "its smoke run failed" in out and sk.list_jobs() == []
    _say(capsys, "schedule", "train.ipynb", "--cron", "@daily", "--check")
    assert [job.name for job in sk.list_jobs()] == ["train"]
