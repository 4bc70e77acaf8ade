"""The level that is held is the cheapest by the odds of the record and the price that the plan shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.tuner.calendar import Calendar
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.group_changes import GroupBasis
from inferline_stream.tuner.late_shares import RATES, without_waiting
from inferline_stream.tuner.levels import Levels, Price, cheapest
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.odds import LONGEST_S, TrafficRecord, record_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import TunerState, staffed
from tests.unit.tuner.plans import seen, smooth, state

EVENT = 4 / 3600 / 100
"""Dollars of an event: $4 an hour carry 100/s."""


def levels(multiples: list[float], costs: list[float], price: Price) -> Levels:
    """Replicas that serve what they carry and not an event more."""
    late = [without_waiting(multiple).at(RATES) * RATES for multiple in multiples]
    return Levels(np.array(multiples), np.array(costs), np.array(late), 100.0, price)


LEVELS = levels([0.5, 1.0, 1.5, 2.0], [2.0, 4.0, 6.0, 8.0], Price(EVENT, 10_000 * EVENT, 0.0, 0.99))
"""A late event costs a hundred times what an event does, where 1 % may be late."""


def record(pairs: list[tuple[float, float]], rate: float = 100.0) -> TrafficRecord:
    said, came = np.array(sorted(pairs, key=lambda pair: pair[0])).T
    return TrafficRecord(rate, said, came, np.full(said.size, -math.inf))


@pytest.mark.parametrize("share", [0.0, 0.005, 0.009, 0.011, 0.02, 0.5])
def test_a_leap_is_held_for_once_its_odds_exceed_the_share_that_may_be_late(share):
    """One level more costs $2, and saves half the planned events at odds p, $400 an hour if all were late: p > 1 %."""
    leaps = round(1000 * share)
    known = record([(0.9, 1.5)] * leaps + [(0.9, 0.9)] * (1000 - leaps))
    assert cheapest(LEVELS, known, 0.9, 6.0, 0.01).multiple == (1.5 if share > 0.01 else 1.0)


@pytest.mark.parametrize(("rate", "at_once"), [(54.0, False), (58.0, True)])
def test_within_a_second_a_level_is_chosen_again_where_over_a_tenth_more_is_expected(
    rate: float, at_once: bool
) -> None:
    tuner = watched(record([(0.5, 0.5)] * 500 + [(0.6, 0.6)] * 500), [50.0] * 3)
    tuner, _ = demands(tuner, moment(3.0, 50.0))
    assert tuner.choice is not None
    again, _ = demands(tuner, moment(3.5, rate))
    assert again.choice is not None
    assert (again.choice.expected > 0.55) is at_once


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_level_that_costs_least_with_what_was_late_of_moments_like_this_one(seed):
    rng = np.random.default_rng([seed, 42])
    pairs = [(float(s), float(s * rng.lognormal(0, 0.2))) for s in rng.uniform(0.3, 2.0, 10_000)]
    expected = float(rng.uniform(0.4, 1.9))
    near = [came for said, came in pairs if 0.9 * expected <= said < 1.1 * expected]
    one_price = replace(LEVELS, price=Price(100 * EVENT, 100 * EVENT, 0.0, 0.99))
    cost = {
        level: dollars + 4 / 0.01 * sum(max(came - level, 0.0) for came in near) / len(near)
        for level, dollars in zip(LEVELS.multiples.tolist(), LEVELS.cost_per_hour.tolist(), strict=True)
    }
    found = cheapest(one_price, record(pairs), expected, 1.0, 0.01)
    assert cost[found.multiple] <= min(cost.values()) * 1.01, "rates are looked up at steps of 2 %"
    assert found.late == pytest.approx(sum(max(came - found.multiple, 0.0) for came in near) / len(near), abs=0.002)


def test_what_is_expected_counts_beyond_the_most_that_was_said_before_and_no_more():
    """The forecaster has often said 1.2, and no more than 1 came: 1.2 is no news, and 2.4 is 1.2 more."""
    known = record([(1.0 + 0.2 * (i % 2), 1.0) for i in range(400)])
    assert cheapest(LEVELS, known, 1.2, 6.0, 0.01).multiple == 1.0
    assert cheapest(LEVELS, known, 2.3, 6.0, 0.01).multiple == 2.0
    assert known.alike(2.4, 6.0).max() == pytest.approx(2.2)
    assert known.alike(0.5, 6.0).max() == pytest.approx(0.5)


def test_beyond_the_record_its_leaps_are_as_large_as_they_were() -> None:
    """From a tenth of the mean rate it once leapt to 1.1 times: from 0.6 it may leap to 1.6, not to 6.6."""
    known = record([(0.1, 0.1)] * 390 + [(0.1, 1.1)] * 10)
    assert known.alike(0.6, 6.0).max() == pytest.approx(1.6)
    assert known.alike(0.6, 6.0).min() == pytest.approx(0.6)
    assert known.alike(0.0, 6.0).min() == 0.0
    assert record([(1.0, 0.2)] * 400).alike(0.5, 6.0).min() == 0.0, "no rate is below none"


def test_such_traffic_is_known_once_its_moments_show_odds_in_the_sample_or_live() -> None:
    """Of six seconds' lead and thirty that are looked back at, five are 180 s."""
    known = record([(1.0, 1.0)] * 1000)
    assert known.knows(1.05, 6.0)
    assert not known.knows(1.8, 6.0)
    for second in range(179):
        known = known.with_pair(1.8, 1.8, float(second))
    assert not known.knows(1.8, 6.0)
    assert known.with_pair(1.8, 1.8, 180.0).knows(1.8, 6.0)
    assert replace(known, every_s=2).knows(1.8, 6.0)


@pytest.mark.parametrize(("moments", "known"), [(0, False), (164, False), (165, True)])
def test_beyond_the_sample_a_forecast_counts_in_full_until_such_traffic_is_known(moments: int, known: bool) -> None:
    """185/s come, 1.85 times the plan, and 199/s are likely: replicas for 1.9 times it would do by the odds."""
    pairs = [(1.0, 1.0)] * 1000 + [(1.8, 1.8)] * moments
    supply = {"a": (100.0, 200.0, 300.0, 380.0), "b": (75.0, 150.0, 225.0, 285.0)}
    table = Staffing((0.5, 1.0, 1.5, 1.9), supply, 100.0, record(pairs))
    tuner = staffed(smooth(PolicySettings(insurance=(), beginning_s=60.0)), table)
    noisy = (160, 200) * 12 + (190, 200, 205, 210, 215, 220)
    now = seen(500.0, (400, 1100, 11_000), peak_rate=185.0, recent=noisy, watched_s=500.0)
    tuner, needed = demands(structs.replace(tuner, outgrown_s=0.0), now)
    assert (needed["a"].needed <= 380.0) is known
    assert ("198.6/s expected" in needed["a"].detail) is not known
    assert (tuner.outgrown_s < 500.0) is known, "where odds are known, no beginning is insured"


def priced(tuner: TunerState, price: Price) -> TunerState:
    """The state with another price of a late event than the one that its plan shows."""
    assert tuner.basis.levels is not None
    basis = replace(tuner.basis)
    object.__setattr__(basis, "levels", replace(tuner.basis.levels, price=price))
    return structs.replace(tuner, basis=basis)


@pytest.mark.parametrize(("left", "level"), [(None, 1.5), (0.01, 1.5), (0.03, 1.0), (0.001, 1.5)])
def test_what_is_left_of_the_window_prices_late_events(left, level):
    """Of 1000 moments 20 were followed by half more. At 2 % odds it is held where fewer may be late, not where more."""
    known = record([(0.9, 1.5)] * 20 + [(0.9, 0.9)] * 980)
    tuner = staffed(state(PLAIN), Staffing((0.5, 1.0, 1.5, 2.0), SUPPLY, 100.0, known))
    tuner = priced(tuner, LEVELS.price)
    tuner, _ = demands(tuner, structs.replace(moment(5.0, 90.0), late_share=left))
    assert tuner.choice is not None
    assert tuner.choice.multiple == level
    assert tuner.choice.price == pytest.approx(EVENT / (left or 0.01))


@pytest.mark.parametrize(("left", "own", "level"), [(0.01, 0.0, 1.0), (0.005, 0.0, 1.5), (0.005, 0.005, 1.0)])
def test_the_less_is_left_the_dearer_is_a_risk_that_the_plan_does_not_take(
    left: float, own: float, level: float
) -> None:
    """At 1 % odds of half more, half a percent is late. Replicas for it pay from 100 times an event's cost on."""
    known = record([(0.9, 1.5)] * 10 + [(0.9, 0.9)] * 990)
    shown = replace(LEVELS, price=Price(80 * EVENT, 80 * EVENT, own, 0.99))
    assert cheapest(shown, known, 0.9, 6.0, left).multiple == level


def test_what_the_plan_makes_late_itself_is_said_at_the_price_that_the_plan_shows() -> None:
    known = record([(0.9, 1.5)] * 10 + [(0.9, 0.9)] * 990)
    own = float(LEVELS.late_share(known.came)[1])
    shown = replace(LEVELS, price=Price(80 * EVENT, 80 * EVENT, own, 0.99))
    choice = cheapest(shown, known, 0.9, 6.0, 0.005)
    assert (choice.multiple, choice.late) == (1.0, own)
    assert choice.price == pytest.approx(80 * EVENT)
    assert shown.price.risked(0.005) == pytest.approx(160 * EVENT)


def test_moments_that_share_one_past_or_one_future_are_no_odds():
    """Of 400 moments like this one none leapt, of others each tenth did: 400 s hold eleven of 35 s, three of 120 s."""
    known = record([(0.5, 0.5)] * 400 + [(1.0, 1.5 if i % 10 == 0 else 1.0) for i in range(900)])
    assert cheapest(LEVELS, known, 0.5, 5.0, 0.01).multiple == 0.5
    assert cheapest(LEVELS, known, 0.5, 90.0, 0.01).multiple == 1.5


def test_the_samples_record_is_what_was_usual_each_second_and_what_came_one_lead_later():
    sample = gamma_trace(100.0, 1.0, 600.0, np.random.default_rng(3))
    known = record_of(sample, 100.0, 6.0, 0.99)
    assert known is not None
    counts = np.bincount(sample.arrivals_s.astype(int))
    means = [counts[max(0, i - 30) : i].mean() / 100 for i in range(5, 594)]
    rates = [counts[i + 1 : i + 6].sum() / 5 / 100 for i in range(5, 594)]
    order = np.argsort(known.expected, kind="stable")
    assert np.median(known.expected) == pytest.approx(np.median(means), rel=0.002)
    assert np.all(np.sort(means) <= known.expected[order] + 1e-9), "a sure rise is more"
    assert np.sort(known.came) == pytest.approx(np.sort(rates))
    assert record_of(Trace(sample.arrivals_s[:1500]), 100.0, 6.0, 0.99) is None


def test_where_replicas_start_slowly_moments_are_thinned_to_thirty_a_lead() -> None:
    sample = gamma_trace(100.0, 1.0, 2400.0, np.random.default_rng(3))
    slow, quick = record_of(sample, 100.0, 300.0, 0.99), record_of(sample, 100.0, 6.0, 0.99)
    assert slow is not None
    assert quick is not None
    assert (slow.every_s, quick.every_s) == (10, 1)
    assert slow.came.size == pytest.approx((quick.came.size - 294) / 10, abs=1)
    thinned = replace(quick, every_s=10)
    added = [watched(known, [60.0] * 60).record.came.size - known.came.size for known in (quick, thinned)]
    assert added[1] == pytest.approx(added[0] / 10, abs=1)


SUPPLY = {"a": (100.0, 200.0, 300.0, 400.0), "b": (75.0, 150.0, 225.0, 300.0)}
PLAIN = PolicySettings(insurance=(), beginning_s=0.0)


def watched(known: TrafficRecord, rates: list[float], *, step_s: float = 0.5) -> TunerState:
    """The state after so many seconds at these rates."""
    tuner = staffed(state(PLAIN), Staffing((0.5, 1.0, 1.5, 2.0), SUPPLY, 100.0, known))
    for tick in range(round(len(rates) / step_s)):
        tuner, _ = demands(tuner, moment(tick * step_s, rates[int(tick * step_s)]))
    return tuner


def moment(time_s: float, rate: float) -> Observation:
    return seen(time_s, (int(rate), int(rate), int(rate)), peak_rate=rate, recent=(int(rate),) * 30)


def test_each_second_adds_what_came_of_what_was_expected_one_lead_before():
    """Replicas take 2 s to start and 1 s to work."""
    known = record([(0.9, 0.9)] * 50)
    tuner = watched(known, [50.0] * 10 + [80.0] * 10)
    assert tuner.record is not None
    live = tuner.record.since_s >= 0
    added = [*zip(tuner.record.expected[live], tuner.record.came[live], strict=True)]
    assert len(added) == 20 - 3
    assert sum(came == pytest.approx(0.8) and said < 0.6 for said, came in added) == 3


def test_the_policy_holds_what_the_odds_ask_for_and_says_so_in_numbers():
    known = record([(0.5, 1.4)] * 30 + [(0.5, 0.5)] * 970)
    tuner = priced(structs.replace(watched(known, [50.0] * 2), choice=None), LEVELS.price)
    _, needed = demands(tuner, moment(2.0, 50.0))
    assert needed["a"].needed == 300.0
    assert needed["a"].reason is Reason.INSURANCE
    for number in ("0.50 times", "within 3.0 s", "0.00% is late with replicas for 1.50 times", "$0.0011 each", "1.00%"):
        assert number in needed["a"].detail
    calm = record([(0.5, 0.5)] * 1000)
    _, needed = demands(watched(calm, [50.0] * 2), moment(2.0, 50.0))
    assert needed["a"].needed == 100.0


@pytest.mark.parametrize(("visits", "supply"), [(0.5, 150.0), (0.8, 150.0), (1.0, 225.0)])
def test_more_visits_ask_for_more_than_a_level_once_it_cannot_carry_them(visits: float, supply: float) -> None:
    """Stage b is planned for 0.5 visits. A level for 1.0, as the one below it carries 0.5, is in use for 0.6: it has
    room for 1.6 times as many visits of that, and none for twice.
    """
    tuner = watched(record([(0.6, 0.6)] * 1000), [60.0] * 2)
    now = moment(2.0, 60.0)
    stages = {**now.stages, "b": structs.replace(now.stages["b"], visit_ratio=visits)}
    _, found = demands(tuner, structs.replace(now, stages=stages))
    assert found["b"].needed == supply
    assert (found["b"].reason is Reason.VISIT_RATIO_SHIFTED) == (visits == 1.0)


def test_replicas_that_the_odds_ask_for_are_needed_for_more_than_the_level_below_carries() -> None:
    chosen = cheapest(LEVELS, record([(0.3, 0.9)] * 1000), 0.3, 6.0, 0.01)
    assert (chosen.multiple, chosen.least) == (1.0, 0.5)
    beyond = cheapest(LEVELS, record([(3.0, 3.0)] * 1000), 3.0, 6.0, 0.01)
    assert (beyond.multiple, beyond.least) == (2.0, 2.0)


def test_more_visits_count_on_what_has_arrived_where_that_is_beyond_the_level_below() -> None:
    """1.3 times as many of what has come, 1.2 times the plan, are more than a level for 1.5 carries."""
    tuner = priced(structs.replace(watched(record([(0.9, 1.5)] * 1000), [90.0] * 2), choice=None), LEVELS.price)
    now = seen(2.0, (360, 600, 6000), peak_rate=90.0, recent=(90,) * 30)
    stages = {**now.stages, "b": structs.replace(now.stages["b"], visit_ratio=0.65)}
    tuner, found = demands(tuner, structs.replace(now, stages=stages))
    assert tuner.choice is not None
    assert (tuner.choice.multiple, tuner.choice.least) == (1.5, 1.0)
    assert found["b"].needed == 300.0


def test_a_level_is_insurance_where_it_is_more_than_is_expected():
    calm = record([(0.5, 0.5)] * 1000)
    chosen = watched(calm, [50.0] * 2).choice
    assert chosen is not None
    for more, reason in ((0.0, Reason.RATE_RISING), (0.001, Reason.INSURANCE)):
        table = Staffing((chosen.expected + more, 1.0, 1.5, 2.0), SUPPLY, 100.0, calm)
        tuner, needed = demands(staffed(state(PLAIN), table), moment(2.0, 50.0))
        assert tuner.choice is not None
        assert tuner.choice.expected == chosen.expected
        assert needed["a"].reason is reason


def test_a_leap_is_more_than_was_expected_by_a_tenth_and_by_no_chance():
    """At 100/s five seconds have 500 events, and chance makes 4 · √500 = 89 of them."""
    known = record([(1.0, 1.0)])
    assert known.leapt(0.8, 1.0)
    assert not known.leapt(0.83, 1.0)
    assert not replace(known, dispersion=4.0).leapt(0.8, 1.0)
    assert not replace(known, rate=1e6).leapt(0.92, 1.0)
    assert replace(known, rate=1e6).leapt(0.9, 1.0)


def test_steady_samples_leap_nowhere_and_one_that_doubles_at_once_does():
    for cv in (4.0, 1.0):
        sample = gamma_trace(150.0, cv, 600.0, np.random.default_rng(1))
        known = record_of(sample, 150.0, 6.0, 0.99)
        assert known is not None
        assert not known.leaps
    twice = Trace(
        np.concatenate([sample.arrivals_s[:45_000], sample.arrivals_s[44_999] + sample.arrivals_s[:45_000] / 2])
    )
    leaping = record_of(twice, 150.0, 6.0, 0.99)
    assert leaping is not None
    assert leaping.leaps


@pytest.mark.parametrize(("rate", "level", "held"), [(30.0, 100.0, 250.0), (80.0, 200.0, 300.0)])
def test_after_a_leap_as_much_again_is_held_for_half_an_hour_and_no_more_than_in_a_beginning(
    rate: float, level: float, held: float
) -> None:
    """2.5 times what the level carries, half the planned traffic or all of it; 300 are held in a beginning."""
    knobs = PolicySettings(insurance=((2.5, 0.25),), beginning_s=0.0)
    supply = {"a": (100.0, 200.0, 250.0, 300.0), "b": (75.0, 150.0, 190.0, 225.0)}
    calm = record([(rate / 100, rate / 100)] * 1000)

    def needed(known: TrafficRecord, time_s: float) -> float:
        tuner = staffed(state(knobs), Staffing((0.5, 1.0, 1.25, 1.5), supply, 100.0, known))
        tuner, _ = demands(tuner, moment(0.0, rate))
        return demands(tuner, moment(time_s, rate))[1]["a"].needed

    assert needed(calm, 10.0) == level
    assert needed(replace(calm, leaps=True), 1799.0) == held
    assert needed(replace(calm, leaps=True), 1800.0) == level


def test_after_a_leap_of_the_sample_a_beginnings_reserve_is_held_until_a_level_is_chosen():
    knobs = PolicySettings(insurance=((2.5, 0.25),), beginning_s=0.0)
    leaping = replace(record([(0.3, 0.3)] * 1000), leaps=True)
    tuner = staffed(state(knobs), Staffing((0.5, 1.0, 1.5, 2.0), SUPPLY, 100.0, leaping))
    tuner, found = demands(tuner, structs.replace(moment(1.0, 30.0), watched_s=1.0))
    assert (tuner.choice, found["a"].needed) == (None, 300.0)


def test_of_fewer_seconds_than_a_rate_takes_the_record_says_nothing():
    tuner = staffed(state(), Staffing((0.5, 1.0, 1.5, 2.0), SUPPLY, 100.0, record([(0.9, 0.9)] * 1000)))
    batch = (0,) * 29 + (800,)
    early, _ = demands(tuner, structs.replace(moment(1.0, 90.0), recent=batch, watched_s=4.9))
    assert early.choice is None
    later, _ = demands(early, structs.replace(moment(5.0, 90.0), recent=batch, watched_s=5.0))
    assert later.choice is not None


def followed(moments: list[tuple[float, float]], of: Levels = LEVELS, *, fallen: bool = False) -> list[float]:
    """The level each second, by rates, and odds of 1.5 times the plan in place of these. A start takes six seconds."""
    chosen, found = None, []
    for rate, odds in moments:
        leaps = round(1000 * odds)
        known = record([(rate, 1.5)] * leaps + [(rate, rate)] * (1000 - leaps))
        chosen = cheapest(of, known, rate, 6.0, 0.01, held=chosen, held_s=1.0, fallen=fallen)
        found.append(chosen.multiple)
    return found


def test_fewer_are_held_once_they_would_have_saved_what_starting_the_others_again_costs() -> None:
    """Six seconds of their start, and the minute that is billed at least: until then, they may be of use again."""
    assert followed([(1.9, 0)] + [(0.9, 0)] * 70) == [2.0] * 66 + [1.0] * 5
    assert followed([(0.9, 0), *[(1.4, 0)] * 30, *[(0.9, 0)] * 30] * 3) == [1.0] + [1.5] * 182
    assert followed([(1.9, 0)] * 100 + [(0.9, 0)] * 70).index(1.0) == 99 + 66, "however long they were of use"
    assert followed([(1.9, 0)] + [(0.9, 0)] * 10, fallen=True) == [2.0] * 6 + [1.0] * 5, "chance brings none back"
    fallen = followed([(1.9, 0)] + [(0.9, 0)] * 40 + [(0.4, 0)] * 100)
    assert [fallen.index(level) for level in (1.0, 0.5)] == [66, 132]


def test_what_two_lower_levels_save_counts_for_the_second_beyond_what_the_first_saves() -> None:
    """Of two levels less, $4 for 66 s are due to the first. Of three, $6 for 56 s leave $72, and $132 are asked for."""
    fallen = followed([(1.9, 0)] + [(0.9, 0)] * 10 + [(0.4, 0)] * 100)
    assert [fallen.index(level) for level in (1.0, 0.5)] == [66, 66 + (132 - 72) // 2]


def test_what_fewer_would_have_saved_before_replicas_were_added_does_not_count() -> None:
    found = followed([(0.9, 0)] + [(0.4, 0)] * 60 + [(0.4, 0.021)] + [(0.4, 0)] * 70)
    assert found[60:62] == [1.0, 1.5]
    assert found.index(0.5) == 61 + 66


def test_replicas_that_cost_no_more_are_none_that_were_added() -> None:
    """As on a device that replicas share. Odds of one in a thousand come and go: then one replica more is better."""
    shared = replace(LEVELS, cost_per_hour=np.array([2.0, 4.0, 4.0, 8.0]))
    found = followed([(0.9, 0)] + [(0.4, 0), (0.4, 0.001)] * 50, shared)
    assert found[1:5] == [1.0, 1.5, 1.0, 1.5]
    assert 66 <= found.index(0.5) <= 80


@pytest.mark.parametrize("step_s", [0.5, 3.0])
def test_a_level_changes_as_soon_however_often_the_policy_is_asked(step_s: float) -> None:
    """Replicas start in 2 s and work a second later: 63 s after the rate has fallen."""
    known = record([(rate, rate) for rate in (0.45, 0.95) for _ in range(1000)])
    for seconds, level in ((90, 1.0), (96, 0.5)):
        choice = watched(known, [95.0] * 30 + [45.0] * (seconds - 30), step_s=step_s).choice
        assert choice is not None
        assert choice.multiple == level


@pytest.mark.parametrize(("quiet_s", "level"), [(None, 1.0), (0.0, 1.0), (180.0, 0.5)])
def test_time_in_which_nothing_was_seen_saves_nothing_and_groups_that_wait_anyway_need_not_save(
    quiet_s: float | None, level: float
) -> None:
    known = record([(rate, rate) for rate in (0.45, 0.95) for _ in range(1000)])
    tuner = watched(known, [95.0] * 30)
    groups = None if quiet_s is None else GroupBasis({}, quiet_s)
    tuner, _ = demands(structs.replace(tuner, basis=replace(tuner.basis, groups=groups)), moment(600.0, 45.0))
    assert tuner.choice is not None
    assert tuner.choice.multiple == level


@pytest.mark.parametrize(("odds", "seconds"), [(0.01, 100), (0.013, 13), (0.016, 3), (0.021, 0)])
def test_more_are_held_once_they_would_save_within_a_start_what_it_costs(odds: float, seconds: int) -> None:
    """One level more costs $2 and saves $200 times the odds. What it has saved before counts as well."""
    assert followed([(0.9, 0.0)] + [(0.9, odds)] * 100).count(1.0) - 1 == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("followed", "leaps"), [(0.5, True), (1.2, False)])
def test_what_moments_like_this_one_were_followed_by_before_is_no_leap(followed: float, leaps: bool) -> None:
    known = record([(0.5, 0.5)] * 999 + [(0.5, followed)])
    tuner = watched(known, [50.0] * 40 + [110.0] * 2)
    assert (tuner.leapt_s > 39.0) is leaps


def test_what_has_arrived_beyond_the_sample_is_served_whatever_the_record_says():
    known = record([(2.0, 0.5)] * 1000)
    _, needed = demands(watched(known, [50.0] * 2), seen(2.0, (450, 600, 6000), recent=(50,) * 30))
    assert needed["a"].needed == 300.0
    assert needed["a"].reason is Reason.ENVELOPE_EXCEEDED


def test_what_was_seen_before_the_clock_jumped_is_no_future_of_what_comes_after():
    from inferline_stream.tuner.input_checks import on_this_clock

    tuner = structs.replace(watched(record([(0.9, 0.9)] * 50), [50.0] * 4), time_s=4.0)
    assert tuner.expected
    moved, _ = on_this_clock(tuner, moment(400.0, 50.0))
    assert moved.expected == ()


@pytest.mark.parametrize("jump_s", [-1e8, 1e6])
def test_a_jump_of_the_clock_neither_keeps_nor_forgets_what_was_recorded(jump_s):
    from inferline_stream.tuner.input_checks import on_this_clock

    known = record([(0.9, 0.9)] * 50).with_pair(0.8, 0.8, 100.0)
    tuner = structs.replace(watched(known, [50.0] * 4), time_s=104.0, record=known)
    moved, _ = on_this_clock(tuner, moment(104.0 + jump_s, 50.0))
    assert moved.record is not None
    assert moved.record.expected.size == 51
    later_s = 104.0 + jump_s + LONGEST_S
    assert moved.record.with_pair(0.7, 0.6, later_s - 6.0).expected.tolist() == [0.7, 0.8] + [0.9] * 50
    assert moved.record.with_pair(0.7, 0.6, later_s).expected.tolist() == [0.7] + [0.9] * 50


@pytest.mark.parametrize(("growth", "level"), [(0.0, 1.5), (0.4, 1.5), (0.9, 2.0)])
def test_what_comes_back_is_the_least_that_a_level_is_chosen_for(growth, level):
    """Every other moment was followed by 1.4 of themselves: what comes back is not put on top of that."""
    known = record([(1.0, 1.0 + 0.4 * (i % 2)) for i in range(1000)])
    assert cheapest(LEVELS, known, 1.0, 6.0, 0.01, growth=growth).multiple == level


def test_what_comes_back_asks_for_a_reserve_in_its_hour_and_in_none_after_it():
    """Twice the traffic for ten seconds, as the calendar has it from one lead before on."""
    known = record([(0.45, 0.45)] * 1000)
    foreseen = Calendar(0.0, recurring=(50.0,) * 12)
    tuner = staffed(state(PLAIN), Staffing((0.5, 1.0, 1.5, 2.0), SUPPLY, 100.0, known))
    needed = []
    for second in range(120):
        rate, calendar = 95.0 if 40 <= second < 50 else 45.0, foreseen if 37 <= second < 47 else None
        tuner, found = demands(tuner, structs.replace(moment(second, rate), calendar=calendar))
        needed.append(found["a"].needed)
    assert needed[36] == needed[119] == 100.0
    assert min(needed[37:40]) == 200.0, "by the table, what the plan carries"
    assert tuner.record is not None
    assert tuner.record.came.max() <= 0.5, "nothing came that nobody had foreseen"
    assert tuner.leapt_s == -math.inf


def test_a_sample_is_as_long_as_its_last_event_is_late():
    assert record_of(Trace([0.0, 1.0, 2.0, 3.0, 60.5]), 1.0, 6.0, 0.99) is not None
    assert record_of(Trace([0.0, 1.0, 2.0, 3.0, 4.5]), 1.0, 6.0, 0.99) is None
