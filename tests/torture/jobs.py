"""The proof about jobs: `python tests/torture/jobs.py`, with TORTURE_MINUTES=15 and TORTURE_KILLS=200.

A simulated week of 50 jobs, over the change to summer time. Two daemons, one of which stands by, are
killed by SIGKILL at random moments, mostly the one that leads; so are some attempts. The clock is set
forward once and back once. In the end each due time of each job must have exactly one firing, with a run
that succeeded or a reason, and no work may have been done twice. The processes are real; `job_faults.py`
says what an attempt does in the place of a notebook.

Prints figures; exits with 1 if a promise is broken.
"""

import os
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from job_faults import Torture, audit

from scalekit.jobs.spec import JobSpec, Retries

BEGIN, WEEK = datetime(2026, 3, 25, tzinfo=UTC), timedelta(days=7)  # Summer time begins on the 29th
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
WAYS = (("last", "skip"), ("last", "queue"), ("all", "queue"), ("none", "skip"), ("last", "cancel-running"))


def make_jobs() -> list[JobSpec]:
    "An hourly one, six each six hours, 33 daily ones, ten weekly ones"
    times = ["0 * * * *", *(f"{7 * n} */6 * * *" for n in range(6))]
    times += [f"{n % 60} {n * 5 % 24} * * *" for n in range(33)] + [
        f"30 {2 * n} * * {n % 7}" for n in range(10)
    ]
    return [
        JobSpec(
            f"job-{n}", "/torture/none.ipynb", {"seconds": 0.4 + n % 5 / 10}, cron=cron,
            timezone=ZONES[n % 5], catch_up=WAYS[n % 5][0], overlap=WAYS[n % 5][1],
            retries=Retries(n=5, backoff=60.0, factor=1.0),
        )
        for n, cron in enumerate(times)
    ]  # fmt: skip


def tell(what: str, value: object, holds: bool | None = None) -> bool:
    "A line of the report"
    print(f"  {'' if holds is None else 'ok  ' if holds else 'FAIL'}  {what}: {value}", flush=True)
    return holds is not False


def main() -> int:
    seconds = float(os.environ.get("TORTURE_MINUTES", 15)) * 60
    n_kills, chance = int(os.environ.get("TORTURE_KILLS", 200)), random.Random(int(os.environ.get("SEED", 1)))
    jumps = [(0.3, timedelta(hours=5)), (0.6, -timedelta(hours=3))]
    with (
        TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as name,
        Torture(Path(name), BEGIN, WEEK.total_seconds() / seconds) as torture,
    ):
        torture.put(make_jobs())
        start = time.monotonic()
        for _ in range(2):
            torture.start_daemon()
        while torture.clock() < BEGIN + WEEK:
            time.sleep(chance.uniform(0.3, 1.7) * seconds / n_kills)
            torture.kill_a_daemon(chance)
            if chance.random() < 0.6:
                torture.kill_an_attempt(chance)
            if jumps and time.monotonic() - start > jumps[0][0] * seconds:
                torture.clock.jump(jumps.pop(0)[1])
        time.sleep(5.0)
        until = torture.clock()
        torture.settle(120.0)
        margin = timedelta(seconds=4 * torture.rate)
        found, codes = audit(torture.book, until, margin), torture.stop()
        took = time.monotonic() - start
    print(f"a week of {len(make_jobs())} jobs in {took / 60:.1f} minutes")
    return 0 if all([
        tell("kills of daemons", torture.n_kills, torture.n_kills >= n_kills * 0.9),
        tell("kills of attempts", torture.n_attempts_killed),
        tell("due times", found.n_due),
        tell("what became of them", dict(found.states)),
        tell("attempts", found.n_attempts),
        tell("due times without a firing", found.forgotten[:5] or 0, not found.forgotten),
        tell("firings that were never due, or twice", found.unasked[:5] or 0, not found.unasked),
        tell("without a run and without a reason", found.unexplained[:5] or 0, not found.unexplained),
        tell("done twice", found.twice[:5] or 0, not found.twice),
        tell("daemons end by SIGTERM", codes, codes == [0, 0]),
    ]) else 1  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
