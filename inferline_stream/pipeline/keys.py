"""Busy keys of a pipeline's events, and where events of one key keep their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from inferline_stream.pipeline.topology import Pipeline, Stage

MOST_KEYS = 1024
"""Keys that are known one by one, the most frequent: no other key has more than a thousandth of the events."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys events have. Whatever share is left has keys too rare for two of their events to meet.

    Args:
        shares: (key, share of the events), the most frequent first.
        ordered: stages that process events of one key in order, one batch of them at a time.

    Raises:
        ValueError: shares that are not above 0 or are more than 1 together, or more than `MOST_KEYS`.
    """

    shares: tuple[tuple[str, float], ...] = ()
    ordered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = [share for _, share in self.shares]
        if len(values) > MOST_KEYS:
            raise ValueError(f"{len(values)} keys are more than the {MOST_KEYS} supported")
        if values and (not min(values) > 0 or sum(values) > 1 + 1e-9):
            raise ValueError(f"shares {values[:8]} of keys must be above 0, and at most 1 together")


def keeps_order(stage: Stage) -> bool:
    """Whether a stage processes events of one key in order: plain stages unless lifted, others only if asked for.

    Those are joins, and stages that get the many results of an event: all of them have its key.
    """
    return stage.ordered is not False if not stage.is_join and not _depth(stage) else bool(stage.ordered)


def _depth(stage: Stage) -> int:
    """How many stages before have made many of an event that are still apart."""
    if not stage.after:
        return 0
    edge = stage.after[0]
    return _depth(edge.parent) + edge.parent.many - edge.gathers


def keys_of(pipeline: Pipeline, keys: Iterable[bytes | None]) -> Keys:
    """Return the busy keys of a sample; a key that only one of its events has is none.

    Args:
        pipeline: a valid one.
        keys: of each event of the sample; None for one without.
    """
    counts: Counter[bytes | None] = Counter(keys)
    events = counts.total()
    del counts[None]
    frequent = [(key, count) for key, count in counts.items() if key is not None and count > 1]
    frequent.sort(key=lambda entry: (-entry[1], entry[0]))
    shares = tuple((key.decode("utf-8", "replace"), count / events) for key, count in frequent[:MOST_KEYS])
    return Keys(shares, tuple(stage.name for stage in pipeline.stages if keeps_order(stage)))
