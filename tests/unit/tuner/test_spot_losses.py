"""Spot capacity that is taken away: replaced in the same step, not asked for while it is away, and taken back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from msgspec import structs

from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.spot import Spot
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Limits, Observation, Supply
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.spot_losses import AWAY_S
from inferline_stream.tuner.tuner_state import TunerState, initial_state
from tests.unit.tuner.plans import measured, plan, seen

KIND = "x-spot"


def tuner(spot: Spot, on_demand: tuple[int, int] = (0, 1)) -> TunerState:
    """Two replicas of a and three of b, so many of them on demand."""
    kinds = catalogue([Hardware("x", 1.0, spot=spot)])
    held = plan().allocations
    mixed = {
        stage: (Allocation("x", a.max_batch_size, n), Allocation(KIND, a.max_batch_size, a.replicas - n))
        for (stage, (a,)), n in zip(held.items(), on_demand, strict=True)
    }
    lent = measured().with_spot({stage: ["x", KIND] for stage in held})
    return initial_state(replace(plan(), allocations=mixed), lent, kinds)


def counts(state: TunerState) -> dict[str, tuple[int, int]]:
    return {stage: (kinds["x"], kinds[KIND]) for stage, kinds in state.wanted.items()}


def now(time_s: float, state: TunerState, *, leaving: tuple[int, int] = (0, 0), **more: object) -> Observation:
    """What is wanted is ready, and beside it what has got a notice and works on."""
    observed = seen(time_s, **more)  # type: ignore[arg-type]
    stages = {
        stage: structs.replace(
            observed.stages[stage],
            supply={"x": Supply(on_demand), KIND: Supply(spot + leaving[i], leaving=leaving[i])},
        )
        for i, (stage, (on_demand, spot)) in enumerate(counts(state).items())
    }
    return structs.replace(observed, stages=stages)


def begun(spot: Spot) -> TunerState:
    state = tuner(spot)
    for second in range(3):
        state, _ = step(state, now(float(second), state))
    return state


def lost(state: TunerState, time_s: float = 3.0) -> tuple[TunerState, Decision]:
    """Every spot replica gets a notice."""
    there = tuple(spot for _, spot in counts(state).values())
    state, decision = step(state, now(time_s, state, leaving=there))  # type: ignore[arg-type]
    assert decision is not None
    return state, decision


def test_on_demand_replicas_are_asked_for_in_the_step_that_sees_the_notice_and_only_once() -> None:
    state = begun(Spot(0.3))
    assert state.basis.spot.keys() == {KIND}
    before = {stage: sum(both) for stage, both in counts(state).items()}
    there = tuple(spot for _, spot in counts(state).values())
    assert min(there) > 0
    state, decision = lost(state)
    assert (decision.action, decision.reason) == (Action.SCALE_UP, Reason.SPOT_LOST)
    assert "x-spot will be taken within 2m; others are asked for now" in decision.detail
    assert counts(state) == {stage: (total, 0) for stage, total in before.items()}
    for second in range(4, 120):  # the same replicas work on
        state, again = step(state, now(float(second), state, leaving=there))  # type: ignore[arg-type]
        assert again is None or again.reason is not Reason.SPOT_LOST
    assert all(spot == 0 for _, spot in counts(state).values())


def test_a_notice_for_a_replica_that_is_gone_takes_none_away_twice() -> None:
    state, _ = lost(begun(Spot(0.3)))
    wanted = counts(state)
    state, decision = step(state, now(4.0, state, leaving=(99, 99)))
    assert counts(state) == wanted
    assert decision is None


def test_one_of_several_replicas_is_replaced_alone() -> None:
    state = begun(Spot(0.3))
    before = counts(state)
    for second in (3.0, 4.0, 5.0):  # the same notice, three times
        state, _ = step(state, now(second, state, leaving=(1, 0)))
    assert counts(state) == {"a": (before["a"][0] + 1, before["a"][1] - 1), "b": before["b"]}


def test_it_is_not_asked_for_while_it_is_away_and_then_takes_its_part_back() -> None:
    state, _ = lost(begun(Spot(0.3)))
    held = counts(state)
    back_s = 3.0 + 120.0 + AWAY_S
    state = structs.replace(state, time_s=back_s - 200.1)
    state, _ = step(state, now(back_s - 200.0, state, envelope=(900, 1800, 18000)))
    assert all(spot == 0 for _, spot in counts(state).values()), "a leap is served on demand"
    assert sum(counts(state)["a"]) > sum(held["a"])
    reasons = []
    for second in range(-199, 400):
        at_s = back_s + second
        state, decision = step(structs.replace(state, time_s=at_s - 1.0), now(at_s, state))
        if decision is not None:
            reasons.append(decision.reason)
    assert Reason.SPOT_BACK in reasons
    on_demand, spot = counts(state)["a"]
    assert (on_demand, spot > 0) == (0, True), "what stood in for it has gone"


@pytest.mark.parametrize("held", [0, 1])
def test_what_is_away_is_not_asked_for_by_who_has_not_seen_the_notice(held: int) -> None:
    """A controller that has taken over, and stages that slept."""
    state = begun(Spot(0.3))
    state = structs.replace(state, wanted={stage: {"x": held, KIND: 0} for stage in state.wanted})
    for now_s in (3.0, 4.0):
        leap = now(now_s, state, envelope=(900, 1800, 18000))
        state, _ = step(state, structs.replace(leap, away_until_s={KIND: 5.0}))
    assert [(on_demand > 1, spot) for on_demand, spot in counts(state).values()] == [(True, 0)] * 2
    state, decision = step(state, now(5.0, state, envelope=(900, 1800, 18000)))
    assert decision is not None
    assert decision.reason is Reason.SPOT_BACK


def back(state: TunerState, **more: object) -> tuple[TunerState, list[Decision]]:
    """The step in which what was taken at second 3 is asked for again, under a leap that has gone on since."""
    back_s, found = 3.0 + 120.0 + AWAY_S, []
    for second in (-0.2, -0.1, 0.0, 0.1):
        leap = now(back_s + second, state, envelope=(900, 1800, 18000))
        state, decision = step(structs.replace(state, time_s=leap.time_s - 0.1), structs.replace(leap, **more))  # type: ignore[arg-type]
        found += [decision] if decision is not None else []
    return state, found


def test_no_more_comes_back_than_was_taken() -> None:
    state = begun(Spot(0.3))
    before, back_s = counts(state), 3.0 + 120.0 + AWAY_S
    state, _ = step(state, now(3.0, state, leaving=(1, 0)))
    state, decision = step(structs.replace(state, time_s=back_s - 0.1), now(back_s, state))
    assert decision is not None
    assert decision.reason is Reason.SPOT_BACK
    assert [spot for _, spot in counts(state).values()] == [spot for _, spot in before.values()]


@pytest.mark.parametrize("bound_by", ["the catalogue", "what is seen"])
def test_no_more_comes_back_than_there_is_stock_for(bound_by: str) -> None:
    state, _ = lost(begun(Spot(0.3)))
    if bound_by == "the catalogue":
        state = structs.replace(state, basis=replace(state.basis, stock={KIND: 3}))
        state, decisions = back(state)
    else:
        state, decisions = back(state, stock={KIND: 3})
    assert decisions[-1].reason is Reason.SPOT_BACK
    assert sum(spot for _, spot in counts(state).values()) == 3


def test_what_stands_in_stays_until_spot_is_back_where_people_allow_no_more() -> None:
    state, _ = lost(begun(Spot(0.3)))
    assert counts(state) == {"a": (2, 0), "b": (3, 0)}
    state, _ = back(state, limits={"a": Limits(maximum=2), "b": Limits(maximum=4)})
    assert counts(state) == {"a": (2, 0), "b": (4, 0)}


@pytest.mark.parametrize(("most", "on_demand"), [(None, 5), (4.0, 4), (0.0, 1)])
def test_on_demand_takes_over_up_to_what_people_pay_for_it(most: float | None, on_demand: int) -> None:
    state, decision = lost(begun(Spot(0.3, most=most)))
    assert sum(there for there, _ in counts(state).values()) >= on_demand
    assert decision.action is (Action.SCALE_DOWN if most == 0.0 else Action.SCALE_UP)
    if most is not None:
        assert sum(there for there, _ in counts(state).values()) == on_demand, "what there was stays"
        assert f"for at most ${most:g}/h of x" in decision.detail


@pytest.mark.parametrize("most", [2.0, 3.0, 4.0])
def test_what_is_too_little_for_all_goes_to_the_stage_that_has_the_least_of_what_it_needs(most: float) -> None:
    """Compared with every way to deal out as many."""
    before = begun(Spot(0.3))
    state, decision = lost(structs.replace(before, basis=replace(before.basis, spot={KIND: Spot(0.3, most=most)})))
    needs = {stage.name: stage.supply for stage in before.basis.stages}
    throughput = {stage.name: stage.kinds[0].throughput for stage in before.basis.stages}

    def worst(dealt: tuple[int, ...]) -> float:
        return min(n * throughput[name] / needs[name] for n, name in zip(dealt, needs, strict=True))

    found = tuple(on_demand for on_demand, _ in counts(state).values())
    kept = tuple(on_demand for on_demand, _ in counts(before).values())
    ways = itertools.product(range(6), repeat=2)
    best = max(worst(way) for way in ways if sum(way) <= most and all(n >= k for n, k in zip(way, kept, strict=True)))
    assert sum(found) == most
    assert worst(found) == pytest.approx(best)
    assert decision.reason is Reason.SPOT_LOST


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"price": 1.5}, r"spot price 1.5 \$/h is above 1 \$/h on demand"),
        ({"price": -1.0}, "spot price -1.0 must be 0 or more"),
        ({"price": 0.3, "notice": "soon"}, "spot notice 'soon' is not a duration"),
        ({"price": 0.3, "losses_per_hour": float("inf")}, "spot losses_per_hour inf must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Hardware("x", 1.0, spot=Spot(**wrong))
