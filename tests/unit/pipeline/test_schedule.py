"""What people say of traffic to come: which moments a window holds, by another clock than ours, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from inferline_stream import Every, On
from inferline_stream.pipeline.schedule import TrafficSchedule, last_s
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import moderation, only_problem

WALL = Callable[[float], time.struct_time]


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], WALL]]:
    """The C library's clock on the wall of a zone, which has nothing in common with ours but the zone's rules."""

    def of(zone: str) -> WALL:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return time.localtime

    yield of
    monkeypatch.undo()
    time.tzset()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("zone", "day", "what"),
    [
        ("Europe/Berlin", "2026-03-29", "an hour is left out"),
        ("Europe/Berlin", "2026-10-25", "an hour comes twice"),
        ("America/New_York", "2026-11-01", "an hour comes twice, on the other side of the sea"),
        ("Australia/Lord_Howe", "2026-04-05", "half an hour comes twice"),
        ("Asia/Kolkata", "2026-06-01", "half an hour from others, all year"),
        ("Pacific/Apia", "2011-12-30", "a whole day is left out"),
    ],
)
def test_a_window_holds_at_each_moment_whose_time_on_the_wall_lies_in_it(
    wall: Callable[[str], WALL], zone: str, day: str, what: str
) -> None:
    def in_minutes(at: time.struct_time) -> int:
        return 60 * at.tm_hour + at.tm_min

    held: dict[Every | On, Callable[[time.struct_time], bool]] = {
        Every("01:30-02:30", reserve=2.0): lambda at: 90 <= in_minutes(at) < 150,
        Every("sat,sun", reserve=2.0): lambda at: at.tm_wday >= 5,
        Every("mon-fri 23:00-24:00", reserve=2.0): lambda at: at.tm_wday < 5 and at.tm_hour == 23,
        On(day, reserve=2.0): lambda at: time.strftime("%Y-%m-%d", at) == day,
        On(f"{day} 02:15-02:45", reserve=2.0): lambda at: (
            time.strftime("%Y-%m-%d", at) == day and 135 <= in_minutes(at) < 165
        ),
    }
    local, first_s = wall(zone), utc(day) - 86_400.0
    moments = [first_s + 300.0 * step for step in range(3 * 288)]
    for entry, holds in held.items():
        schedule = TrafficSchedule((entry,), zone)
        ours = [schedule.at(moment).reserve == 2.0 for moment in moments]
        assert ours == [holds(local(moment)) for moment in moments], f"{entry.when}: {what}"


def test_the_largest_of_all_entries_and_of_all_moments_counts() -> None:
    every, on = Every("mon-fri 07:45-10:00", reserve=1.6), On("2026-11-27 08:00-20:00", traffic=3.0)
    schedule = TrafficSchedule((every, on, On("2026-11-27 09:00-09:30", reserve=1.2)), "Europe/Berlin")
    at = schedule.at(utc("2026-11-27 08:15"))  # 09:15 in Berlin, a Friday
    assert (at.reserve, at.traffic, at.words) == (1.6, 3.0, f"{every.when!r}, {on.when!r}, '2026-11-27 09:00-09:30'")
    before = utc("2026-11-27 06:44:50")
    assert schedule.within(before, before + 9.0).reserve == 0.0
    assert schedule.within(before, before + 10.0).reserve == 1.6
    assert schedule.within(before, before + 3 * 3600).words.count(f"{every.when!r}") == 1, "each entry is named once"
    assert schedule.within(utc("2026-11-27 19:00"), utc("2026-11-27 23:00")).traffic is None
    assert (
        TrafficSchedule((Every("09:00-10:00", reserve=2.0, zone="Asia/Tokyo"),)).at(utc("2026-01-01 00:30")).reserve
        == 2.0
    )


def test_a_window_that_was_set_lasts_until_its_last_minute() -> None:
    assert last_s(On("2026-11-27 08:00-20:00"), "Europe/Berlin") == utc("2026-11-27 19:00")
    assert last_s(On("2026-11-27"), "UTC") == utc("2026-11-28 00:00")
    assert last_s(On("2026-10-25 02:00-02:30"), "Europe/Berlin") == utc("2026-10-25 01:30"), "the second time"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (["mon 08:00"], "schedule holds 'mon 08:00'; write Every("),
        ([Every("mon-fri 8-10", reserve=2)], "'mon-fri 8-10' is no window: write one such as"),
        ([Every("", reserve=2)], "'' is no window"),
        ([Every("mo-fr 08:00-10:00", reserve=2)], "'mo-fr' is no day; days are mon, tue"),
        ([Every("fri-mon", reserve=2)], "'fri-mon' runs backwards; write fri-sun,mon-mon"),
        ([Every("mon-wed,tue 08:00-09:00", reserve=2)], "overlaps itself: it has tue twice"),
        ([Every("22:00-06:00", reserve=2)], "runs backwards; past midnight it takes two: 22:00-24:00, and 00:00-06:00"),
        ([Every("08:00-08:00", reserve=2)], "runs backwards"),
        ([Every("08:00-24:01", reserve=2)], "'24:01' is no time of day; the last one is 24:00"),
        ([On("2026-02-30", traffic=2)], "'2026-02-30' is no date"),
        ([On("mon", traffic=2)], "'mon' is no window: write one such as \"2027-11-26 08:00-20:00\""),
        ([Every("mon")], "'mon' says nothing: give reserve= or traffic="),
        ([Every("mon", reserve=0)], "reserve 0 must be above 0 and at most 20"),
        ([Every("mon", traffic="3")], "traffic '3' must be above 0"),  # type: ignore[arg-type]
        (
            [Every("mon", reserve=2, zone="Europe/Berln")],
            "unknown time zone 'Europe/Berln'; did you mean 'Europe/Berlin'",
        ),
        (
            [Every("mon-fri 07:45-10:00", reserve=2), Every("wed 09:00-11:00", reserve=3)],
            "'mon-fri 07:45-10:00' and 'wed 09:00-11:00' overlap on wed 09:00-10:00: end one where the other begins",
        ),
        ([On("2026-11-27", reserve=2), On("2026-11-27 08:00-09:00", traffic=2)], "overlap on 2026-11-27 08:00-09:00"),
    ],
)
def test_each_mistake_is_named_with_its_remedy(entries: list[Any], problem: str) -> None:
    assert problem in only_problem(moderation(schedule=entries))


def test_windows_that_meet_that_are_of_other_zones_or_of_one_day_beside_each_week_are_sound() -> None:
    entries = [Every("mon 08:00-09:00", reserve=2), Every("mon 09:00-10:00", reserve=3), On("2026-11-30", traffic=3.0)]
    assert not problems(moderation(schedule=[*entries, Every("mon 08:30-09:00", reserve=4, zone="Asia/Tokyo")]))
    problem = only_problem(moderation(schedule=entries, zone="Mars/Olympus"))
    assert "unknown time zone 'Mars/Olympus'; write one such as 'Europe/Berlin'" in problem
