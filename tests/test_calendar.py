"""When jobs are due: against a clock that is read each minute, and on the days on which clocks are set."""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from scalekit.jobs.calendar import due_times, in_window, next_due, next_window, to_moment, window_end

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NOTHING = dict.fromkeys(("cron", "every", "at", "after", "files", "timezone", "window"))


def _job(**said):
    return SimpleNamespace(**NOTHING | said)


def _at(text, zone):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def _due(begin, end, zone, **trigger):
    "Due times as the clock on the wall shows them, with its offset"
    found = due_times(_job(**trigger, timezone=zone), _at(begin, zone), _at(end, zone))
    return [f"{moment.astimezone(ZoneInfo(zone)):%m-%d %H:%M %z}" for moment in found]


# A second opinion: no library, no arithmetic of zones, only a clock on the wall that is read each minute.


def _numbers(field, low, high):
    found = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        ends = (low, high) if span == "*" else (int(first), int(last or (high if step else first)))
        found |= set(range(ends[0], ends[1] + 1, int(step or 1)))
    return found


def _matches(cron):
    fields = cron.split()
    minutes, hours, days, months, weekdays = (
        _numbers(field, *span)
        for field, span in zip(fields, ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)), strict=True)
    )
    either = not (fields[2].startswith("*") or fields[4].startswith("*"))

    def holds(clock):
        if clock.minute not in minutes or clock.hour not in hours or clock.month not in months:
            return False
        weekday = {clock.isoweekday(), clock.isoweekday() % 7} & weekdays
        return bool(clock.day in days or weekday) if either else bool(clock.day in days and weekday)

    return holds, len(hours) == 24


@lru_cache(2)
def _list_clocks(zone, begin, end):
    "What the clock shows each minute, and what it shows or passes for the first time"
    moment = begin.astimezone(UTC)
    latest, read = moment.astimezone(zone).replace(tzinfo=None), []
    while (moment := moment + MINUTE) <= end:
        clock = moment.astimezone(zone).replace(tzinfo=None)
        passed = [latest + MINUTE * n for n in range(1, (clock - latest) // MINUTE + 1)]
        read.append((moment, clock, passed))
        latest = max(latest, clock)
    return read


def _read_the_clock(cron, zone, begin, end):
    "Every hour: whenever the clock shows it. Named hours: when it shows or passes it for the first time"
    holds, is_real = _matches(cron)
    for moment, clock, passed in _list_clocks(zone, begin, end):
        if any(map(holds, [clock] if is_real else passed)):
            yield moment


CRONS = ["30 2 * * *", "*/15 * * * *", "*/20 */3 1-15 * *", "7 3 * * 1-5", "0 0 13 * 5", "59 23 1 */3 *"]


@pytest.mark.parametrize("cron", CRONS)
def test_the_due_times_of_a_year_are_those_that_a_clock_shows(cron):
    zone = ZoneInfo("Europe/Berlin")
    begin, end = datetime(2026, 1, 1, tzinfo=zone), datetime(2027, 1, 1, tzinfo=zone)
    found = list(due_times(_job(cron=cron, timezone=str(zone)), begin, end))
    assert found == list(_read_the_clock(cron, zone, begin, end)) and len(found) > 3


CHANGES = [  # around every one the clock of the zone is set, or the zone has changed its rules
    ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-10-04"), ("Australia/Lord_Howe", "2026-04-05"),  # by half an hour
    ("America/Sao_Paulo", "2018-11-04"), ("America/Sao_Paulo", "2018-02-18"),  # at midnight
    ("America/Sao_Paulo", "2019-11-03"),  # no longer
    ("Europe/Istanbul", "2016-03-27"), ("Europe/Istanbul", "2016-10-30"),  # stayed at summer time
    ("Africa/Casablanca", "2026-02-15"), ("Africa/Casablanca", "2026-03-22"),  # Ramadan
    ("Europe/Dublin", "2026-10-25"), ("Pacific/Apia", "2011-12-30"),  # a whole day left out
    ("Asia/Pyongyang", "2018-05-05"), ("Asia/Kathmandu", "2026-03-29"),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_the_days_around_a_change_are_those_that_a_clock_shows(zone, day):
    here = ZoneInfo(zone)
    middle = datetime.fromisoformat(day).replace(tzinfo=UTC)
    begin, end = middle - 2 * DAY, middle + 3 * DAY
    for cron in ("30 2 * * *", "*/10 * * * *", "45 1 * * *", "0 0 * * *", "15,45 */2 * * *", "5 * * * 0"):
        found = list(due_times(_job(cron=cron, timezone=zone), begin, end))
        assert found == list(_read_the_clock(cron, here, begin, end)), cron


@pytest.mark.parametrize("minutes", range(0, 240, 7))
def test_a_question_in_the_middle_of_a_change_gets_the_rest_of_the_answer(minutes):
    for zone, begin in (("Europe/Berlin", "2026-10-24T23:00"), ("Europe/Berlin", "2026-03-28T23:30")):
        start = datetime.fromisoformat(begin).replace(tzinfo=UTC)
        for cron in ("*/10 * * * *", "*/10 2 * * *", "30 2 * * *"):
            job, asked = _job(cron=cron, timezone=zone), start + minutes * MINUTE
            whole = list(due_times(job, start, start + DAY))
            assert list(due_times(job, asked, start + DAY)) == [moment for moment in whole if moment > asked]


def test_a_time_that_does_not_exist_is_the_moment_of_the_jump():
    assert _due("2026-03-29", "2026-03-30", "Europe/Berlin", cron="30 2 * * *") == ["03-29 03:00 +0200"]
    assert _due("2026-03-08", "2026-03-09", "America/New_York", cron="30 2 * * *") == ["03-08 03:00 -0400"]
    assert _due("2026-10-04", "2026-10-05", "Australia/Lord_Howe", cron="15 2 * * *") == ["10-04 02:30 +1100"]
    assert _due("2018-11-03 12:00", "2018-11-04 12:00", "America/Sao_Paulo", cron="0 0 * * *") == [
        "11-04 01:00 -0200"
    ]
    assert _due("2026-03-29", "2026-03-30", "Europe/Berlin", at="2026-03-29 02:30") == ["03-29 03:00 +0200"]


def test_several_times_that_do_not_exist_are_due_once():
    assert _due("2026-03-29", "2026-03-29 03:10", "Europe/Berlin", cron="*/10 2,3 * * *") == [
        "03-29 03:00 +0200", "03-29 03:10 +0200",
    ]  # fmt: skip


def test_a_time_that_exists_twice_is_due_once_at_the_first():
    assert _due("2026-10-25", "2026-10-26", "Europe/Berlin", cron="30 2 * * *") == ["10-25 02:30 +0200"]
    assert _due("2026-11-01", "2026-11-02", "America/New_York", cron="30 1 * * *") == ["11-01 01:30 -0400"]
    assert _due("2026-04-05", "2026-04-06", "Australia/Lord_Howe", cron="45 1 * * *") == ["04-05 01:45 +1100"]
    assert _due("2026-10-25", "2026-10-26", "Europe/Berlin", at="2026-10-25 02:30") == ["10-25 02:30 +0200"]


def test_every_n_minutes_means_real_minutes_when_the_clock_is_set_back():
    found = _due("2026-10-25 01:30", "2026-10-25 03:00", "Europe/Berlin", cron="*/30 * * * *")
    assert found == ["10-25 02:00 +0200", "10-25 02:30 +0200", "10-25 02:00 +0100", "10-25 02:30 +0100",
                     "10-25 03:00 +0100"]  # fmt: skip


def test_an_hour_that_comes_again_is_not_passed_over_for_the_next_year():
    job = _job(cron="45 * 24 10 *", timezone="Asia/Beirut")  # at midnight it is 23:00 once more
    asked = datetime(2026, 10, 24, 20, 50, tzinfo=UTC)
    assert next_due(job, asked) == datetime(2026, 10, 24, 21, 45, tzinfo=UTC)


def test_a_zone_that_gave_up_summer_time_has_none():
    assert _due("2018-11-04", "2018-11-05", "America/Sao_Paulo", cron="0 12 * * *") == ["11-04 12:00 -0200"]
    assert _due("2019-12-04", "2019-12-05", "America/Sao_Paulo", cron="0 12 * * *") == ["12-04 12:00 -0300"]


def test_every_counts_real_time_and_never_from_the_start_of_a_process():
    job = _job(every="7h", timezone="Europe/Berlin")
    begin = datetime(2026, 3, 27, 12, 34, 56, 789, tzinfo=UTC)
    found = list(due_times(job, begin, begin + 10 * DAY))
    assert {later - sooner for sooner, later in zip(found, found[1:], strict=False)} == {timedelta(hours=7)}
    for start in (
        begin + timedelta(hours=1),
        begin + 3 * DAY,
        found[4],
        found[4] - timedelta(microseconds=1),
    ):
        assert next_due(job, start) == min(moment for moment in found if moment > start)


def test_every_six_hours_and_every_week_begin_where_people_expect_it():
    assert _due("2026-01-05 00:00", "2026-01-05 18:00", "Asia/Kathmandu", every="6h") == [
        f"01-05 {hour}:00 +0545" for hour in ("06", "12", "18")
    ]
    weekly = due_times(_job(every="7d", timezone="UTC"), datetime(2026, 1, 1, tzinfo=UTC),
                       datetime(2026, 3, 1, tzinfo=UTC))  # fmt: skip
    assert {f"{moment:%a %H:%M}" for moment in weekly} == {"Mon 00:00"}


def test_a_due_time_is_after_the_one_and_not_after_the_other():
    job = _job(cron="0 * * * *", timezone="UTC")
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert list(due_times(job, noon, noon + timedelta(hours=1))) == [noon + timedelta(hours=1)]
    assert next_due(job, noon - timedelta(microseconds=1)) == noon
    assert list(due_times(job, noon, noon)) == []


def test_a_clock_that_is_set_gives_the_same_due_times_again():
    job = _job(cron="*/5 * * * *", timezone="Europe/Berlin")
    begin = datetime(2026, 5, 1, tzinfo=UTC)
    once = list(due_times(job, begin, begin + DAY))
    back = list(due_times(job, begin + DAY / 2, begin + DAY))  # set back by half a day
    assert set(back) < set(once)
    halves = [*due_times(job, begin, begin + DAY / 2), *back]  # nothing is lost between two questions
    assert halves == once


@pytest.mark.parametrize("trigger", [{}, {"after": "ingest"}, {"files": "/inbox/*.csv"}])
def test_a_job_without_a_time_is_never_due_by_the_clock(trigger):
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert next_due(_job(**trigger), now) is None
    assert list(due_times(_job(**trigger), now, now + 365 * DAY)) == []


def test_times_that_were_said_are_each_due_once():
    said = "2026-12-24 22:00, 2026-12-24T21:00:00Z, 2026-01-01 08:00"
    assert _due("2025-12-31", "2027-01-01", "Europe/Berlin", at=said) == [
        "01-01 08:00 +0100",
        "12-24 22:00 +0100",
    ]
    assert next_due(_job(at=said, timezone="Europe/Berlin"), datetime(2027, 1, 1, tzinfo=UTC)) is None


def test_a_day_that_comes_once_in_four_years_is_found():
    moment = next_due(_job(cron="0 12 29 2 *", timezone="Europe/Berlin"), datetime(2026, 3, 1, tzinfo=UTC))
    assert moment == datetime(2028, 2, 29, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [("Europe/Berlin", "2026-03-28", 7), ("Europe/Berlin", "2026-10-24", 9),
     ("America/New_York", "2026-03-07", 7), ("Australia/Lord_Howe", "2026-10-03", 7.5),
     ("Australia/Lord_Howe", "2026-04-04", 8.5), ("UTC", "2026-03-28", 8)],
)  # fmt: skip
def test_a_window_is_as_long_as_the_clock_makes_it(zone, day, hours):
    job = _job(window="22:00-06:00", timezone=zone)
    opens = next_window(job, _at(f"{day} 18:00", zone))
    closes = window_end(job, opens)
    assert opens == _at(f"{day} 22:00", zone) and (closes - opens) / timedelta(hours=1) == hours
    inside = [in_window(job, opens + n * 10 * MINUTE) for n in range(-6, int(hours * 6) + 6)]
    assert inside == [False] * 6 + [True] * int(hours * 6) + [False] * 6


def test_a_window_that_begins_in_the_hour_that_is_jumped_over_opens_with_the_jump():
    job = _job(window="02:30-05:00", timezone="Europe/Berlin")
    assert next_window(job, _at("2026-03-29 00:00", "Europe/Berlin")) == datetime(2026, 3, 29, 1, tzinfo=UTC)


def test_a_window_that_lies_in_the_hour_that_is_jumped_over_stays_closed_that_day():
    job = _job(window="02:15-02:45", timezone="Europe/Berlin")
    now = _at("2026-03-29 00:00", "Europe/Berlin")
    assert next_window(job, now) == _at("2026-03-30 02:15", "Europe/Berlin")
    assert not in_window(job, datetime(2026, 3, 29, 1, tzinfo=UTC))


def test_a_window_that_ends_in_the_hour_that_is_there_twice_ends_at_the_first():
    job = _job(window="22:00-02:30", timezone="Europe/Berlin")
    assert window_end(job, _at("2026-10-25 01:00", "Europe/Berlin")) == datetime(
        2026, 10, 25, 0, 30, tzinfo=UTC
    )
    assert not in_window(job, datetime(2026, 10, 25, 1, 10, tzinfo=UTC))  # 2:10 for the second time


def test_a_window_in_a_day_that_was_left_out_is_none():
    job = _job(window="09:00-17:00", timezone="Pacific/Apia")  # went from the 29th to the 31st
    assert next_window(job, _at("2011-12-29 18:00", "Pacific/Apia")) == _at(
        "2011-12-31 09:00", "Pacific/Apia"
    )


def test_a_whole_day_and_no_window_are_always_open():
    now = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)
    for window in ("00:00-24:00", None):
        job = _job(window=window, timezone="Europe/Berlin")
        assert all(in_window(job, now + n * timedelta(minutes=37)) for n in range(200))
    assert window_end(_job(), now) is None and next_window(_job(), now) == now


def test_the_order_of_clocks_is_the_order_of_moments():
    zone = ZoneInfo("Australia/Lord_Howe")
    for day in (date(2026, 4, 5), date(2026, 10, 4)):
        clocks = [datetime.combine(day, datetime.min.time()) + n * MINUTE for n in range(300)]
        moments = [to_moment(clock, zone) for clock in clocks]
        assert moments == sorted(moments)
