"""What becomes of batches whose replica is gone: `poison_suspects` decides, and the session does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches
from inferline_stream.dataplane.dispatcher.poison_suspects import LostBatch
from inferline_stream.dataplane.dispatcher.pooled_replica import Hand, PooledReplica
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Failed

logger = logging.getLogger(__name__)


class LostBatches:
    """Takes batches from replicas that end, and has their events run again or end. Those of an earlier session are
    worth nothing.

    Args:
        slot: says what time it is.
        doubtful: what else is kept of a replica.
    """

    def __init__(self, slot: SlotContext, doubtful: DoubtfulBatches) -> None:
        self._slot = slot
        self._doubtful = doubtful

    def spare(self, session: Session, replica: PooledReplica, why: str) -> None:
        """Take every batch from a replica that ends through no fault of their events."""
        for number in reversed(list(replica.hands)):
            self.spare_one(session, replica, number, why)

    def spare_one(self, session: Session, replica: PooledReplica, number: int, why: str) -> None:
        """Take one batch from a replica that ends through no fault of its events; of several, the last first."""
        hand = replica.hands.pop(number)
        self._end_span(hand, why)
        if hand.epoch == session.epoch:
            self._slot.report.counts.batches_lost += bool(hand.events or hand.probe)
            _put_back(hand, session)

    def run_elsewhere(self, session: Session, hand: Hand) -> None:
        """Let a late batch run on other replicas; its result is dropped."""
        events, hand.events = hand.events, ()
        self._slot.report.counts.batches_lost += 1
        self._follow(session.suspects.late(events), session)

    def failed_sample(self, session: Session, replica: PooledReplica, why: str) -> None:
        """Judge batches on which a replica raised that fails on a sample, or ends on it, as lost with it."""
        kept = self._doubtful.lost(session, replica)
        if kept:
            self._judge(kept, session, passed=replica.passed, why=why, together=len(kept) > 1)
        else:
            session.suspects.probe_failed(self._slot.now_s, "failed")

    def lose(
        self,
        session: Session,
        replica: PooledReplica,
        why: str,
        *,
        beside: int = 0,
        memory: bool = False,
        device: bool = False,
    ) -> None:
        """See to everything that a replica had in hand which is gone, or is given up.

        Args:
            session: whose events are served.
            replica: which one.
            why: in words.
            beside: batches that it ran beside these and that were taken from it already.
            memory: whether memory ran out.
            device: whether it was its device's memory.
        """
        hands, replica.hands = list(replica.hands.values()), {}
        together = len(hands) + beside > 1  # those count whose events run elsewhere by now: the replica still ran them
        for hand in hands:
            self._end_span(hand, why)
        if hands:
            events = sum(len(hand.events) for hand in hands)
            logger.warning("replica %s: %s, with %d events in hand", replica.replica, why, events)
        if any(hand.test for hand in hands):
            self.failed_sample(session, replica, why)
        self._doubtful.spare(session, replica)
        lost = [hand for hand in hands if hand.epoch == session.epoch and (hand.events or hand.probe)]
        if lost:
            self._slot.report.counts.batches_lost += len(lost)
            self._judge(lost, session, passed=replica.passed, why=why, together=together, memory=memory, device=device)

    def _judge(
        self,
        lost: Sequence[Hand],
        session: Session,
        *,
        passed: bool,
        why: str,
        together: bool,
        memory: bool = False,
        device: bool = False,
    ) -> None:
        """Find out what becomes of batches. Of several that were in hand together, nobody knows which is to blame."""
        suspects, now_s = session.suspects, self._slot.now_s
        if together:
            batches = []
            for hand in lost:
                if hand.alone or hand.probe:
                    _put_back(hand, session)  # beside a batch of an earlier session: that proves nothing
                else:
                    batches.append(hand.events)
            suspects.suspect(batches, passed=passed, now_s=now_s)
            self._follow(LostBatch(), session)
            return
        (hand,) = lost
        events = hand.events
        if hand.probe:
            suspects.probe_failed(now_s)
            self._follow(LostBatch(), session)
        elif device and len(events) == 1:
            suspects.no_memory(events[0], alone=hand.alone, now_s=now_s)
            logger.error("stage %s: %s", self._slot.routes.stage, suspects.trouble)
        else:
            found = suspects.lost(events, alone=hand.alone, memory=memory, passed=passed, now_s=now_s, cause=why)
            self._follow(found, session)

    def _follow(self, lost: LostBatch, session: Session) -> None:
        """Run again what is to run again, and end what is condemned."""
        stage = self._slot.routes.stage
        for events in reversed(lost.again):
            session.requeue(events, lost.limit)
        for event, reason in lost.condemned:
            logger.error("an event of %s/%d is condemned: %s", stage, event.partition, reason)
            session.finished((event,), (Failed("Poison", reason, ""),))
        if session.suspects.suspicion.reason:
            logger.error("stage %s: %s", stage, session.suspects.suspicion.reason)

    def _end_span(self, hand: Hand, why: str) -> None:
        if hand.span is not None and self._slot.spans is not None:
            self._slot.spans.broke(hand.span, why)


def _put_back(hand: Hand, session: Session) -> None:
    """Return a batch to where it came from, because its loss is no fault of its events."""
    if hand.alone or hand.probe:
        session.suspects.interrupted()
    elif hand.events:
        session.requeue(hand.events)
