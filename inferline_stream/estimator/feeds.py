"""Where the events that arrive at a stage come from, for each set of arrows that an event may take.

Times flow along every arrow: a stage has an *outcome* for every event, either its completion or the moment at which
it was known that the event skips it. A skipped stage with one parent has its parent's outcome (the parent works out
everything that is skipped and marks it at the joins at once); a skipped join has the arrival of the last such marker.
An arrow into a join therefore carries a record or a skip marker for every event, and the event is complete at
the join once all have arrived.

Of the arrows into a join only those matter that can be the last to arrive. Outcomes never come before those of
an ancestor, so that a *source* of tokens that is an ancestor of another source of the same event is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.pipeline.shape import Paths, Scope, Shape, visited

Flags = NDArray[np.uint8]
Way = tuple[Scope, int]
"""A set of arrows that events of a scope take; bit i stands for `Shape.arrows[i]`."""

Source = tuple[int, bool]
"""A stage's completions, or (True) the moments at which a join knew that it is skipped."""


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """What arrives at a stage.

    Args:
        sources: in order of stage; empty for an entry stage and for one that no event visits.
        admits: uint8 (sources, masks): whether a source's event with that mask counts at this stage.
        needed: uint8 (masks,): tokens after which an event is complete here; 1 for a stage with one parent.
        visits: uint8 (masks,): whether an event with that mask runs here.
        whole: the only source's events all arrive here, so that nothing has to be looked up.
        skips: some event skips this stage and a later join has to know when.
        gathers: the stage whose results the tokens are of, where they are gathered; all of them have to come.
    """

    sources: tuple[Source, ...]
    admits: Flags
    needed: Flags
    visits: Flags
    whole: bool
    skips: bool
    gathers: int | None = None


def ways_of(shape: Shape, paths: Paths) -> tuple[Way, ...]:
    """Return every set of arrows that events of any scope take, those of the source's events first."""
    own: list[Way] = [((), mask) for mask in paths.masks]
    return (*own, *((shape.scope_after(of.stage), mask) for of in paths.fan_outs for mask in of.masks))


def feeds(shape: Shape, paths: Paths) -> tuple[Feed, ...]:
    """One feed per stage; masks are those of `ways_of`."""
    ways = ways_of(shape, paths)
    seen = [visited(shape, mask, scope) for scope, mask in ways]
    ancestors = shape.ancestors()
    found: list[list[frozenset[Source]]] = [
        [_sources(shape, ancestors, stage, way, seen[m]) for m, way in enumerate(ways)]
        for stage in range(len(shape.stages))
    ]
    wanted = {source for stage in found for sources in stage for source in sources}
    return tuple(
        _feed(
            found[s],
            [row[s] for row in seen],
            skips=(s, True) in wanted,
            join=len(shape.parents(s)) > 1,
            gathers=shape.gathered_by(s) if shape.gathers(s) else None,
        )
        for s in range(len(shape.stages))
    )


def _feed(found: list[frozenset[Source]], visits: list[bool], *, skips: bool, join: bool, gathers: int | None) -> Feed:
    if not skips and gathers is None:  # nobody has to know of the events that do not run here
        found = [tokens if seen else frozenset() for tokens, seen in zip(found, visits, strict=True)]
    own = frozenset() if gathers is None else frozenset({(gathers, False)})  # it says which events have no results
    sources = tuple(sorted(own.union(*found)))
    admits = np.array([[source in tokens for tokens in found] for source in sources], dtype=np.uint8)
    runs = np.array(visits, dtype=np.uint8)
    return Feed(
        sources=sources,
        admits=admits.reshape(len(sources), len(found)),
        needed=np.array([len(tokens) if join else 1 for tokens in found], dtype=np.uint8),
        visits=runs,
        whole=gathers is None and len(sources) == 1 and not sources[0][1] and bool(admits.all()) and bool(runs.all()),
        skips=skips,
        gathers=gathers,
    )


def _sources(
    shape: Shape, ancestors: tuple[frozenset[int], ...], stage: int, way: Way, seen: list[bool]
) -> frozenset[Source]:
    """The sources whose tokens an event that goes this way needs at the stage."""
    arrows, (scope, mask) = shape.parents(stage), way
    reached = range(len(shape.stages)) if scope else shape.reached(shape.source_of(mask))
    if arrows and shape.gathers(stage):
        parent = shape.arrows[arrows[0]].parent
        comes = shape.scope_after(parent) == scope and parent in reached
        return frozenset({_outcome(shape, parent, seen, scope)}) if comes else frozenset()
    if not arrows or shape.scopes()[stage] != scope:
        return frozenset()
    if len(arrows) == 1:
        parent = shape.arrows[arrows[0]].parent
        return frozenset({(parent, False)}) if seen[stage] else frozenset()
    parents = [shape.arrows[a].parent for a in arrows]
    tokens = {_outcome(shape, parent, seen, scope) for parent in parents if parent in reached}
    return frozenset(t for t in tokens if not any(t[0] != s and t[0] in ancestors[s] for s, _ in tokens))


def _outcome(shape: Shape, stage: int, seen: list[bool], scope: Scope) -> Source:
    """Whose outcome a stage's is, for an event of a scope."""
    if seen[stage] or stage in scope[-1:]:
        return stage, False
    if shape.gathers(stage):
        return _outcome(shape, shape.gathered_by(stage), seen, scope)
    arrows = shape.parents(stage)
    if len(arrows) > 1:
        return stage, True
    return _outcome(shape, shape.arrows[arrows[0]].parent, seen, scope)
