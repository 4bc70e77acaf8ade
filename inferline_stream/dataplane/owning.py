"""Which partitions a replica holds: granted, released, dropped when the lease expires.

Everything is level-triggered: an assignment says all that is to be held, and every step compares that with what is
held now. Grants happen between two fetches; what its owner has yet to let go is read ahead, and taken up when it has.
A release waits until its heir reads ahead, and for the batches in flight; then the heir is told and begins, while their
commit is under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from inferline_stream.dataplane.ahead import Ahead
from inferline_stream.dataplane.asking import surely_committed
from inferline_stream.dataplane.client import Reader
from inferline_stream.dataplane.committing import Committing
from inferline_stream.dataplane.handovers import Handovers
from inferline_stream.dataplane.holding import LIVE, LOST, RELEASING, Holding
from inferline_stream.dataplane.join import Join
from inferline_stream.dataplane.offsets import decode_metadata
from inferline_stream.dataplane.protocol import Assignment, ReplicaReport
from inferline_stream.dataplane.reporting import Lease
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

JOIN_RECALL_RECORDS = 1000
"""A join's new owner reads this many records before the committed offset again, to know finished events by id."""

SUSPECT_BATCHES = 7
"""Batches that a replica may have under way: computing, waiting to be sent, being sent, waiting for their commit."""

HEIR_WITHIN_S = 1.0
"""How long an owner goes on with a partition that is to move, for an heir of which nothing is heard."""

AWAIT_S = 0.02
"""Shortest wait between two looks at what the group knows of partitions that are let go to us."""


class Owning:
    """A replica's partitions.

    Args:
        wiring: the replica's stage.
        reader: seeks, resumes and pauses partitions; reads and writes committed offsets.
        lease: without it nothing is begun and nothing committed.
        report: handovers are counted there.
        settings: how long a lapse lasts, how often committed offsets are checked and committed again.
        max_batch_size: until the first assignment.
        touch: called when the controller should hear of a change soon.
        dropped: called with a partition whose waiting events are to be forgotten.
        begun: called with what was read of a partition before it was held.
        handovers: what the stage's replicas tell each other.
        exactly_once: commits are made in the sender's transactions, not here.
    """

    def __init__(
        self,
        wiring: Wiring,
        reader: Reader,
        lease: Lease,
        report: ReplicaReport,
        settings: Settings,
        *,
        max_batch_size: int,
        touch: Callable[[], None],
        dropped: Callable[[int], object],
        begun: Callable[[Holding, Sequence[Any]], None],
        handovers: Handovers,
        exactly_once: bool,
    ) -> None:
        self._wiring = wiring
        self._reader = reader
        self._lease = lease
        self._report = report
        self._settings = settings
        self._touch = touch
        self._dropped = dropped
        self._begun = begun
        self._handovers = handovers
        self._early: dict[int, tuple[Holding, tuple[int, str], float]] = {}
        self._exactly_once = exactly_once
        self._name = owner_name(report.replica)
        self.assignment = Assignment(
            replica=report.replica,
            stage=report.stage,
            term=-1,
            sequence=0,
            partitions=(),
            max_batch_size=max_batch_size,
        )
        self.holdings: dict[int, Holding] = {}
        self.commits = Committing(wiring, self.holdings, reader, lease, settings, committed=self.settle)
        self.ahead = Ahead(reader)
        self._awaits = asyncio.Event()
        self.leaving = ""
        self.gone = asyncio.Event()
        self.dropped_all = asyncio.Event()
        self._lapsed_sequence: int | None = None
        self._regain_at_s = 0.0

    # What is wanted

    def follow(self, assignment: Assignment) -> None:
        """Follow an assignment, unless a newer one was followed before."""
        if (assignment.term, assignment.sequence) <= (self.assignment.term, self.assignment.sequence):
            return
        self.assignment = assignment
        self._report.sequence = assignment.sequence
        if assignment.drain:
            self.leave("drained")
        if self._lapsed_sequence is not None and self._lease.valid():
            self._lapsed_sequence = None  # written after the controller knew that we hold nothing
        self.reconcile()
        self._touch()

    def leave(self, why: str) -> None:
        """Release everything; `gone` is set when that is done."""
        if not self.leaving:
            logger.info("replica %s leaves: %s", self._report.replica, why)
            self.leaving = why
            self._report.phase = "draining"
            self._touch()
            self.reconcile()

    @property
    def lapsed(self) -> bool:
        """Whether the lease has expired and nothing was assigned anew since."""
        return self._lapsed_sequence is not None

    def held(self) -> dict[int, int]:
        """Partition → next offset to commit, of every partition not yet released; -1 before it is known."""
        held = dict.fromkeys(self._wanted(), -1)
        held.update((partition, holding.completion.watermark) for partition, holding in self.holdings.items())
        return held

    def _wanted(self) -> frozenset[int]:
        return frozenset() if self.leaving or self.lapsed else frozenset(self.assignment.partitions)

    # Release

    def reconcile(self) -> None:
        """Stop reading what is not wanted any more."""
        wanted, releasing = self._wanted(), False
        self.ahead.drop(p for p in self.ahead if p not in wanted or p not in self.assignment.awaits)
        for partition, holding in self.holdings.items():
            if holding.state != LIVE:
                continue
            if partition in wanted:
                holding.freed, holding.heir = None, ""
                continue
            if holding.freed is None and partition not in self.assignment.partitions:
                self._take_from(holding)
            if not self._heir_is_late(holding):
                self._reader.release([partition])
                self._dropped(partition)
                holding.state = RELEASING
                holding.confirmed = not self._exactly_once
                releasing = True
        if releasing:
            self.commits.now()
        self.settle()

    def _take_from(self, holding: Holding) -> None:
        """The assignment takes a partition from us."""
        holding.freed = (self.assignment.term, self.assignment.sequence)
        if heir := self.assignment.heirs.get(holding.partition):
            holding.heir = owner_name(heir)
            holding.heir_by_s = time.monotonic() + HEIR_WITHIN_S
            # The event loop's clock is coarser: a timer may be a little early.
            asyncio.get_running_loop().call_later(HEIR_WITHIN_S + 0.01, self.reconcile)

    def _heir_is_late(self, holding: Holding) -> bool:
        """Whether there is an heir that does not read ahead yet.

        In exactly-once mode it cannot while we go on: it would ask for offsets that our transactions keep unsettled.
        """
        if self._exactly_once or not holding.heir or holding.freed is None or time.monotonic() >= holding.heir_by_s:
            return False
        return not self._handovers.is_read_ahead(holding.partition, holding.freed)

    def finished(self, events: int) -> None:
        """So many events more need nothing but their commit."""
        if any(holding.state == RELEASING for holding in self.holdings.values()):
            self._tell_heirs()
            self.commits.now()
        self.commits.finished(events, self.assignment.max_batch_size)

    def _tell_heirs(self) -> None:
        """Let those begin that own a partition next; in exactly-once mode once the transaction has ended."""
        offsets = {}
        for partition, holding in self.holdings.items():
            free = holding.state == RELEASING and not holding.in_flight and not holding.halted and holding.confirmed
            if free and holding.heir and not holding.told:
                holding.told = True
                offsets[partition] = holding.entry()
        if offsets:
            self._handovers.tell_released(offsets)

    def settle(self) -> None:
        """Let go of partitions whose last batch is committed; whatever the way to here, their heirs are told before."""
        self._tell_heirs()
        done = [
            partition
            for partition, holding in self.holdings.items()
            if holding.state == RELEASING
            and not holding.in_flight
            and (holding.halted or (holding.confirmed and holding.settled))
        ]
        for partition in done:
            self.holdings.pop(partition).state = LOST
            self._report.handovers += 1
        if done:
            self._touch()
        if self.leaving and not self.holdings:
            self.gone.set()

    # Grant

    async def grant(self) -> None:
        """Take up partitions that are wanted and not held, where the offset of the owner before stands.

        Where that one has yet to let a partition go, it is read ahead from the offset that is committed now.
        """
        new = self._wanted() - self.holdings.keys() - frozenset(self.ahead)
        if not new:
            return
        began_s = time.monotonic()
        self._reader.suspend()
        positions: dict[int, int] = {}
        awaited: list[int] = []
        try:
            # Where an offset is missing for good, what is held already waits as long, once, before the alert.
            committed = await surely_committed(self._reader.committed, new)
            died = {p for p in new & committed.keys() if decode_metadata(*committed[p]).owner not in ("", self._name)}
            died -= self.assignment.awaits.keys()
            ends = await self._reader.ends(died) if died else {}
            begins = await self._reader.beginnings(new) if self._recalls() else {}
            for partition in sorted(new & self._wanted()):
                entry = committed.get(partition)
                if self._let_go(partition, entry):
                    self._hold(partition, entry, ends.get(partition, 0))
                else:
                    awaited.append(partition)
                if entry is not None:
                    positions[partition] = self._read_from(entry, begins.get(partition))
            self.ahead.begin(positions.keys() & awaited)
        finally:
            self._reader.hold(positions)
        self._report.handover_stall_s += time.monotonic() - began_s
        if positions:
            if self.ahead:
                self._handovers.tell_read_ahead(self.assignment.awaits, self.ahead)
            if positions.keys() - frozenset(self.ahead):
                self._touch()
            self._begin_told()
            self._awaits.set()
            self.commits.now()

    def _read_from(self, entry: tuple[int, str], begin: int | None) -> int:
        """Where to read a partition from; for a join from a while before, if its topic still has that."""
        found = decode_metadata(*entry)
        if begin is None:
            return found.offset
        return min(found.offset, max(begin, found.anew, found.offset - JOIN_RECALL_RECORDS))

    def hear(self, told: bytes) -> None:
        """Another replica has told something of partitions that move."""
        self._handovers.hear(told)
        self.reconcile()
        self._begin_told()

    def _begin_told(self) -> None:
        """Take up what is read ahead and was let go to us."""
        for partition in self.ahead:
            entry = self._handovers.released(partition, self.assignment.awaits[partition], self._name)
            if entry is not None:
                self._begin(partition, entry, early=not self._exactly_once)

    def _begin(self, partition: int, entry: tuple[int, str], *, early: bool) -> None:
        """Hold what was read ahead."""
        records = self.ahead.take(partition)
        if records is None:  # it is granted like any other
            return
        holding = self._hold(partition, entry, 0)
        if early:  # after so long the owner before has committed, or lost its lease
            holding.early = True
            self._early[partition] = holding, entry, self._lease.now_s() + self._settings.lease_s
        self._begun(holding, records)
        self.commits.wanted.set()
        self._touch()

    async def take_up(self) -> None:
        """Take up what is read ahead, for ever, once the group knows that its owner has let it go; where we began
        before that, commit from then on.
        """
        while True:
            await self._awaits.wait()
            self._awaits.clear()
            began_s = time.monotonic()
            while waiting := {*self.ahead, *self._early}:
                committed = await self._reader.committed(waiting)
                for partition in waiting.intersection(self.ahead):
                    if self._let_go(partition, committed.get(partition)):
                        self._begin(partition, committed[partition], early=False)
                for partition in waiting.intersection(self._early):
                    holding, entry, until_s = self._early[partition]
                    if committed.get(partition) == entry or self._lease.now_s() >= until_s:
                        del self._early[partition]
                        holding.early = False
                        self.commits.now()
                # It may be a long batch that is waited for.
                await asyncio.sleep(max(AWAIT_S, (time.monotonic() - began_s) / 20))

    def _let_go(self, partition: int, entry: tuple[int, str] | None) -> bool:
        """Whether nobody else works on a partition that is to be taken up: its last owner has let it go for the
        assignment that tells so, or it was ours already."""
        freed = self.assignment.awaits.get(partition)
        found = decode_metadata(*(entry or (0, "")))
        return freed is None or found.freed == freed or found.owner == self._name

    def _recalls(self) -> bool:
        """Whether parts may arrive twice, so that a new owner must know which events were finished."""
        return self._wiring.is_join and not self._exactly_once

    def _hold(self, partition: int, entry: tuple[int, str] | None, end: int) -> Holding:
        """Hold one partition from what its group has committed."""
        join = None
        if self._wiring.is_join:
            stage = self._wiring.stage
            join = Join(self._wiring.parents, remember_s=self._settings.join_age_s, ordered=stage.ordered)
        found = decode_metadata(*(entry or (0, "")))
        reach = end
        if join is None:  # a join's events may be of any age
            reach = min(end, found.offset + SUSPECT_BATCHES * self.assignment.max_batch_size)
        holding = self.holdings[partition] = Holding(partition, found, self._name, reach, join)
        if entry is None:
            self.halt(holding, "its group has committed no offset")
        if holding.suspected:
            logger.warning(
                "the last owner of %s/%d died; its last batch is suspected (%d deaths so far)",
                self._wiring.input_topic, partition, holding.attempts,
            )  # fmt: skip
        return holding

    def halt(self, holding: Holding, why: str) -> None:
        """Stop reading a partition: reading on anywhere else would lose events silently."""
        holding.halted = why
        self._reader.release([holding.partition])
        self._dropped(holding.partition)
        self._report.reason = (
            f"{self._wiring.input_topic}/{holding.partition} is halted: {why}; "
            f"set an offset of group {self._wiring.group} and restart the replica"
        )
        logger.error("%s", self._report.reason)
        self._touch()

    # Lease

    async def watch_lease(self) -> None:
        """Drop everything as soon as the lease has expired."""
        while True:
            left_s = self._lease.left_s
            if left_s <= 0:
                self.lapse()
            await asyncio.sleep(max(left_s, 0.05))

    def lapse(self) -> None:
        """The lease has expired, and others may own everything: drop it all and commit nothing."""
        if self.lapsed:
            return
        self._lapsed_sequence, self._regain_at_s = self.assignment.sequence, 0.0
        logger.warning("replica %s: lease expired, %d partitions dropped", self._report.replica, len(self.holdings))
        self.ahead.drop(self.ahead)
        self._reader.release(list(self.holdings))
        for partition, holding in self.holdings.items():
            holding.state = LOST
            self._dropped(partition)
        self.holdings.clear()
        self._early.clear()
        self.dropped_all.set()
        self.commits.lapse()
        self.settle()

    def regain(self) -> None:
        """Follow the old assignment again, if no controller has answered our return for so long that there is none.

        A living controller that hears of a replica without partitions writes its assignment anew, or tells it to
        leave; waiting for that, we never work beside a new owner.
        """
        if not self.lapsed or not self._lease.valid():
            self._regain_at_s = 0.0
            return
        now_s = self._lease.now_s()
        if not self._regain_at_s:
            self._regain_at_s = now_s + self._settings.dead_after_s
        elif now_s >= self._regain_at_s:
            logger.warning("replica %s: no controller answers, its old assignment stands", self._report.replica)
            self._lapsed_sequence = None
            self._touch()

    async def confirm(self) -> None:
        """After a transaction: wait until the offsets of partitions to be released can be read by others."""
        releasing = [h for h in self.holdings.values() if h.state == RELEASING and not h.in_flight]
        for holding in releasing:
            if holding.halted or holding.confirmed or holding.to_commit() is not None:
                continue
            expected = {holding.partition: holding.entry()}
            while await self._reader.committed([holding.partition]) != expected:  # noqa: ASYNC110  no event tells
                await asyncio.sleep(0.002)
            holding.confirmed = True
        self.settle()


def owner_name(replica: str) -> str:
    """What a commit's metadata calls a replica: space is short there."""
    return hashlib.blake2s(replica.encode(), digest_size=6).hexdigest()
