"""The plan's mixture of hardware kinds: which kind a stage's next replica is of, and which kind goes first.

A plan is verified with its mixture. Another one of the same throughput at full batches may serve far less within the
SLO: a kind whose large batches are cheap may take longer than the SLO for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def following(planned: Mapping[str, int], held: Mapping[str, int], among: Iterable[str]) -> str:
    """The kind of the next replica: the one with the fewest for its share of the plan.

    This is Webster's method of apportionment. It gives the plan back at the plan's number of replicas, and never takes
    a replica of one kind away because there is one more in all.

    Args:
        planned: replicas by kind.
        held: the same now.
        among: kinds to choose from; the first one of equals.
    """
    return max(among, key=lambda kind: planned[kind] / (2 * held[kind] + 1))


def leaving(planned: Mapping[str, int], held: Mapping[str, int], among: Iterable[str]) -> str:
    """The kind of the replica that goes first: the one that `following` would add again."""
    return min(reversed([*among]), key=lambda kind: planned[kind] / (2 * held[kind] - 1))


def mixture(planned: Mapping[str, int], replicas: int) -> dict[str, int]:
    """So many replicas by kind, in the plan's mixture: whole plans, and of one more as many as are left."""
    whole, rest = divmod(replicas, sum(planned.values()))
    held = dict.fromkeys(planned, 0)
    for _ in range(rest):
        held[following(planned, held, planned)] += 1
    return {kind: whole * count + held[kind] for kind, count in planned.items()}
