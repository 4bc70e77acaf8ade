"""A replica at work: fetch, run, send, each step beside the others.

Three things go on at once, joined by bounded queues: records are fetched and decoded ahead; one worker thread runs the
stage; finished batches are sent and acknowledged. While one batch is computed the one before is being sent, and all
that has finished in the meantime is sent together. Committing goes on beside them (`committing`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from inferline_stream.dataplane.batching import Backlog
from inferline_stream.dataplane.client import Fetched, Reader, Sender
from inferline_stream.dataplane.holding import LIVE, LOST, Event, Expired, Holding
from inferline_stream.dataplane.intake import Ending, Intake
from inferline_stream.dataplane.owning import Owning
from inferline_stream.dataplane.protocol import Assignment, Lags, ReplicaReport, ReplicaSpec, decode_control
from inferline_stream.dataplane.reporting import Lease, count_batch, count_latency
from inferline_stream.dataplane.results import Outcome, Records
from inferline_stream.dataplane.tracing import BatchSpans
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import Calls, Done, Failed, StageCall, run_batch
from inferline_stream.errors import StageFailed
from inferline_stream.observability.buckets import latency_bounds_s
from inferline_stream.settings import Settings

PREFETCH_BYTES = 16 * 1024 * 1024
"""Decoded records that wait for the stage; beyond it nothing more is fetched."""

FULL_WAIT_S = 0.01
"""Longest fetch where some partitions have enough waiting: others may bring nothing while the stage gets through."""

BATCHES_AHEAD = 4
"""Finished batches that may wait to be sent; beyond it the stage waits too."""

EVENTS_AHEAD = 2048
"""The same in exactly-once mode, in events: a transaction takes tens of milliseconds, whatever is in it."""


class Finished(NamedTuple):
    """An event that is through with the stage, and what came of it."""

    event: Event
    outcome: Outcome


class Moving:
    """Moves the records of the partitions that a replica holds.

    Args:
        spec: what the replica was told.
        wiring: its stage.
        reader: fetches records.
        sender: sends results.
        lease: without it nothing is begun and nothing sent.
        report: counts are kept there.
        settings: the deadline of a batch.
        worker: one thread, where the stage was built and is called.
        spans: one for each batch, where they are wanted.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        wiring: Wiring,
        *,
        reader: Reader,
        sender: Sender,
        lease: Lease,
        report: ReplicaReport,
        settings: Settings,
        worker: ThreadPoolExecutor,
        spans: BatchSpans | None = None,
    ) -> None:
        self._spec = spec
        self._wiring = wiring
        self._reader = reader
        self._sender = sender
        self._lease = lease
        self._report = report
        self._settings = settings
        self._deadline_s = settings.batch_deadline_s
        self._worker = worker
        self._spans = spans
        self._slo_s = wiring.pipeline.slo_s
        self._on_expired = wiring.pipeline.on_expired
        self._bounds_s = latency_bounds_s(self._slo_s)
        # Where a header holds the entry time, it may be of any age and tells nothing of when the event came here.
        self._live_since_us = spec.live_since_s * 1e6 if wiring.entry_time_header is None else 0.0
        self._intake = Intake(wiring, self._waits, self._ends, time.monotonic)
        self._backlog: Backlog[Event] = Backlog(lambda event: event.entry_us, lambda event: event.size_bytes)
        self._waiting_since_s = 0.0
        self._arrived = asyncio.Event()
        self._outbox: list[Finished] = []
        self._ahead = 0
        self._finished = asyncio.Event()
        self._sent = asyncio.Event()

    def drop(self, partition: int) -> None:
        """Forget events of a partition that wait for the stage."""
        self._backlog.drop(partition)

    # Fetch

    async def fetch(self, owning: Owning, records: Records) -> None:
        """Fetch for ever, and follow the assignments that are fetched."""
        while True:
            full = self._full(owning)
            fetched = await self._reader.fetch(full, FULL_WAIT_S if full else 0.05 if owning.lapsed else 0.2)
            for record in fetched.control:
                self._control(record, owning, records)
            self._take_in(fetched, owning)
            owning.regain()
            await owning.grant()

    def _full(self, owning: Owning) -> frozenset[int]:
        """Partitions that have enough waiting."""
        full = owning.ahead.full()
        if self._backlog.size_bytes >= PREFETCH_BYTES:
            full |= self._backlog.larger_than(PREFETCH_BYTES / max(1, len(owning.holdings)) / 2)
        return full

    def begin(self, holding: Holding, records: Sequence[Any]) -> None:
        """Take in what was read of a partition before it was held."""
        for record in records:
            self._intake.take_in(holding, record)

    def _control(self, record: Any, owning: Owning, records: Records) -> None:
        if record.topic == self._wiring.names.handovers:
            owning.hear(record.value)
            return
        key, value = record.key, record.value
        if not value or key not in (self._spec.replica.encode(), b"lags"):
            return
        told = decode_control(value)
        if isinstance(told, Assignment):
            owning.follow(told)
            self._arrived.set()  # the batch limit may have changed
        elif isinstance(told, Lags):
            records.lags(told.lags)

    def _take_in(self, fetched: Fetched, owning: Owning) -> None:
        for partition, records in fetched.records.items():
            holding = owning.holdings.get(partition)
            if partition in owning.ahead:
                owning.ahead.add(partition, records)
            elif holding is not None and holding.state == LIVE and not holding.halted:
                self.begin(holding, records)
        for partition, position in fetched.positions.items():
            holding = owning.holdings.get(partition)
            if holding is not None and holding.state == LIVE and position > holding.completion.position:
                holding.completion.read_to(position)
                owning.commits.wanted.set()
        for partition, offset in fetched.lost.items():
            if partition in owning.ahead:
                owning.ahead.stop(partition)
            elif partition in owning.holdings:
                owning.halt(owning.holdings[partition], f"Kafka no longer has offset {offset}")
        if self._wiring.is_join:
            self._bound(owning)
            self._report.duplicates = self._intake.duplicates
            if fetched.records:
                owning.commits.wanted.set()

    def _bound(self, owning: Owning) -> None:
        """A join's state has bounds in age and bytes; what exceeds them becomes a dead letter."""
        age_s, share_bytes = self._settings.join_age_s, self._settings.join_bytes / max(1, len(owning.holdings))
        now_s = time.monotonic()
        self._report.join_events = self._report.join_bytes = 0
        for holding in owning.holdings.values():
            join = holding.join
            if join is None or holding.state != LIVE:
                continue
            while (parts := join.overdue(age_s, now_s)) is not None:
                self._intake.give_up(holding, parts, f"waited longer than {age_s:g} s")
            while (parts := join.over(share_bytes, now_s)) is not None:
                self._intake.give_up(
                    holding, parts, f"the state of joins exceeds {self._settings.join_bytes:g} bytes (join_bytes)"
                )
            self._report.join_events += len(join)
            self._report.join_bytes += join.size_bytes

    def _waits(self, event: Event) -> None:
        if not self._backlog:
            self._waiting_since_s = time.monotonic()
        self._backlog.add(event.holding.partition, event)
        self._arrived.set()

    def _ends(self, event: Event, outcome: Ending | Expired) -> None:
        event.holding.in_flight += 1
        self._outbox.append(Finished(event, outcome))
        self._finished.set()

    # Compute

    async def compute(self, stage: StageCall, owning: Owning) -> None:
        """Run batches for ever.

        Raises:
            StageFailed: the stage broke its contract; no single event is to blame.
        """
        while True:
            await self._due(owning)
            batch = self._backlog.take(self._limit(owning))
            self._waiting_since_s = time.monotonic()
            for event in batch:
                event.holding.in_flight += 1
            await owning.commits.durable(batch)
            if not self._lease.valid():
                owning.lapse()
            wanted = self._wanted(batch)
            if wanted:
                await self._run(stage, wanted)

    def _limit(self, owning: Owning) -> int:
        return 1 if _careful(owning) else owning.assignment.max_batch_size

    async def _due(self, owning: Owning) -> None:
        """Wait until a batch is to begin: eagerly, or once it is full or its oldest event has waited enough."""
        most_ahead = EVENTS_AHEAD if self._sender.transactional else BATCHES_AHEAD
        while True:
            if self._ahead >= most_ahead or (_careful(owning) and _under_way(owning)):
                self._sent.clear()
                await self._sent.wait()
                continue
            max_wait_s = owning.assignment.max_wait_s
            left_s = self._waiting_since_s + max_wait_s - time.monotonic() if max_wait_s else 0.0
            if self._backlog and (left_s <= 0 or len(self._backlog) >= self._limit(owning)):
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left_s if self._backlog else None):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _wanted(self, batch: list[Event]) -> list[Event]:
        """The events of a batch that are to be run; all others end here."""
        oldest_us = 0.0 if self._on_expired == "process" else (time.time() - self._slo_s) * 1e6
        wanted = []
        for event in batch:
            if event.holding.state == LOST:
                continue
            outcome: Failed | Expired
            if event.entry_us < oldest_us and not event.replayed:
                outcome = Expired(self._on_expired == "dlq")
            elif event.holding.poisoned(event):
                outcome = Failed("Poison", f"{event.holding.attempts} replicas have died with it under way", "")
            else:
                wanted.append(event)
                continue
            event.holding.in_flight -= 1
            self._ends(event, outcome)
        return wanted

    async def _run(self, stage: StageCall, batch: list[Event]) -> None:
        now_ms = time.time() * 1000
        self._report.wait_s += sum(max(0.0, now_ms - event.entered_ms) for event in batch if not event.replayed) / 1000
        span = None if self._spans is None else self._spans.begin(batch)
        try:
            calls = await self._called(stage, batch)
        except BaseException as error:
            if self._spans is not None and span is not None:
                self._spans.broke(span, error)
            raise
        if self._spans is not None and span is not None:
            self._spans.end(span, calls.outcomes)
        self._report.busy_s += calls.busy_s
        for batch_size, service_s in calls.calls:
            count_batch(self._report, batch_size, service_s)
        self._outbox.extend(map(Finished, batch, calls.outcomes))
        self._ahead += len(batch) if self._sender.transactional else 1
        self._finished.set()

    async def _called(self, stage: StageCall, batch: list[Event]) -> Calls:
        running = asyncio.get_running_loop().run_in_executor(
            self._worker, run_batch, stage, self._settled, [event.value for event in batch]
        )
        try:
            async with asyncio.timeout(self._deadline_s):
                return await running
        except TimeoutError:
            raise StageFailed(
                f"a batch of {len(batch)} has taken longer than {self._deadline_s:g} s; "
                "if that is no hang, raise the setting batch_deadline_s"
            ) from None

    def _settled(self, result: object) -> Done:
        """In the worker thread: conditions are the user's code, and a result may change once the stage runs again."""
        taken = self._wiring.taken(result)
        return Done(self._wiring.encode(result) if taken or self._wiring.is_final else b"", taken)

    # Send

    async def send(self, owning: Owning, records: Records) -> None:
        """Send what is finished, for ever; whatever finishes in the meantime is sent together."""
        while True:
            await self._finished.wait()
            self._finished.clear()
            finished = self._collected(owning, records)
            outgoing = records.take()
            if outgoing:
                await self._sender.send(outgoing)
            self._complete(finished)
            self._measure(finished)
            owning.finished(len(finished))

    async def transact(self, owning: Owning, records: Records) -> None:
        """The same in transactions that hold the offsets too."""
        waits = [asyncio.create_task(self._finished.wait()), asyncio.create_task(owning.commits.wanted.wait())]
        try:
            while True:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for at, (event, task) in enumerate(zip((self._finished, owning.commits.wanted), waits, strict=True)):
                    if task.done():
                        event.clear()
                        waits[at] = asyncio.create_task(event.wait())
                await self._transaction(owning, records)
        finally:
            for task in waits:
                task.cancel()

    async def _transaction(self, owning: Owning, records: Records) -> None:
        finished = self._collected(owning, records)
        outgoing = records.take()
        if outgoing or finished or owning.commits.to_commit():
            await self._sender.begin()
            if outgoing:
                await self._sender.send(outgoing)
            self._complete(finished)
            entries = owning.commits.to_commit()
            await self._sender.commit(self._reader.offsets_for_transaction(entries), self._wiring.group)
            owning.commits.note(entries)
            self._measure(finished)
        await owning.confirm()

    def _collected(self, owning: Owning, records: Records) -> list[Finished]:
        finished, self._outbox = self._outbox, []
        self._ahead = 0
        self._sent.set()
        if not self._lease.valid():
            owning.lapse()
        alive = [entry for entry in finished if entry.event.holding.state != LOST]
        for event, outcome in alive:
            records.add(event, outcome)
        return alive

    def _complete(self, finished: list[Finished]) -> None:
        for event, _ in finished:
            holding = event.holding
            holding.in_flight -= 1
            for offset in event.offsets:
                holding.completion.complete(offset)
        self._sent.set()

    def _measure(self, finished: list[Finished]) -> None:
        """End-to-end latency, once Kafka has the result."""
        if not self._wiring.is_final:
            return
        now_us = time.time() * 1e6
        for event, outcome in finished:
            if type(outcome) is not Done or event.replayed:
                continue
            if event.entry_us < self._live_since_us:
                self._report.backlog += 1
            else:
                count_latency(self._report, self._bounds_s, (now_us - event.entry_us) / 1e6)


def _careful(owning: Owning) -> bool:
    """Whether events are run one at a time, because one of them may kill."""
    return any(holding.careful for holding in owning.holdings.values())


def _under_way(owning: Owning) -> bool:
    """Whether an event was begun and is not sent yet: it would be found guilty of what the next one does."""
    return any(holding.in_flight for holding in owning.holdings.values())
