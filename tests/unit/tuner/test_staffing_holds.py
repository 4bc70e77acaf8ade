"""The staffing table of a plan that holds batches."""

from __future__ import annotations

from inferline_stream.planner.problem import cost_of
from inferline_stream.planner.provision import plan_of, search
from inferline_stream.tuner.staffing_table import staffing
from tests.unit.planner.problems import chain


def test_more_traffic_is_staffed_with_the_plans_hold() -> None:
    """Without it the next tenth of traffic would take half as many replicas again."""
    problem = chain(0.9, events=3000)
    outcome = search(problem, margin=0.0)
    ((held,),) = outcome.candidate
    assert held.hold_s > 0
    table = staffing(
        problem.shape,
        plan_of(problem, outcome, pipeline="p"),
        problem.measured,
        problem.traces[0],
        {"x": 1.0},
        multiples=(1.0, 1.1),
    )
    each = problem.measured.profiles["s0", "x"].throughput(held.max_batch_size)
    assert table.needed("s0", 1.1) / each < 1.3 * cost_of(problem, outcome.candidate)
