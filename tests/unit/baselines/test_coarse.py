"""The paper's coarse-grained comparison, in numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.baselines.coarse import Coarse, peak_rate, unit, units_for
from inferline_stream.baselines.rule_inputs import PipelineSeen
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace

SHAPE = Shape(("a", "b"), (Arrow(0, 1),))
MEASURED = PipelineProfile(
    {
        ("a", "cpu"): Profile("a", "cpu", (ServiceTime(1, 0.04), ServiceTime(2, 0.07), ServiceTime(4, 0.14))),
        ("b", "gpu"): Profile("b", "gpu", (ServiceTime(1, 0.05), ServiceTime(2, 0.06), ServiceTime(4, 0.08))),
    },
    Paths((1,), (1.0,)),
)
HARDWARE = {"a": "cpu", "b": "gpu"}


def test_the_unit_has_the_largest_batch_that_passes_within_the_slo():
    found = unit(SHAPE, MEASURED, HARDWARE, 0.2)
    assert (found.batch_size, found.service_time_s) == (2, pytest.approx(0.13))
    assert found.throughput == pytest.approx(2 / 0.07)  # of its slowest stage
    assert unit(SHAPE, MEASURED, HARDWARE, 0.23).batch_size == 4


def test_where_no_batch_passes_within_the_slo_the_unit_has_batches_of_one():
    """As where a few events visit a stage that takes longer: a plan keeps the SLO for the others."""
    found = unit(SHAPE, MEASURED, HARDWARE, 0.08)
    assert (found.batch_size, found.service_time_s) == (1, pytest.approx(0.09))
    assert found.throughput == pytest.approx(1 / 0.05)


def test_the_peak_is_taken_over_windows_of_one_slo():
    trace = Trace(np.array([0.0, 0.1, 0.2, 0.3, 5.0]))
    assert peak_rate(trace, 0.25) == pytest.approx(3 / 0.25)
    assert units_for(12.0, 4.0) == 3
    assert units_for(12.1, 4.0) == 4


def replayed(rate_by_look: list[float], rule: Coarse, units: int) -> list[int]:
    memory, path = rule.begin(dict.fromkeys(rule.stages, units)), []
    for k, rate in enumerate(rate_by_look):
        arrivals = tuple(k * 10.0 + (i + 0.5) / rate for i in range(int(rate * 10)))
        memory, wanted = rule.step(memory, PipelineSeen((k + 1) * 10.0, {}, {}, arrivals))
        assert len(set(wanted.values())) == 1
        path.append(wanted["a"])
    return path


def test_units_come_one_at_a_time_and_go_after_a_wait():
    rule = Coarse(10.0, ("a", "b"), wait_s=30.0)
    assert replayed([10.0, 40.0, 40.0, 40.0, 40.0], rule, 1) == [1, 2, 3, 4, 4]
    # Mean over 30 s: 40, 30, 20, 10 … fewer do from the second look on; 30 s later the first goes.
    assert replayed([40.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], rule, 4) == [
        *[4, 4, 4, 4, 3, 3, 3, 2, 2, 2],
    ]
