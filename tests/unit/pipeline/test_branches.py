"""Which arrows into a join may be missing, against every way in which conditions can fall."""

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.shape import maybe_missing
from inferline_stream.pipeline.topology import Edge, Stage


def conditions() -> list[Callable[[Any], bool]]:
    return [lambda result: True, lambda result: False]


def brute_force(stages: list[Stage], join: Stage) -> frozenset[int]:
    """Try every outcome of every condition; (parent, condition) pairs are the coins that fall."""
    coins = sorted(
        {(id(e.parent), id(e.condition)) for stage in stages for e in stage.after if e.condition is not None}
    )
    missing: set[int] = set()
    for falls in itertools.product((False, True), repeat=len(coins)):
        holds = dict(zip(coins, falls, strict=True))
        seen: dict[int, bool] = {}

        def taken(edge: Edge, seen: dict[int, bool] = seen, holds: dict[Any, bool] = holds) -> bool:
            return seen[id(edge.parent)] and (edge.condition is None or holds[id(edge.parent), id(edge.condition)])

        for stage in stages:
            seen[id(stage)] = not stage.after or any(taken(edge) for edge in stage.after)
        if seen[id(join)]:
            missing |= {i for i, edge in enumerate(join.after) if not taken(edge)}
    return frozenset(missing)


@st.composite
def pipelines(draw: st.DrawFn) -> list[Stage]:
    """Stages in topological order, up to seven, with at most two different conditions per parent."""
    both = conditions()
    stages: list[Stage] = []
    for number in range(draw(st.integers(2, 7))):
        parents = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=3)) if number else []
        after = [Edge(stages[p], draw(st.sampled_from([None, *both]))) for p in parents]
        stages.append(Stage(f"s{number}", list, hardware=["cpu-1"], after=after))
    return stages


@given(pipelines())
def test_an_arrow_may_be_missing_exactly_if_some_outcome_leaves_it_out(stages: list[Stage]) -> None:
    for stage in stages:
        if stage.after:
            assert maybe_missing(stages, stage) == brute_force(stages, stage)


def stage(name: str, *after: Stage | Edge) -> Stage:
    return Stage(name, list, hardware=["cpu-1"], after=after)


def test_a_branch_skipped_together_with_its_join_is_never_missing() -> None:
    yes = conditions()[0]
    entry = stage("entry")
    first = stage("first", entry.when(yes))
    second = stage("second", first)
    join = stage("join", first, second)
    assert maybe_missing([entry, first, second, join], join) == frozenset()


def test_the_same_condition_on_two_arrows_falls_the_same_way() -> None:
    yes, other = conditions()
    entry = stage("entry")
    first, second = stage("first", entry.when(yes)), stage("second", entry.when(yes))
    join = stage("join", first, second)
    assert maybe_missing([entry, first, second, join], join) == frozenset()
    third = stage("third", entry.when(other))
    wide = stage("wide", first, second, third)
    assert maybe_missing([entry, first, second, third, wide], wide) == {0, 1, 2}
