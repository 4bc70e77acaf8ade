"""What weeks teach, what the policy makes of it and of what people say, and the hours ahead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from msgspec import structs

from inferline_stream import Every, On
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.schedule import TrafficSchedule
from inferline_stream.tuner.calendar import (
    ANY_DAY,
    BIN_S,
    BINS,
    NOTHING,
    TRIED_BINS,
    TWO_DAYS,
    BeliefTrial,
    Calendar,
    PastWeeks,
    WeekCounter,
)
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.outlook import outlook
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import seen, state

DAY_S = 86_400.0
MONDAY_S = datetime(2026, 11, 2, tzinfo=UTC).timestamp()
"""Of the first of five weeks."""

NOTHING_HELD = PolicySettings(insurance=(), beginning_s=0.0)


def weeks(rate: Callable[[float, int], float], days: float, began_s: float = MONDAY_S) -> PastWeeks:
    """So many days of a rate, by the hour of the day and the day, all counted minute by minute."""
    counter = WeekCounter()
    for minute in range(round(days * 1440) + 1):
        before = minute - 1
        counter.add(began_s + 60.0 * minute, round(60 * rate(before % 1440 / 60, before // 1440)) if minute else 0)
    return counter.weeks


def at(hour: float, day: int) -> int:
    return int((MONDAY_S + DAY_S * day + 3600 * hour) // BIN_S)


def office(hour: float, day: int) -> float:
    """Weekdays leap from 20 to 80/s at nine; on weekends nothing does."""
    return 80.0 if day % 7 < 5 and 9 <= hour < 17 else 20.0


@pytest.mark.parametrize("jitter_s", [0.0, 0.05, 0.37])
def test_a_bin_has_its_busiest_minute_whenever_it_was_looked_at(jitter_s: float) -> None:
    """By brute force: what came in each whole minute."""
    rng = np.random.default_rng(5)
    times = np.sort(rng.uniform(0.0, 3000.0, 20_000)) + MONDAY_S
    times = times[(times < MONDAY_S + 1200) | (times > MONDAY_S + 1500)]  # an empty bin is a bin
    counter, before = WeekCounter(), 0
    for look in np.arange(0.0, 3000.3, 0.1) + MONDAY_S + jitter_s:
        known = int(np.searchsorted(times, look))
        counter.add(float(look), known - before)
        before = known
    minutes = np.bincount(((times - MONDAY_S) // 60).astype(int), minlength=50).reshape(10, 5) / 60
    assert counter.weeks.first == MONDAY_S // BIN_S
    assert counter.weeks.rates[:9] == pytest.approx(minutes.max(axis=1)[:9], rel=0.02, abs=0.1)


def test_what_nobody_watched_is_unknown_and_four_weeks_are_kept_in_kilobytes() -> None:
    known = weeks(office, 2.0)
    later = known.with_rate(at(0, 3), 7.0)
    assert later.first == known.first
    assert np.isnan(later.busiest(at(12, 2), 1)[0])
    assert later.busiest(at(0, 3), 2)[0] == 7.0
    month = later.with_rate(at(0, 40), 1.0)
    assert (month.rates.size, int(np.count_nonzero(~np.isnan(month.rates)))) == (BINS, 1)
    assert month.with_rate(at(0, 3), 5.0) is month, "the clock was set back"
    assert len(month.to_bytes()) < 20_000
    back = PastWeeks.from_bytes(later.first, later.to_bytes())
    assert back.first == later.first
    assert np.allclose(back.rates, later.rates, rtol=1e-3, equal_nan=True)
    with pytest.raises(ValueError, match="no weeks of arrivals"):
        PastWeeks.from_bytes(0, b"\0" * 3)
    assert PastWeeks.from_bytes(0, bytes(2 * BINS)).rates.size == BINS
    with pytest.raises(ValueError, match="no weeks"):
        PastWeeks.from_bytes(0, bytes(2 * BINS + 2))


def growths(known: PastWeeks, number: int, zone: str = "UTC", belief: int = TWO_DAYS) -> list[float]:
    return known.growths(number, zone, known.present(number))[belief].tolist()


def grows(known: PastWeeks, number: int, zone: str = "UTC", belief: int = TWO_DAYS) -> float:
    """Events per second more than at present that come back within the bin."""
    return growths(known, number, zone, belief)[0]


BELIEVED = pytest.approx(57.0, abs=3.0)
"""60/s more, by what minutes of 20 and of 80/s show."""


def test_what_comes_every_day_of_its_kind_is_foreseen_in_its_hour_and_nowhere_else() -> None:
    known = weeks(office, 14 + 9 / 24)  # the third Monday, at nine
    assert grows(known, at(9, 14)) == BELIEVED
    at_eight = growths(weeks(office, 14 + 8 / 24), at(8, 14))
    assert at_eight == [0.0] * 12, "until nine"
    at_once = growths(weeks(office, 14 + 8 / 24 + 1 / 288), at(8, 14) + 1)
    assert (at_once[10], at_once[11]) == (0.0, BELIEVED), "the twelfth five minutes begin at nine"
    assert max(growths(weeks(office, 19 + 9 / 24), at(9, 19))) == 0.0, "a Saturday"


@pytest.mark.parametrize(("today", "expected"), [(1.0, 60.0), (2.0, 120.0), (0.5, 30.0), (0.0, 6.2)])
def test_a_day_has_its_own_level_and_one_on_which_nothing_comes_is_believed(today: float, expected: float) -> None:
    known = weeks(lambda hour, day: office(hour, day) * (today if day == 14 else 1.0), 14 + 9 / 24)
    assert 0.88 * expected <= grows(known, at(9, 14)) <= 1.05 * expected, "but for what shows no rate"


@pytest.mark.parametrize(("leaping", "early", "counts"), [(0, 1, False), (1, 1, False), (2, 1, True), (2, 0, False)])
def test_a_growth_counts_that_two_of_the_days_had_that_began_as_today(leaping: int, early: int, counts: bool) -> None:
    """Of ten weekdays, none a Monday, four begin early; today does, or does not."""
    days = (1, 3, 8, 9)[:leaping]

    def rate(hour: float, day: int) -> float:
        began = day in {1, 3, 8, 9} or (day == 14 and early)
        return 80.0 if day in days and 9 <= hour < 17 else 40.0 if began and 7 <= hour < 8 else 20.0

    known = weeks(rate, 14 + 9 / 24)
    assert (grows(known, at(9, 14)) > 20.0) is counts
    assert (grows(known, at(9, 14), belief=ANY_DAY) > 20.0) is (leaping > 0 and early > 0)


def test_what_both_mondays_had_is_foreseen_on_the_third_although_no_other_day_has_it() -> None:
    monday, wednesday = (
        weeks(lambda hour, day: 80.0 if day % 7 == 0 and 9 <= hour < 17 else 20.0, day + 9 / 24) for day in (14, 16)
    )
    assert grows(monday, at(9, 14)) == BELIEVED
    assert grows(wednesday, at(9, 16)) == 0.0


def test_what_has_come_within_the_bin_is_not_foreseen_again() -> None:
    known = weeks(office, 14 + 9 / 24)
    assert grows(known.with_rate(at(9, 14), 50.0), at(9, 14)) == pytest.approx(27.0, abs=3.0)
    assert grows(known.with_rate(at(9, 14), 80.0), at(9, 14)) == 0.0


@pytest.mark.parametrize(("minutes", "foreseen"), [(-10, 0.0), (-5, 60.0), (0, 60.0), (5, 60.0), (10, 0.0)])
def test_a_leap_is_foreseen_five_minutes_sooner_or_later_than_on_other_days(minutes: int, foreseen: float) -> None:
    """Today it has not come yet: it is held for within the bin from five minutes before, and until it is over."""

    def rate(hour: float, day: int) -> float:
        return 80.0 if day < 14 and 9 <= hour < 9 + 5 / 60 else 20.0

    now = 9 + minutes / 60
    known = weeks(rate, 14 + now / 24)
    assert growths(known, at(now, 14))[1] == pytest.approx(foreseen, abs=4.0)


def leapt_on(days: dict[int, tuple[float, float]]) -> Callable[[float, int], float]:
    """20/s, and so many for half an hour from an hour on, by day."""

    def rate(hour: float, day: int) -> float:
        begins, most = days.get(day, (0.0, 20.0))
        return most if begins <= hour < begins + 0.5 else 20.0

    return rate


WEEKDAYS = [day for day in range(14) if day % 7 < 5]
EVERY_DAY = {day: (9.0, 80.0) for day in WEEKDAYS}
HIGHER_EACH_DAY = {day: (9.0, 40.0 * 1.3**n) for n, day in enumerate(WEEKDAYS)}
ONCE_EACH_HOUR = {day: (4.0 + 1.5 * n, 80.0) for n, day in enumerate(WEEKDAYS)}
THE_FIRST_DAY_OF_EACH_WEEK = {0: (9.0, 80.0), 7: (9.0, 80.0)}


def test_a_leap_of_one_weekday_is_known_still_when_a_controller_takes_over_a_week_later() -> None:
    tried = BeliefTrial("UTC", 0).up_to(weeks(leapt_on(THE_FIRST_DAY_OF_EACH_WEEK), 15), at(9, 14))
    assert 0 < tried.missed[ANY_DAY] < 0.1 * tried.missed[NOTHING]
    assert tried.cheapest(600.0, 0.99) == TWO_DAYS, "of which nothing is known yet"


def test_a_leap_is_missed_by_each_bin_that_it_comes_soon_after_and_less_each_day() -> None:
    """Of no earlier day: what comes in each bin and the two after it beyond the bin before it."""
    rates = [20.0] * 108 + [50.0, 80.0] + [20.0] * 10
    known, kept = weeks(lambda hour, _: rates[int(hour * 3600 / BIN_S)], 118 / 288), 0.6 ** (BIN_S / DAY_S)
    for number in range(106, 117):
        came = [max(0.0, max(rates[n : n + TRIED_BINS]) - rates[n - 1]) for n in range(1, number - TRIED_BINS + 1)]
        missed = sum(more * kept**ago for ago, more in enumerate(reversed(came)))
        assert BeliefTrial("UTC", 0).up_to(known, at(0, 0) + number).missed[NOTHING] == pytest.approx(missed)


@pytest.mark.parametrize(
    ("held", "missed", "belief"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), TWO_DAYS),
        ((0.0, 50.0, 90.0), (20.0, 20.0, 20.0), NOTHING),
        ((0.0, 50.0, 90.0), (20.0, 10.0, 5.0), TWO_DAYS),
        ((0.0, 50.0, 300.0), (20.0, 10.0, 5.0), TWO_DAYS),
        ((0.0, 50.0, 900.0), (20.0, 18.0, 5.0), NOTHING),
        ((0.0, 50.0, 90.0), (20.0, 15.0, 3.0), ANY_DAY),
    ],
)
def test_a_belief_pays_by_six_of_a_hundred_events_that_it_seems_to_save(
    held: tuple[float, ...], missed: tuple[float, ...], belief: int
) -> None:
    """Each of these is worth a hundred times what serving it costs."""
    assert BeliefTrial("UTC", 0, np.array(held), np.array(missed)).cheapest(600.0, 0.99) == belief


@pytest.mark.parametrize(
    ("days", "belief"), [(EVERY_DAY, TWO_DAYS), (HIGHER_EACH_DAY, ANY_DAY), (ONCE_EACH_HOUR, TWO_DAYS)]
)
def test_other_days_are_believed_as_far_as_that_was_cheapest_lately(
    days: dict[int, tuple[float, float]], belief: int
) -> None:
    """Any leap of no hour twice would only have cost; of those that grow each day the largest is the least wrong."""
    tried = BeliefTrial("UTC", 0).up_to(weeks(leapt_on(days), 12), at(0, 12))
    assert tried.missed[NOTHING] > 0
    assert tried.cheapest(600.0, 0.99) == belief
    assert tried.held[tried.cheapest(0.0, 0.99)] == 0.0, "replicas that start at once miss nothing"


def test_what_was_believed_is_the_same_whether_it_was_followed_or_looked_up_at_a_takeover() -> None:
    known, followed = weeks(leapt_on(HIGHER_EACH_DAY), 11), BeliefTrial("UTC", at(0, 3))
    for number in range(at(0, 3), at(0, 11) + 1):
        followed = followed.up_to(PastWeeks(known.first, known.rates[: number - known.first]), number)
    looked_up = BeliefTrial("UTC", 0).up_to(known, at(0, 11))
    assert followed.next_ == looked_up.next_
    assert looked_up.missed[NOTHING] > looked_up.missed[TWO_DAYS] > looked_up.missed[ANY_DAY]
    assert looked_up.missed == pytest.approx(followed.missed)
    assert looked_up.held == pytest.approx(followed.held)


def test_noise_of_quiet_minutes_is_no_growth() -> None:
    """A hundred bins at 2/s: a minute's 120 events spread by a tenth."""
    rng = np.random.default_rng(3)
    known = weeks(lambda hour, day: float(rng.poisson(120)) / 60, 14 + 9 / 24)
    foreseen = [grows(PastWeeks(known.first, known.rates[: number - known.first]), number) for number in
                range(at(0, 14) + 5, at(0, 14) + 105)]  # fmt: skip
    assert np.count_nonzero(foreseen) <= 10


def test_nothing_is_foreseen_from_one_day_or_without_the_minutes_before() -> None:
    assert not any(growths(weeks(office, 1 + 9 / 24), at(9, 1), belief=ANY_DAY))
    assert not any(growths(weeks(office, 14), at(9, 14), belief=ANY_DAY))


BERLIN = ZoneInfo("Europe/Berlin")


def through_a_clock_change(until: datetime) -> PastWeeks:
    """Every day from 20 to 80/s at nine by the clock on the wall, since two weeks before it changes."""
    began_s = datetime(2026, 10, 12, tzinfo=UTC).timestamp()

    def rate(hour: float, day: int) -> float:
        wall = datetime.fromtimestamp(began_s + DAY_S * day + 3600 * hour, BERLIN)
        return 80.0 if 9 <= wall.hour < 17 else 20.0

    return weeks(rate, (until.timestamp() - began_s) / DAY_S, began_s)


def test_a_clock_change_moves_what_comes_at_nine_by_the_clock_on_the_wall() -> None:
    monday = datetime(2026, 10, 26, 9, tzinfo=BERLIN)  # the first after the change
    number = int(monday.timestamp()) // BIN_S
    known = through_a_clock_change(monday)
    assert grows(known, number, "Europe/Berlin") == BELIEVED
    early = PastWeeks(known.first, known.rates[: -3600 // BIN_S])
    assert grows(early, number - 3600 // BIN_S, "Europe/Berlin") == 0.0
    assert grows(early, number - 3600 // BIN_S, "UTC") == BELIEVED, "an hour too soon"


def test_where_people_correct_the_zone_what_days_have_taught_counts_by_the_right_clock() -> None:
    """By UTC nothing is believed on the second day after a clock change: on the first it came an hour later."""
    tuesday = datetime(2026, 10, 27, 9, tzinfo=BERLIN)
    counter = WeekCounter(through_a_clock_change(tuesday))
    wrong, right = (
        counter.calendar(tuesday.timestamp(), TrafficSchedule(zone=zone), 100.0, 0.99).growth(600.0)
        for zone in ("UTC", "Europe/Berlin")
    )
    assert (wrong, right) == (0.0, BELIEVED)


def moment(schedule: TrafficSchedule, time_s: float, known: PastWeeks | None = None) -> Calendar:
    return Calendar(time_s, schedule, known or PastWeeks())


def test_the_policy_adds_to_the_floor_that_people_have_said_one_lead_before_its_time() -> None:
    nine_s = MONDAY_S + 9 * 3600
    schedule = TrafficSchedule((Every("mon 09:00-10:00", reserve=4.0),))

    def needed(time_s: float, recent: int = 100) -> tuple[float, Reason, str]:
        busy = seen(0.0, (3 * recent, 6 * recent, 60 * recent), recent=(recent,) * 30, watched_s=100.0)
        _, found = demands(state(NOTHING_HELD), structs.replace(busy, calendar=moment(schedule, time_s)))
        return found["a"].needed, found["a"].reason, found["a"].detail

    alone = needed(nine_s - 4.0)[0]
    held, reason, words = needed(nine_s - 2.5)  # two seconds to start, one to react
    assert (reason, words) == (
        Reason.INSURANCE,
        "the schedule holds 4 times the planned traffic: 'mon 09:00-10:00'",
    )
    assert held > 2 * alone
    assert needed(nine_s + 3599.0)[0] == held
    assert needed(nine_s + 3600.0)[0] == alone
    assert needed(nine_s, recent=1000)[0] > held, "more traffic than they said"


def test_traffic_that_people_expect_is_in_proportion_to_what_weeks_have_taught() -> None:
    friday_s = MONDAY_S + 25 * DAY_S
    schedule = TrafficSchedule((On("2026-11-27", traffic=3.0),))
    known = weeks(office, 25)
    noon, night = (moment(schedule, friday_s + 3600 * hour, known).said(3.0, 100.0) for hour in (12, 22))
    assert (noon[0], night[0]) == (pytest.approx(2.4, rel=0.02), pytest.approx(0.6, rel=0.02))
    assert moment(schedule, friday_s).said(3.0, 100.0)[0] == 3.0, "of the planned traffic, where nothing is known"
    assert moment(schedule, friday_s + DAY_S).said(3.0, 100.0)[0] == 0.0


def test_what_comes_back_comes_on_top_of_what_is_there_and_says_so() -> None:
    """Without a table of staffing, as levels are then by rates alone."""
    calendar = Calendar(MONDAY_S, recurring=(0.0, *[180.0] * 11), present=60.0)
    quiet = seen(0.0, (180, 360, 3600), recent=(60,) * 30, watched_s=100.0)
    _, without = demands(state(NOTHING_HELD), quiet)
    _, found = demands(state(NOTHING_HELD), structs.replace(quiet, calendar=calendar))
    assert found["a"].reason is Reason.RATE_RISING
    assert "240.0/s expected at this time of the week within 3.0 s" in found["a"].detail
    assert found["a"].needed > 2 * without["a"].needed


def test_the_hours_ahead_have_what_half_of_the_days_had_and_what_people_say() -> None:
    schedule = TrafficSchedule((On("2026-11-16 12:00-13:00", traffic=2.0), Every("mon 06:00-06:30", reserve=4.0)))
    calendar = moment(schedule, MONDAY_S + 14 * DAY_S + 1800, weeks(office, 14.0))
    hours = outlook(state().basis, calendar, 24)
    assert [hour.time_s for hour in hours] == [MONDAY_S + 14 * DAY_S + 3600 * n for n in range(24)]
    expected = [2.0 * 80 if n == 12 else 80.0 if 9 <= n < 17 else 20.0 for n in range(24)]
    assert [hour.rate for hour in hours] == pytest.approx(expected, rel=0.02)
    assert hours[12].words == "'2026-11-16 12:00-13:00'"
    replicas = [hour.replicas["a"] for hour in hours]
    assert replicas[9] < replicas[12] < replicas[6], "reserve counts as multiples of the plan"
    for hour in hours:
        assert hour.cost_per_hour == pytest.approx(sum(hour.replicas.values()) * 1.0)
    unknown = outlook(state().basis, moment(TrafficSchedule(), MONDAY_S), 1)[0]
    assert (unknown.rate, unknown.replicas) == (None, {"a": 2, "b": 3})
    assert math.isfinite(unknown.cost_per_hour)


def test_the_hours_ahead_have_no_replica_of_what_sleeps_where_nothing_comes_and_nobody_holds_any() -> None:
    known = weeks(lambda hour, _: 40.0 if 9 <= hour < 17 else 0.0, 14)
    held = TrafficSchedule((On("2026-11-16 03:00-04:00", reserve=1.0), On("2026-11-16 05:00-06:00", traffic=3.0)))
    calendar = Calendar(MONDAY_S + 14 * DAY_S, held, known)
    basis = replace(state().basis, idle={"b": Idle(900.0)})
    hours = outlook(basis, calendar, 12)
    assert [n for n, hour in enumerate(hours) if hour.replicas["b"]] == [3, 9, 10, 11]
    assert all(hour.replicas["a"] for hour in hours)
    assert hours[0].cost_per_hour == hours[0].replicas["a"] * 1.0
