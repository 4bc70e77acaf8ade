"""Feeds the replicas of a pool: hands out batches, takes results, and decides what follows when a batch is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable, Sequence

from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.hand import Hand, PoolMember
from inferline_stream.dataplane.dispatcher.lost_batches import LostBatches
from inferline_stream.dataplane.dispatcher.poison_suspects import Probe
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica
from inferline_stream.dataplane.dispatcher.replica_claims import believed_calls, believed_s
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.dispatcher.replica_trust import Happening, ReplicaTrust
from inferline_stream.dataplane.dispatcher.report_counts import count_batch, count_waits
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.dispatcher.tracing import BatchSpans
from inferline_stream.dataplane.dispatcher.trials import Trials
from inferline_stream.dataplane.dispatcher.wake_timer import WakeTimer
from inferline_stream.dataplane.frames import (
    Batch,
    Broken,
    Done,
    Leave,
    Ready,
    Results,
    Returned,
    answer_bytes,
)
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus

logger = logging.getLogger(__name__)


_CUTS = 3
"""How often an event may lose its replica to the network, or to a node's end, before it comes under suspicion: one that
ends whole nodes, or the processes around its replica, looks the same, and must not do so for ever."""

_WAY_BROKE = "the way to it broke"


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
        self._members: dict[str, PoolMember] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._timer = WakeTimer(self._loop, self._wake)
        self._trust = ReplicaTrust()
        self._doubtful = DoubtfulBatches(pool, self._trust, self._loop, lambda: self.session, self.kick)
        self._lost = LostBatches(self._doubtful, report, spans, self._loop, lambda: self.session)
        self._trials = Trials(pool, self._doubtful, self._timer, self._hand)
        self._server_trouble = ""
        """Why a server last took no batch, in words; empty where every server has taken every batch."""
        self._result_bytes = 0
        """Largest result that is taken, of the last session."""
        self.session: SlotSession | None = None
        self.hold_s = 0.0

    @property
    def trouble(self) -> str:
        """Why replicas get no batches although they are ready, in words; empty where they do."""
        gave_back = [member.replica.gave_back for member in self._members.values() if member.replica.ready]
        # A first batch may be one that the server never takes; the next one is a sample.
        return self._server_trouble if gave_back and min(gave_back) > 1 else ""

    # The pool

    def attach(
        self,
        sock: socket.socket,
        name: str,
        hardware: str,
        number: int,
        node: str = "",
        *,
        start_limit_s: float = math.inf,
        again: bool = False,
    ) -> None:
        """Take a replica into the pool; it gets work once it says that it is ready.

        Args:
            sock: the connection to it.
            name: of the replica.
            hardware: its kind.
            number: its position in the pool.
            node: that it is on.
            start_limit_s: longest until it is ready.
            again: whether it was attached before, so that it may have another dispatcher's batch in hand first.
        """
        self._ended(name, "it was attached again")  # what it had in hand would be waited for for ever
        replica = self._pool.attach(name, hardware, number)
        limit_s = max(start_limit_s, self._pool.longest_s(hardware)) if again else start_limit_s
        self._trust.attached(name, limit_s, self._loop.time())
        connection = ReplicaConnection(
            sock,
            lambda frame: self._heard(name, frame),
            lambda why: self._closed(name, why),
            lambda epoch, batch: self._answer_bytes(name, epoch, batch),
        )
        self._members[name] = PoolMember(replica, connection, ReplicaStatus(name, hardware, "starting", node=node))
        self._set_timer(self._loop.time())
        self._changed()

    def retire(self, name: str) -> None:
        """Let a replica finish its batches, and then leave."""
        member = self._members.get(name)
        if member is None:
            return
        self._pool.retire(name)
        member.status.phase = "leaving"
        if not member.hands:
            self._leave(name)
        self._changed()

    def lost(self, name: str) -> None:
        """Take back what a replica has in hand, since the way to it broke: that is no fault of its events."""
        member = self._members.get(name)
        if member is None:
            return
        if member.hands:
            logger.warning("replica %s: %s, with %d batches in hand", name, _WAY_BROKE, len(member.hands))
        in_hand = len(member.hands)
        for number, hand in reversed(list(member.hands.items())):
            for event in hand.events:
                event.cuts += 1
            if not any(event.cuts > _CUTS for event in hand.events):
                self._lost.spare(member, number, _WAY_BROKE)
        self._end(member, _WAY_BROKE, beside=in_hand - len(member.hands))
        self._trust.forget(name)

    def close(self) -> None:
        """Close every connection; replicas wait for the next dispatcher."""
        self.session = None
        for member in self._members.values():
            member.connection.close()
        self._members.clear()
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
            for hand in member.hands.values():
                if session is None or hand.epoch != session.epoch:
                    hand.events = ()
        if session is not None:
            self._result_bytes = session.result_bytes
            self.kick()

    def _leave(self, name: str) -> None:
        member = self._members.pop(name)
        self._pool.detach(name)
        self._doubtful.spare(name)
        self._trust.forget(name)
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
        self._trials.run(session, now_s)
        pool, queue = self._pool, session.queue
        while (eligible := queue.eligible) and session.open():
            replica = pool.choose(now_s, eligible)
            if replica is None:
                if self._server_trouble and (again_s := pool.released_s(now_s)) is not None:
                    self._timer.wake_at(again_s)
                break
            limit = pool.limit(replica.hardware)
            if self.hold_s and (left_s := queue.due_ms(limit, self.hold_s * 1e3) / 1e3 - time.monotonic()) > 0:
                self._timer.wake_at(now_s + left_s)
                break
            events = session.take(limit)
            if events:
                self._hand(replica, events, now_s)
        if queue.eligible and pool.fresh_after_s > now_s:
            self._timer.wake_at(pool.fresh_after_s)
        self._set_timer(now_s)

    def _hand(
        self,
        replica: PooledReplica,
        events: Sequence[Event],
        now_s: float,
        *,
        alone: bool = False,
        sample: Probe | None = None,
        test: bool = False,
    ) -> None:
        session, member = self.session, self._members[replica.replica]
        assert session is not None
        payloads = [sample.input] if sample is not None else [event.payload for event in events]
        span = (
            None
            if self._spans is None or sample is not None
            else self._spans.begin(events, replica.replica, replica.hardware)
        )
        batch = next(self._numbers)
        member.hands[batch] = Hand(session.epoch, batch, events, alone, sample is not None and not test, test, span)
        self._pool.begin(replica, len(payloads), now_s, batch)
        session.handed(events)
        count_waits(self._report.counts, events, time.monotonic())
        member.connection.send(Batch(session.epoch, batch, payloads, session.result_bytes))

    # Results

    def _answer_bytes(self, name: str, epoch: int, batch: int) -> int | None:
        """Return the longest frame that a replica may answer a batch with; None where it has no such batch in hand."""
        member = self._members.get(name)
        hand = None if member is None else member.hands.get(batch)
        if member is None or hand is None or hand.epoch != epoch:
            return None
        return answer_bytes(member.replica.hands[batch].batch_size, self._result_bytes)

    def _heard(self, name: str, frame: Ready | Results | Broken | Returned) -> None:
        member = self._members.get(name)
        if member is None:
            return
        now_s = self._loop.time()
        if type(frame) is Results:
            self._results(member, frame, now_s)
        elif type(frame) is Returned:
            self._returned(member, frame, now_s)
        elif type(frame) is Ready:
            self._doubtful.happens(member.replica, Happening.READY)
            self._pool.ready(name, now_s)
            member.status.phase = "leaving" if member.replica.leaving else "ready"
            member.status.start_up_s = believed_s(frame.start_up_s) or 0.0
            member.status.isolation = frame.isolation
            self._changed()
        elif type(frame) is Broken:
            for number, hand in reversed(list(member.hands.items())):
                if (hand.epoch, number) != (frame.epoch, frame.batch):  # another dispatcher's may have broken it
                    self._lost.spare(member, number, frame.reason)
            self._end(member, frame.reason, memory=frame.memory, device=frame.device)
            return
        self.kick()

    def _results(self, member: PoolMember, frame: Results, now_s: float) -> None:
        hand, session = member.hands.get(frame.batch), self.session
        if hand is None or hand.epoch != frame.epoch:
            return  # of another dispatcher's time
        if hand.events and len(frame.outcomes) != len(hand.events):
            self._give_up(member, f"answered {len(frame.outcomes)} outcomes for a batch of {len(hand.events)}")
            return
        del member.hands[frame.batch]
        success = any(type(outcome) is Done for outcome in frame.outcomes)
        replica = member.replica
        handed = replica.hands[frame.batch]
        took_s = max(0.0, now_s - handed.began_s)
        self._report.counts.busy_s += took_s / self._pool.concurrency(replica.hardware)
        calls = believed_calls(frame, handed.batch_size)
        if frame.too_large > 0:  # before the batch counts as one after which larger ones may be tried
            self._pool.too_large(replica.hardware, frame.too_large, now_s)
        was_fresh = not replica.passed
        self._pool.finish(replica, calls, now_s, frame.batch, success=success)
        busy_s = believed_s(frame.busy_s)
        remote = bool(member.status.node)
        counts = self._report.counts
        count_batch(counts, replica.hardware, calls, took_s, busy_s, remote=remote, in_hand=handed.beside)
        if hand.span is not None and self._spans is not None:
            self._spans.end(hand.span, frame.outcomes)
        current = session if session is not None and hand.epoch == session.epoch else None
        if (hand.probe or hand.test) and not success:
            self._failed_sample(member, current)
            return
        if hand.probe and current is not None:
            current.suspects.probe_passed()
        elif hand.test and was_fresh and current is not None:
            current.suspects.suspicion.lift()
        if current is not None and hand.events:
            current.returned(hand.events)
            if not success:
                self._doubtful.keep(replica.replica, hand, frame.outcomes)
            elif not hand.alone or current.suspects.passed(hand.events[0]):
                done = next(at for at, outcome in enumerate(frame.outcomes) if type(outcome) is Done)
                current.suspects.processed(hand.events[done].payload)
                current.finished(hand.events, frame.outcomes)
        self._doubtful.happens(replica, Happening.SUCCESS if success else Happening.NO_SUCCESS)
        if replica.leaving and not member.hands:
            self._leave(replica.replica)

    def _returned(self, member: PoolMember, frame: Returned, now_s: float) -> None:
        """Take back a batch that the replica's server did not take: whose fault it is, a sample says."""
        hand, session, replica = member.hands.get(frame.batch), self.session, member.replica
        if hand is None or hand.epoch != frame.epoch:
            return
        del member.hands[frame.batch]
        if hand.span is not None and self._spans is not None:
            self._spans.broke(hand.span, frame.reason)
        before = self.trouble
        self._pool.give_back(replica, frame.batch, now_s, frame.wait_s)
        if session is not None and hand.epoch == session.epoch:
            if hand.probe:
                session.suspects.interrupted()
            session.returned(hand.events)
            self._doubtful.keep(replica.replica, hand, frame)
        if not hand.probe:
            self._doubtful.happens(replica, Happening.SAMPLE_NOT_TAKEN if hand.test else Happening.NO_SUCCESS)
        self._server_trouble = f"stage {self._report.stage}: {frame.reason}; its events wait"
        if self.trouble != before:
            logger.warning("%s", self._server_trouble)
            self._changed()
        if replica.leaving and not member.hands:
            self._leave(replica.replica)

    # Losses

    def _closed(self, name: str, broken: str) -> None:
        """A connection has ended, or holds what is no frame: its process lives then, and nobody else would end it."""
        member = self._members.get(name)
        if member is not None and broken:
            self._give_up(member, broken)
        else:
            self._ended(name, "its connection ended")

    def _failed_sample(self, member: PoolMember, session: SlotSession | None) -> None:
        """Replace a replica that fails on what the stage is known to process; what else it has in hand runs again."""
        why = "it fails on an event that the stage is known to process"
        for number in reversed(list(member.hands)):
            self._lost.spare(member, number, why)
        if session is not None:
            self._lost.failed_sample(session, member.replica, why)
        self._give_up(member, why)

    def _give_up(self, member: PoolMember, why: str) -> None:
        self._replace(member.replica.replica, why)
        self._end(member, why)
        self._trust.forget(member.replica.replica)

    def _ended(self, name: str, why: str) -> None:
        member = self._members.get(name)
        if member is not None:
            self._end(member, why)

    def _end(
        self, member: PoolMember, why: str, *, beside: int = 0, memory: bool = False, device: bool = False
    ) -> None:
        """A replica is gone, or is given up; what it had in hand must run again.

        Args:
            member: the replica.
            why: in words.
            beside: batches that it ran beside these and that were taken from it already.
            memory: whether memory ran out.
            device: whether it was its device's memory.
        """
        replica, now_s = member.replica, self._loop.time()
        self._trust.happens(replica.replica, Happening.ENDED, now_s, why)
        self._members.pop(replica.replica, None)
        member.connection.close()
        self._pool.detach(replica.replica)
        self._lost.lose(member, why, beside=beside, memory=memory, device=device)
        self._changed()
        self._set_timer(now_s)
        self.kick()

    # Time

    def _set_timer(self, now_s: float) -> None:
        for deadline_s in (self._pool.next_deadline_s, self._trust.next_s):
            if deadline_s is not None:
                self._timer.wake_at(max(deadline_s, now_s))

    def _wake(self) -> None:
        now_s = self._loop.time()
        for replica, batch, hard in list(self._pool.overdue(now_s)):
            member = self._members.get(replica.replica)  # another batch of its may have ended it just now
            if member is not None:
                self._overdue(member, batch, hard=hard)
        for name, why in self._trust.overdue(now_s):
            logger.warning("replica %s is replaced: %s", name, why)
            if (member := self._members.get(name)) is not None:
                self._give_up(member, why)
            else:
                self._replace(name, why)
        self.kick()
        self._set_timer(now_s)

    def _overdue(self, member: PoolMember, batch: int, *, hard: bool) -> None:
        replica, hand, session = member.replica, member.hands.get(batch), self.session
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
        self._lost.run_elsewhere(session, hand)

    def check_stragglers(self) -> None:
        """Have replicas replaced that stay far behind their kind."""
        for name, reason in self._pool.stragglers(self._loop.time()):
            if len(self._members) > 1:
                logger.warning("replica %s is replaced: %s", name, reason)
                member = self._members[name]
                for number in reversed(list(member.hands)):
                    self._lost.spare(member, number, reason)
                self._give_up(member, reason)
