"""The replicas of a slot that run a version of the stage which is tried out, beside the pool of the running version.

They get a share of the live events, counted: of every batch the version is owed its share, and it gets the next batch
while it is owed something. Where a stage keeps the order of keys, of events with a key it gets its share of the keys,
so that each stays with one version (`StageQueue.share_keys`). With ``mirror`` it gets copies of what the running
version has processed, and what it makes of them is compared and dropped.

Nothing that the version does can end an event. One that it fails on, whose replica dies, or that comes back late runs
again on the running version; only what that says of it counts. So no event is suspected here, and no replica doubted.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from inferline_stream.dataplane.dispatcher.event import Event, Outcome
from inferline_stream.dataplane.dispatcher.fallback_batches import answered_batch
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import Hand, PooledReplica
from inferline_stream.dataplane.dispatcher.queue import Taken
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.slot_events import Disconnect, Report, SendFrame
from inferline_stream.dataplane.frames import Answer, Batch, Broken, Failed, Results, Returned, StageInput
from inferline_stream.dataplane.slot_grants import CanaryShare, StagePlan
from inferline_stream.dataplane.supervisor_messages import Replace
from inferline_stream.observability.stage_counts import CanaryCounts
from inferline_stream.pipeline.version import kind_of_version, version_on

logger = logging.getLogger(__name__)

_MOST_OWED = 2
"""Batches of the largest size that the version is owed at most: what a busy one misses is not made up for in a rush."""

_COPIES = 2
"""Copied batches that wait for a replica; further ones are not copied."""

_TURN = (math.sqrt(5) - 1) / 2
"""What `Canary._patience` changes by: multiples of the golden ratio keep no rhythm, and spread evenly."""


class Copy(NamedTuple):
    """A batch that the running version has processed."""

    inputs: Sequence[StageInput]
    outcomes: list[Answer]


class Canary:
    """Says which batches a version gets that is tried out, and what follows from its answers.

    Args:
        slot: whose replicas they are.
        pool: of the running version.
    """

    def __init__(self, slot: SlotContext, pool: Pool) -> None:
        self._slot = slot
        self.pool = pool.beside()
        """Replicas of the version, and those of one before it that leave."""
        self.share: CanaryShare | None = None
        """None where no version is tried out: nothing is asked of this then but to see to what is `to_run_again`."""
        self.to_run_again: deque[Event] = deque()
        """Events that the running version has to process, whose keys stay taken."""
        self._owed = 0.0
        """Events that it should have been given beyond those that it was."""
        self._patience = 0.0
        """So many batches it waits for its next turn: another part of one each time, as traffic may have a rhythm."""
        self._failed: dict[int, Event] = {}
        """By identity, those of them and of its batches in hand on which the version failed."""
        self._copies: deque[Copy] = deque()
        self._copied: dict[int, Copy] = {}
        """By number of the batch, what a replica has in hand."""

    def follow(self, plan: StagePlan, session: Session) -> None:
        """Hand out by this plan from now on."""
        if plan.canary != self.share:
            self._owed, self.share = 0.0, plan.canary
            self._copies.clear()
            if plan.canary is not None:  # reports would grow with each version that was ever tried out
                kept, counts = f"{plan.canary.version}/", self._slot.report.counts
                counts.canaries = {step: of for step, of in counts.canaries.items() if step.startswith(kept)}
        if plan.canary is None:
            self._failed.clear()
            session.queue.share_keys(0.0)
        self._watch(session)
        version = "" if plan.canary is None else plan.canary.version
        kinds = {kind_of_version(kind, version): of for kind, of in plan.hardware.items()} if version else {}
        self.pool.configure(StagePlan(kinds))
        for replica in self.pool.replicas.values():
            self.welcome(replica)

    def welcome(self, replica: PooledReplica) -> None:
        """Take a replica in; one of a version that is tried out no more gets nothing."""
        version = "" if self.share is None else self.share.version
        replica.quarantined = version_on(replica.hardware) != version

    def begin(self, session: Session) -> None:
        """Another session begins: what is kept of the one before is worth nothing."""
        self.to_run_again.clear()
        self._failed.clear()
        self._watch(session)

    def _watch(self, session: Session) -> None:
        session.on_finished = None if self.share is None else self._judge

    @property
    def serves(self) -> bool:
        """Whether a replica of the version is ready to get events."""
        return self.share is not None and any(self._may_serve(replica) for replica in self.pool.replicas.values())

    def _may_serve(self, replica: PooledReplica) -> bool:
        return replica.ready and not replica.leaving and not replica.quarantined

    def _counts(self) -> CanaryCounts | None:
        share = self.share
        return None if share is None else self._slot.report.counts.canaries.setdefault(share.step, CanaryCounts())

    # Hand out

    def share_keys(self, session: Session) -> None:
        """Have the queue deal the version its share of the keys, as long as it serves and keys have an order."""
        share = self.share
        if share is None or share.mirror or not self._slot.routes.keys_in_order:
            session.queue.share_keys(0.0)
            return
        in_time = any(self._may_serve(each) and not each.late for each in self.pool.replicas.values())
        session.queue.share_keys(share.share if in_time else 0.0)

    def take(self, session: Session, rest_s: float, hold_ms: float) -> tuple[PooledReplica, Taken] | None:
        """Return a replica of the version with its next batch; None where it is not its turn, or none is free.

        Args:
            session: whose events are handed out.
            rest_s: R.
            hold_ms: how long after the oldest of them came fewer events wait for more.
        """
        share, queue, now_s = self.share, session.queue, self._slot.now_s
        turn = self._is_owed(min(self._most(), queue.eligible)) and share is not None and not share.mirror
        replica = self.pool.choose(now_s, queue.shared or queue.eligible) if queue.shared or turn else None
        if replica is None:
            return None
        most = self.pool.limit(replica.hardware)
        if self._slot.routes.deadline_order:
            most = self.pool.batch_needs(replica, rest_s, self._slot.routes.shortest_slo_s).cap
        turn = turn and queue.due_ms(most, hold_ms) <= now_s * 1e3
        taken = session.take_shared(max(1, most), keyless=turn)
        if not taken.events:
            return None
        self.handed(taken.events, own=True)
        return replica, taken

    def handed(self, events: Sequence[Event], *, own: bool) -> None:
        """Count live events that a replica gets: one of the version, or one of the running version."""
        counts, share = self._counts(), self.share
        if counts is None or share is None or share.mirror or not self.serves:
            return
        counts.events += own * len(events)
        counts.main_events += (not own) * len(events)
        keyed = self._slot.routes.keys_in_order
        keyless = sum(event.key is None for event in events) if keyed else len(events)
        self._owed = min(self._owed + share.share * keyless - own * keyless, _MOST_OWED * self._most())
        if own and keyless:
            self._take_turn()

    def _is_owed(self, events: int) -> bool:
        """Whether it is its turn to get a batch of so many events."""
        return self._owed > self._patience * events

    def _take_turn(self) -> None:
        self._patience = (self._patience + _TURN) % 1.0

    def _most(self) -> int:
        """Return the largest batch that a replica of it takes."""
        return max((self.pool.limit(replica.hardware) for replica in self.pool.replicas.values()), default=1)

    def again(self, limit: int, session: Session) -> list[Event]:
        """Return events for the running version to process that this one did not, at most so many."""
        found: list[Event] = []
        while self.to_run_again and len(found) < limit:
            event = self.to_run_again.popleft()
            if event.limit and len(found) >= event.limit:
                self.to_run_again.appendleft(event)
                break
            limit = min(limit, event.limit or limit)
            if session.partitions[event.partition].halted:
                session.requeue((event,))  # only frees its key
            else:
                found.append(event)
        return found

    # Copies

    def copy(self, events: Sequence[Event], outcomes: list[Answer]) -> None:
        """Take a copy of a batch that the running version has processed, if it is the version's turn to see one."""
        share, counts = self.share, self._counts()
        if counts is None or share is None or not share.mirror or not self.serves:
            return
        counts.main_events += len(events)
        self._owed = min(self._owed + share.share * len(events), float(_COPIES * len(events)))
        if self._is_owed(len(events)) and len(self._copies) < _COPIES:
            self._owed -= len(events)
            self._take_turn()
            counts.events += len(events)
            counts.main_events -= len(events)
            self._copies.append(Copy([event.payload for event in events], outcomes))

    def send_copies(self, session: Session, numbers: Iterator[int]) -> None:
        """Send copies to replicas that are free.

        Args:
            session: that is served.
            numbers: of the batches.
        """
        slot = self._slot
        while self._copies and self.serves:
            replica = self.pool.choose(slot.now_s, len(self._copies[0].inputs))
            if replica is None:
                return
            copy = self._copies.popleft()
            hand = self.pool.begin(replica, len(copy.inputs), slot.now_s, next(numbers))
            hand.epoch = session.epoch
            self._copied[hand.batch] = copy
            inputs, expected = list(copy.inputs), copy.outcomes
            batch = Batch(session.epoch, hand.batch, inputs, slot.emitter.result_bytes, expected=expected)
            slot.ask(SendFrame(replica.replica, batch))

    # Answers

    def answered(self, session: Session, replica: PooledReplica, hand: Hand, frame: Results) -> None:
        """Take the outcomes of a batch: those with a result are final, all other events run again."""
        counts, copied = self._counts(), self._copied.pop(hand.batch, None)
        ratio = self.pool.last_ratio(replica)
        if counts is not None and ratio is not None and self._may_serve(replica):
            counts.own.note(ratio)
        if copied is not None:
            self._compare(counts, copied, frame)
        elif hand.events:
            self._settle(session, hand, frame.outcomes)

    def _compare(self, counts: CanaryCounts | None, copied: Copy, frame: Results) -> None:
        agreed = frame.agreed if len(frame.agreed) == len(copied.outcomes) else [False] * len(copied.outcomes)
        for main, own, same in zip(copied.outcomes, frame.outcomes, agreed, strict=False):
            if counts is None or type(main) is Failed:
                continue
            counts.answered += 1
            if type(own) is not Failed:
                counts.compared += 1
                counts.disagreed += not same
            else:
                counts.failed += 1

    def _settle(self, session: Session, hand: Hand, outcomes: Sequence[Answer]) -> None:
        found = answered_batch(self._slot, hand.events, outcomes)
        self._failed |= {id(event): event for event in found.failed}
        if (counts := self._counts()) is not None:
            counts.answered += len(found.ended)
        if found.ended:
            if hand.hopeful:
                session.stayed(found.ended)
            for event in found.ended if self._failed else ():  # the running version's replica may have been lost
                self._failed.pop(id(event), None)
            session.finished(found.ended, found.results)
        self._run_again(session, found.again)

    def _judge(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        """Learn what became of events: where the running version has a result, this one alone has failed."""
        if not self._failed:
            return
        counts = self._counts()
        for event, outcome in zip(events, outcomes, strict=True):
            if self._failed.pop(id(event), None) is not None and counts is not None:
                counts.answered += 1
                counts.failed += type(outcome) is not Failed

    def timed(self, ratio: float | None) -> None:
        """Count a batch of the running version, by its measured over its expected service time."""
        counts = self._counts()
        if counts is not None and ratio is not None and self.serves:
            counts.main.note(ratio)

    # Losses

    def unanswered(self, session: Session, replica: PooledReplica, frame: Broken | Returned) -> None:
        """Take in that a replica breaks on a batch, or that the server which it asks has not taken one."""
        if type(frame) is Broken:
            self.end(session, replica, blamed=True)
        elif type(frame) is Returned and (hand := replica.hands.get(frame.batch)) is not None:
            self.pool.give_back(replica, frame.batch, self._slot.now_s, frame.wait_s)
            self.lost(session, [hand], blamed=False)

    def end(self, session: Session, replica: PooledReplica, *, blamed: bool, why: str = "") -> None:
        """Let go of a replica that is gone, or that is given up for a reason.

        Args:
            session: whose events are served.
            replica: which one.
            blamed: whether what it had in hand counts as a failure of the version.
            why: it is given up, and to be replaced.
        """
        if why:
            self._slot.ask(Replace(replica.replica, why))
        self._slot.ask(Disconnect(replica.replica))
        self.pool.detach(replica.replica)
        hands, replica.hands = list(replica.hands.values()), {}
        self.lost(session, hands, blamed=blamed)
        self._slot.ask(Report())

    def look_at_time(self, session: Session) -> None:
        """See to batches whose time limit has passed."""
        for replica, batch, hard in list(self.pool.overdue(self._slot.now_s)):
            if hard:
                self.end(session, replica, blamed=True, why="a batch took longer than ten times its deadline")
            elif (hand := replica.hands.get(batch)) is not None:
                self.lost(session, [hand], blamed=True)

    def lost(self, session: Session, hands: Iterable[Hand], *, blamed: bool) -> None:
        """Let everything run again that a replica had in hand.

        Args:
            session: whose events are served.
            hands: of the replica.
            blamed: whether that counts as a failure of the version.
        """
        for hand in hands:
            copied, counts = self._copied.pop(hand.batch, None), self._counts()
            if copied is not None and blamed and counts is not None:
                counts.answered += len(copied.inputs)
                counts.failed += len(copied.inputs)
            if hand.epoch == session.epoch and hand.events:
                self._slot.report.counts.batches_lost += 1
                events, hand.events = hand.events, ()
                if blamed:
                    self._failed |= {id(event): event for event in events}
                self._run_again(session, events)

    def _run_again(self, session: Session, events: Sequence[Event]) -> None:
        if events and not session.closed:  # else they are read again by who serves next
            self.to_run_again.extend(events)
            self._slot.ask(Report())
