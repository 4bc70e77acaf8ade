"""The table of what multiples of the sample's traffic need: looked up, and found by simulation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.provision import SearchSettings, provision
from inferline_stream.tuner.staffing_table import Staffing, StaffingSearch, staffing
from tests.unit.planner.problems import chain
from tests.unit.tuner.plans import SHAPE, measured, plan

SAMPLE = gamma_trace(100.0, 1.0, 60.0, np.random.default_rng(5))
PRICES = {"x": 1.0}
MULTIPLES = (0.25, 0.5, 1.0, 1.5, 2.0)


def made(given: Plan | None = None, trace: Trace = SAMPLE) -> Staffing:
    return staffing(SHAPE, given or plan(), measured(), trace, PRICES, multiples=MULTIPLES)


def p99_s(multiple: float, replicas: dict[str, int], slots: dict[str, int]) -> float:
    held = {"a": (Allocation("x", 4, replicas["a"]),), "b": (Allocation("x", 1, replicas["b"]),)}
    return simulate(SHAPE, held, measured(), SAMPLE.sped_up(multiple), order_slo_s=0.5, slots=slots).p99_s


def test_a_multiple_is_looked_up_at_the_next_one_and_beyond_the_last_in_proportion():
    table = Staffing((0.5, 1.0, 2.0), {"a": (50.0, 100.0, 180.0)}, 100.0)
    rows = [(0.1, 50.0), (0.5, 50.0), (0.51, 100.0), (1.0, 100.0), (1.0 + 1e-12, 100.0), (1.01, 180.0), (2.0, 180.0)]
    assert [table.needed("a", multiple) for multiple, _ in rows] == [needed for _, needed in rows]
    assert table.needed("a", 3.0) == pytest.approx(270.0)


@pytest.mark.parametrize("slots", [{}, {"a": 2, "b": 3}])
def test_each_multiple_meets_the_slo_and_a_replica_less_of_any_stage_does_not(slots):
    table, each = made(replace(plan(), slots=slots)), {"a": 100.0, "b": 50.0}
    for multiple in MULTIPLES:
        if multiple == 1.0:
            assert (table.needed("a", 1.0), table.needed("b", 1.0)) == (200.0, 150.0), "the plan"
            continue
        replicas = {name: round(table.needed(name, multiple) / each[name]) for name in each}
        assert p99_s(multiple, replicas, slots) <= 0.5
        if multiple < 1:
            for name, count in replicas.items():
                fewer = {**replicas, name: count - 1}
                load = {"a": 100.0, "b": 50.0}[name] * multiple
                assert fewer[name] * each[name] <= load or p99_s(multiple, fewer, slots) > 0.5


def test_a_stage_with_room_for_six_times_the_traffic_gets_no_replica_for_it() -> None:
    """In proportion beyond what is simulated, each stage would get one."""
    held = {"a": (Allocation("x", 4, 1),), "b": (Allocation("x", 1, 1),)}
    given = replace(plan(), arrival_rate=5.0, allocations=held)
    table = staffing(SHAPE, given, measured(), gamma_trace(5.0, 1.0, 600.0, np.random.default_rng(5)), PRICES)
    assert [table.needed("a", multiple) for multiple in (1.0, 4.0, 6.0)] == [100.0] * 3


def test_where_one_stage_costs_twenty_times_as_much_the_other_gets_the_replicas_that_meet_the_slo():
    """Against every pair of counts; a replica of `a` does 100/s, one of `b` 50/s."""
    kinds, prices, multiple = {"a": "y", "b": "x"}, {"x": 1.0, "y": 20.0}, 2.0
    profiles = {(s, kind): replace(measured().profiles[s, "x"], hardware=kind) for s, kind in kinds.items()}
    profiled = replace(measured(), profiles=profiles)

    def held(a: int, b: int) -> dict[str, tuple[Allocation, ...]]:
        return {"a": (Allocation(kinds["a"], 4, a),), "b": (Allocation(kinds["b"], 1, b),)}

    def cost(counts: tuple[int, int]) -> float:
        return sum(prices[kinds[name]] * count for name, count in zip("ab", counts, strict=True))

    sample = gamma_trace(100.0, 1.0, 30.0, np.random.default_rng(5))
    given = replace(plan(), slo_s=0.07, allocations=held(3, 4))
    table = staffing(SHAPE, given, profiled, sample, prices, multiples=(1.0, multiple))
    found = round(table.needed("a", multiple) / 100), round(table.needed("b", multiple) / 50)
    faster = sample.sped_up(multiple)
    pairs = sorted(itertools.product(range(1, 12), repeat=2), key=cost)
    assert cost(found) == cost(
        next(p for p in pairs if simulate(SHAPE, held(*p), profiled, faster, order_slo_s=0.07).p99_s <= 0.07)
    )


def test_the_cheaper_replica_is_enough_where_it_just_meets_the_slo_and_a_dearer_one_would_keep_more_free():
    profiled = measured()
    profiles = {**profiled.profiles, ("a", "dear"): replace(profiled.profiles["a", "x"], hardware="dear")}
    held = {"a": (Allocation("dear", 4, 2),), "b": (Allocation("x", 1, 3),)}
    given, prices = replace(plan(), allocations=held, order="entry"), {"x": 1.0, "dear": 2.0}

    def search(slo_s: float) -> StaffingSearch:
        return StaffingSearch(SHAPE, replace(given, slo_s=slo_s), replace(profiled, profiles=profiles), prices, seed=0)

    faster = SAMPLE.sped_up(1.5)
    now_s, cheaper_s, dearer_s = (
        search(1.0).quantile_s(faster, {"a": a, "b": b}, 0.99) for a, b in ((2, 3), (2, 4), (3, 3))
    )
    assert dearer_s < cheaper_s < now_s
    assert search(cheaper_s).above(SAMPLE, 1.5, {"a": 2, "b": 3}, objective=0.99) == {"a": 2, "b": 4}


@pytest.mark.parametrize(
    ("multiple", "late_share", "enough"),
    [
        (1.2, 0.018, True),
        (1.2, 0.022, False),
        (1.21, 0.018, False),
        (1.21, 0.008, True),
    ],
)
def test_twice_as_many_events_may_be_late_where_only_the_busiest_moments_are(multiple, late_share, enough):
    """Whether the plan's replicas are enough where that share of the events is late with them."""
    held = plan().allocations
    found = simulate(SHAPE, held, measured(), SAMPLE.sped_up(multiple), order_slo_s=0.5, order="entry", slots={})
    given = replace(plan(), slo_s=found.quantile_s(1 - late_share), order="entry")
    table = staffing(SHAPE, given, measured(), SAMPLE, PRICES, multiples=(1.0, multiple))
    assert ((table.needed("a", multiple), table.needed("b", multiple)) == (200.0, 150.0)) is enough


def test_no_stage_needs_less_for_more_traffic():
    table = made()
    assert set(table.supply) == {"a", "b"}
    for row in table.supply.values():
        assert list(row) == sorted(row)


def test_a_plan_that_does_not_meet_its_slo_is_staffed_in_proportion():
    table = made(replace(plan(), slo_s=0.01))
    assert (table.needed("a", 2.0), table.needed("b", 2.0)) == (400.0, 300.0)
    assert (table.needed("a", 1.5), table.needed("b", 1.5)) == (300.0, 250.0)


def test_a_sample_of_less_than_a_second_is_staffed():
    table = made(trace=SAMPLE.window(0.0, 0.9))
    assert table.needed("a", 1.0) == 200.0
    assert table.record is None


def test_it_knows_the_rate_that_the_plan_carries():
    """A minute at 100/s, then half a minute at 200/s: the mean is some 133/s, the plan carries some 200/s."""
    leaping = Trace(np.concatenate([SAMPLE.arrivals_s, 60.0 + SAMPLE.arrivals_s / 2]))
    assert made().carried_rate == pytest.approx(SAMPLE.arrival_rate, rel=0.05)
    assert 180 < made(trace=leaping).carried_rate < 215


def test_more_traffic_is_staffed_with_the_plans_hold():
    """Without it the next tenth of traffic would take half as many replicas again."""
    problem = chain(0.9, events=3000)
    planned = provision(problem, SearchSettings(margin=0.0))
    (held,) = planned.allocations["s0"]
    assert held.hold_s > 0
    table = staffing(problem.shape, planned, problem.measured, problem.traces[0], PRICES, multiples=(1.0, 1.1))
    each = problem.measured.profiles["s0", "x"].throughput(held.max_batch_size)
    assert table.needed("s0", 1.1) / each < 1.3 * planned.cost_per_hour


def test_members_are_given_back_down_to_the_next_number_that_shares_the_partitions_evenly():
    """Of eight partitions four members have as many each as five to seven have at most, and three are too few here."""
    held = replace(plan(), slo_s=5.0, allocations={"a": (Allocation("x", 4, 8),), "b": (Allocation("x", 1, 8),)})
    search = StaffingSearch(SHAPE, held, measured(), PRICES, sharing={"a": Sharing(8)}, seed=0)
    assert search.below(SAMPLE, 3.5, {"a": 8, "b": 8}, objective=0.99)["a"] == 4


def test_a_member_for_each_partition_makes_no_event_late_of_what_it_serves():
    """Of 300/s that they serve, though they stay the most for eight times the planned 100/s."""
    given, partitions = replace(plan(), slo_s=1.0), {"a": 3, "b": 6}
    table = staffing(
        SHAPE, given, measured(), SAMPLE, PRICES, sharing={name: Sharing(count) for name, count in partitions.items()}
    )
    assert [table.needed("a", multiple) for multiple in (4.0, 8.0)] == [300.0] * 2
    full = {"a": (Allocation("x", 4, 3),), "b": (Allocation("x", 1, 6),)}
    for multiple in (1.5, 2.0, 2.5):
        found = simulate(SHAPE, full, measured(), SAMPLE.sped_up(multiple), partitions=partitions)
        assert found.quantile_s(1.0) < 1.0
        assert table.late_share(8.0).at(np.array([multiple])) == pytest.approx(0.0, abs=0.01)
