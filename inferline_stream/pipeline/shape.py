"""The bare DAG: names, arrows and which arrows are conditional. What simulation needs of a pipeline."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.topology import Edge, Pipeline, Stage


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge between two stages, by position in the topological order."""

    parent: int
    child: int
    conditional: bool = False
    gathers: bool = False
    """Whether its child gets all results of one event at once, as a list."""


_Node = TypeVar("_Node")

Scope = tuple[int, ...]
"""Stages whose many results are still apart, outermost first, by position in the topological order."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline's DAG in topological order.

    Args:
        stages: names, every parent before its children.
        arrows: ordered by child, then by the child's order of parents; an arrow's position here is
            its bit in `Paths.masks`.
        many: positions of the stages that give an event many results, each an event of its own from there on.
        beside: positions of the stages with children whose results go to a sink as well.
        sources: of each source topic, positions of the stages at which its events enter; empty where there is one. Each
            but the first has a bit of its own in a mask, behind those of the arrows.

    Raises:
        ValueError: an arrow that points backwards or outside, or two stages of one name.
    """

    stages: tuple[str, ...]
    arrows: tuple[Arrow, ...]
    many: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    sources: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"two stages of one name among {self.stages}")
        for arrow in self.arrows:
            if not 0 <= arrow.parent < arrow.child < len(self.stages):
                raise ValueError(f"{arrow} does not point forward within {len(self.stages)} stages")

    def parents(self, stage: int) -> tuple[int, ...]:
        """Positions of the arrows into a stage."""
        return tuple(i for i, arrow in enumerate(self.arrows) if arrow.child == stage)

    def children(self, stage: int) -> tuple[int, ...]:
        """Positions of the arrows out of a stage."""
        return tuple(i for i, arrow in enumerate(self.arrows) if arrow.parent == stage)

    def upstream(self, stages: Collection[str]) -> tuple[str, ...]:
        """These stages and all that come before them, in topological order."""
        wanted = {at for at, stage in enumerate(self.stages) if stage in stages}
        for at in reversed(range(len(self.stages))):
            if at in wanted:
                wanted |= {self.arrows[bit].parent for bit in self.parents(at)}
        return tuple(self.stages[at] for at in sorted(wanted))

    def downstream(self, *stages: int) -> frozenset[int]:
        """Positions of these stages and all that come after any of them."""
        found = set(stages)
        for arrow in self.arrows:  # ordered by child: every parent was looked at before
            if arrow.parent in found:
                found.add(arrow.child)
        return frozenset(found)

    def ancestors(self) -> tuple[frozenset[int], ...]:
        """By stage, its position and those of all stages before it."""
        after = [self.downstream(stage) for stage in range(len(self.stages))]
        return tuple(frozenset(a for a, found in enumerate(after) if s in found) for s in range(len(after)))

    def entries(self, source: int | None = None) -> tuple[int, ...]:
        """Stages without a parent: they read a source topic. Those at which events of one source enter, or all."""
        if source is not None and self.sources:
            return self.sources[source]
        return tuple(s for s in range(len(self.stages)) if not self.parents(s))

    def source_of(self, mask: int) -> int:
        """The number of the source whose events have a mask."""
        return (mask >> len(self.arrows)).bit_length()

    def source_bit(self, source: int) -> int:
        """What the masks of a source's events have beside arrows."""
        return 1 << len(self.arrows) + source - 1 if source else 0

    def reached(self, source: int) -> frozenset[int]:
        """Stages that events of a source may come to."""
        return self.downstream(*self.entries(source))

    def joins(self) -> tuple[int, ...]:
        """Stages in which parts of an event wait for each other: with two parents or more, or that gather."""
        return tuple(s for s in range(len(self.stages)) if len(self.parents(s)) > 1 or self.gathers(s))

    def gathers(self, stage: int) -> bool:
        """Whether a stage gets the results of its parent gathered."""
        return any(self.arrows[arrow].gathers for arrow in self.parents(stage))

    def gathered_by(self, stage: int) -> int:
        """The stage whose many results a stage gathers."""
        return self.scope_after(self.arrows[self.parents(stage)[0]].parent)[-1]

    def scopes(self) -> tuple[Scope, ...]:
        """By stage, the scope of the events that it gets.

        Raises:
            ValueError: parents of a join differ in it, or results are gathered that nothing has made many of.
        """
        return _scopes(self)

    def scope_after(self, stage: int) -> Scope:
        """The scope of a stage's results."""
        return self.scopes()[stage] + ((stage,) if stage in self.many else ())

    def finals(self) -> tuple[int, ...]:
        """Stages whose results go to a sink: those without a child, and those `beside`."""
        return tuple(s for s in range(len(self.stages)) if s in self.beside or not self.children(s))

    def counted(self) -> Scope:
        """The scope of the events whose latencies count: the innermost that all sinks get something of."""
        return innermost(self.scopes()[final] for final in self.finals())

    def longest_path_s(self, service_time_s: Mapping[str, float] | Sequence[float]) -> float:
        """T_s: the largest sum of service times along any path (InferLine §3)."""
        times = (
            [service_time_s[name] for name in self.stages] if isinstance(service_time_s, Mapping) else service_time_s
        )
        finish = [0.0] * len(self.stages)
        for stage in range(len(self.stages)):
            start = max((finish[self.arrows[a].parent] for a in self.parents(stage)), default=0.0)
            finish[stage] = start + times[stage]
        return max(finish, default=0.0)


def innermost(scopes: Iterable[Scope]) -> Scope:
    """Return the innermost scope that all of these lie within: `()`, that of whole events, at the outermost."""
    every = sorted(scopes)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(every[0], every[-1], strict=False))
    return tuple(stage for stage, _ in alike)


@functools.lru_cache(maxsize=64)
def _scopes(shape: Shape) -> tuple[Scope, ...]:
    found: list[Scope] = []
    for stage, name in enumerate(shape.stages):
        scopes: dict[Scope, str] = {}
        for arrow in (shape.arrows[bit] for bit in shape.parents(stage)):
            parent = shape.stages[arrow.parent]
            scope = found[arrow.parent] + ((arrow.parent,) if arrow.parent in shape.many else ())
            if arrow.gathers and not scope:
                raise ValueError(
                    f"stage {name!r} gathers results of {parent!r}, of which an event has one; declare a stage before "
                    "it many=True, or leave gathered() out"
                )
            scopes[scope[:-1] if arrow.gathers else scope] = parent
        if len(scopes) > 1:
            of = ", ".join(
                f"{parent!r} gives " + (f"results of {shape.stages[scope[-1]]!r}" if scope else "whole events")
                for scope, parent in scopes.items()
            )
            raise ValueError(f"stage {name!r} joins what does not belong to one event: {of}; gather the results before")
        found.append(next(iter(scopes), ()))
    return tuple(found)


def find_cycle(nodes: Sequence[_Node], parents: Callable[[_Node], Iterable[_Node]]) -> list[_Node]:
    """Stages or groups of one cycle in the direction of flow, the first repeated at the end; empty if there is none."""
    done: set[int] = set()
    path: list[_Node] = []

    def visit(node: _Node) -> list[_Node]:
        if any(node is earlier for earlier in path):
            start = next(i for i, earlier in enumerate(path) if earlier is node)
            return [*path[start:], node][::-1]
        if id(node) in done:
            return []
        path.append(node)
        for parent in parents(node):
            if found := visit(parent):
                return found
        done.add(id(path.pop()))
        return []

    return next((found for node in nodes if (found := visit(node))), [])


def topological(stages: Sequence[Stage]) -> list[Stage]:
    """Stages with every parent before its children, otherwise in the order declared.

    Parents that are not among ``stages`` are left out. Members of a cycle are missing from the result.
    """
    listed = {id(stage) for stage in stages}
    done: set[int] = set()
    order: list[Stage] = []
    waiting = list(stages)
    while waiting:
        ready = next(
            (s for s in waiting if all(id(e.parent) in done or id(e.parent) not in listed for e in s.after)), None
        )
        if ready is None:
            break
        waiting.remove(ready)
        done.add(id(ready))
        order.append(ready)
    return order


def shape_of(pipeline: Pipeline) -> Shape:
    """The DAG of a valid pipeline, of stages or of consumer groups."""
    if pipeline.groups:
        return _shape_of_groups(pipeline.groups)
    order = topological(pipeline.stages)
    position = {id(stage): i for i, stage in enumerate(order)}
    arrows = [
        Arrow(position[id(edge.parent)], i, edge.condition is not None, edge.gathers)
        for i, stage in enumerate(order)
        for edge in stage.after
    ]
    many = tuple(i for i, stage in enumerate(order) if stage.many)
    parents = {arrow.parent for arrow in arrows}
    beside = tuple(i for i, stage in enumerate(order) if i in parents and stage.sink is not None)
    sources = [topic for topic in pipeline.sources if not topic.background] if pipeline.own_sources else []
    entered = [tuple(i for i, stage in enumerate(order) if pipeline.enters(stage, topic)) for topic in sources]
    return Shape(tuple(stage.name for stage in order), tuple(arrows), many, beside, tuple(entered))


def _shape_of_groups(groups: Sequence[ConsumerGroup]) -> Shape:
    """Parents before their children: a group with more groups before it comes later."""

    def depth(group: ConsumerGroup) -> int:
        return max((1 + depth(parent) for parent in group.after), default=0)

    order = sorted(groups, key=depth)
    position = {id(group): i for i, group in enumerate(order)}
    arrows = [Arrow(position[id(parent)], i) for i, group in enumerate(order) for parent in group.after]
    return Shape(tuple(group.name for group in order), tuple(arrows))


@dataclass(frozen=True, slots=True)
class FanOut:
    """How many results a stage gives an event, and which arrows each of them takes.

    Args:
        stage: position in the topological order.
        counts: distinct numbers of results, ascending.
        shares: of the events that are given so many, summing to 1.
        masks: distinct sets of arrows that a result takes until it is gathered, as in `Paths`.
        weights: share of the results with each mask, summing to 1.

    Raises:
        ValueError: lengths that differ, counts below 0 or out of order, or shares or weights that are no distribution.
    """

    stage: int
    counts: tuple[int, ...]
    shares: tuple[float, ...]
    masks: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        Paths(self.masks, self.weights)
        if len(self.counts) != len(self.shares) or list(self.counts) != sorted({*self.counts}) or self.counts[0] < 0:
            raise ValueError(f"counts {self.counts} must ascend from 0 or more, with a share each: {self.shares}")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares {self.shares} are not shares that sum to 1")

    @property
    def mean(self) -> float:
        """Results per event."""
        return sum(count * share for count, share in zip(self.counts, self.shares, strict=True))


@dataclass(frozen=True, slots=True)
class Paths:
    """Which arrows events take: the joint distribution over the conditional branches.

    Args:
        masks: distinct sets of arrows taken; bit i stands for `Shape.arrows[i]`.
        weights: share of events with each mask, summing to 1.
        fan_outs: of the stages that give an event many results, in topological order. The masks are those of the
            source's events then, without the arrows that are each result's own.

    Raises:
        ValueError: no masks, lengths that differ, or weights that are not a distribution.
    """

    masks: tuple[int, ...]
    weights: tuple[float, ...]
    fan_outs: tuple[FanOut, ...] = ()

    def __post_init__(self) -> None:
        if not self.masks or len(self.masks) != len(self.weights):
            raise ValueError(f"{len(self.masks)} masks and {len(self.weights)} weights: need as many, at least one")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights {self.weights} are not shares that sum to 1")


def visited(shape: Shape, mask: int, scope: Scope = ()) -> list[bool]:
    """For each stage whether an event with that mask visits it.

    Entries where its source's events enter, others by any arrow that is taken. A stage that gathers is visited where
    the one is whose results those are; stages of another scope never.
    """
    scopes, seen, entered = shape.scopes(), list[bool](), shape.entries(shape.source_of(mask))
    for stage, own in enumerate(scopes):
        arrows = shape.parents(stage)
        if own != scope:
            seen.append(False)
        elif shape.gathers(stage):
            seen.append(seen[shape.gathered_by(stage)])
        else:
            seen.append(any(mask >> a & 1 for a in arrows) or stage in entered)
    return seen


def visit_ratios(shape: Shape, paths: Paths) -> dict[str, float]:
    """Mean visits to each stage per event (the paper's scale factor s_m); of many results each is a visit."""
    totals = [0.0] * len(shape.stages)

    def add(masks: Sequence[int], weights: Sequence[float], scope: Scope, times: float) -> None:
        for mask, weight in zip(masks, weights, strict=True):
            for stage, seen in enumerate(visited(shape, mask, scope)):
                totals[stage] += times * weight * seen

    add(paths.masks, paths.weights, (), 1.0)
    for fan_out in paths.fan_outs:
        scope = shape.scope_after(fan_out.stage)
        add(fan_out.masks, fan_out.weights, scope, totals[fan_out.stage] * fan_out.mean)
    return dict(zip(shape.stages, totals, strict=True))


def records_per_event(shape: Shape, paths: Paths) -> dict[str, float]:
    """Mean records that each stage's topic gets per event: a visit each, and a part each where they are gathered."""
    ratios = visit_ratios(shape, paths)
    given = {fan_out.stage: ratios[shape.stages[fan_out.stage]] * fan_out.mean for fan_out in paths.fan_outs}
    found = dict(ratios)
    for stage in filter(shape.gathers, range(len(shape.stages))):
        found[shape.stages[stage]] = max(ratios[shape.stages[stage]], given.get(shape.gathered_by(stage), 0.0))
    return found


def most_at_once(shape: Shape, paths: Paths) -> dict[str, int]:
    """By stage, how many visits one event may cause at the same moment: those of its results where they are apart."""
    most = {fan_out.stage: max(1, fan_out.counts[-1]) for fan_out in paths.fan_outs}
    scopes = zip(shape.stages, shape.scopes(), strict=True)
    return {name: math.prod(most.get(stage, 1) for stage in scope) for name, scope in scopes}


def flat_ways(shape: Shape, paths: Paths) -> tuple[tuple[int, float], ...]:
    """Return sets of arrows that an event takes together with one of its results, and the share of each.

    Without stages that give many results these are the masks themselves.
    """
    ways = dict(zip(paths.masks, paths.weights, strict=True))
    for fan_out in paths.fan_outs:
        further: dict[int, float] = {}
        for mask, weight in ways.items():
            own = zip(fan_out.masks, fan_out.weights, strict=True)
            for more, share in own if goes_through(shape, mask)[fan_out.stage] else ((0, 1.0),):
                further[mask | more] = further.get(mask | more, 0.0) + weight * share
        ways = further
    return tuple(ways.items())


def goes_through(shape: Shape, mask: int) -> list[bool]:
    """For each stage whether an event with that mask, or a result of it, visits it, whatever their scopes."""
    entered = shape.entries(shape.source_of(mask))
    return [s in entered or any(mask >> a & 1 for a in shape.parents(s)) for s in range(len(shape.stages))]


def independent_paths(shape: Shape, probability: Mapping[tuple[str, str], float], scope: Scope = ()) -> Paths:
    """Paths when each conditional arrow (parent, child) is taken independently with the probability given.

    Arrows without a probability are always taken once their parent is visited. Of a scope, the paths of the results
    that are apart there.
    """
    sources = range(max(1, len(shape.sources)))
    weights = {shape.source_bit(source): 1.0 / len(sources) for source in sources}
    for bit, arrow in enumerate(shape.arrows):
        if shape.scope_after(arrow.parent) != scope:
            continue
        p = probability.get((shape.stages[arrow.parent], shape.stages[arrow.child]), 1.0)
        split: dict[int, float] = {}
        for mask, weight in weights.items():
            seen = scope[-1:] == (arrow.parent,) or visited(shape, mask, scope)[arrow.parent]
            for taken, share in ((True, p), (False, 1 - p)) if seen else ((False, 1.0),):
                if share > 0:
                    key = mask | taken << bit
                    split[key] = split.get(key, 0.0) + weight * share
        weights = split
    return Paths(tuple(weights), tuple(weights.values()))


_Condition = tuple[int, Callable[[Any], bool] | str]
_Ways = frozenset[frozenset[_Condition]]

_MOST_WAYS = 2000


def rates(shape: Shape, paths: Paths) -> list[float]:
    """Return the share of the events that is of each source."""
    found = [0.0] * max(1, len(shape.sources))
    for mask, weight in zip(paths.masks, paths.weights, strict=True):
        found[shape.source_of(mask)] += weight
    return found


def with_rates(shape: Shape, paths: Paths, shares: Sequence[float]) -> Paths:
    """Return paths in which so large a share of the events is of each source that any path begins at."""
    before = rates(shape, paths)
    of = [(w, shape.source_of(mask)) for mask, w in zip(paths.masks, paths.weights, strict=True)]
    weights = [w * shares[source] / before[source] if before[source] else 0.0 for w, source in of]
    return replace(paths, weights=tuple(weight / sum(weights) for weight in weights))


def maybe_missing(order: Sequence[Stage], join: Stage) -> frozenset[int]:
    """Positions, among the arrows into ``join``, of those that may be untaken although another one was taken.

    An event takes an arrow when the arrow's parent is visited and its condition holds; a stage is visited
    when any arrow into it is taken. Being visited only ever needs conditions to hold, so that an arrow may
    be missing exactly if some smallest set of conditions that takes another arrow does not take it as well.
    The same condition on two arrows of one parent is one condition: both are taken or neither.

    Args:
        order: the stages in topological order.
        join: one of them.
    """
    reached: dict[int, _Ways] = {}
    several = any(stage.source is not None for stage in order)
    for stage in order:
        if not stage.after:  # of several sources, an event comes from one
            reached[id(stage)] = frozenset([frozenset([(id(stage.source), "enters")] if several else ())])
            continue
        ways = frozenset[frozenset[_Condition]]().union(*(_taken(reached, edge) for edge in stage.after))
        if len(ways) > _MOST_WAYS:  # too many to distinguish: say that every arrow may be missing
            return frozenset(range(len(join.after)))
        reached[id(stage)] = _smallest(ways)
        if stage is join:
            break
    arrows = [_taken(reached, edge) for edge in join.after]
    return frozenset(
        i
        for i, mine in enumerate(arrows)
        if any(not any(way <= other for way in mine) for ways in arrows for other in ways)
    )


def _taken(reached: dict[int, _Ways], edge: Edge) -> _Ways:
    """Smallest sets of conditions under which the arrow is taken."""
    # A parent outside the pipeline is a problem reported elsewhere; here it counts as an entry.
    ways = reached.get(id(edge.parent), frozenset([frozenset()]))
    if edge.condition is None:
        return ways
    return frozenset(way | {(id(edge.parent), edge.condition)} for way in ways)


def _smallest(ways: _Ways) -> _Ways:
    """Without the sets that contain another one."""
    kept: list[frozenset[_Condition]] = []
    for way in sorted(ways, key=len):
        if not any(other <= way for other in kept):
            kept.append(way)
    return frozenset(kept)
