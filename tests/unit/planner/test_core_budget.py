"""What a machine has left for replicas."""

import pytest

from inferline_stream.pipeline.profile import Overheads, PipelineProfile
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.planner.core_budget import CONTROLLER_CORES, replica_cores

SHAPE = Shape(("a", "b", "c"), (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)))
"""A branch that a quarter of the events take, and a join."""


def test_dispatchers_broker_and_feed_take_what_was_measured_at_the_rate_of_their_records() -> None:
    overheads = Overheads(1e4, ((0.0, 0.02), (100.0, 0.12), (1000.0, 0.3)))
    measured = PipelineProfile({}, independent_paths(SHAPE, {("a", "b"): 0.25}), overheads=overheads)
    # 100/s at a, 25/s at b, and two records of each event at the join.
    around = 0.12 + 0.045 + (0.12 + 0.18 * 100 / 900)
    assert replica_cores(4.0, SHAPE, measured, 100.0) == pytest.approx(4.0 - CONTROLLER_CORES - around)
    assert replica_cores(4.0, SHAPE, measured, 1e5) == 0.0


def test_beyond_the_rates_measured_cores_grow_as_between_the_last_two() -> None:
    overheads = Overheads(1e4, ((0.0, 0.0), (100.0, 0.1), (1000.0, 0.3)))
    assert overheads.stage_cores(1900.0) == pytest.approx(0.5)
    assert Overheads(1e4).stage_cores(100.0) == 0.0
