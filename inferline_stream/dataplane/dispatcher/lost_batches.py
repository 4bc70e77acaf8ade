"""What becomes of batches whose replica is gone: `suspects` decides, and the session does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches, requeue
from inferline_stream.dataplane.dispatcher.hand import Hand, PoolMember
from inferline_stream.dataplane.dispatcher.poison_suspects import LostBatch
from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.dispatcher.tracing import BatchSpans
from inferline_stream.dataplane.frames import Failed
from inferline_stream.dataplane.reports import PoolReport

logger = logging.getLogger(__name__)


class LostBatches:
    """Takes batches from replicas that end, and has their events run again or end. Those of an earlier session are
    worth nothing.

    Args:
        doubtful: what else is kept of a replica.
        report: of the stage.
        spans: one for each batch, where they are wanted.
        loop: says what time it is.
        served: returns the session whose events are handed out now.
    """

    def __init__(
        self,
        doubtful: DoubtfulBatches,
        report: PoolReport,
        spans: BatchSpans | None,
        loop: asyncio.AbstractEventLoop,
        served: Callable[[], SlotSession | None],
    ) -> None:
        self._doubtful = doubtful
        self._report = report
        self._spans = spans
        self._loop = loop
        self._served = served

    def spare(self, member: PoolMember, number: int, why: str) -> None:
        """Take a batch from a replica that ends, through no fault of the batch's events; of several, the last first."""
        hand, session = member.hands.pop(number), self._served()
        self._end_span(hand, why)
        if session is not None and hand.epoch == session.epoch:
            self._report.counts.batches_lost += bool(hand.events or hand.probe)
            _put_back(hand, session)

    def run_elsewhere(self, session: SlotSession, hand: Hand) -> None:
        """Let a late batch run on other replicas; its result is dropped."""
        events, hand.events = hand.events, ()
        session.returned(events)
        self._report.counts.batches_lost += 1
        self._follow(session.suspects.late(events), session)

    def failed_sample(self, session: SlotSession, replica: PooledReplica, why: str) -> None:
        """Judge batches on which a replica raised that fails on a sample, or ends on it, as lost with it."""
        kept, now_s = self._doubtful.lost(replica.replica), self._loop.time()
        for hand in kept:
            session.handed(hand.events)
        if kept:
            self._judge(kept, session, passed=replica.passed, why=why, together=len(kept) > 1)
        else:
            session.suspects.probe_failed(now_s, "failed")

    def lose(
        self, member: PoolMember, why: str, *, beside: int = 0, memory: bool = False, device: bool = False
    ) -> None:
        """See to everything that a replica had in hand which is gone, or is given up.

        Args:
            member: the replica.
            why: in words.
            beside: batches that it ran beside these and that were taken from it already.
            memory: whether memory ran out.
            device: whether it was its device's memory.
        """
        replica, hands, session = member.replica, list(member.hands.values()), self._served()
        together = len(hands) + beside > 1  # those count whose events run elsewhere by now: the replica still ran them
        member.hands.clear()
        for hand in hands:
            self._end_span(hand, why)
        if hands:
            events = sum(len(hand.events) for hand in hands)
            logger.warning("replica %s: %s, with %d events in hand", replica.replica, why, events)
        if session is not None and any(hand.test for hand in hands):
            self.failed_sample(session, replica, why)
        self._doubtful.spare(replica.replica)
        if session is None:
            return
        lost = [hand for hand in hands if hand.epoch == session.epoch and (hand.events or hand.probe)]
        if lost:
            self._report.counts.batches_lost += len(lost)
            self._judge(lost, session, passed=replica.passed, why=why, together=together, memory=memory, device=device)

    def _judge(
        self,
        lost: Sequence[Hand],
        session: SlotSession,
        *,
        passed: bool,
        why: str,
        together: bool,
        memory: bool = False,
        device: bool = False,
    ) -> None:
        """Find out what becomes of batches. Of several that were in hand together, nobody knows which is to blame.

        Args:
            lost: the batches, none of them a test.
            session: whose they are.
            passed: whether the replica had a success since it was attached.
            why: it is gone.
            together: whether it had several in hand, these or others.
            memory: whether memory ran out.
            device: whether it was its device's memory.
        """
        suspects, now_s = session.suspects, self._loop.time()
        if together:
            batches = []
            for hand in lost:
                if hand.alone or hand.probe:
                    _put_back(hand, session)  # beside a batch of an earlier session: that proves nothing
                else:
                    session.returned(hand.events)
                    batches.append(hand.events)
            suspects.suspect(batches, passed=passed, now_s=now_s)
            self._follow(LostBatch(), session)
            return
        hand = lost[0]
        if hand.probe:
            suspects.probe_failed(now_s)
            self._follow(LostBatch(), session)
            return
        events = hand.events
        session.returned(events)
        if device and len(events) == 1:
            suspects.no_memory(events[0], alone=hand.alone, now_s=now_s)
            logger.error("stage %s: %s", self._report.stage, suspects.trouble)
            return
        found = suspects.lost(events, alone=hand.alone, memory=memory, passed=passed, now_s=now_s, cause=why)
        self._follow(found, session)

    def _follow(self, lost: LostBatch, session: SlotSession) -> None:
        """Run again what is to run again, and end what is condemned."""
        stage = self._report.stage
        for events in reversed(lost.again):
            requeue(session, events, lost.limit)
        for event, reason in lost.condemned:
            logger.error("an event of %s/%d is condemned: %s", stage, event.partition, reason)
            session.finished((event,), (Failed("Poison", reason, ""),))
        if session.suspects.suspicion.reason:
            logger.error("stage %s: %s", stage, session.suspects.suspicion.reason)

    def _end_span(self, hand: Hand, why: str) -> None:
        if hand.span is not None and self._spans is not None:
            self._spans.broke(hand.span, why)


def _put_back(hand: Hand, session: SlotSession) -> None:
    """Return a batch to where it came from, because its loss is no fault of its events."""
    session.returned(hand.events)
    if hand.alone or hand.probe:
        session.suspects.interrupted()
    elif hand.events:
        requeue(session, hand.events)
