"""A slot of a stage, as one machine without IO: events and the time go in, actions come out.

It reads no clock, opens no socket and waits for nothing, so any sequence of events can be played to it. `dispatcher`
is the shell around it: it turns what Kafka, replicas and the supervisor say into events, and does what actions ask for.

    RecordsRead ──> intake ──> queue ──> hand out ──> SendFrame     Heard ──> finished ──> Produce ──> Commit

Nothing is handed out, sent or committed by an event alone: after each one, `Slot` looks at what can be done now.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inferline_stream.dataplane.dispatcher import slot_events as events
from inferline_stream.dataplane.dispatcher.batch_exchange import BatchExchange
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.session import Session, added
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import Grant, LeaderHeartbeat
from inferline_stream.dataplane.supervisor_messages import Attach, ReplicaLost, Retire
from inferline_stream.kafka.offset_metadata import Entry

logger = logging.getLogger(__name__)

_MOMENTS = frozenset((events.Time, events.Produced, events.OffsetsCommitted))
"""Events with which a new moment begins: what finished before them is complete."""


class Slot:
    """Serves a slot, in one session after another.

    Args:
        context: whose it is.
        pool: who gets the next batch.
    """

    def __init__(self, context: SlotContext, pool: Pool) -> None:
        self._context = context
        self._pool = pool
        self._session = Session(context)
        self._exchange = BatchExchange(context, pool, self._session)
        self._grant: Grant | None = None
        self._draining = False
        self._armed_s = math.inf
        """When `Time` happens next, as far as it was asked for."""
        self._at_once = False
        """Whether that is the next thing that happens."""
        exchange = self._exchange
        self._steps: Mapping[type, Callable[[Any], None]] = {
            events.RecordsRead: self._read,
            events.Heard: exchange.hear,
            events.Time: self._time,
            events.Produced: lambda _: self._session.delivery.sent(),
            events.OffsetsCommitted: lambda _: self._session.delivery.committed(),
            events.FoundCommitted: lambda event: self._session.delivery.found(event.entries),
            events.ReadAgain: self._read_again,
            events.Owned: self._owned,
            Grant: self._follow,
            LeaderHeartbeat: exchange.learn,
            events.TopicGone: self._topic_gone,
            Attach: exchange.attach,
            Retire: exchange.retire,
            ReplicaLost: exchange.way_broke,
            events.ConnectionEnded: exchange.connection_ended,
            events.Drained: self._drain,
            events.Dropped: self._drop,
            events.LeaseLost: lambda _: self._session.delivery.lapse(),
            events.LeaseRegained: lambda _: self._session.delivery.go_on(),
        }

    def on(self, event: events.SlotEvent, now_s: float) -> list[events.Action]:
        """Take in an event; return what to do about it, in this order.

        Args:
            event: what happened.
            now_s: the present, by the clock of the lease.
        """
        context = self._context
        context.now_s, context.wake_s = now_s, math.inf
        self._steps[type(event)](event)
        if self._context.routes.is_join:
            self._session.read_again()
        self._exchange.hand_out()
        if self._draining:
            self._finish()
        over = type(event) in _MOMENTS
        if over or not self._at_once:  # else the next moment is asked for already
            self._session.delivery.step(over=over)
        at_once = context.wake_s <= now_s
        # A timer may be late by a millisecond: what is due now does not wait for it.
        if not self._at_once and (at_once or context.wake_s < self._armed_s):
            self._armed_s, self._at_once = context.wake_s, at_once
            context.ask(events.WakeAt(context.wake_s))
        actions, context.actions = context.actions, []
        return actions

    # What is asked between events

    def full(self) -> frozenset[int]:
        """Return the partitions that are not to be fetched now."""
        return self._session.full(self._exchange.most_background())

    def beginnings_needed(
        self, numbers: Sequence[int], committed: Mapping[int, Entry], partitions_before: int = 0
    ) -> Sequence[int]:
        """Return those of the partitions that are to be owned whose lowest offset `Owned` has to name."""
        recalls = self._context.routes.is_join and not self._context.transactional
        return numbers if recalls else added(numbers, committed, partitions_before)

    def answer_bytes(self, replica: str, epoch: int, batch: int) -> int | None:
        """Return the longest frame that a replica may answer a batch with; None where it has no such batch in hand."""
        return self._exchange.answer_bytes(replica, epoch, batch)

    def fill(self, report: PoolReport, now_s: float) -> str:
        """Complete a report with what holds now; return what is wrong, in words."""
        session = self._session
        self._exchange.fill(report)
        session.fill(report, now_s)
        report.background_enough = 2 * session.background.eligible > self._exchange.most_background() > 0
        trouble = session.trouble() or self._exchange.trouble if session.epoch else ""
        return trouble or self._pool.tight

    # Sessions

    def _owned(self, event: events.Owned) -> None:
        if event.epoch:
            self._session = Session(self._context, event.epoch)
            self._draining = False
            if self._grant is not None:
                self._session.learn(self._grant)
            self._exchange.serve(self._session)
        if self._session.epoch:
            self._session.own(event)

    def _follow(self, grant: Grant) -> None:
        self._grant = grant
        self._exchange.follow(grant.plan)
        self._session.learn(grant)

    def _topic_gone(self, event: events.TopicGone) -> None:
        self._session.halt(event.why, event.class_number)
        self._context.ask(events.Report())

    def _drain(self, _: events.Drained) -> None:
        """Hand out nothing more; `_finish` waits until what replicas have in hand is sent and committed."""
        self._draining = True
        self._session.close()

    def _finish(self) -> None:
        if not self._exchange.in_hand() and self._session.delivery.settle():
            self._context.ask(events.Drained())
            self._end_session()

    def _drop(self, _: events.Dropped) -> None:
        self._session.close()
        self._end_session()

    def _end_session(self) -> None:
        self._draining = False
        self._session = Session(self._context)
        self._exchange.serve(self._session)
        self._context.report.held, self._context.report.halted = {}, {}

    # What else happens

    def _read(self, event: events.RecordsRead) -> None:
        self._session.take_in(event)

    def _read_again(self, event: events.ReadAgain) -> None:
        self._session.found_again(event)

    def _time(self, _: events.Time) -> None:
        self._armed_s, self._at_once = math.inf, False
        self._exchange.look_at_time()
