"""What the controller makes of hopeless events and of stays that dispatchers report."""

from __future__ import annotations

import pytest

from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.pipeline.deadline_order import NEWS_LASTS_S
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.settings import Settings
from tests.unit.dataplane.dispatcher.doubles import same

STAGES = ("a", "b", "c")
SHAPE = Shape(STAGES, (Arrow(0, 1, conditional=False), Arrow(1, 2, conditional=True)))
ALONE_S = {"a": 0.01, "b": 0.02, "c": 0.04}
HOP_S, TAKEN = 0.005, 0.25


def view() -> PipelineView:
    times = {(s, "cpu"): Profile(s, "cpu", (ServiceTime(1, ALONE_S[s]), ServiceTime(4, 1.0))) for s in STAGES}
    slow = {(s, "slow"): Profile(s, "slow", (ServiceTime(1, 9.0),)) for s in STAGES}
    paths = independent_paths(SHAPE, {("b", "c"): TAKEN})
    allocations = {s: (Allocation("slow", 1, 1), Allocation("cpu", 4, 1)) for s in STAGES}
    plan = Plan("p", 0.5, allocations, 0.1, 0.4, 10.0, ((60.0, 600),), dict.fromkeys(STAGES, 1.0), {})
    measured = PipelineProfile({**times, **slow}, paths, hop_overhead_s=HOP_S)
    a = Stage("a", same, hardware="cpu")
    b = Stage("b", same, hardware="cpu", after=[a])
    c = Stage("c", same, hardware="cpu", after=[b.when(bool)])
    kinds = [Hardware("cpu", 0.1), Hardware("slow", 0.1)]
    pipeline = Pipeline("p", slo="500ms", source=Topic("in"), sink=Topic("out"), stages=[a, b, c], hardware=kinds)
    context = PipelineContext(pipeline, KafkaCluster(""), Settings())
    assert context.shape == SHAPE
    return PipelineView(context, plan, measured, dict.fromkeys(STAGES, 2))


def report(stage: str, slot: int = 0, **says: object) -> PoolReport:
    return PoolReport(f"{stage}-{slot}", 1, stage, slot, "serving", 1, **says)  # type: ignore[arg-type]


def test_without_news_the_rest_is_the_shortest_way_alone_on_the_fastest_hardware() -> None:
    seen = view()
    assert seen.rests_s(100.0) == seen.rests_s()
    assert seen.rests_s() == pytest.approx({"a": HOP_S + ALONE_S["b"] + HOP_S, "b": HOP_S, "c": HOP_S})


def test_what_dispatchers_say_of_stays_counts_until_it_is_old() -> None:
    seen = view()
    seen.reports.add(report("c", stay=(0.6, 3.0, -0.5)), 100.0)
    seen.reports.add(report("b", 0, stay=(0.3, 3.0, 0.0)), 100.0)
    seen.reports.add(report("b", 1, stay=(0.9, 3.0, 0.0)), 100.0)
    rests_s = seen.rests_s(100.0)
    after_b_s = 2 * HOP_S + 0.2  # a quarter of the events take this way: enough to count
    assert rests_s == pytest.approx({"a": HOP_S + 0.2 + after_b_s, "b": after_b_s, "c": HOP_S})
    later_s = seen.rests_s(100.0 + NEWS_LASTS_S - 0.25)  # that of c is too old by then
    assert later_s["a"] == pytest.approx(HOP_S + 0.2 + 2 * HOP_S + ALONE_S["c"])
    assert seen.rests_s(100.0 + NEWS_LASTS_S + 0.25) == seen.rests_s()
    seen.reports.end("b-1")
    assert seen.rests_s(100.0)["a"] == pytest.approx(HOP_S + 0.1 + after_b_s)


def test_hopeless_events_are_no_backlog_while_they_are_young_and_what_they_hold_is_not_stuck() -> None:
    seen = view()
    history = seen.offsets["a"]
    history.reached(0.0, (10, 10))
    for at_s in (0.0, 100.0):
        history.committed(at_s, [Committed(2), Committed(4)])
    late = {"hopeless": {0: 5}, "hidden": {0: 3}, "waited_for": [0], "queued": 6, "oldest_wait_s": 7.0}
    seen.reports.add(report("a", stay=(1.0, 2.0, 0.0), **late), 100.0)

    def observed() -> tuple[tuple[int, ...], tuple[float, ...]]:
        stage = seen.observation(100.0, {}, {}, {}).stages["a"]
        return stage.partition_lags, stage.partition_idle_s

    assert observed() == ((8 - 3, 6), (0.0, 100.0))
    hangs = seen.observation(100.25 + NEWS_LASTS_S, {}, {}, {}).stages["a"]
    assert min(hangs.partition_idle_s) > 100.0  # nothing is served there any more
    shown = seen.state(100.0, 0.0, {}).stages[0]
    assert (shown.hopeless, shown.oldest_wait_s, shown.lags) == (5, 7.0, (8, 6))
    seen.reports.add(replace_report(report("a", queued=1)), 100.5)
    assert observed() == ((8, 6), (100.0, 100.0))


def replace_report(report: PoolReport) -> PoolReport:
    report.report = 2
    return report


def test_the_share_of_the_last_seconds_events_that_are_late_is_shown() -> None:
    seen = view()
    buckets = seen.latencies.histogram()
    assert seen.state(0.0, 0.0, {}).recent_late_share is None
    counts = [0] * len(buckets.counts)
    counts[0], counts[-1] = 6, 2
    ended = report("c")
    ended.counts.latency_buckets = counts
    seen.reports.add(ended, 1.0)
    assert seen.state(1.0, 0.0, {}).recent_late_share == pytest.approx(0.25)
