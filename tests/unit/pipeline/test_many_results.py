"""What a topology may say of stages that give an event many results, and of those that gather them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import Struct

from inferline_stream.controlplane.observe.live_profile import corrected
from inferline_stream.estimator.workload import prepare
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.keys import keeps_order
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import (
    Arrow,
    FanOut,
    Paths,
    Shape,
    most_at_once,
    records_per_event,
    shape_of,
    visit_ratios,
)
from inferline_stream.pipeline.topology import Pipeline, Result, Stage, Topic
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.validation import problems
from tests.unit.estimator.random_pipelines import random_tree, with_fan_outs


class Both(Struct):
    frame: int | None
    text: str | None


def split(frames: list[int]) -> list[list[Result[int]] | None]:
    return [[Result(frame)] for frame in frames]


def same(frames: list[int]) -> list[int | None]:
    return [*frames]


def text(lines: list[list[int]]) -> list[str]:
    return [str(each) for each in lines]


def lenient(lines: list[list[int | None]]) -> list[str]:
    return [str(each) for each in lines]


def both(events: list[Both]) -> list[int]:
    return [event.frame or 0 for event in events]


def stage(name: str, run: Any, *after: Any, **more: Any) -> Stage:
    return Stage(name, run, hardware="cpu-1", after=after, **more)


def found(*stages: Stage) -> list[str]:
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages)
    return [problem.partition(": ")[2] for problem in problems(pipeline)]


def test_a_result_is_typed_without_its_list_its_filter_and_what_is_around_it() -> None:
    assert types_of(stage("split", split, many=True)).returns is int
    assert types_of(stage("same", same)).returns is int


def test_many_results_may_be_filtered_joined_and_gathered() -> None:
    frame = stage("frame", same)
    many = stage("many", split, frame, many=True)
    one = stage("one", same, many)
    gathered = stage("text", text, one.gathered())
    final = stage("both", both, frame, gathered)
    assert found(frame, many, one, gathered, final) == []
    assert [keeps_order(each) for each in (frame, many, one, gathered, final)] == [True, True, False, False, False]
    assert keeps_order(stage("ordered", same, many, ordered=True))


def mixed() -> list[Stage]:
    frame = stage("frame", same)
    text_ = stage("text", same, stage("many", split, frame, many=True))
    return [frame, text_.after[0].parent, text_, stage("both", both, frame, text_)]


def gathered(run: Any = text, *, many: bool = True, missing: Any = ..., **more: Any) -> list[Stage]:
    first = stage("many", split if many else same, many=many)
    return [first, stage("text", run, first.gathered(missing), **more)]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (
            mixed(),
            "joins what does not belong to one event: 'frame' gives whole events, 'text' gives results of 'many'",
        ),
        (gathered(many=False), "gathers results of 'many', of which an event has one"),
        (gathered(same), "takes list[int] and gathers results of 'many', which are list[int] of each event"),
        (gathered(missing=None), "which are list[int | None] of each event; annotate list[list[int | None]]"),
        (gathered(ordered=True), "ordered=True where it gathers"),
        ([stage("many", same, many=True)], "declared many=True and returns int for an event"),
        ([stage("many", split, many=True, most=0)], "most 0 must be a whole number, 1 to 100000"),
        ([stage("many", split, many="yes")], "many 'yes' must be True or False"),
    ],
)
def test_what_cannot_be_is_said_with_its_remedy(stages: list[Stage], says: str) -> None:
    assert any(says in problem for problem in found(*stages)), found(*stages)


def test_a_gather_that_fills_takes_none() -> None:
    assert found(*gathered(lenient, missing=None)) == []


@pytest.mark.parametrize("seed", range(12))
def test_visit_ratios_are_the_visits_of_the_events_that_are_simulated(seed: int) -> None:
    shape = random_tree(seed)
    paths = with_fan_outs(shape, seed)
    workload = prepare(shape, PipelineProfile({}, paths), Trace(np.arange(4000.0)), seed=seed)
    ratios, most = visit_ratios(shape, paths), most_at_once(shape, paths)
    source = np.arange(len(workload))
    for s in sorted(workload.results):  # those of a stage come before those of their results
        first, end = workload.results[s].numbers
        source[first:end] = source[workload.results[s].parents()]
    for s, name in enumerate(shape.stages):
        visits = np.bincount(source[workload.feeds[s].visits[workload.masks] > 0], minlength=4000)
        assert visits.mean() == pytest.approx(ratios[name], rel=0.12, abs=0.03), name
        assert visits.max() <= most[name], name
    assert all(records_per_event(shape, paths)[name] >= ratios[name] for name in shape.stages)


def test_the_most_visits_at_once_multiply_by_each_stage_of_many_results_until_they_are_gathered() -> None:
    arrows = (Arrow(0, 1), Arrow(1, 2), Arrow(2, 3, gathers=True), Arrow(3, 4, gathers=True))
    shape = Shape(("pages", "lines", "words", "line", "page"), arrows, (0, 1))
    fan_outs = tuple(FanOut(stage, (0, most), (0.5, 0.5), (0,), (1.0,)) for stage, most in ((0, 3), (1, 4)))
    found = most_at_once(shape, Paths((0,), (1.0,), fan_outs))
    assert found == {"pages": 1, "lines": 3, "words": 12, "line": 3, "page": 1}


def test_a_running_pipeline_corrects_how_many_results_there_are_and_which_edges_they_take() -> None:
    many = stage("many", split, many=True)
    one, other = stage("one", same, many.when(bool)), stage("other", same, many)
    final = stage("both", both, one, other)
    shape: Shape = shape_of(
        Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[many, one, other, final])
    )
    fan_out = FanOut(0, (0, 4), (0.5, 0.5), (0b1111, 0b1010), (0.5, 0.5))
    before = PipelineProfile({}, Paths((0,), (1.0,), (fan_out,)))
    seen = StageCounts(batch_stats={"x": {1: BatchStats(1000, 1.0)}}, results=3000, edges_taken={"one": 600})
    after = corrected(before, shape, {"many": seen}).paths
    ratios = visit_ratios(shape, after)
    assert after.fan_outs[0].mean == pytest.approx(3.0)
    assert (ratios["one"], ratios["other"]) == (pytest.approx(0.6), pytest.approx(3.0))
