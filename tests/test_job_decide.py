"""What is due, what starts and what follows: dense cases of the decisions about jobs."""

from datetime import UTC, datetime, timedelta

import pytest

from scalekit.jobs.decide import Need, look_after, look_ahead, plan_starts, settle
from scalekit.jobs.firing import Attempt, Firing, Job
from scalekit.jobs.spec import JobSpec, Retries

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
ONE = Need()


def make_job(considered: datetime = NOON, **more) -> Job:
    spec = JobSpec("ingest", "/kit/a.ipynb", **{"cron": "0 * * * *", "timezone": "UTC", **more})
    return Job("7", "ingest", spec, "toml", True, NOON, NOON, considered)


def make_firing(state: str, due: datetime = NOON, job: Job | None = None, **more) -> Firing:
    spec = (job or make_job()).spec
    told = {"reason": None, "created": due, "started": None, "ended": None, "next_try": None,
            "attempts": (), **more}  # fmt: skip
    about = [told.pop(name, usual) for name, usual in (("firing_id", f"f{due:%d%H%M}"), ("job_id", "7"))]
    return Firing(*about, "ingest", spec, due, told.pop("kind", "schedule"), "toml", state, **told)


def look(job: Job, now: datetime, *firings: Firing) -> list[tuple[str, int]]:
    return [(new.state, new.due.hour) for new in look_ahead(job, now, firings).news]


@pytest.mark.parametrize(
    ("catch_up", "found"),
    [
        ("last", [("missed", 13), ("missed", 14), ("waiting", 15)]),
        ("none", [("missed", 13), ("missed", 14), ("missed", 15)]),
        ("all", [("waiting", 13), ("waiting", 14), ("waiting", 15)]),
    ],
)
def test_after_a_night_without_a_daemon_catch_up_says_what_runs(catch_up, found):
    assert look(make_job(catch_up=catch_up, overlap="queue"), NOON + 3 * HOUR + 10 * MINUTE) == found


@pytest.mark.parametrize("catch_up", ["last", "none", "all"])
def test_a_due_time_that_is_found_in_time_runs_whatever_catch_up_says(catch_up):
    assert look(make_job(catch_up=catch_up, overlap="queue"), NOON + HOUR + MINUTE / 2) == [("waiting", 13)]


def test_the_clock_set_back_makes_nothing_due_twice():
    job = make_job(considered=NOON + 2 * HOUR)
    outlook = look_ahead(job, NOON, [])
    assert (outlook.news, outlook.until, outlook.next) == ((), NOON + 2 * HOUR, NOON + 3 * HOUR)


def test_a_mark_of_a_wrong_clock_does_not_silence_a_job_for_years():
    outlook = look_ahead(make_job(considered=NOON + timedelta(days=900)), NOON, [])
    assert (outlook.until, outlook.next) == (NOON, NOON + HOUR)


def test_a_year_without_a_daemon_is_told_in_a_thousand_rows_and_a_number():
    job = make_job(cron="* * * * *")
    news = look_ahead(job, NOON + timedelta(days=3, seconds=30), []).news
    assert len(news) == 1000 and news[-1].state == "waiting"
    assert "so were 3,320 due times before it" in news[0].reason
    assert all("before it" not in new.reason for new in news[1:-1])


@pytest.mark.parametrize(
    ("overlap", "state", "stops"),
    [("skip", "skipped", ()), ("queue", "waiting", ()), ("cancel-running", "waiting", ("f011200",))],
)
@pytest.mark.parametrize("former", ["running", "stopping", "waiting"])
def test_a_firing_that_is_still_at_it_is_met_as_overlap_says(overlap, state, stops, former):
    outlook = look_ahead(make_job(overlap=overlap), NOON + HOUR, [make_firing(former)])
    assert ([new.state for new in outlook.news], outlook.stops) == ([state], stops)


def test_several_due_times_at_once_overlap_each_other_too():
    job = make_job(cron="* * * * *")
    states = [new.state for new in look_ahead(job, NOON + MINUTE + MINUTE / 2, []).news]
    assert states == ["waiting"]
    quick = make_job(cron=None, every="10s", considered=NOON)
    states = [new.state for new in look_ahead(quick, NOON + MINUTE / 2, []).news]
    assert states == ["waiting", "skipped", "skipped"]


def plan(*firings: Firing, now: datetime = NOON + 5 * HOUR, most: int | None = None, need=ONE, **room):
    found = plan_starts(firings, now, room or {"cores": 2}, lambda one: need, most)
    return [one.firing_id for one in found.starts], [hold.reason for hold in found.holds]


def test_a_queue_of_one_job_goes_on_one_by_one_in_the_order_of_its_due_times():
    late, early = make_firing("waiting", NOON + HOUR), make_firing("waiting")
    assert plan(late, early) == (["f011200"], ["waits for the firing of 2026-05-01 12:00"])
    assert plan(late, make_firing("running"))[0] == []


def test_an_order_without_a_job_waits_for_no_other():
    orders = [make_firing("waiting", job_id=None, firing_id=name) for name in "ab"]
    assert plan(*orders)[0] == ["a", "b"]


def test_gpus_and_cores_are_counted_apart():
    needs = {"a": Need("gpus", 2), "b": Need("gpus", 1), "c": Need("cores", 1)}
    firings = [make_firing("waiting", job_id=name, firing_id=name) for name in needs]
    found = plan_starts(firings, NOON, {"cores": 1, "gpus": 2}, lambda one: needs[one.firing_id])
    assert [one.firing_id for one in found.starts] == ["a", "c"]
    assert found.holds[0].reason == "waits for its turn: 2 of 2 gpus are taken"


def test_one_that_wants_more_than_there_is_runs_alone_and_does_not_wait_for_ever():
    big = make_firing("waiting")
    assert plan(big, need=Need("cores", 8))[0] == ["f011200"]
    other = make_firing("running", job_id="8", firing_id="o")
    assert plan(big, other, need=Need("cores", 8))[0] == []


def test_a_wait_for_time_says_when_to_look_again():
    again = NOON + 6 * HOUR
    held = plan_starts(
        [make_firing("waiting", next_try=again)], NOON + 5 * HOUR, {"cores": 1}, lambda one: Need()
    )
    assert (held.starts, held.wake) == ([], again)


def fail(*causes: str | None, state: str = "failed", retries: Retries, **more) -> Firing:
    attempts = tuple(
        Attempt("f", n, state, f"r{n}", None, None, NOON, NOON, NOON, cause, f"error {n}")
        for n, cause in enumerate(causes, 1)
    )
    return make_firing("running", attempts=attempts, job=make_job(retries=retries), **more)


def test_waits_between_attempts_grow_by_the_factor():
    retries = Retries(n=4, backoff=10.0, factor=3.0)
    waits = [settle(fail(*["error"] * n, retries=retries), NOON)["next_try"] - NOON for n in (1, 2, 3, 4)]
    assert [wait.total_seconds() for wait in waits] == [10, 30, 90, 270]
    assert settle(fail(*["error"] * 5, retries=retries), NOON)["state"] == "failed"


@pytest.mark.parametrize("cause", ["preempted", "oom", "error", "timeout", "lost"])
def test_only_causes_that_retries_names_are_tried_again(cause):
    assert settle(fail(cause, retries=Retries(1, on=(cause,))), NOON)["state"] == "waiting"
    others = tuple({"preempted", "oom", "error", "timeout", "lost"} - {cause})
    assert settle(fail(cause, retries=Retries(1, on=others)), NOON)["state"] == "failed"


@pytest.mark.parametrize("cause", ["cost", "mistake"])
def test_a_spent_budget_and_a_mistake_are_never_tried_again(cause):
    assert settle(fail(cause, retries=Retries(9)), NOON)["state"] == "failed"


def test_windows_that_close_are_no_failures():
    firing = fail("window", "error", "window", "window", state="preempted", retries=Retries(1))
    assert settle(firing, NOON)["state"] == "waiting"


def test_attempts_from_before_a_backfill_do_not_count():
    assert settle(fail("error", "error", retries=Retries(1), spent=1), NOON)["state"] == "waiting"


def test_one_that_was_stopped_is_cancelled_unless_it_succeeded_first():
    assert settle(fail("lost", retries=Retries(3), stop="enough"), NOON)["state"] == "cancelled"
    assert (
        settle(fail(None, state="succeeded", retries=Retries(), stop="enough"), NOON)["state"] == "succeeded"
    )


def test_a_job_follows_each_success_of_another_one_once_and_no_failure():
    spec = JobSpec("train", "/kit/b.ipynb", after="ingest")
    follower = Job("8", "train", spec, "cli", True, NOON, NOON, NOON)
    for state in ("failed", "cancelled", "skipped", "missed"):
        assert look_after(follower, make_firing(state), []) is None
    first, again = (look_after(follower, make_firing("succeeded", ended=NOON), []) for _ in range(2))
    assert first.news[0].token == again.news[0].token
    assert look_after(follower, make_firing("succeeded", job_id=None), []) is None
