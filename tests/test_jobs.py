"""A night of jobs on a fast clock, with daemons and attempts that are killed; a week is in tests/torture."""

import random
import time
from datetime import UTC, datetime, timedelta

from job_faults import Torture, audit
from processes import wait_until

from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec, Retries

JOBS = [
    ("0 * * * *", "last", "skip"), ("20 */2 * * *", "all", "queue"), ("40 */2 * * *", "none", "skip"),
    ("10 */3 * * *", "last", "cancel-running"),
]  # fmt: skip


def has_seen(book: Ledger, until: datetime) -> bool:
    "Whether some daemon has had all jobs in hand since: each has a firing that was due later"
    latest = {one.job_id: one.due for one in sorted(book.list_firings(), key=lambda one: one.due)}
    return all(latest.get(job.job_id, until) > until for job in book.list_jobs())


def test_each_due_time_has_one_run_or_a_reason_whoever_is_killed(tmp_path):
    chance, begin = random.Random(3), datetime(2026, 3, 28, 22, tzinfo=UTC)  # over the change to summer time
    specs = [
        JobSpec(f"job-{n}", "/torture/none.ipynb", {"seconds": 0.2}, cron=cron, timezone="Europe/Berlin",
                catch_up=catch_up, overlap=overlap, retries=Retries(5, backoff=60.0, factor=1.0))
        for n, (cron, catch_up, overlap) in enumerate(JOBS)
    ]  # fmt: skip
    with Torture(tmp_path, begin, rate=1800.0) as torture:
        torture.put(specs)
        for _ in range(2):
            torture.start_daemon()
        for _ in range(10):
            time.sleep(chance.uniform(0.2, 1.4))
            torture.kill_a_daemon(chance)
            if chance.random() < 0.3:
                torture.kill_an_attempt(chance)
        until = torture.clock()
        wait_until(lambda: has_seen(torture.book, until))
        torture.settle(120.0)
        found = audit(torture.book, until, timedelta(seconds=4 * torture.rate), torture.clock())
        assert torture.stop() == [0, 0]
    assert found.holds, found
    assert found.states["succeeded"] >= 3, found
