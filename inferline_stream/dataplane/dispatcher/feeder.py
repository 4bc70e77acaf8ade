"""Feeds the replicas of a pool: hands out batches, takes results, and decides what follows when a batch is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.lease import count_calls
from inferline_stream.dataplane.dispatcher.pool import Pool, PooledReplica
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.dispatcher.suspects import LostBatch, Probe
from inferline_stream.dataplane.dispatcher.tracing import BatchSpans
from inferline_stream.dataplane.frames import Batch, Broken, Call, Failed, Leave, Ready, Results
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus

logger = logging.getLogger(__name__)


_CUTS = 3
"""So often an event may lose its replica to the network, or to a node's end, without coming under suspicion. One that
ends whole nodes, or the processes around its replica, looks the same, and must not do so for ever."""


@dataclass(slots=True, eq=False)
class Hand:
    """A batch that a replica has in hand."""

    epoch: int
    batch: int
    events: Sequence[Event]
    """Empty for a probe, and once the events are no longer this replica's: its late result is dropped."""
    alone: bool = False
    probe: bool = False
    span: Any = None
    """OpenTelemetry's, which only `tracing` imports."""


@dataclass(slots=True, eq=False)
class _Member:
    """A replica, its connection, and what it has in hand."""

    replica: PooledReplica
    connection: ReplicaConnection
    status: ReplicaStatus
    hand: Hand | None = None


class Feeder:
    """Owns the connections to a pool's replicas. Lives as long as the process; sessions come and go.

    Args:
        pool: who gets the next batch.
        report: counts are kept there.
        changed: called when the controller needs to know of a change soon.
        replace: asks the supervisor to kill a replica and to start another one, with the reason.
        spans: one for each batch, where they are wanted.
    """

    def __init__(
        self,
        pool: Pool,
        report: PoolReport,
        *,
        changed: Callable[[], None],
        replace: Callable[[str, str], None],
        spans: BatchSpans | None = None,
    ) -> None:
        self._pool = pool
        self._report = report
        self._changed = changed
        self._replace = replace
        self._spans = spans
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._quarantine = False
        """Whether a replica may be kept for suspects."""
        self.session: SlotSession | None = None
        self.hold_s = 0.0

    # The pool

    def attach(self, sock: socket.socket, name: str, hardware: str, number: int, node: str = "") -> None:
        """Take a replica into the pool; it gets work once it says that it is ready."""
        self._ended(name, "it was attached again")  # what it had in hand would be waited for for ever
        replica = self._pool.attach(name, hardware, number)
        connection = ReplicaConnection(
            sock, lambda frame: self._heard(name, frame), lambda why: self._closed(name, why)
        )
        self._members[name] = _Member(replica, connection, ReplicaStatus(name, hardware, "starting", node=node))
        self._changed()

    def retire(self, name: str) -> None:
        """Let a replica finish its batch, and then leave."""
        member = self._members.get(name)
        if member is None:
            return
        self._pool.retire(name)
        member.status.phase = "leaving"
        if member.hand is None:
            self._leave(name)
        self._changed()

    def lost(self, name: str) -> None:
        """Take back what a replica has in hand, since the way to it broke: that is no fault of its events."""
        member = self._members.get(name)
        if member is None:
            return
        hand, session = member.hand, self.session
        for event in () if hand is None else hand.events:
            event.cuts += 1
        blamed = hand is not None and any(event.cuts > _CUTS for event in hand.events)
        if hand is not None and session is not None and hand.epoch == session.epoch and not blamed:
            self._report.batches_lost += bool(hand.events or hand.probe)
            if hand.alone or hand.probe:
                session.returned(hand.events)
                session.suspects.interrupted()
                hand.events, hand.probe = (), False
            self._put_back(member)
        self._end(member, "the way to it broke")

    def close(self) -> None:
        """Close every connection; replicas wait for the next dispatcher."""
        for member in self._members.values():
            member.connection.close()
        self._members.clear()
        if self._timer is not None:
            self._timer.cancel()

    def statuses(self) -> list[ReplicaStatus]:
        """Return what to report of each replica."""
        for member in self._members.values():
            member.status.quarantined = member.replica.quarantined
        return [member.status for member in self._members.values()]

    def serve(self, session: SlotSession | None) -> None:
        """Hand out this session's events from now on; what is in hand of an earlier one is worth nothing."""
        self.session = session
        for member in self._members.values():
            member.replica.quarantined = False
            if member.hand is not None and (session is None or member.hand.epoch != session.epoch):
                member.hand.events = ()
        if session is not None:
            self.kick()

    def _leave(self, name: str) -> None:
        member = self._members.pop(name)
        self._pool.detach(name)
        # The replica closes the connection. One that still loads its stage could not read the frame after our end of it
        # were closed: it says first that it is ready, and that would fail.
        member.connection.send(Leave())
        self._changed()

    # Hand out

    def kick(self) -> None:
        """Hand out what can be handed out now."""
        session = self.session
        if session is None or not session.open():
            return
        now_s = self._loop.time()
        self._pool.fresh_after_s = session.suspects.blocked_until_s
        if self._quarantine or len(session.suspects):
            self._feed_quarantine(session, now_s)
        pool, queue = self._pool, session.queue
        while (eligible := queue.eligible) and session.open():
            replica = pool.choose(now_s, eligible)
            if replica is None:
                break
            limit = pool.limit(replica.hardware)
            if self.hold_s and (left_s := queue.due_ms(limit, self.hold_s * 1e3) / 1e3 - time.time()) > 0:
                self._wake_at(now_s + left_s)
                break
            events = session.take(limit)
            if events:
                self._hand(replica, events, now_s)
        if queue.eligible and pool.fresh_after_s > now_s:
            self._wake_at(pool.fresh_after_s)
        self._set_timer(now_s)

    def _hand(
        self,
        replica: PooledReplica,
        events: Sequence[Event],
        now_s: float,
        *,
        alone: bool = False,
        sample: Probe | None = None,
    ) -> None:
        session, member = self.session, self._members[replica.replica]
        assert session is not None
        payloads = [sample.input] if sample is not None else [event.payload for event in events]
        span = (
            None
            if self._spans is None or sample is not None
            else self._spans.begin(events, replica.replica, replica.hardware)
        )
        member.hand = Hand(session.epoch, next(self._numbers), events, alone, sample is not None, span)
        self._pool.begin(replica, len(payloads), now_s)
        session.handed(events)
        now_ms = time.time() * 1e3
        waited_ms = 0.0
        for event in events:
            if not event.replayed:
                waited_ms += max(0.0, now_ms - event.arrived_ms)
        self._report.wait_s += waited_ms / 1e3
        member.connection.send(Batch(session.epoch, member.hand.batch, payloads))

    def _feed_quarantine(self, session: SlotSession, now_s: float) -> None:
        """Run the next suspect alone, on the one replica that runs suspects; free it once there are none."""
        pool, suspects = self._pool, session.suspects
        self._quarantine = len(suspects) > 0
        if not self._quarantine:
            pool.lift_quarantine()
            return
        replica = pool.quarantine(passed_first=bool(suspects.reason))
        if replica is None:
            return
        task = suspects.next(replica.passed, now_s, yields=pool.single and session.queue.eligible > 0)
        if isinstance(task, Probe):
            self._hand(replica, (), now_s, sample=task)
        elif task is not None:
            self._hand(replica, (task,), now_s, alone=True)
        else:
            # Back-off, the queue's turn, or nothing left to run: it serves like the others meanwhile.
            pool.lift_quarantine()
            again_s = max(suspects.blocked_until_s, suspects.waits_until_s(now_s))
            if again_s > now_s:
                self._wake_at(again_s)

    # Results

    def _heard(self, name: str, frame: Ready | Results | Broken) -> None:
        member = self._members.get(name)
        if member is None:
            return
        now_s = self._loop.time()
        if type(frame) is Results:
            self._results(member, frame, now_s)
        elif type(frame) is Ready:
            self._pool.ready(name, now_s)
            member.status.phase = "leaving" if member.replica.leaving else "ready"
            member.status.start_up_s, member.status.isolation = frame.start_up_s, frame.isolation
            self._changed()
        elif type(frame) is Broken:
            hand = member.hand
            if hand is not None and (hand.epoch, hand.batch) != (frame.epoch, frame.batch):
                self._put_back(member)  # another dispatcher's batch broke it
            self._end(member, frame.reason, memory=frame.memory, device=frame.device)
            return
        self.kick()

    def _results(self, member: _Member, frame: Results, now_s: float) -> None:
        hand, session = member.hand, self.session
        if hand is None or (hand.epoch, hand.batch) != (frame.epoch, frame.batch):
            return  # of another dispatcher's time
        if hand.events and len(frame.outcomes) != len(hand.events):
            self._give_up(member, f"answered {len(frame.outcomes)} outcomes for a batch of {len(hand.events)}")
            return
        member.hand = None
        replica = member.replica
        self._report.busy_s += max(0.0, now_s - replica.began_s)
        if member.status.node and 0 <= frame.busy_s < math.inf:
            self._report.remote_batches += 1
            self._report.network_s += max(0.0, now_s - replica.began_s - frame.busy_s)
        self._pool.finish(replica, frame.calls, now_s)
        if frame.too_large > 0:
            self._pool.too_large(replica.hardware, frame.too_large)
        calls = frame.calls
        if len(calls) == 1:  # with decoding and encoding, as profiles have it
            calls = [Call(calls[0].batch_size, max(calls[0].service_s, frame.busy_s))]
        count_calls(self._report, replica.hardware, calls)
        if hand.span is not None and self._spans is not None:
            self._spans.end(hand.span, frame.outcomes)
        if session is not None and hand.epoch == session.epoch:
            if hand.probe:
                session.suspects.probe_passed()
            elif hand.events:
                session.returned(hand.events)
                if not hand.alone or session.suspects.passed(hand.events[0]):
                    session.suspects.learn(hand.events[0].payload)
                    session.finished(hand.events, frame.outcomes)
        if replica.leaving:
            self._leave(replica.replica)

    # Losses

    def _closed(self, name: str, broken: str) -> None:
        """A connection has ended, or holds what is no frame: its process lives then, and nobody else would end it."""
        member = self._members.get(name)
        if member is not None and broken:
            self._give_up(member, broken)
        else:
            self._ended(name, "its connection ended")

    def _put_back(self, member: _Member) -> None:
        """Return what a replica has in hand to the queue, because its end will be no fault of its events."""
        hand, session = member.hand, self.session
        if hand is not None and hand.events and not hand.alone and session is not None and hand.epoch == session.epoch:
            events, hand.events = hand.events, ()
            session.returned(events)
            session.queue.put_back(events)

    def _give_up(self, member: _Member, why: str) -> None:
        self._replace(member.replica.replica, why)
        self._end(member, why)

    def _ended(self, name: str, why: str) -> None:
        member = self._members.get(name)
        if member is not None:
            self._end(member, why)

    def _end(self, member: _Member, why: str, *, memory: bool = False, device: bool = False) -> None:
        """A replica is gone, or is given up; what it had in hand must run again."""
        replica = member.replica
        self._members.pop(replica.replica, None)
        member.connection.close()
        self._pool.detach(replica.replica)
        hand, session = member.hand, self.session
        member.hand = None
        if hand is not None:
            if hand.span is not None and self._spans is not None:
                self._spans.broke(hand.span, why)
            logger.warning("replica %s: %s, with %d events in hand", replica.replica, why, len(hand.events))
            if session is not None and hand.epoch == session.epoch and (hand.events or hand.probe):
                self._report.batches_lost += 1
                self._judge(session, hand, replica, why, memory=memory, device=device)
        self._changed()
        self.kick()

    def _judge(
        self, session: SlotSession, hand: Hand, replica: PooledReplica, why: str, *, memory: bool, device: bool
    ) -> None:
        now_s = self._loop.time()
        if hand.probe:
            session.suspects.probe_killed(now_s)
            self._follow(session, LostBatch())
            return
        session.returned(hand.events)
        if device and len(hand.events) == 1:
            session.suspects.no_memory(hand.events[0], alone=hand.alone, now_s=now_s)
            logger.error("stage %s: %s", self._report.stage, session.suspects.trouble)
            return
        passed, alone = replica.passed, hand.alone
        self._follow(
            session,
            session.suspects.lost(hand.events, alone=alone, memory=memory, passed=passed, now_s=now_s, cause=why),
        )

    def _follow(self, session: SlotSession, lost: LostBatch) -> None:
        for events in reversed(lost.again):
            session.queue.put_back(events, lost.limit)
        for event, reason in lost.condemned:
            logger.error("an event of %s/%d is condemned: %s", self._report.stage, event.partition, reason)
            session.finished((event,), (Failed("Poison", reason, ""),))
        if session.suspects.reason:
            logger.error("stage %s: %s", self._report.stage, session.suspects.reason)
            self._changed()

    # Time

    def _set_timer(self, now_s: float) -> None:
        deadline_s = self._pool.next_deadline_s
        if deadline_s is not None:
            self._wake_at(max(deadline_s, now_s))

    def _wake_at(self, at_s: float) -> None:
        if self._timer is not None:
            if self._timer_s <= at_s:
                return
            self._timer.cancel()
        self._timer_s = at_s
        self._timer = self._loop.call_at(at_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for replica, hard in list(self._pool.overdue(now_s)):
            self._overdue(self._members[replica.replica], hard=hard)
        self.kick()
        self._set_timer(now_s)

    def _overdue(self, member: _Member, *, hard: bool) -> None:
        replica, hand, session = member.replica, member.hand, self.session
        if hand is None:
            return
        if hard:
            self._give_up(member, "a batch took longer than ten times its deadline")
            return
        if session is None or hand.epoch != session.epoch or not hand.events or hand.alone:
            return
        others = any(m is not member and m.replica.ready and not m.replica.leaving for m in self._members.values())
        if not others:
            return
        logger.warning("replica %s is late with %d events: they run elsewhere", replica.replica, len(hand.events))
        events, hand.events = hand.events, ()
        session.returned(events)
        self._report.batches_lost += 1
        self._follow(session, session.suspects.late(events))

    def check_stragglers(self) -> None:
        """Have replicas replaced that stay far behind their kind."""
        for name, reason in self._pool.stragglers(self._loop.time()):
            if len(self._members) > 1:
                logger.warning("replica %s is replaced: %s", name, reason)
                self._put_back(self._members[name])
                self._give_up(self._members[name], reason)
