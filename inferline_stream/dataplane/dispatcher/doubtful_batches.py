"""Batches without a success: what a replica says of them is kept until it is known whose fault that is.

`replica_trust` finds that out with a sample. Then:

| it turns out that                      | the stage raised on its events | a server did not take its events           |
|----------------------------------------|--------------------------------|---------------------------------------------|
| the replica can process events         | dead letters                   | several: again, in halves. One: it waits   |
|                                        |                                | aside, and at `REFUSALS` is a dead letter  |
| the same, and the server was busy      | dead letters                   | several: again, in halves. One: it waits   |
|                                        |                                | aside, longer each time                    |
| the server takes no sample either      | kept until it does             | again                                      |
| the replica fails on, or by, a sample  | lost with it: `lost_batches`   | again                                      |
| no sample is known                     | dead letters                   | they wait aside, longer each time          |
| the replica leaves, or ends by itself  | again                          | again                                      |

An event that waits aside holds up those of its key alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import DoubtfulBatch, Hand, PooledReplica
from inferline_stream.dataplane.dispatcher.replica_trust import Happening, ReplicaStanding, ReplicaTrust, TrustAction
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Answer, Failed, Returned

REFUSALS = 6
"""How often a server may take a sample, and not an event alone, before the event is at fault."""

ASIDE_S = (0.1, 1.6)
"""First and longest wait of an event in between: together 3 s, since it holds up its key."""

BLAMELESS_ASIDE_S = (0.1, 30.0)
"""The same where no event is blamed, since the server says that it is busy, or nobody knows whether it takes anything:
others have their turns meanwhile, however many wait so."""

_NO_EVENTS = (ReplicaStanding.DOUBTED, ReplicaStanding.TESTED)


class DoubtfulBatches:
    """Keeps what replicas said of batches without a success. Batches of an earlier session are worth nothing.

    Args:
        slot: says what time it is.
        pool: gives doubted replicas no events.
        trust: says which those are.
    """

    def __init__(self, slot: SlotContext, pool: Pool, trust: ReplicaTrust) -> None:
        self._slot = slot
        self._pool = pool
        self._trust = trust
        self.aside: list[tuple[float, int, Session, Sequence[Event]]] = []
        """Events that wait aside: a heap, by when they are queued again."""
        self._sequence = itertools.count()

    def happens(self, session: Session, replica: PooledReplica, what: Happening) -> None:
        """Have a replica's standing follow what it does, and do what that asks for."""
        action = self._trust.happens(replica.replica, what)
        self._pool.doubt(replica, self._trust.standing(replica.replica) in _NO_EVENTS)
        if action is not None:
            self._act(session, replica, action)

    def to_test(self, session: Session, *, sample: bool) -> list[PooledReplica]:
        """Return the replicas to run the sample on; where none is known, they are believed as far as possible."""
        doubted = ReplicaStanding.DOUBTED
        due = [each for each in self._pool.doubted() if self._trust.standing(each.replica) is doubted]
        for replica in [] if sample else due:
            self.happens(session, replica, Happening.NO_SAMPLE)
        return due if sample else []

    def _act(self, session: Session, replica: PooledReplica, action: TrustAction) -> None:
        for each in _taken(session, replica, latest_first=action is TrustAction.SPARE):
            if not isinstance(each.said, Returned):
                if action is TrustAction.SPARE:
                    replica.doubtful.insert(0, each)
                else:
                    self._finish(session, each.hand, each.said)
            elif action is TrustAction.SPARE:
                self._put_back(session, each)
            elif action is TrustAction.BELIEVE:
                self._refused(session, each.hand, each.said)
            else:
                self._wait_aside(session, each.hand, BLAMELESS_ASIDE_S)

    def lost(self, session: Session, replica: PooledReplica) -> list[Hand]:
        """Return the batches on which the stage raised in a replica that is at fault; the others run again."""
        found: list[Hand] = []
        for each in _taken(session, replica, latest_first=True):
            if isinstance(each.said, Returned):
                self._put_back(session, each)
            else:
                found.insert(0, each.hand)
        return found

    def spare(self, session: Session, replica: PooledReplica) -> None:
        """Let everything run again that is kept of a replica."""
        for each in _taken(session, replica, latest_first=True):
            self._put_back(session, each)

    def take_up(self, session: Session) -> None:
        """Queue events again that have waited aside for long enough, unless their session is over."""
        while self.aside and self.aside[0][0] <= self._slot.now_s:
            _, _, of, events = heapq.heappop(self.aside)
            if of is session:
                session.requeue(events)
        if self.aside:
            self._slot.wake_at(self.aside[0][0])

    def _put_back(self, session: Session, kept: DoubtfulBatch) -> None:
        if not kept.hand.alone:
            session.requeue(kept.hand.events)
        elif isinstance(kept.said, Returned):
            session.suspects.not_taken(self._slot.now_s)
        else:
            session.suspects.interrupted()

    def _refused(self, session: Session, hand: Hand, said: Returned) -> None:
        events = hand.events
        if len(events) > 1:
            half = (len(events) + 1) // 2
            session.requeue(events[half:], half)
            session.requeue(events[:half], half)
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

    def _finish(self, session: Session, hand: Hand, outcomes: Sequence[Answer]) -> None:
        if not hand.alone or session.suspects.passed(hand.events[0], success=False):
            session.finished(hand.events, outcomes)

    def _wait_aside(self, session: Session, hand: Hand, within_s: tuple[float, float]) -> None:
        now_s, (least_s, most_s) = self._slot.now_s, within_s
        if hand.alone:
            session.suspects.not_taken(now_s)
            return
        for event in hand.events:
            event.waits += 1
        before = max(event.waits for event in hand.events) - 1
        again_s = now_s + min(most_s, least_s * 2.0 ** min(before, 16))
        heapq.heappush(self.aside, (again_s, next(self._sequence), session, hand.events))


def _taken(session: Session, replica: PooledReplica, *, latest_first: bool = False) -> list[DoubtfulBatch]:
    """Return what is kept of a replica, and keep it no longer."""
    kept, replica.doubtful = replica.doubtful, []
    found = [each for each in kept if each.hand.epoch == session.epoch]
    return found[::-1] if latest_first else found
