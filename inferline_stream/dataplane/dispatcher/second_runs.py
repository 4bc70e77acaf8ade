"""Which events of a batch run a second time, on the stage as it runs, because another version of it failed on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Answer, Done, Failed, Many


@dataclass(slots=True)
class AnsweredBatch:
    """A batch that a fallback, or a version that is tried out, has answered."""

    ended: list[Event] = field(default_factory=list)
    """Events whose results count, in their order."""
    results: list[Done | Many] = field(default_factory=list)
    """Of each of those."""
    again: list[Event] = field(default_factory=list)
    """Events that run again, in their order."""
    failed: list[Event] = field(default_factory=list)
    """Those of them that the version failed on. The others come after one of these in their key."""


def answered_batch(slot: SlotContext, events: Sequence[Event], outcomes: Sequence[Answer]) -> AnsweredBatch:
    """Return what ends of a batch, and what runs again: where keys have an order, also what follows in a failed one.

    Args:
        slot: whose events they are. A result that no topic takes is a failure, too.
        events: of the batch, in its order.
        outcomes: of each of them.
    """
    found, held_up, keyed = AnsweredBatch(), set[bytes | None](), slot.routes.keys_in_order
    for event, outcome in zip(events, outcomes, strict=True):
        if isinstance(outcome, Failed) or slot.emitter.refused(event, outcome) is not None:
            found.failed.append(event)
            if keyed and event.key is not None:
                held_up.add(event.key)
        elif event.key not in held_up:
            found.ended.append(event)
            found.results.append(outcome)
            continue
        found.again.append(event)
    return found
