"""Batches that a server has not taken: when each is tried again, and in what parts.

| which time                                                           | then                                     |
|----------------------------------------------------------------------|------------------------------------------|
| an event's first                                                     | the batch goes back to the queue at once |
| the second and later                                                 | it waits aside while others are tried    |
| the server took others in between, as often as `SINGLED_OUT`         | it goes back in halves                   |
| the same, of an event alone                                          | the event waits aside for longer         |

So an event that a server always fails on holds up no other one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.session import SlotSession

SINGLED_OUT = 3
"""How often a server may take others, and not an event, before it seems to fail on this one."""

ASIDE_S = (0.1, 1.0)
"""First and longest time that a batch waits aside."""

LONG_ASIDE_S = (0.5, 30.0)
"""The same for an event that a server seems to fail on. It is never given up: no event is at fault for a server."""


class UntakenBatches:
    """Returns batches to the queue that a server has not taken.

    Args:
        loop: waits.
        served: returns the session whose events are handed out now.
        kick: called once events have been put back that waited aside.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, served: Callable[[], SlotSession | None], kick: Callable[[], None]
    ) -> None:
        self.finished = 0
        """Batches that servers have taken and finished; the feeder counts them."""
        self._loop = loop
        self._served = served
        self._kick = kick

    def put_aside(self, events: Sequence[Event], session: SlotSession) -> None:
        """Return a batch's events to the queue, at once or later, whole or in halves."""
        for event in events:
            event.not_taken += 1
            if event.singled_out_after < self.finished:
                event.singled_out, event.singled_out_after = event.singled_out + 1, self.finished
        in_all = max((event.not_taken for event in events), default=0)
        often = max((event.singled_out for event in events), default=0)
        if in_all < 2:
            session.queue.put_back(events)
        elif often < SINGLED_OUT:
            self._wait(events, session, ASIDE_S, in_all - 2)
        elif len(events) > 1:
            half = (len(events) + 1) // 2
            session.queue.put_back(events[half:], half)
            session.queue.put_back(events[:half], half)
        else:
            self._wait(events, session, LONG_ASIDE_S, often - SINGLED_OUT)

    def _wait(self, events: Sequence[Event], session: SlotSession, within_s: tuple[float, float], before: int) -> None:
        least_s, most_s = within_s
        self._loop.call_later(min(most_s, least_s * 2.0 ** min(before, 16)), self._take_up, events, session)

    def _take_up(self, events: Sequence[Event], session: SlotSession) -> None:
        """Queue events again that waited aside, unless their partition is no longer served."""
        if self._served() is not session:
            return
        partition = session.partitions.get(events[0].partition)
        if partition is not None and not partition.halted:
            session.queue.put_back(events)
        else:
            session.queue.release(events)
        self._kick()
