from __future__ import annotations

import math
from dataclasses import replace

import pytest

from inferline_stream.controlplane.observe.live_profile import corrected
from inferline_stream.controlplane.observe.pool_reports import PoolReports
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime, Variation
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths, rates, visit_ratios

SHAPE = Shape(("a", "b", "c", "d"), (Arrow(0, 1, True), Arrow(0, 2, True), Arrow(1, 3), Arrow(2, 3)))


def profile(paths: Paths) -> PipelineProfile:
    times = (ServiceTime(1, 0.010), ServiceTime(4, 0.020))
    keys = [(stage, kind) for stage in SHAPE.stages for kind in ("cpu-1", "t4")]
    return PipelineProfile({key: Profile(*key, times) for key in keys}, paths)


def report(dispatcher: str, number: int, *, batches: int, service_s: float, size: int = 4, b: int = 0, c: int = 0):
    counts = StageCounts(batch_stats={"cpu-1": {size: BatchStats(batches, service_s)}}, edges_taken={"b": b, "c": c})
    return PoolReport(dispatcher, 1, "a", 0, "serving", number, counts=counts)


def reports(*given: PoolReport) -> PoolReports:
    found = PoolReports(SHAPE, profile(independent_paths(SHAPE, {})))
    for time_s, one in enumerate(given):
        found.add(one, float(time_s))
    return found


def test_only_what_came_since_the_mark_counts_and_dispatchers_that_ended_count() -> None:
    held = reports(report("r1", 1, batches=100, service_s=2.0, b=40))
    since = held.totals()
    held.add(report("r1", 2, batches=160, service_s=3.2, b=60), 1.0)
    held.add(report("r2", 1, batches=10, service_s=0.4, b=5), 1.0)
    held.end("r2")
    seen = held.totals(since)
    assert seen["a"].batch_stats["cpu-1"][4].batches == 70
    assert seen["a"].batch_stats["cpu-1"][4].service_s == pytest.approx(1.6)
    assert (seen["a"].served, seen["a"].edges_taken["b"]) == (280, 25)


def test_service_times_follow_what_was_measured_on_that_kind_alone() -> None:
    before = profile(independent_paths(SHAPE, {}))
    after = corrected(before, SHAPE, reports(report("r", 1, batches=100, service_s=3.0)).totals())
    slower = after.profiles["a", "cpu-1"]
    assert [entry.mean_s for entry in slower.service_times] == pytest.approx([0.015, 0.030])
    assert after.profiles["a", "t4"] == before.profiles["a", "t4"]


@pytest.mark.parametrize(("batches", "service_s"), [(49, 49 * 0.040), (100, 100 * 0.0215)])
def test_few_batches_and_small_differences_change_nothing(batches: int, service_s: float) -> None:
    before = profile(independent_paths(SHAPE, {}))
    given = reports(report("r", 1, batches=batches, service_s=service_s))
    assert corrected(before, SHAPE, given.totals()).profiles == before.profiles


def test_the_network_is_part_of_the_hop_as_measured_last_and_from_enough_batches_alone() -> None:
    before = replace(profile(independent_paths(SHAPE, {})), hop_overhead_s=0.005)
    found = before
    for batches, network_s, hop_s in ((100, 0.2, 0.007), (100, 0.1, 0.006), (49, 4.9, 0.006)):
        given = report("r", 1, batches=batches, service_s=batches * 0.020)
        given.counts.remote_batches, given.counts.network_s = batches, network_s
        found = corrected(found, SHAPE, reports(given).totals())
        assert found.hop_overhead_s == pytest.approx(hop_s)


def test_branches_follow_the_shares_seen_and_keep_going_together() -> None:
    both, neither = 0b1111, 0b0000  # in the sample b and c are always taken together
    before = profile(Paths((both, neither), (0.3, 0.7)))
    given = reports(report("r", 1, batches=100, service_s=2.0, b=240, c=240))
    after = corrected(before, SHAPE, given.totals())
    assert dict(zip(after.paths.masks, after.paths.weights, strict=True)) == pytest.approx({both: 0.6, neither: 0.4})


def test_shares_that_no_sampled_path_can_show_count_as_independent() -> None:
    before = profile(Paths((0b0101,), (1.0,)))  # the sample never took c
    given = reports(report("r", 1, batches=100, service_s=2.0, b=200, c=100))
    after = corrected(before, SHAPE, given.totals())
    ratios = visit_ratios(SHAPE, after.paths)
    assert (ratios["b"], ratios["c"]) == pytest.approx((0.5, 0.25))
    assert ratios["d"] == pytest.approx(1 - 0.5 * 0.75)


def test_partial_correlations_are_fitted_to_both_shares() -> None:
    before = profile(Paths((0b1111, 0b0101, 0b1010, 0b0000), (0.4, 0.1, 0.1, 0.4)))
    given = reports(report("r", 1, batches=1000, service_s=20.0, b=2800, c=1200))
    after = corrected(before, SHAPE, given.totals()).paths
    weights = dict(zip(after.masks, after.weights, strict=True))
    assert weights[0b1111] + weights[0b0101] == pytest.approx(0.7, abs=1e-6)
    assert weights[0b1111] + weights[0b1010] == pytest.approx(0.3, abs=1e-6)
    # Proportional fitting keeps the odds ratio of the sample: 0.4·0.4 / (0.1·0.1) = 16.
    odds = weights[0b1111] * weights[0b0000] / (weights[0b0101] * weights[0b1010])
    assert odds == pytest.approx(16, rel=1e-3)


def test_a_batch_size_that_ran_often_has_its_own_mean_and_the_others_what_all_show() -> None:
    before = profile(independent_paths(SHAPE, {}))
    ones, fours = report("r", 1, batches=100, service_s=1.0, size=1), report("q", 1, batches=900, service_s=36.0)
    after = corrected(before, SHAPE, reports(ones, fours).totals()).profiles["a", "cpu-1"]
    assert [entry.mean_s for entry in after.service_times] == pytest.approx([0.010, 0.040], rel=0.1)


@pytest.mark.parametrize(("spread", "follows"), [(0.5, True), (0.02, False)])
def test_times_vary_as_measured_where_events_do_not_say_how(spread: float, follows: bool) -> None:
    before = profile(independent_paths(SHAPE, {}))
    given = report("r", 1, batches=1000, service_s=20.0)
    given.counts.batch_stats["cpu-1"][4].squares = 1000 * 0.02**2 * math.exp(spread**2)  # lognormal
    after = corrected(before, SHAPE, reports(given).totals()).profiles["a", "cpu-1"]
    assert (after.variation is not None) is follows
    assert [entry.spread for entry in after.service_times] == pytest.approx([spread * follows] * 2)
    assert [entry.mean_s for entry in after.service_times] == pytest.approx([0.010, 0.020])


def test_what_events_ask_for_stays_what_makes_times_vary() -> None:
    plain = profile(independent_paths(SHAPE, {}))
    own = replace(plain.profiles["a", "cpu-1"], variation=Variation(units=((1.0, 128), (5.0, 128))))
    given = report("r", 1, batches=1000, service_s=20.0)
    given.counts.batch_stats["cpu-1"][4].squares = 1000 * 0.02**2 * 2
    before = replace(plain, profiles={**plain.profiles, ("a", "cpu-1"): own})
    assert corrected(before, SHAPE, reports(given).totals()).profiles["a", "cpu-1"] == own


def test_paths_have_the_sources_shares_of_what_entered() -> None:
    shape = Shape(("a", "b", "c"), (Arrow(0, 2, True), Arrow(1, 2)), sources=((0,), (1,)))
    before = PipelineProfile({}, Paths((0b001, 0b000, 0b110), (0.4, 0.2, 0.4)))
    few, many = ({"a": StageCounts(events=n), "b": StageCounts(events=9 * n)} for n in (10, 1000))
    assert rates(shape, corrected(before, shape, few).paths) == pytest.approx([0.6, 0.4])
    after = corrected(before, shape, many).paths
    assert rates(shape, after) == pytest.approx([0.1, 0.9])
    assert after.weights[0] == pytest.approx(2 * after.weights[1])
