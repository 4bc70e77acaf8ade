"""A dispatcher's time with a slot: fetch, queue, send and commit, from the first fetch to the last commit.

A session ends in order, when another dispatcher is to serve the slot, or is dropped, when the lease has expired: what
it had queued or in hand is then worth nothing, and the next session reads it again from the committed offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.dispatcher.lease import Lease, LeaseExpired
from inferline_stream.dataplane.dispatcher.offset_committer import Committer
from inferline_stream.dataplane.dispatcher.outcomes import Ending, Expired, Outcome, Requeued
from inferline_stream.dataplane.dispatcher.pace import Pace
from inferline_stream.dataplane.dispatcher.partition_commits import Entry, Partition
from inferline_stream.dataplane.dispatcher.poison_suspects import Suspects
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.dataplane.dispatcher.report_counts import count_latency
from inferline_stream.dataplane.dispatcher.slot_joins import SlotJoins
from inferline_stream.dataplane.frames import Done
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.routes import Routes
from inferline_stream.dataplane.slot_grants import Grant
from inferline_stream.kafka.batch_mark import BatchWatch
from inferline_stream.kafka.offset_metadata import decode_metadata, known_partitions
from inferline_stream.kafka.records import Outgoing
from inferline_stream.kafka.topic_reader import Fetched, TopicReader
from inferline_stream.kafka.topic_state import recreated
from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

QUEUE_BYTES = 16 * 1024 * 1024
"""Events that wait for replicas; beyond it only partitions with little of their own waiting are fetched."""

UNSENT_BYTES = 16 * 1024 * 1024
"""Results that are not acknowledged yet; beyond it no batch is handed out, and nothing is fetched."""

FULL_WAIT_S = 0.01
"""Longest fetch where some partitions have enough waiting: the others may bring nothing meanwhile."""

JOIN_RECALL_RECORDS = 1000
"""A join's new owner reads this many records before the committed offset again, to know finished events by id."""


class Sender(Protocol):
    """What a session needs of a producer; `kafka.writer.Writer`, or a fake."""

    transactional: bool

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait until Kafka has acknowledged every one."""

    async def begin(self) -> None:
        """Begin a transaction."""

    async def commit(self, offsets: Mapping[object, Entry], group: str) -> None:
        """Make a group's offsets part of the transaction, and commit it."""


class SlotSession:
    """Moves the records of a slot's partitions through the stage.

    Args:
        routes: of the stage.
        reader: fetches records and commits offsets.
        sender: sends results.
        emitter: collects them.
        lease: without it nothing is sent or committed.
        report: counts are kept there.
        settings: bounds of joins, how often offsets are checked.
        owner: name under which offsets are committed.
        live_since_us: events that entered before are a backlog.
        kick: called when there may be something to hand to a replica.
        watch: is shown what is taken in.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        reader: TopicReader,
        sender: Sender,
        emitter: Emitter,
        lease: Lease,
        report: PoolReport,
        settings: Settings,
        owner: str,
        live_since_us: float,
        kick: Callable[[], None],
        watch: BatchWatch,
    ) -> None:
        self._routes = routes
        self._reader = reader
        self._sender = sender
        self._emitter = emitter
        self._lease = lease
        self._report = report
        self._settings = settings
        self._owner = owner
        self._live_since_us = live_since_us
        self._kick = kick
        self._watch = watch
        self._bounds_s = latency_bounds_s(routes.slo_s)
        self._slo_us = routes.slo_s * 1e6
        self.epoch = time.time_ns()
        self.result_bytes = emitter.result_bytes
        self.queue = StageQueue(round(self._slo_us), keys_in_order=routes.keys_in_order)
        self.suspects = Suspects()
        self.partitions: dict[int, Partition] = {}
        self._intake = Intake(routes, self._waits, self._ends, time.monotonic, topic_id=reader.topic.id)
        self._finished: list[tuple[Event, Outcome]] = []
        self._finished_bytes = 0
        self._sending_bytes = 0
        self._has_finished = asyncio.Event()
        self._in_hand = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._commits = Committer(routes, reader, lease, settings, self.partitions, noted=self._may_be_idle)
        self.joins = SlotJoins(
            self.partitions, self._intake, reader, report, settings,
            has_room=self._has_room, queue_has_room=lambda: not self._draining and self.queue.size_bytes < QUEUE_BYTES,
            kick=kick, halt=self._halt,
        )  # fmt: skip

    # Begin and end

    async def begin(
        self, partitions: Sequence[int], committed: Mapping[int, Entry], partitions_before: int = 0
    ) -> None:
        """Own these partitions from the offsets that the group has committed.

        Args:
            partitions: to own.
            committed: by partition.
            partitions_before: those that the topic is known to have had before; what commits say of it counts, too.
        """
        topic = self._reader.topic
        known = max(partitions_before, known_partitions(committed.values()))
        added = [number for number in partitions if number not in committed and 0 < known <= number]
        recalls = self._routes.is_join and not self._sender.transactional
        begins = await self._reader.beginnings(partitions if recalls else added) if recalls or added else {}
        committed = {**committed, **{number: (begins[number], "") for number in added}}
        positions = {}
        for number in partitions:
            entry = committed.get(number)
            found = decode_metadata(*(entry or (0, "")))
            join = None
            if self._routes.is_join:
                ordered = self._routes.stage in self._routes.ordered
                join = Join(self._routes.parents, remember_s=self._settings.join_age_s, ordered=ordered)
            partition = self.partitions[number] = Partition(number, found, self._owner, join, topic)
            if entry is None:
                self._halt(partition, "its group has committed no offset")
                continue
            if topic.replaces(found.topic_id):
                self._halt(partition, recreated(found.topic_id, topic.id))
                continue
            positions[number] = found.offset
            if recalls:
                again = max(begins.get(number, 0), found.forget_below, found.offset - JOIN_RECALL_RECORDS)
                positions[number] = min(found.offset, again)
        self._reader.hold(positions)
        self._commits.wanted.set()

    async def grow(self, added: Sequence[int], partitions_before: int) -> None:
        """Own partitions that were added to the topic; they begin where nothing of them was ever read."""
        await self.begin(added, await self._reader.committed(added), partitions_before)
        for partition in self.partitions.values():
            partition.grown(self._reader.topic)
        self._commits.wanted.set()

    def learn(self, grant: Grant) -> None:
        """Learn what a grant says of the stage's events."""
        self.joins.learn(grant.settled)
        self.suspects.learn(grant.plan.sample)

    def halt(self, why: str) -> None:
        """Stop reading every partition."""
        for partition in self.partitions.values():
            if partition.halted != why:
                self._halt(partition, why)

    async def run(self) -> None:
        """Send and commit until cancelled. `take_in` feeds it.

        Raises:
            Fenced: another producer has the slot's transactional id.
            KafkaFailed: Kafka refuses a record or a commit.
        """
        async with asyncio.TaskGroup() as tasks:
            if self._sender.transactional:
                tasks.create_task(self._transact())
            else:
                tasks.create_task(self._send())
                tasks.create_task(self._commits.run())
            tasks.create_task(self._commits.repeat())
            tasks.create_task(self.joins.read_again())

    async def drain(self) -> None:
        """Hand out nothing more, and wait until what replicas had in hand is sent and committed."""
        self._draining = True
        self._reader.release(list(self.partitions))
        for number in self.partitions:
            self.queue.drop(number)
        self.suspects.drop()
        while not self._is_idle():
            self._idle.clear()
            self._commits.urge()
            await self._idle.wait()
        await self._confirm()

    def drop(self) -> None:
        """Forget everything: another dispatcher may own the partitions by now."""
        self._draining = True
        self._reader.release(list(self.partitions))

    def _is_idle(self) -> bool:
        nothing_left = not (self._in_hand or self._finished or self._sending_bytes)
        return nothing_left and not self._commits.due()

    def _may_be_idle(self) -> None:
        if self._draining:
            self._idle.set()

    async def _confirm(self) -> None:
        """Wait until the offsets of a transaction can be read by others."""
        expected = {p.number: p.entry() for p in self.partitions.values() if not p.halted}
        if not self._sender.transactional:
            return
        while await self._reader.committed(expected) != expected:
            if not self._lease.valid():
                raise LeaseExpired  # a successor may have committed: these offsets would never be seen again
            await asyncio.sleep(0.005)

    # Take in

    def full(self) -> frozenset[int]:
        """Return the partitions that are not to be fetched now."""
        if not self._has_room():
            return frozenset(self.partitions)
        full = set()
        if self.queue.size_bytes >= QUEUE_BYTES:
            share = QUEUE_BYTES / max(1, len(self.partitions)) / 2
            full = {number for number in self.partitions if self.queue.bytes_of(number) > share}
        if self._routes.is_join:  # what waits there may wait for what comes after it; what goes on does not
            share = QUEUE_BYTES / max(1, len(self.partitions))
            full |= {number for number, partition in self.partitions.items() if partition.unread_bytes > share}
        else:
            full |= {number for number, partition in self.partitions.items() if partition.completion.crowded}
        return frozenset(full)

    def take_in(self, fetched: Fetched) -> None:
        """Take in what a fetch has brought."""
        for number, records in fetched.records.items():
            partition = self.partitions.get(number)
            if partition is not None and not partition.halted:
                last = -1
                for record in records:
                    if record.offset > last:
                        last = self._watch.takes_in(number, record.offset)
                    self._intake.take_in(partition, record)
        self._watch.done()
        self._report.clock_lead_s = self._intake.clock_lead_s()
        for number, position in fetched.positions.items():
            partition = self.partitions.get(number)
            if partition is not None and position is not None and position > partition.completion.position:
                partition.completion.read_to(position)
                self._commits.wanted.set()
        for number, why in fetched.lost.items():
            if number in self.partitions:
                self._halt(self.partitions[number], why)
        if self._routes.is_join:
            if not self._draining:
                self.joins.bound()
            self._report.counts.duplicates = self._intake.duplicates
            if fetched.records:
                self._commits.wanted.set()
        if fetched.records:
            self._kick()

    def _waits(self, event: Event) -> None:
        self.queue.add(event)

    def _ends(self, event: Event, outcome: Ending | Expired) -> None:
        self._finished.append((event, outcome))
        self._finished_bytes += event.size_bytes
        self._has_finished.set()

    def _halt(self, partition: Partition, why: str) -> None:
        """Stop reading a partition: reading on anywhere else would lose events silently."""
        partition.halted = why
        self._reader.release([partition.number])
        self.queue.drop(partition.number)
        self.queue.release(self.suspects.drop(partition.number))
        self._report.halted[partition.number] = why
        logger.error("%s", self.trouble())

    def trouble(self) -> str:
        """Return what is wrong with the slot now, in words; empty where nothing is."""
        for partition in self.partitions.values():
            if partition.halted:
                where, group = f"{self._routes.input_topic}/{partition.number}", self._routes.group
                return f"{where} is halted: {partition.halted}; set an offset of group {group} and restart"
        return f"stage {self._routes.stage}: {self.suspects.trouble}" if self.suspects.trouble else ""

    # Hand out

    def open(self) -> bool:
        """Return whether batches may be handed out now."""
        return not self._draining and self._has_room()

    def _has_room(self) -> bool:
        return self._finished_bytes + self._sending_bytes < UNSENT_BYTES

    def take(self, limit: int) -> list[Event]:
        """Take the next batch from the queue; events that are past the SLO may end here instead."""
        batch = self.queue.take(limit)
        if self._routes.on_expired != "process":
            oldest_us = time.monotonic() * 1e6 - self._slo_us
            late = [event for event in batch if event.entered_us < oldest_us and not event.replayed]
            if late:
                self.queue.release(late)
                for event in late:
                    self._ends(event, Expired(self._routes.on_expired == "dlq"))
                batch = [event for event in batch if event not in late]
        return batch

    def handed(self, events: Sequence[Event]) -> None:
        """Replicas have these events in hand now."""
        self._in_hand += len(events)

    def returned(self, events: Sequence[Event]) -> None:
        """Replicas no longer have them in hand."""
        self._in_hand -= len(events)
        self._may_be_idle()

    def finished(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of events, in their order."""
        self.queue.release(events)
        self._finished.extend(zip(events, outcomes, strict=True))
        size_bytes = 0
        for event, outcome in zip(events, outcomes, strict=True):
            size_bytes += event.size_bytes
            if type(outcome) is Done:
                size_bytes += len(outcome.value)
        self._finished_bytes += size_bytes
        self._has_finished.set()

    # Send

    async def _send(self) -> None:
        """Send what is finished, for ever; whatever finishes in the meantime is sent together."""
        pace = Pace()
        while True:
            await self._has_finished.wait()
            await pace.wait(len(self._finished))
            finished = self._collect()
            outgoing = self._emitter.take()
            if outgoing:
                await self._sender.send(outgoing)
            self._complete(finished)
            self._sent(finished)
            self._commits.finished(len(finished))

    def _collect(self) -> list[tuple[Event, Outcome]]:
        self._has_finished.clear()
        finished, self._finished = self._finished, []
        self._sending_bytes, self._finished_bytes = self._finished_bytes + bool(finished), 0
        if not self._lease.valid():
            raise LeaseExpired
        add = self._emitter.add
        for event, outcome in finished:
            add(event, outcome)
        return finished

    def _complete(self, finished: list[tuple[Event, Outcome]]) -> None:
        """Their offsets are complete: Kafka has their results, or gets them in the same transaction."""
        for event, outcome in finished:
            partition = self.partitions[event.partition]
            for offset in event.offsets:
                partition.completion.complete(offset)
            if type(outcome) is Requeued:
                partition.moving -= len(event.offsets)
        if self._routes.is_join and not self._draining:
            self.joins.release()

    def _sent(self, finished: list[tuple[Event, Outcome]]) -> None:
        """Kafka has the results of these events."""
        was_full = not self.open()
        self._sending_bytes = 0
        self._measure(finished)
        self._may_be_idle()
        if was_full and not self._draining:
            self._kick()

    def _measure(self, finished: list[tuple[Event, Outcome]]) -> None:
        """Count end-to-end latencies, once Kafka has the results."""
        if not self._routes.is_final:
            return
        now_us = time.monotonic() * 1e6
        # Where a header holds the entry time, it may be of any age and says nothing of when the event came here.
        live_since_us = self._live_since_us if self._routes.entry_time_header is None else 0.0
        for event, outcome in finished:
            if type(outcome) is not Done or event.replayed:
                continue
            if event.entry_us < live_since_us:
                self._report.counts.backlog += 1
            else:
                count_latency(self._report.counts, self._bounds_s, max(0.0, (now_us - event.entered_us) / 1e6))

    async def _transact(self) -> None:
        """Send what is finished and commit what is complete in one transaction after the other, for ever."""
        waits = [asyncio.create_task(event.wait()) for event in (self._has_finished, self._commits.wanted)]
        try:
            while True:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for at, event in enumerate((self._has_finished, self._commits.wanted)):
                    if waits[at].done():
                        event.clear()
                        waits[at] = asyncio.create_task(event.wait())
                await self._transaction()
        finally:
            for task in waits:
                task.cancel()

    async def _transaction(self) -> None:
        finished = self._collect()
        outgoing = self._emitter.take()
        if outgoing or finished or self._commits.due():
            await self._sender.begin()
            if outgoing:
                await self._sender.send(outgoing)
            self._complete(finished)
            entries = self._commits.due()
            await self._sender.commit(self._reader.offsets_for_transaction(entries), self._routes.group)
            self._commits.note(entries)
        self._sent(finished)
