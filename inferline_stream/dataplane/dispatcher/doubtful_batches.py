"""Batches without a success: what a replica says of them is kept until it is known whose fault that is.

`replica_trust` finds that out with a sample. Then:

| it turns out that                      | the stage raised on its events | a server did not take its events           |
|----------------------------------------|--------------------------------|---------------------------------------------|
| the replica can process events         | dead letters                   | several: again, in halves. One: it waits   |
|                                        |                                | aside, and at `REFUSALS` is a dead letter  |
| the same, and the server was busy      | dead letters                   | several: again, in halves. One: it waits   |
|                                        |                                | aside, longer each time                    |
| the server takes no sample either      | kept until it does             | again                                      |
| the replica fails on, or by, a sample  | lost with it: see `suspects`   | again                                      |
| no sample is known                     | dead letters                   | they wait aside, longer each time          |
| the replica leaves, or ends by itself  | again                          | again                                      |

An event that waits aside holds up those of its key alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.hand import Hand
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica
from inferline_stream.dataplane.dispatcher.replica_trust import Happening, ReplicaStanding, ReplicaTrust, TrustAction
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.frames import Done, Failed, Returned

REFUSALS = 6
"""How often a server may take a sample, and not an event alone, before the event is at fault."""

ASIDE_S = (0.1, 1.6)
"""First and longest wait of an event in between: together 3 s, since it holds up its key."""

BLAMELESS_ASIDE_S = (0.1, 30.0)
"""The same where no event is blamed, since the server says that it is busy, or nobody knows whether it takes anything:
others have their turns meanwhile, however many wait so."""


_NO_EVENTS = (ReplicaStanding.DOUBTED, ReplicaStanding.TESTED)


@dataclass(frozen=True, slots=True, eq=False)
class _DoubtfulBatch:
    hand: Hand
    said: Sequence[Done | Failed] | Returned


class DoubtfulBatches:
    """Keeps batches by replica, and has replicas tested. Batches of an earlier session are worth nothing.

    Args:
        pool: gives doubted replicas no events.
        trust: says which those are.
        loop: waits.
        served: returns the session whose events are handed out now.
        kick: called once events have been put back that waited aside.
    """

    def __init__(
        self,
        pool: Pool,
        trust: ReplicaTrust,
        loop: asyncio.AbstractEventLoop,
        served: Callable[[], SlotSession | None],
        kick: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._trust = trust
        self._loop = loop
        self._served = served
        self._kick = kick
        self._kept: defaultdict[str, list[_DoubtfulBatch]] = defaultdict(list)

    def keep(self, replica: str, hand: Hand, said: Sequence[Done | Failed] | Returned) -> None:
        """Keep a batch, and what a replica says of it."""
        if hand.events:
            self._kept[replica].append(_DoubtfulBatch(hand, said))

    def happens(self, replica: PooledReplica, what: Happening) -> None:
        """Have a replica's standing follow what it does, and do what that asks for."""
        action = self._trust.happens(replica.replica, what)
        self._pool.doubt(replica, self._trust.standing(replica.replica) in _NO_EVENTS)
        if action is not None:
            self._act(replica.replica, action)

    def to_test(self, *, sample: bool) -> list[PooledReplica]:
        """Return the replicas to run the sample on; where none is known, they are believed as far as possible."""
        doubted = ReplicaStanding.DOUBTED
        due = [each for each in self._pool.doubted() if self._trust.standing(each.replica) is doubted]
        for replica in [] if sample else due:
            self.happens(replica, Happening.NO_SAMPLE)
        return due if sample else []

    def _act(self, replica: str, action: TrustAction) -> None:
        for session, each in self._taken(replica, latest_first=action is TrustAction.SPARE):
            if not isinstance(each.said, Returned):
                if action is TrustAction.SPARE:
                    self._kept[replica].insert(0, each)
                else:
                    self._finish(session, each.hand, each.said)
            elif action is TrustAction.SPARE:
                self._put_back(session, each)
            elif action is TrustAction.BELIEVE:
                self._refused(session, each.hand, each.said)
            else:
                self._wait_aside(session, each.hand, BLAMELESS_ASIDE_S)

    def lost(self, replica: str) -> list[Hand]:
        """Return the batches on which the stage raised in a replica that is at fault; the others run again."""
        found: list[Hand] = []
        for session, each in self._taken(replica, latest_first=True):
            if isinstance(each.said, Returned):
                self._put_back(session, each)
            else:
                found.insert(0, each.hand)
        return found

    def spare(self, replica: str) -> None:
        """Let everything run again that is kept of a replica."""
        for session, each in self._taken(replica, latest_first=True):
            self._put_back(session, each)

    def _taken(self, replica: str, *, latest_first: bool = False) -> list[tuple[SlotSession, _DoubtfulBatch]]:
        """Return what is kept of a replica, each with the session, and keep it no longer."""
        session, kept = self._served(), self._kept.pop(replica, [])
        if session is None:
            return []
        found = [(session, each) for each in kept if each.hand.epoch == session.epoch]
        return found[::-1] if latest_first else found

    def _put_back(self, session: SlotSession, kept: _DoubtfulBatch) -> None:
        if not kept.hand.alone:
            requeue(session, kept.hand.events)
        elif isinstance(kept.said, Returned):
            session.suspects.not_taken(self._loop.time())
        else:
            session.suspects.interrupted()

    def _refused(self, session: SlotSession, hand: Hand, said: Returned) -> None:
        events = hand.events
        if len(events) > 1:
            half = (len(events) + 1) // 2
            requeue(session, events[half:], half)
            requeue(session, events[:half], half)
            return
        if said.busy:
            self._wait_aside(session, hand, BLAMELESS_ASIDE_S)
            return
        (event,) = events
        event.refusals += 1
        if event.refusals >= REFUSALS:
            reason = f"not taken {event.refusals} times, while the same replica's server took others: {said.reason}"
            self._finish(session, hand, [Failed("Unserved", reason, "")])
        else:
            self._wait_aside(session, hand, ASIDE_S)

    def _finish(self, session: SlotSession, hand: Hand, outcomes: Sequence[Done | Failed]) -> None:
        if not hand.alone or session.suspects.passed(hand.events[0], success=False):
            session.finished(hand.events, outcomes)

    def _wait_aside(self, session: SlotSession, hand: Hand, within_s: tuple[float, float]) -> None:
        if hand.alone:
            session.suspects.not_taken(self._loop.time())
            return
        events, (least_s, most_s) = hand.events, within_s
        for event in events:
            event.waits += 1
        before = max(event.waits for event in events) - 1
        self._loop.call_later(min(most_s, least_s * 2.0 ** min(before, 16)), self._take_up, session, events)

    def _take_up(self, session: SlotSession, events: Sequence[Event]) -> None:
        """Queue events again that waited aside, unless their partition is no longer served."""
        if self._served() is session:
            requeue(session, events)
            self._kick()


def requeue(session: SlotSession, events: Sequence[Event], limit: int = 0) -> None:
    """Queue events again, the latest of a key first, unless their partition is halted; see `StageQueue.put_back`."""
    halted = [event for event in events if session.partitions[event.partition].halted]
    session.queue.release(halted)
    session.queue.put_back([event for event in events if event not in halted], limit)
