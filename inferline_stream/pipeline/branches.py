"""Which arrows into a join may be missing when the join runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inferline_stream.pipeline.topology import Edge, Stage

_Condition = tuple[int, Callable[[Any], bool] | str]
_Ways = frozenset[frozenset[_Condition]]

_MOST_WAYS = 2000


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
    for stage in order:
        if not stage.after:
            reached[id(stage)] = frozenset([frozenset()])
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
