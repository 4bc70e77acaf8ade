"""The replicas of a slot as they come, answer and go, and what follows from each of their frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches
from inferline_stream.dataplane.dispatcher.fallback_batches import FallbackBatches
from inferline_stream.dataplane.dispatcher.lost_batches import LostBatches
from inferline_stream.dataplane.dispatcher.next_batches import NextBatches
from inferline_stream.dataplane.dispatcher.pool import SLOW_PEERS, Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import DoubtfulBatch, Hand, PooledReplica
from inferline_stream.dataplane.dispatcher.replica_trust import Happening, ReplicaTrust
from inferline_stream.dataplane.dispatcher.report_counts import MAX_COUNTED_S, count_batch
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import ConnectionEnded, Disconnect, Heard, Report, SendFrame
from inferline_stream.dataplane.frames import (
    Answer,
    Broken,
    Call,
    Failed,
    Leave,
    Ready,
    Results,
    Returned,
    Sleep,
    answer_bytes,
)
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat, StagePlan
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire
from inferline_stream.pipeline.fallback import FALLBACK, MAIN
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

_CUTS = 3
"""How often an event may lose its replica to the network, or to a node's end, before it comes under suspicion: one that
ends whole nodes, or the processes around its replica, looks the same, and must not do so for ever."""

_STRAGGLERS_EVERY_S = 1.0

_WAY_BROKE = "the way to it broke"


class BatchExchange:
    """Deals with the replicas of a pool. Lives as long as the process; sessions come and go.

    Args:
        slot: whose replicas they are.
        pool: who gets the next batch.
        session: whose events are handed out.
    """

    def __init__(self, slot: SlotContext, pool: Pool, session: Session) -> None:
        self._slot = slot
        self._pool = pool
        self._session = session
        self._trust = ReplicaTrust()
        self._doubtful = DoubtfulBatches(slot, pool, self._trust)
        self._lost = LostBatches(slot, self._doubtful)
        self._fallback = FallbackBatches(slot)
        self._next = NextBatches(slot, pool, self._fallback, self._doubtful)
        self._stragglers_at_s = 0.0
        self._sleep_after_s, self._worked_s = 0.0, -math.inf
        """See `StagePlan`; when a replica had a batch last."""
        self._asleep: frozenset[str] = frozenset()
        """Replicas that were asked to sleep since."""
        self._server_trouble = ""
        """Why a server last took no batch, in words; empty where every server has taken every batch."""

    def follow(self, plan: StagePlan) -> None:
        """Hand out by this plan from now on."""
        self._pool.configure(plan)
        self._fallback.follow(plan)
        self._next.follow(plan)
        self._sleep_after_s = plan.sleep_after_s

    def learn(self, heartbeat: LeaderHeartbeat) -> None:
        """Learn from the leader what events take after this stage, and what its fallback has made."""
        self._next.learn(heartbeat)
        self._fallback.learn(heartbeat)

    @property
    def trouble(self) -> str:
        """Why replicas get no batches although they are ready, in words; empty where they do."""
        gave_back = [replica.gave_back for replica in self._pool.replicas.values() if replica.ready]
        # A first batch may be one that the server never takes; the next one is a sample.
        return self._server_trouble if gave_back and min(gave_back) > 1 else ""

    # The pool

    def attach(self, message: Attach) -> None:
        """Take a replica into the pool, which gets work once it says that it is ready."""
        name, hardware = message.replica, message.hardware
        self._ended(name, "it was attached again")  # what it had in hand would be waited for for ever
        self._pool.attach(name, hardware, message.number, message.node)
        limit_s = self._slot.settings.start_limit_s(gpu=message.gpu)
        if message.again:
            limit_s = max(limit_s, self._pool.longest_s(hardware))
        self._trust.attached(name, limit_s, self._slot.now_s)
        self._slot.ask(Report())

    def retire(self, message: Retire) -> None:
        """Let a replica finish its batches, and then leave, or move to another dispatcher."""
        replica = self._pool.replicas.get(message.replica)
        if replica is None:
            return
        replica.moves = message.moves
        self._pool.retire(message.replica)
        replica.status.phase = "leaving"
        self._leave_if_idle(replica)
        self._slot.ask(Report())

    def way_broke(self, message: ReplicaLost) -> None:
        """Take back what a replica has in hand, since the way to it broke: that is no fault of its events."""
        name, replica = message.replica, self._pool.replicas.get(message.replica)
        if replica is None:
            return
        in_hand = len(replica.hands)
        if in_hand:
            logger.warning("replica %s: %s, with %d batches in hand", name, _WAY_BROKE, in_hand)
        for number, hand in reversed(list(replica.hands.items())):
            for each in hand.events:
                each.cuts += 1
            if not any(each.cuts > _CUTS for each in hand.events):
                self._lost.spare_one(self._session, replica, number, _WAY_BROKE)
        self._end(replica, _WAY_BROKE, beside=in_hand - len(replica.hands))
        self._trust.forget(name)

    def serve(self, session: Session) -> None:
        """Hand out this session's events from now on; what is in hand of an earlier one is worth nothing."""
        self._session = session
        for replica in self._pool.replicas.values():
            replica.quarantined = False
            for hand in replica.hands.values():
                if hand.epoch != session.epoch:
                    hand.events = ()

    def in_hand(self) -> int:
        """Return how many of the session's events replicas have in hand."""
        return sum(len(hand.events) for replica in self._pool.replicas.values() for hand in replica.hands.values())

    def fill(self, report: PoolReport) -> None:
        """Complete a report with what is known of each replica, and what the last hour has seen of a fallback."""
        for replica in self._pool.replicas.values():
            replica.status.quarantined = replica.quarantined
        report.replicas = [replica.status for replica in self._pool.replicas.values()]
        self._fallback.fill(report)

    def _leave_if_idle(self, replica: PooledReplica) -> None:
        if not replica.leaving or replica.hands:
            return
        if self._pool.replicas.get(replica.replica) is not replica:
            return
        self._pool.detach(replica.replica)
        self._doubtful.spare(self._session, replica)
        self._trust.forget(replica.replica)
        # One that leaves closes the connection. One that still loads its stage could not read the frame after our end
        # of it were closed: it says first that it is ready, and that would fail.
        self._slot.ask(Disconnect(replica.replica) if replica.moves else SendFrame(replica.replica, Leave()))
        self._slot.ask(Report())

    # Hand out

    def hand_out(self) -> None:
        """Hand out what can be handed out now, and say when to look again."""
        slot, pool = self._slot, self._pool
        self._next.hand_out(self._session)
        for deadline_s in (pool.next_deadline_s, self._trust.next_s):
            if deadline_s is not None:
                slot.wake_at(deadline_s)
        if len(pool.replicas) >= SLOW_PEERS:
            slot.wake_at(self._stragglers_at_s)
        if self._sleep_after_s:
            self._let_sleep()

    def _let_sleep(self) -> None:
        """Ask replicas to have their servers sleep, once none had a batch for as long as the stage sleeps after."""
        replicas = [replica for replica in self._pool.replicas.values() if replica.ready]
        if self._worked_s == -math.inf or any(replica.hands for replica in replicas):
            self._worked_s, self._asleep = self._slot.now_s, frozenset()
        sleeps_s = self._worked_s + self._sleep_after_s
        if self._slot.now_s < sleeps_s:
            self._slot.wake_at(sleeps_s)
            return
        ready = frozenset(replica.replica for replica in replicas)
        for name in sorted(ready - self._asleep):
            self._slot.ask(SendFrame(name, Sleep()))
        self._asleep = ready

    def most_background(self) -> int:
        """Return how many background events may wait for replicas."""
        return self._next.most_background()

    # Answers

    def answer_bytes(self, name: str, epoch: int, batch: int) -> int | None:
        """Return the longest frame that a replica may answer a batch with; None where it has no such batch in hand."""
        replica = self._pool.replicas.get(name)
        hand = None if replica is None else replica.hands.get(batch)
        if hand is None or hand.epoch != epoch:
            return None
        return answer_bytes(hand.batch_size, self._slot.emitter.result_bytes, many=self._slot.routes.most > 0)

    def hear(self, event: Heard) -> None:
        """Take in a frame."""
        replica, frame = self._pool.replicas.get(event.replica), event.frame
        if replica is None:
            return
        if type(frame) is Results:
            self._results(replica, frame)
        elif type(frame) is Ready:
            self._ready(replica, frame)
        elif type(frame) is Returned:
            self._returned(replica, frame)
        elif type(frame) is Broken:
            for number, hand in reversed(list(replica.hands.items())):
                if (hand.epoch, number) != (frame.epoch, frame.batch):  # another dispatcher's may have broken it
                    self._lost.spare_one(self._session, replica, number, frame.reason)
            self._end(replica, frame.reason, memory=frame.memory, device=frame.device)

    def _ready(self, replica: PooledReplica, frame: Ready) -> None:
        self._doubtful.happens(self._session, replica, Happening.READY)
        replica.has_fallback = frame.fallback
        self._pool.ready(replica.replica, self._slot.now_s)
        status = replica.status
        status.phase = "leaving" if replica.leaving else "ready"
        status.start_up_s, status.isolation = believed_s(frame.start_up_s) or 0.0, frame.isolation
        self._slot.ask(Report())

    def _results(self, replica: PooledReplica, frame: Results) -> None:
        hand, pool, session = replica.hands.get(frame.batch), self._pool, self._session
        now_s = self._slot.now_s
        if hand is None or hand.epoch != frame.epoch:
            return  # of another dispatcher's time
        if hand.events and len(frame.outcomes) != len(hand.events):
            answered = count_of(len(frame.outcomes), "outcome")
            self._give_up(replica, f"answered {answered} for a batch of {len(hand.events)}")
            return
        done = next((at for at, outcome in enumerate(frame.outcomes) if type(outcome) is not Failed), None)
        success = done is not None
        took_s = max(0.0, now_s - hand.began_s)
        counts = self._slot.counts[hand.class_number]
        counts.busy_s += took_s / pool.concurrency(replica.hardware)
        calls = believed_calls(frame, hand.batch_size)
        if frame.too_large > 0:  # before the batch counts as one after which larger ones may be tried
            pool.too_large(replica.hardware, frame.too_large, now_s)
        was_fresh = not replica.passed
        pool.finish(replica, calls, now_s, frame.batch, success=success)
        busy_s, remote = believed_s(frame.busy_s), bool(replica.status.node)
        if hand.version == MAIN:
            count_batch(counts, replica.hardware, calls, took_s, busy_s, remote=remote, in_hand=hand.beside)
            if not hand.events:
                counts.copies += sum(call.batch_size for call in calls)
        if hand.span is not None and self._slot.spans is not None:
            self._slot.spans.end(hand.span, frame.outcomes)
        current = hand.epoch == session.epoch
        if (hand.probe or hand.test) and not success:
            self._failed_sample(replica, current=current)
            return
        if hand.probe and current:
            session.suspects.probe_passed()
        elif hand.test and was_fresh and current:
            session.suspects.suspicion.lift()
        if current and hand.hopeful and hand.events:
            session.stayed(hand.events[: hand.hopeful])
        if hand.events:
            if hand.version == FALLBACK:
                self._fallback.answered(session, hand, frame.outcomes)
            elif done is None:
                self._keep(replica, hand, frame.outcomes)
            elif not hand.alone or session.suspects.passed(hand.events[0]):
                session.suspects.processed(hand.events[done].payload)
                session.finished(hand.events, frame.outcomes)
        if replica.doubted or not success:
            self._doubtful.happens(session, replica, Happening.SUCCESS if success else Happening.NO_SUCCESS)
        self._leave_if_idle(replica)

    def _returned(self, replica: PooledReplica, frame: Returned) -> None:
        """Take back a batch that the replica's server did not take: whose fault it is, a sample says."""
        hand, session = replica.hands.get(frame.batch), self._session
        if hand is None or hand.epoch != frame.epoch:
            return
        if hand.span is not None and self._slot.spans is not None:
            self._slot.spans.broke(hand.span, frame.reason)
        before = self.trouble
        self._pool.give_back(replica, frame.batch, self._slot.now_s, frame.wait_s)
        if hand.epoch == session.epoch and hand.probe:
            session.suspects.interrupted()
        self._keep(replica, hand, frame)
        if not hand.probe:
            what = Happening.SAMPLE_NOT_TAKEN if hand.test else Happening.NO_SUCCESS
            self._doubtful.happens(session, replica, what)
        self._next.some_held = True
        self._server_trouble = f"stage {self._slot.routes.stage}: {frame.reason}; its events wait"
        if self.trouble != before:
            logger.warning("%s", self._server_trouble)
            self._slot.ask(Report())
        self._leave_if_idle(replica)

    # Losses

    def connection_ended(self, event: ConnectionEnded) -> None:
        """Take a replica out whose connection is of no more use."""
        replica = self._pool.replicas.get(event.replica)
        if replica is not None and event.broken:  # its process lives then, and nobody else would end it
            self._give_up(replica, event.broken)
        else:
            self._ended(event.replica, "its connection ended")

    def _failed_sample(self, replica: PooledReplica, *, current: bool) -> None:
        """Replace a replica that fails on what the stage is known to process; what else it has in hand runs again."""
        why = "it fails on an event that the stage is known to process"
        self._lost.spare(self._session, replica, why)
        if current:
            self._lost.failed_sample(self._session, replica, why)
        self._give_up(replica, why)

    def _give_up(self, replica: PooledReplica, why: str) -> None:
        self._slot.ask(Replace(replica.replica, why))
        self._end(replica, why)
        self._trust.forget(replica.replica)

    def _ended(self, name: str, why: str) -> None:
        replica = self._pool.replicas.get(name)
        if replica is not None:
            self._end(replica, why)

    def _end(
        self, replica: PooledReplica, why: str, *, beside: int = 0, memory: bool = False, device: bool = False
    ) -> None:
        """A replica is gone, or is given up; see `LostBatches.lose`."""
        self._trust.happens(replica.replica, Happening.ENDED, self._slot.now_s, why)
        self._slot.ask(Disconnect(replica.replica))
        self._pool.detach(replica.replica)
        self._lost.lose(self._session, replica, why, beside=beside, memory=memory, device=device)
        self._slot.ask(Report())

    # Time

    def look_at_time(self) -> None:
        """See to batches and replicas whose time limit has passed, and to replicas that stay behind their kind."""
        now_s, replicas = self._slot.now_s, self._pool.replicas
        for replica, batch, hard in list(self._pool.overdue(now_s)):
            if replicas.get(replica.replica) is replica:  # another batch of its may have ended it just now
                self._overdue(replica, batch, hard=hard)
        for name, why in self._trust.overdue(now_s):
            logger.warning("replica %s is replaced: %s", name, why)
            if (late := replicas.get(name)) is not None:
                self._give_up(late, why)
            else:
                self._slot.ask(Replace(name, why))
        if now_s >= self._stragglers_at_s:
            self._stragglers_at_s = now_s + _STRAGGLERS_EVERY_S
            for name, why in self._pool.stragglers(now_s):
                logger.warning("replica %s is replaced: %s", name, why)
                self._lost.spare(self._session, replicas[name], why)
                self._give_up(replicas[name], why)

    def _overdue(self, replica: PooledReplica, batch: int, *, hard: bool) -> None:
        hand, replicas = replica.hands.get(batch), self._pool.replicas.values()
        if hand is None:
            return
        if hard:
            self._give_up(replica, "a batch took longer than ten times its deadline")
            return
        others = any(each is not replica and each.ready and not each.leaving for each in replicas)
        if hand.epoch == self._session.epoch and hand.events and not hand.alone and others:
            logger.warning("replica %s is late with %d events: they run elsewhere", replica.replica, len(hand.events))
            self._lost.run_elsewhere(self._session, hand)

    def _keep(self, replica: PooledReplica, hand: Hand, said: Sequence[Answer] | Returned) -> None:
        if hand.events:
            replica.doubtful.append(DoubtfulBatch(hand, said))


def believed_s(claimed_s: float) -> float | None:
    """Return a time that a replica claims; None where it is negative, no number, or longer than a report counts."""
    return claimed_s if 0 <= claimed_s <= MAX_COUNTED_S else None


def believed_calls(frame: Results, batch_size: int) -> Sequence[Call]:
    """Return the calls that a replica claims to have made for a batch; none where one of them cannot be.

    A batch on which the stage raises is halved, again and again: of b events that takes less than 2b calls.
    """
    possible = len(frame.calls) <= 2 * batch_size and all(
        0 < call.batch_size <= batch_size and 0 < call.service_s <= MAX_COUNTED_S for call in frame.calls
    )
    return frame.calls if possible else ()
