"""Replicas of several kinds for a throughput: what closes a gap for the least money, what is given back first."""

from __future__ import annotations

import pytest

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.plan_basis import Kind, StageBasis
from inferline_stream.tuner.replica_fit import fewer, more, supply, within

SPEEDS = {"small": 10.0, "large": 100.0}


def stage(**options: int) -> StageBasis:
    """Small ones do 10/s for $1, large ones 100/s for $6: 10 and 6 cents per event and second."""
    kinds = tuple(
        Kind(name, 1, 4, throughput, 0.1, price, 1.0, 1)
        for name, throughput, price in (("small", 10.0, 1.0), ("large", 100.0, 6.0))
    )
    return StageBasis("s", kinds, 1.0, **options)  # type: ignore[arg-type]


def added(needed: float, held: dict[str, int] | None = None, **how: object) -> tuple[dict[str, int], Reason | None]:
    found = more(stage(), held or {}, SPEEDS, needed, **{"stock": {}, **how})  # type: ignore[arg-type]
    return found.replicas, found.short


@pytest.mark.parametrize(
    ("needed", "small", "large"), [(0.0, 0, 0), (30.0, 3, 0), (50.0, 5, 0), (60.0, 0, 1), (130.0, 3, 1), (200.0, 0, 2)]
)
def test_a_gap_is_closed_by_the_kind_that_does_so_for_the_least_money(needed, small, large):
    assert added(needed) == ({"small": small, "large": large}, None)


def test_what_is_held_counts_and_stays():
    assert added(120.0, {"large": 1}) == ({"small": 2, "large": 1}, None)
    assert added(50.0, {"large": 1}) == ({"small": 0, "large": 1}, None)


def test_stock_and_limits_end_it_and_say_why():
    assert added(500.0, stock={"large": 2}) == ({"small": 30, "large": 2}, None)
    assert added(500.0, stock={"large": 2, "small": 1}) == ({"small": 1, "large": 2}, Reason.STOCK_EXHAUSTED)
    assert added(500.0, maximum=3) == ({"small": 0, "large": 3}, Reason.LIMIT_CHANGED)
    assert added(300.0, maximum=3) == ({"small": 0, "large": 3}, None)


def test_a_server_of_somebody_else_has_as_many_replicas_as_it_has():
    found = more(stage(most_replicas=1), {}, SPEEDS, 500.0, stock={})
    assert (found.replicas, found.short) == ({"small": 0, "large": 1}, Reason.SERVER_LIMIT)


def test_a_kind_that_does_nothing_just_now_is_not_added():
    found = more(stage(), {}, {"small": 10.0, "large": 0.0}, 60.0, stock={})
    assert found.replicas == {"small": 6, "large": 0}


def test_the_dearest_per_event_is_given_back_first_and_the_rest_still_suffices():
    held = {"small": 4, "large": 2}
    assert fewer(stage(), held, SPEEDS, 240.0) == held
    assert fewer(stage(), held, SPEEDS, 239.0) == held
    assert fewer(stage(), held, SPEEDS, 230.0) == {"small": 3, "large": 2}
    assert fewer(stage(), held, SPEEDS, 200.0) == {"small": 0, "large": 2}
    assert fewer(stage(), held, SPEEDS, 100.0) == {"small": 0, "large": 1}
    assert fewer(stage(), held, SPEEDS, 0.0) == {"small": 0, "large": 1}
    assert fewer(stage(), held, SPEEDS, 0.0, minimum=3) == {"small": 1, "large": 2}


def test_a_kind_that_stands_still_is_the_dearest():
    assert fewer(stage(), {"small": 1, "large": 1}, {"small": 10.0, "large": 0.0}, 10.0) == {"small": 1, "large": 0}


def test_limits_add_the_cheapest_per_event_and_take_the_dearest():
    def between(held: dict[str, int], minimum: int, maximum: int | None, **stock: int) -> dict[str, int]:
        return within(stage(), held, SPEEDS, minimum=minimum, maximum=maximum, stock=stock)

    held = {"small": 2, "large": 2}
    assert between(held, 1, None) == held
    assert between(held, 4, 4) == held
    assert between(held, 6, None) == {"small": 2, "large": 4}
    assert between(held, 6, None, large=1) == {"small": 3, "large": 3}
    assert between(held, 6, None, large=1, small=0) == {"small": 2, "large": 3}
    assert between(held, 0, 3) == {"small": 1, "large": 2}
    assert between(held, 0, 1) == {"small": 0, "large": 1}
    assert between(held, 0, 0) == {"small": 0, "large": 0}


def test_a_stage_of_one_kind_has_no_dearest():
    only = StageBasis("s", (Kind("x", 1, 4, 10.0, 0.1, 1.0, 1.0, 1),), 1.0)
    assert fewer(only, {"x": 5}, {"x": 0.0}, 0.0) == {"x": 1}
    assert within(only, {"x": 0}, {"x": 10.0}, minimum=2, maximum=None, stock={}) == {"x": 2}


def test_supply_adds_up():
    assert supply({"small": 3, "large": 2}, SPEEDS) == 230.0
