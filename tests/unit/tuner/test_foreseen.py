"""What is known to come is answered before it does."""

import pytest
from msgspec.structs import replace

from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.policy import POLICIES, foreseen
from tests.unit.tuner.plans import seen, state

START_UP_S = 2.0
"""Of both stages of the plan by hand, which is made for 100 events/s."""


def arrivals(*levels: tuple[float, float]) -> Trace:
    """Evenly spaced: events per second, and for how many seconds."""
    times: list[float] = []
    begun_s = 0.0
    for rate, seconds in levels:
        times += [begun_s + (n + 0.5) / rate for n in range(int(rate * seconds))]
        begun_s += seconds
    return Trace(times)


def begun(trace: Trace | None, policy: str = "default", **more: object) -> dict[str, int] | None:
    """Replicas by stage that are asked for before any is ready; None if those of the plan will do."""
    nothing_yet = seen(ready=(0, 0), pending=(2, 3), **more)
    decision = foreseen(POLICIES[policy], state(), nothing_yet, trace)
    return None if decision is None else {stage: sum(kinds.values()) for stage, kinds in decision.replicas.items()}


@pytest.mark.parametrize(
    ("policy", "rate"), [("default", 160.0), ("inferline", 500.0)]
)  # the paper's Tuner compares 1 s
def test_a_feed_that_begins_above_the_plan_finds_replicas_that_carry_it(policy: str, rate: float) -> None:
    found = begun(arrivals((rate, 60.0)), policy)
    assert found is not None
    assert found["a"] * 100 >= rate
    assert found["b"] * 50 >= rate / 2
    assert found["a"] > 2


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_a_feed_that_begins_as_planned_or_below_changes_nothing(rate: float) -> None:
    assert begun(arrivals((rate, 60.0))) is None


def test_a_rise_before_a_replica_could_be_there_is_known_and_a_later_one_is_not() -> None:
    soon, later = (arrivals((100.0, begins_s), (400.0, 30.0)) for begins_s in (START_UP_S, 20.0))
    assert begun(soon) is not None
    assert begun(later) is None
    # A rate is known after 5 s, what is asked for then works 3 s later: so much is looked at.
    assert begun(arrivals((100.0, 7.0), (1000.0, 30.0))) is not None
    assert begun(arrivals((100.0, 8.0), (1000.0, 30.0))) is None


def test_what_came_and_went_while_a_replica_would_have_started_still_counts() -> None:
    found = begun(arrivals((100.0, 1.0), (400.0, 3.0), (20.0, 60.0)))
    assert found is not None
    assert found["a"] >= 4


def test_records_that_wait_before_the_start_count_also_where_nobody_knows_what_comes() -> None:
    waiting = seen(ready=(0, 0), pending=(2, 3))
    waiting = replace(waiting, stages={**waiting.stages, "a": replace(waiting.stages["a"], partition_lags=(2500,))})
    decision = foreseen(POLICIES["default"], state(), waiting, None)
    assert decision is not None
    assert decision.reason is Reason.BACKLOG
    # Within five seconds, at 100/s a replica; none of them has come to `b` yet.
    assert {stage: kinds["x"] for stage, kinds in decision.replicas.items()} == {"a": 5, "b": 3}


def test_nothing_is_asked_for_where_nothing_is_known() -> None:
    assert begun(None) is None
