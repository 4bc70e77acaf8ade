"""Who gets which batch next: suspects and samples, the queue, and background events."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.background import DELAY_SHARE, WAITING_S
from inferline_stream.dataplane.dispatcher.doubtful_batches import DoubtfulBatches
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.fallback_batches import FallbackBatches
from inferline_stream.dataplane.dispatcher.poison_suspects import Probe
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import Hand, PooledReplica
from inferline_stream.dataplane.dispatcher.replica_trust import Happening
from inferline_stream.dataplane.dispatcher.report_counts import count_waits
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import SendFrame
from inferline_stream.dataplane.frames import Batch
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat, StagePlan
from inferline_stream.pipeline.deadline_order import NEWS_LASTS_S
from inferline_stream.pipeline.event_classes import class_of
from inferline_stream.pipeline.fallback import MAIN


class NextBatches:
    """Hands out batches.

    Args:
        slot: whose events they are.
        pool: says which replica gets the next one.
        fallback: says which batches it may have.
        doubtful: says which replicas are tested.
    """

    def __init__(self, slot: SlotContext, pool: Pool, fallback: FallbackBatches, doubtful: DoubtfulBatches) -> None:
        self._slot = slot
        self._pool = pool
        self._fallback = fallback
        self._doubtful = doubtful
        self._numbers = itertools.count(1)
        self._quarantine = False
        """Whether a replica may be kept for suspects."""
        self.some_held = False
        """Whether a server has not taken a batch yet, so that replicas may be held. Set from outside."""
        self._plan = StagePlan()
        self._rest_s = 0.0
        self._rest_until_s = -math.inf
        """How long `_rest_s` counts, which the leader has said; then what the plan says does."""
        routes = slot.routes
        stages = routes.shape.longest_path_s([1.0] * len(routes.stages))
        self._background_s = DELAY_SHARE * routes.shortest_slo_s / stages
        """Longest that a batch of background events may take."""

    def follow(self, plan: StagePlan) -> None:
        """Hand out by this plan from now on."""
        self._plan = plan

    def learn(self, heartbeat: LeaderHeartbeat) -> None:
        """Learn from the leader what events take after this stage."""
        rest_s = heartbeat.rest_s.get(self._slot.routes.stage)
        if rest_s is not None:
            self._rest_s, self._rest_until_s = rest_s, self._slot.now_s + NEWS_LASTS_S

    def hand_out(self, session: Session) -> None:
        """Hand out what can be handed out now: suspects and samples, then what waits in the queue."""
        slot, pool = self._slot, self._pool
        if self._doubtful.aside:
            self._doubtful.take_up(session)
        if not session.open():
            return
        if pool.some_doubted:
            self._test_doubted(session)
        pool.fresh_after_s = session.suspects.suspicion.blocked_until_s
        if self._quarantine or len(session.suspects):
            session.leave_halted()
            self._feed_quarantine(session)
        self._hand_out_live(session)
        if not session.queue.eligible and slot.routes.backgrounds:
            self._hand_out_background(session)
        if pool.fresh_after_s > slot.now_s and (session.queue.eligible or session.background.eligible):
            slot.wake_at(pool.fresh_after_s)

    def _hand_out_live(self, session: Session) -> None:
        """Hand live events to replicas, and before them what a rate guarantees of background ones."""
        slot, pool, queue, now_s = self._slot, self._pool, session.queue, self._slot.now_s
        routes, hold_ms = slot.routes, self._plan.hold_s * 1e3
        may_fall_back = self._plan.fallback_share > 0
        guarantees = bool(routes.backgrounds) and session.background.guarantees
        rest_s = self._rest_s if now_s <= self._rest_until_s else self._plan.rest_s
        while (eligible := queue.eligible) and session.open():
            replica = self._choose(eligible)
            if replica is None:
                break
            if guarantees and (owed := self._owed(session, replica)):
                self._hand(session, replica, owed)
                continue
            if routes.deadline_order:
                needs = pool.batch_needs(replica, rest_s, routes.shortest_slo_s)
                limit, most = needs.limit, needs.cap
            else:
                needs, limit = None, pool.limit(replica.hardware)
                most = limit
            if hold_ms and (due_s := queue.due_ms(most, hold_ms) / 1e3) > now_s:
                slot.wake_at(due_s)
                break
            terms = self._fallback.terms if may_fall_back and replica.has_fallback else None
            events, hopeful, version = session.take(limit, needs, terms)
            if events:
                self._hand(session, replica, events, version=version).hopeful = hopeful
                if may_fall_back:
                    self._fallback.handed(len(events), version)

    def _choose(self, eligible: int) -> PooledReplica | None:
        """Return the replica that gets the next batch; None where there is none now."""
        pool, now_s = self._pool, self._slot.now_s
        replica = pool.choose(now_s, eligible)
        if replica is None and self.some_held and (again_s := pool.released_s(now_s)) is not None:
            self._slot.wake_at(again_s)
        return replica

    def _hand_out_background(self, session: Session) -> None:
        """Hand background events to the replicas that live events leave idle."""
        background, pool = session.background, self._pool
        while (eligible := background.eligible) and session.open():
            replica = self._choose(eligible)
            if replica is None:
                return
            self._hand(session, replica, background.take(pool.limit_within(replica.hardware, self._background_s)))

    def _owed(self, session: Session, replica: PooledReplica) -> Sequence[Event]:
        """Take the background events that a rate guarantees before live ones, for one replica."""
        limit = self._pool.limit_within(replica.hardware, self._background_s)
        return session.background.take_owed(limit, self._slot.now_s)

    def most_background(self) -> int:
        """Return how many background events may wait for replicas."""
        return self._pool.served_within(WAITING_S, self._background_s)

    def _feed_quarantine(self, session: Session) -> None:
        """Run the next suspect alone, on the one replica that runs suspects; free it once there are none."""
        pool, suspects, now_s = self._pool, session.suspects, self._slot.now_s
        self._quarantine = len(suspects) > 0
        if not self._quarantine:
            pool.lift_quarantine()
            return
        replica = pool.quarantine(passed_first=bool(suspects.suspicion.reason))
        if replica is None:
            return
        if replica.held_until_s > now_s:
            self._slot.wake_at(replica.held_until_s)
            return
        task = suspects.next(replica.passed, now_s, yields=pool.single and session.queue.eligible > 0)
        if isinstance(task, Probe):
            self._hand(session, replica, sample=task).probe = True
        elif task is not None:
            self._hand(session, replica, (task,)).alone = True
        else:
            # Back-off, the queue's turn, or nothing left to run: it serves like the others meanwhile.
            pool.lift_quarantine()
            again_s = suspects.again_s(replica.passed, now_s)
            if again_s > now_s:
                self._slot.wake_at(again_s)

    def _test_doubted(self, session: Session) -> None:
        """Run a sample on replicas whose last batches had no success."""
        sample = session.suspects.sample
        for replica in self._doubtful.to_test(session, sample=sample is not None):
            if replica.held_until_s > self._slot.now_s:
                self._slot.wake_at(replica.held_until_s)
            elif sample is not None and self._pool.has_room(replica):
                self._doubtful.happens(session, replica, Happening.SAMPLE_HANDED)
                self._hand(session, replica, sample=Probe(sample)).test = True

    def _hand(
        self,
        session: Session,
        replica: PooledReplica,
        events: Sequence[Event] = (),
        *,
        sample: Probe | None = None,
        version: int = MAIN,
    ) -> Hand:
        slot, pool = self._slot, self._pool
        payloads = [event.payload for event in events] if sample is None else [sample.input]
        hand = pool.begin(replica, len(payloads), slot.now_s, next(self._numbers), version)
        hand.epoch, hand.events = session.epoch, events
        hand.class_number = class_of(events[0].partition) if events else 0
        if slot.spans is not None and sample is None:
            hand.span = slot.spans.begin(events, replica.replica, replica.hardware)
        if hand.class_number not in slot.routes.backgrounds:
            count_waits(slot.report.counts, events, slot.now_s)
        frame = Batch(session.epoch, hand.batch, payloads, slot.emitter.result_bytes, version=version)
        slot.ask(SendFrame(replica.replica, frame))
        return hand
