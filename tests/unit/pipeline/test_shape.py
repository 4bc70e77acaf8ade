"""The bare DAG: order, longest path, paths of events and visit ratios, against enumeration."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.shape import (
    Arrow,
    Paths,
    Shape,
    independent_paths,
    shape_of,
    topological,
    visit_ratios,
    visited,
)
from inferline_stream.pipeline.topology import Edge, Pipeline, Stage, Topic


@st.composite
def shapes(draw: st.DrawFn, stages: int = 6) -> Shape:
    count = draw(st.integers(1, stages))
    arrows = [
        Arrow(parent, child, draw(st.booleans()))
        for child in range(count)
        for parent in draw(st.lists(st.sampled_from(range(child)), unique=True, max_size=3) if child else st.just([]))
    ]
    return Shape(tuple(f"s{i}" for i in range(count)), tuple(arrows))


def all_paths(shape: Shape) -> list[list[int]]:
    """Every path from an entry stage to any stage."""
    paths: list[list[int]] = [[entry] for entry in shape.entries()]
    found = list(paths)
    while paths:
        paths = [[*path, a.child] for path in paths for a in shape.arrows if a.parent == path[-1]]
        found += paths
    return found


@given(shapes(), st.data())
def test_the_longest_path_is_the_longest_of_all_paths(shape: Shape, data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 50), min_size=len(shape.stages), max_size=len(shape.stages)))
    longest = max(sum(times[stage] for stage in path) for path in all_paths(shape))
    assert shape.longest_path_s([float(t) for t in times]) == longest
    assert shape.longest_path_s(dict(zip(shape.stages, map(float, times), strict=True))) == longest


def test_the_longest_path_is_not_the_sum() -> None:
    """InferLine §3: parallel branches overlap."""
    diamond = Shape(("a", "b", "c", "d"), (Arrow(0, 1), Arrow(0, 2), Arrow(1, 3), Arrow(2, 3)))
    assert diamond.longest_path_s([0.1, 0.2, 0.5, 0.1]) == pytest.approx(0.7)


@given(shapes())
def test_parents_children_entries_joins_and_finals_agree(shape: Shape) -> None:
    for stage in range(len(shape.stages)):
        assert all(shape.arrows[a].child == stage for a in shape.parents(stage))
        assert all(shape.arrows[a].parent == stage for a in shape.children(stage))
        assert (stage in shape.entries()) == (not shape.parents(stage))
        assert (stage in shape.joins()) == (len(shape.parents(stage)) > 1)
        assert (stage in shape.finals()) == (not shape.children(stage))
    assert sum(len(shape.parents(s)) for s in range(len(shape.stages))) == len(shape.arrows)


@pytest.mark.parametrize("arrow", [Arrow(1, 0), Arrow(0, 0), Arrow(0, 2), Arrow(-1, 1)])
def test_an_arrow_points_forward(arrow: Arrow) -> None:
    with pytest.raises(ValueError, match="does not point forward"):
        Shape(("a", "b"), (arrow,))


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two stages of one name"):
        Shape(("a", "a"), ())


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6), st.randoms())
def test_topological_puts_parents_first_in_any_order_of_declaration(
    after: list[list[int]], shuffled: random.Random
) -> None:
    stages: list[Stage] = []
    for number, parents in enumerate(after):
        edges = [Edge(stages[p]) for p in sorted({p % number for p in parents})] if number else []
        stages.append(Stage(f"s{number}", list, hardware=["cpu-1"], after=edges))
    declared = list(stages)
    shuffled.shuffle(declared)
    order = topological(declared)
    place = {stage.name: i for i, stage in enumerate(order)}
    assert sorted(place) == sorted(stage.name for stage in stages)
    assert all(place[edge.parent.name] < place[stage.name] for stage in stages for edge in stage.after)
    assert topological(order) == order


def test_the_order_declared_is_kept_where_it_can_be() -> None:
    a = Stage("a", list, hardware=["cpu-1"])
    b = Stage("b", list, hardware=["cpu-1"], after=[a])
    c = Stage("c", list, hardware=["cpu-1"], after=[a])
    assert [stage.name for stage in topological([c, a, b])] == ["a", "c", "b"]


def test_the_shape_of_a_pipeline_keeps_arrows_and_conditions() -> None:
    a = Stage("a", list, hardware=["cpu-1"])
    b = Stage("b", list, hardware=["cpu-1"], after=[a.when(bool)])
    c = Stage("c", list, hardware=["cpu-1"], after=[b, a])
    pipeline = Pipeline("p", slo="1s", source=Topic("i"), sink=Topic("o"), stages=[c, b, a])
    assert shape_of(pipeline) == Shape(("a", "b", "c"), (Arrow(0, 1, True), Arrow(1, 2), Arrow(0, 2)))


@given(shapes(), st.integers(min_value=0))
def test_an_event_visits_what_it_reaches_along_arrows_taken(shape: Shape, mask: int) -> None:
    reached = set(shape.entries())
    taken = 0
    for bit, arrow in enumerate(shape.arrows):  # children follow their parents, so one pass is enough
        if arrow.parent in reached and mask >> bit & 1:
            reached.add(arrow.child)
            taken |= 1 << bit
    assert {stage for stage, seen in enumerate(visited(shape, taken)) if seen} == reached


@given(shapes(), st.data())
def test_visit_ratios_are_the_visits_counted_event_by_event(shape: Shape, data: st.DataObject) -> None:
    """InferLine §4.1: s_m = visits to m over queries."""
    masks = data.draw(st.lists(st.integers(0, 2 ** len(shape.arrows) - 1), min_size=1, max_size=20))
    counts = Counter(masks)
    paths = Paths(tuple(counts), tuple(count / len(masks) for count in counts.values()))
    visits = Counter(stage for mask in masks for stage, seen in enumerate(visited(shape, mask)) if seen)
    for stage, ratio in visit_ratios(shape, paths).items():
        assert ratio == pytest.approx(visits[shape.stages.index(stage)] / len(masks))


@given(shapes(stages=4), st.data())
def test_independent_paths_are_all_outcomes_with_their_probabilities(shape: Shape, data: st.DataObject) -> None:
    probability = {
        (shape.stages[a.parent], shape.stages[a.child]): data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        for a in shape.arrows
        if a.conditional
    }
    expected: Counter[int] = Counter()
    for falls in itertools.product((False, True), repeat=len(shape.arrows)):
        weight, mask = 1.0, 0
        for bit, (arrow, holds) in enumerate(zip(shape.arrows, falls, strict=True)):
            p = probability.get((shape.stages[arrow.parent], shape.stages[arrow.child]), 1.0)
            weight *= p if holds else 1 - p
            if holds and visited(shape, mask)[arrow.parent]:
                mask |= 1 << bit
        expected[mask] += weight
    paths = independent_paths(shape, probability)
    found = dict(zip(paths.masks, paths.weights, strict=True))
    assert found == pytest.approx({mask: weight for mask, weight in expected.items() if weight > 0})
    assert sum(paths.weights) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("masks", "weights"), [((), ()), ((1,), (0.5, 0.5)), ((0, 1), (1.5, -0.5)), ((0, 1), (0.5, 0.4))]
)
def test_paths_are_a_distribution(masks: tuple[int, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"need as many|not shares"):
        Paths(masks, weights)


def test_what_leads_to_a_stage_is_all_that_an_arrow_comes_from_and_nothing_beside_it() -> None:
    shape = Shape(("a", "b", "c", "d"), (Arrow(0, 1), Arrow(0, 2), Arrow(1, 3)))
    assert shape.upstream({"d"}) == ("a", "b", "d")
    assert shape.upstream({"c"}) == ("a", "c")
    assert shape.upstream({"a"}) == ("a",)
