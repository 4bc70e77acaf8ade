"""What becomes of batches whose replica is gone: `suspects` decides, and the session does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.hand import Hand
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.dispatcher.suspects import LostBatch
from inferline_stream.dataplane.frames import Failed
from inferline_stream.dataplane.reports import PoolReport

logger = logging.getLogger(__name__)


def put_back(hand: Hand, session: SlotSession) -> None:
    """Return a batch to where it came from, because its loss is no fault of its events."""
    session.returned(hand.events)
    if hand.alone or hand.probe:
        session.suspects.interrupted()
    elif hand.events:
        session.queue.put_back(hand.events)


def judge(
    lost: Sequence[Hand],
    session: SlotSession,
    report: PoolReport,
    *,
    passed: bool,
    why: str,
    now_s: float,
    together: bool,
    memory: bool = False,
    device: bool = False,
) -> None:
    """Find out what becomes of batches. Of several that were in hand together, nobody knows which is to blame.

    Args:
        lost: the batches, none of them a test.
        session: whose they are.
        report: of its stage.
        passed: whether the replica had a success since it was attached.
        why: it is gone.
        now_s: the present.
        together: whether it had several in hand, these or others.
        memory: whether memory ran out.
        device: whether it was its device's memory.
    """
    suspects = session.suspects
    if together:
        batches = []
        for hand in lost:
            if hand.alone or hand.probe:
                put_back(hand, session)  # beside a batch of an earlier session: that proves nothing
            else:
                session.returned(hand.events)
                batches.append(hand.events)
        suspects.suspect(batches, passed=passed, now_s=now_s)
        follow(LostBatch(), session, report)
        return
    hand = lost[0]
    if hand.probe:
        suspects.probe_failed(now_s)
        follow(LostBatch(), session, report)
        return
    events = hand.events
    session.returned(events)
    if device and len(events) == 1:
        suspects.no_memory(events[0], alone=hand.alone, now_s=now_s)
        logger.error("stage %s: %s", report.stage, suspects.trouble)
        return
    found = suspects.lost(events, alone=hand.alone, memory=memory, passed=passed, now_s=now_s, cause=why)
    follow(found, session, report)


def follow(lost: LostBatch, session: SlotSession, report: PoolReport) -> None:
    """Run again what is to run again, and end what is condemned."""
    for events in reversed(lost.again):
        session.queue.put_back(events, lost.limit)
    for event, reason in lost.condemned:
        logger.error("an event of %s/%d is condemned: %s", report.stage, event.partition, reason)
        session.finished((event,), (Failed("Poison", reason, ""),))
    if session.suspects.suspicion.reason:
        logger.error("stage %s: %s", report.stage, session.suspects.suspicion.reason)
