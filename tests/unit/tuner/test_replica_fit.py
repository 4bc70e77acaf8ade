"""Replicas of several kinds for a throughput: what is added, and what goes first."""

from __future__ import annotations

import pytest

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.plan_basis import Kind, StageBasis
from inferline_stream.tuner.replica_fit import fewer, more, supply, within

SPEEDS = {"small": 10.0, "large": 100.0}


def stage(**options: int) -> StageBasis:
    """Three small ones that do 10/s each, and a large one that does 100/s: 32.5/s on average."""
    kinds = tuple(
        Kind(name, planned, 4, throughput, 0.1, price, 1.0, 1)
        for name, planned, throughput, price in (("small", 3, 10.0, 1.0), ("large", 1, 100.0, 6.0))
    )
    return StageBasis("s", kinds, 1.0, **options)  # type: ignore[arg-type]


def added(needed: float, held: dict[str, int] | None = None, **how: object) -> tuple[dict[str, int], Reason | None]:
    found = more(stage(), held or {}, SPEEDS, needed, **{"stock": {}, **how})  # type: ignore[arg-type]
    return found.replicas, found.short


@pytest.mark.parametrize(
    ("needed", "small", "large"),
    [(0.0, 0, 0), (32.5, 1, 0), (97.6, 3, 1), (130.0, 3, 1), (130.1, 4, 1), (260.0, 6, 2), (1300.0, 30, 10)],
)
def test_there_are_as_many_as_the_need_takes_of_the_mean_and_they_are_mixed_as_the_plan_is(needed, small, large):
    """Also where the large ones would close the gap for less: the plan was verified with its mixture alone."""
    assert added(needed) == ({"small": small, "large": large}, None)


def test_what_is_held_counts_and_the_kind_with_the_fewest_for_its_share_comes_next():
    assert added(130.0, {"small": 8}) == ({"small": 8, "large": 1}, None)
    assert added(260.0, {"large": 2}) == ({"small": 6, "large": 2}, None)
    assert added(130.0, {"large": 2}) == ({"small": 0, "large": 2}, None)


def test_stock_and_limits_end_it_and_say_why():
    assert added(260.0, stock={"large": 1}) == ({"small": 16, "large": 1}, None)
    assert added(260.0, stock={"large": 1, "small": 4}) == ({"small": 4, "large": 1}, Reason.STOCK_EXHAUSTED)
    assert added(260.0, maximum=4) == ({"small": 3, "large": 1}, Reason.LIMIT_CHANGED)
    assert added(130.0, maximum=4) == ({"small": 3, "large": 1}, None)


def test_a_server_of_somebody_else_has_as_many_replicas_as_it_has():
    found = more(stage(most_replicas=1), {}, SPEEDS, 500.0, stock={})
    assert (found.replicas, found.short) == ({"small": 1, "large": 0}, Reason.SERVER_LIMIT)


def test_a_kind_that_does_nothing_just_now_is_not_added():
    found = more(stage(), {}, {"small": 10.0, "large": 0.0}, 60.0, stock={})
    assert found.replicas == {"small": 6, "large": 0}
    assert within(stage(), found.replicas, {"small": 10.0, "large": 0.0}, minimum=8, maximum=None, stock={}) == {
        "small": 8,
        "large": 0,
    }


def test_the_kind_with_the_most_for_its_share_is_given_back_first_and_the_rest_still_suffices():
    held = {"small": 6, "large": 2}
    assert fewer(stage(), held, SPEEDS, 260.0) == held
    assert fewer(stage(), held, SPEEDS, 227.6) == held
    assert fewer(stage(), held, SPEEDS, 227.5) == {"small": 5, "large": 2}
    assert fewer(stage(), held, SPEEDS, 130.0) == {"small": 3, "large": 1}
    assert fewer(stage(), {"small": 9, "large": 2}, SPEEDS, 260.0) == held
    assert fewer(stage(), held, SPEEDS, 0.0) == {"small": 1, "large": 0}
    assert fewer(stage(), held, SPEEDS, 0.0, minimum=3) == {"small": 2, "large": 1}


def test_a_kind_that_stands_still_is_given_back_first():
    assert fewer(stage(), {"small": 1, "large": 1}, {"small": 10.0, "large": 0.0}, 10.0) == {"small": 1, "large": 0}


def test_limits_are_kept_by_the_plans_mixture():
    def between(held: dict[str, int], minimum: int, maximum: int | None, **stock: int) -> dict[str, int]:
        return within(stage(), held, SPEEDS, minimum=minimum, maximum=maximum, stock=stock)

    held = {"small": 3, "large": 1}
    assert between(held, 1, None) == held
    assert between(held, 4, 4) == held
    assert between(held, 8, None) == {"small": 6, "large": 2}
    assert between(held, 8, None, small=1) == {"small": 4, "large": 4}
    assert between(held, 8, None, small=1, large=2) == {"small": 4, "large": 3}
    assert between({"small": 6, "large": 2}, 0, 4) == held
    assert between(held, 0, 1) == {"small": 1, "large": 0}
    assert between(held, 0, 0) == {"small": 0, "large": 0}


def test_where_no_replica_is_planned_the_kinds_take_turns():
    kinds = tuple(Kind(name, 0, 4, 10.0, 0.1, 1.0, 1.0, 1) for name in ("x", "y"))
    assert more(StageBasis("s", kinds, 0.0), {}, {"x": 10.0, "y": 10.0}, 40.0, stock={}).replicas == {"x": 2, "y": 2}


def test_a_stage_of_one_kind_has_no_mixture():
    only = StageBasis("s", (Kind("x", 1, 4, 10.0, 0.1, 1.0, 1.0, 1),), 1.0)
    assert fewer(only, {"x": 5}, {"x": 0.0}, 0.0) == {"x": 1}
    assert within(only, {"x": 0}, {"x": 10.0}, minimum=2, maximum=None, stock={}) == {"x": 2}


def test_supply_adds_up():
    assert supply({"small": 3, "large": 2}, SPEEDS) == 230.0
