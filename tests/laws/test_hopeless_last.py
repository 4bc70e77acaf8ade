"""Order of the deadline: who goes last, and what it does not cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator import general_queue, shared_queue
from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.numba_kernels import interpreted
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.deadline_order import HOPELESS_EVERY
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace
from tests.support import event_heap
from tests.support.event_heap import simulate_with_heap
from tests.unit.estimator.random_pipelines import random_pipeline

ALONE = PipelineProfile({}, Paths((0,), (1.0,)))


def latencies_s(station: Station, times_s: np.ndarray) -> np.ndarray:
    found = evaluate(prepare(Shape(("a",), ()), ALONE, Trace(times_s)), [station]).latency_s
    assert found is not None
    return found


def one_at_a_time(kinds: int) -> Station:
    """A replica that takes a second for an event; of two kinds it has the other kernel."""
    limits, table = np.ones(kinds, np.int64), np.array([np.nan, 1.0] * kinds)
    return Station(limits, table, np.zeros(1, np.int64), order_slo_s=3.5, rest_s=0.0)


@pytest.mark.parametrize("kinds", [1, 2])
def test_none_waits_for_ever_where_a_stage_is_never_idle(kinds: int) -> None:
    """Twenty at once, three of which make it, and from then on as much as is served."""
    times_s = np.concatenate([np.zeros(20), np.arange(3.0, 3000.0)])
    found = latencies_s(one_at_a_time(kinds), times_s)
    assert (found[:3] <= 3.5).all()
    assert (found[3:20] > HOPELESS_EVERY / 2).all()
    assert (np.diff(found[3:20]) >= HOPELESS_EVERY).all()
    assert found.max() <= 17 * (HOPELESS_EVERY + 1) + 3.5
    assert np.count_nonzero(found > 3.5) <= 17 + 3000 / HOPELESS_EVERY
    before = latencies_s(replace(one_at_a_time(kinds), rest_s=-np.inf), times_s)
    assert np.count_nonzero(before > 3.5) > 3000


def test_a_shortage_makes_those_late_that_are_too_many_and_no_others() -> None:
    """For 20 s 1.5 times as much as four replicas serve: a third of these can not be on time."""
    rng = np.random.default_rng(3)
    rates = np.concatenate([np.full(2000, 80.0), np.full(3000, 150.0), np.full(8000, 80.0)])
    times_s = np.cumsum(rng.exponential(1 / rates))
    table = np.array([np.nan, *(0.04 * b for b in range(1, 5))])
    station = Station(np.array([4]), table, np.zeros(4, np.int64), order_slo_s=0.5, rest_s=0.0)
    late = np.count_nonzero(latencies_s(station, times_s) > 0.5)
    assert 900 < late < 1300
    assert np.count_nonzero(latencies_s(replace(station, rest_s=-np.inf), times_s) > 0.5) > 4 * late


ENDLESS = 1 << 62


@pytest.mark.parametrize(
    ("every", "few", "span", "room"), [(2, 1, ENDLESS, ENDLESS), (3, 3, 9, ENDLESS), (50, 3, ENDLESS, 6)]
)
def test_every_bound_agrees_with_the_event_heap(
    monkeypatch: pytest.MonkeyPatch, every: int, few: int, span: int, room: int
) -> None:
    """With bounds so tight that small pipelines meet them; those that the kernel of one kind has not, in lanes."""
    for module in (general_queue, shared_queue, event_heap):
        monkeypatch.setattr(module, "HOPELESS_EVERY", every)
    for module in (general_queue, event_heap):
        monkeypatch.setattr(module, "FEW_LANES", few)
    triaged = 0
    for seed in range(3000, 3120):
        pipeline = random_pipeline(seed, events=60, code=interpreted)
        stations = [
            replace(s, span=span, room=room)
            if s.limits.size > 1 or s.levels > 1 or pipeline.workload.lanes(i).size
            else s
            for i, s in enumerate(pipeline.stations)
        ]
        if not any(station.triages for station in stations):
            continue
        triaged += 1
        expected = simulate_with_heap(pipeline.workload, stations).latency_s
        with np.errstate(over="ignore"):
            found = evaluate(pipeline.workload, stations, slice_events=13, code=interpreted).latency_s
        assert found is not None
        assert np.array_equal(found, expected, equal_nan=True), f"seed {seed}"
    assert triaged > 50
