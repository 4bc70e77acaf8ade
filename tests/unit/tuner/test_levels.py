"""A late event is worth what the plan shows by the replicas that it has and by those that it does not have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.tuner.late_shares import RATES
from inferline_stream.tuner.levels import Price, cheapest
from tests.unit.tuner.test_odds import EVENT, LEVELS, record

PRICE = Price(0.001, 0.009, 0.0, 0.99)
FREE = Price(0.0, np.inf, 0.0, 0.99)


@pytest.mark.parametrize(
    ("share", "allowed", "beyond"),
    [(0.01, 0.003, 0.009), (0.02, 0.0015, 0.009), (0.072, 0.001, 0.009), (0.005, 0.006, 0.018), (1e-6, 0.009, 0.0648)],
)
def test_a_late_event_costs_the_more_the_smaller_the_share_that_is_left(share, allowed, beyond):
    """In the middle of what the plan shows at first, within it for what is allowed, and at most 7.2 times beyond."""
    assert PRICE.allowed(share) == pytest.approx(allowed)
    assert PRICE.beyond(share) == pytest.approx(beyond)


def test_where_the_plan_is_cheapest_at_no_price_the_lower_one_counts_until_the_budget_is_spent():
    crossed = Price(0.009, 0.001, 0.0, 0.99)
    assert [crossed.allowed(share) for share in (0.02, 0.01, 0.002, 1e-6)] == pytest.approx(
        [0.001, 0.001, 0.005, 0.009]
    )
    assert crossed.beyond(0.01) == pytest.approx(0.009)


def test_what_would_page_somebody_costs_the_most_and_what_the_plan_leaves_late_does_not():
    late = np.array([0.0, 0.05, 0.072, 0.172])
    assert PRICE.of(late, 0.01) == pytest.approx([0.0, 0.05 * 0.003, 0.072 * 0.003, 0.072 * 0.003 + 0.1 * 0.009])
    assert replace(PRICE, late=0.2).of(late, 0.01) == pytest.approx(late * 0.003)


def test_the_plan_is_the_cheapest_for_its_sample_at_each_price_that_it_shows_and_at_no_other():
    known = record([(1.0, float(came)) for came in np.random.default_rng(1).lognormal(-0.25, 0.3, 2000)])
    shown = replace(LEVELS, price=FREE).shown(1, known.came)
    assert 0 < shown.least < shown.most < np.inf
    assert shown.late == pytest.approx(np.maximum(known.came - 1.0, 0.0).mean(), rel=0.02)
    for price, multiple in (
        (shown.least * 0.99, 0.5),
        (shown.least * 1.01, 1.0),
        (shown.most * 0.99, 1.0),
        (shown.most * 1.01, 1.5),
    ):
        one_price = replace(LEVELS, price=Price(price, price, 0.0, 0.99))
        assert cheapest(one_price, known, 1.0, 6.0, 0.01).multiple == multiple


def test_to_serve_none_is_never_cheaper_and_no_late_event_costs_more_than_all_that_may_be():
    """One replica of each stage that is never late shows nothing."""
    alone = replace(LEVELS, price=Price(EVENT, 100 * EVENT, 0.0, 0.99))
    assert alone.shown(0, np.full(100, 0.4)) == Price(EVENT, 100 * EVENT, 0.0, 0.99)


def test_a_replica_that_makes_hardly_anything_late_if_it_goes_makes_no_late_event_dear():
    """The planner keeps it, where without it the objective is missed by a hair."""
    known = record([(1.0, 0.9)] * 1000)
    late = np.zeros_like(LEVELS.late)
    late[0], late[1], late[2] = 0.0101, 0.01, 0.002
    shown = replace(LEVELS, late=late, price=Price(EVENT, 100 * EVENT, 0.0, 0.99)).shown(1, known.came)
    assert (shown.least, shown.most) == (pytest.approx(100 * EVENT), pytest.approx(2 / 3600 / 100 / 0.008))
    assert shown.allowed(0.01) == pytest.approx(shown.most)


def test_what_is_held_makes_late_what_comes_beyond_it():
    held, came = np.array([0, 1, 1]), np.array([1.0, 1.0, 2.0])
    assert LEVELS.late_with(held, came) == pytest.approx((0.5 + 0.0 + 1.0) / 4, rel=0.03)


def test_a_rate_beyond_all_that_are_known_is_as_late_as_the_highest():
    beyond = LEVELS.late_share(np.array([2 * RATES[-1]]))
    assert beyond == pytest.approx(LEVELS.late[:, -1])
    assert np.all(beyond > LEVELS.late[:, -2])
