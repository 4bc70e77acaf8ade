"""Batches of a stage's fallback: how many there may be, by those of the last hour, and what follows from each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.pooled_replica import Hand
from inferline_stream.dataplane.dispatcher.queue import FallbackTerms
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Answer, Done, Failed, Many
from inferline_stream.dataplane.headers import with_fallback
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat, StagePlan
from inferline_stream.pipeline.deadline_order import NEWS_LASTS_S
from inferline_stream.pipeline.fallback import FALLBACK, allows, count, counts_of, padded, roll, window_of


class FallbackBatches:
    """Keeps the stage's fallback within its share; see `pipeline.fallback`.

    Args:
        slot: whose stage it is.
    """

    def __init__(self, slot: SlotContext) -> None:
        self._slot = slot
        self._share = 0.0
        self._served = window_of((), slot.now_s)
        """What the last hour has seen."""
        self._knows_served = False
        """Whether the leader has said what it was when this process began."""
        self._longer_s, self._longer_until_s = 0.0, -math.inf
        """R' - R, and how long that counts, which the leader has said."""

    def follow(self, plan: StagePlan) -> None:
        """Keep within the share of this plan from now on."""
        self._share = plan.fallback_share

    def learn(self, heartbeat: LeaderHeartbeat) -> None:
        """Learn from the leader what R usually is, and once what the slot had served before this process began."""
        stage, slot = self._slot.routes.stage, self._slot.report.slot
        self._longer_s, self._longer_until_s = heartbeat.longer_s.get(stage, 0.0), self._slot.now_s + NEWS_LASTS_S
        slots = heartbeat.served.get(stage, ())
        if not self._knows_served and slot < len(slots):
            self._knows_served, now_s = True, self._slot.now_s
            roll(self._served, now_s)
            own, before = counts_of(self._served), padded(slots[slot])
            self._served = window_of([(a + c, b + d) for (a, b), (c, d) in zip(own, before, strict=True)], now_s)

    def fill(self, report: PoolReport) -> None:
        """Say what the last hour has seen."""
        if self._knows_served:
            roll(self._served, self._slot.now_s)
            report.served = counts_of(self._served)

    @property
    def terms(self) -> FallbackTerms:
        """On what the fallback may make the next batch."""
        return FallbackTerms(self._allows, self._longer_s * 1e6 if self._slot.now_s <= self._longer_until_s else 0.0)

    def _allows(self, events: int) -> bool:
        """Whether so many events may go to the fallback."""
        roll(self._served, self._slot.now_s)
        return allows(self._served, self._share, events)

    def handed(self, events: int, version: int) -> None:
        """Count live events that a replica gets, by the version of the stage that is to run them."""
        roll(self._served, self._slot.now_s)
        count(self._served, events, events if version == FALLBACK else 0)

    def answered(self, session: Session, hand: Hand, outcomes: Sequence[Answer]) -> None:
        """Let what the fallback made go on, and say so of it; what it failed on runs on the stage itself."""
        stage, found = self._slot.routes.stage.encode(), answered_batch(self._slot, hand.events, outcomes)
        for event in found.ended:
            event.headers = with_fallback(event.headers, stage)
        for event in found.failed:
            event.main_only = True
        self._slot.counts[0].degraded += len(found.ended)
        if found.ended:
            session.suspects.processed(found.ended[0].payload)
            session.finished(found.ended, found.results)
        if found.again:
            session.requeue(found.again)


@dataclass(slots=True)
class AnsweredBatch:
    """A batch that a fallback has answered."""

    ended: list[Event] = field(default_factory=list)
    """Events whose results count, in their order."""
    results: list[Done | Many] = field(default_factory=list)
    """Of each of those."""
    again: list[Event] = field(default_factory=list)
    """Events that run again, in their order."""
    failed: list[Event] = field(default_factory=list)
    """Those of them that the fallback failed on. The others come after one of these in their key."""


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
