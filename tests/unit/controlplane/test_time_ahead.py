"""What is learned of weeks goes on over terms, and the hours ahead are foreseen again when something changes them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from inferline_stream import Every
from inferline_stream.controlplane.observe.time_ahead import TimeAhead
from inferline_stream.controlplane.records.control_records import (
    CALENDAR_KEY,
    CalendarRecord,
    Override,
    decode_override,
    decode_stored,
    encode,
)
from inferline_stream.controlplane.records.record_writers import DecisionLog
from inferline_stream.pipeline.schedule import TrafficSchedule
from inferline_stream.tuner.calendar import BIN_S
from tests.unit.tuner.plans import state

BEGAN_S = 3000.0 * BIN_S


def of_a_term(found: CalendarRecord | None = None) -> TimeAhead:
    return TimeAhead(DecisionLog("decisions"), found, TrafficSchedule())


def written(ahead: TimeAhead) -> CalendarRecord:
    record: Any = ahead.book.waiting()[-1]
    found = decode_stored(CALENDAR_KEY, record.value)
    assert isinstance(found, CalendarRecord)
    return found


def watched(ahead: TimeAhead, since_s: float, until_s: float, rate: float) -> None:
    for second in range(int(until_s - since_s) + 1):
        ahead.count(since_s + second, 7000 + round(rate * second))


def test_the_next_term_goes_on_and_what_came_while_nobody_led_is_unknown() -> None:
    first = of_a_term()
    watched(first, BEGAN_S, BEGAN_S + 2 * BIN_S, 10.0)
    first.look(BEGAN_S + 2 * BIN_S, state().basis)
    assert written(first).weeks.rates == pytest.approx([10.0, 10.0], rel=0.01)
    after = of_a_term(written(first))
    watched(after, BEGAN_S + 4 * BIN_S, BEGAN_S + 5 * BIN_S, 30.0)
    after.look(BEGAN_S + 5 * BIN_S, state().basis)
    assert written(after).weeks.rates == pytest.approx([10.0, 10.0, math.nan, math.nan, 30.0], rel=0.01, nan_ok=True)


def test_hours_are_foreseen_in_each_bin_and_when_people_change_them() -> None:
    ahead, basis = of_a_term(), state().basis

    def looks(time_s: float) -> int:
        ahead.look(time_s, basis)
        return len(ahead.book.waiting())

    assert [looks(BEGAN_S + more_s) for more_s in (0.0, 1.0, BIN_S - 1.0, BIN_S)] == [1, 1, 1, 2]
    ahead.schedule = TrafficSchedule((Every("mon-sun", reserve=2.0),))
    assert looks(BEGAN_S + BIN_S + 1.0) == 3
    assert ahead.hours[0].replicas["a"] == 4, "of the two that are planned"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"rates": b"abc"}, "no weeks of arrivals"),
        ({"rates": b"ab" * 9000}, "no weeks of arrivals"),
        ({"first": -1}, "out of range"),
        ({"time_s": 1e300}, "no time"),
    ],
)
def test_a_record_that_holds_no_weeks_is_refused(wrong: dict[str, Any], why: str) -> None:
    record = encode(msgspec.structs.replace(CalendarRecord(1.0), **wrong))
    with pytest.raises(ValueError, match=why):
        decode_stored(CALENDAR_KEY, record)


@pytest.mark.parametrize(
    ("subject", "value", "why"),
    [("tomorrow", 2.0, "no window"), ("2026-11-27", 99.0, "at most 20"), ("2026-11-27 10:00-09:00", 2.0, "backwards")],
)
def test_a_window_that_cannot_be_is_refused_before_it_is_followed(subject: str, value: float, why: str) -> None:
    sound = Override("traffic", "2026-11-27", 3.0)
    assert decode_override(sound.key, encode(sound)) == sound
    record = encode(sound).replace(b"2026-11-27", subject.encode()).replace(b"3.0", str(value).encode())
    with pytest.raises(ValueError, match=why):
        decode_override(f"traffic/{subject}", record)
