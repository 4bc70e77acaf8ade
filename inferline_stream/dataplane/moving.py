"""The loop of a replica: fetch, batch, run, send, commit, and hand partitions over, each step beside the others.

Four things go on at once, joined by queues that are bounded: records are fetched and decoded ahead; one worker thread
runs the stage; finished batches are sent and acknowledged; offsets are committed. While one batch is computed the one
before is being sent, and all that has finished in the meantime is sent together.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from aiokafka.errors import KafkaError, ProducerFenced

from inferline_stream.dataplane.batching import Backlog
from inferline_stream.dataplane.client import Fetched, ReportSender, StageReader, StageSender
from inferline_stream.dataplane.holding import LIVE, LOST, RELEASING, Event, Expired, Holding
from inferline_stream.dataplane.intake import Ending, Intake
from inferline_stream.dataplane.join import Join
from inferline_stream.dataplane.offsets import decode_metadata
from inferline_stream.dataplane.protocol import Assignment, Lags, ReplicaSpec, decode_control
from inferline_stream.dataplane.reporting import Lease, Reporting, count_batch, count_latency, new_report
from inferline_stream.dataplane.results import Outcome, Records, topics_written
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import Calls, Done, StageCall, run_batch
from inferline_stream.errors import StageFailed
from inferline_stream.observability.buckets import latency_bounds_s
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

EXIT_STAGE_FAILED = 70
EXIT_FENCED = 75

PREFETCH_BYTES = 16 * 1024 * 1024
"""Decoded records that wait for the stage; beyond it nothing more is fetched."""

JOIN_BYTES = 256 * 1024 * 1024
"""Parts of joins that wait for the rest; beyond it the oldest events become dead letters."""

JOIN_AGE_S = 600.0
"""Longest that a part waits for the rest; older events become dead letters."""

JOIN_RECALL_RECORDS = 1000
"""A join's new owner reads this many records before the committed offset again, to know finished events by id."""

BATCHES_AHEAD = 4
"""Finished batches that may wait to be sent; beyond it the stage waits too."""


class Finished(NamedTuple):
    """An event that is through with the stage, and what came of it."""

    event: Event
    outcome: Outcome


class Moving:
    """One replica at work.

    Args:
        spec: what the process was told.
        wiring: its stage.
        started_s: when the process began (`time.monotonic`), for the start-up time.
    """

    def __init__(self, spec: ReplicaSpec, wiring: Wiring, started_s: float) -> None:
        self._spec = spec
        self._wiring = wiring
        self._started_s = started_s
        self._settings = Settings(**spec.settings)
        self._slo_s = wiring.pipeline.slo_s
        self._bounds_s = latency_bounds_s(self._slo_s)
        self._report = new_report(spec.replica, spec.stage, spec.hardware.name, len(self._bounds_s) + 1)
        self._lease = Lease(self._settings.lease_s)
        self._exactly_once = spec.delivery == "exactly_once"
        self._reader = StageReader(
            spec.bootstrap_servers,
            wiring.input_topic,
            wiring.group,
            wiring.names.assignments,
            fetch_wait_s=self._settings.fetch_wait_s,
        )
        transactional_id = f"{wiring.names.group(spec.stage)}-{spec.replica}" if self._exactly_once else None
        self._sender = StageSender(spec.bootstrap_servers, f"inferline-{spec.replica}", transactional_id)
        self._reports = ReportSender(
            spec.bootstrap_servers, wiring.names.stage_stats, spec.replica, self._settings.lease_s
        )
        self._reporting = Reporting(
            self._report, self._reports.send, self._held, self._lease, self._settings.heartbeat_s
        )
        self._intake = Intake(wiring, self._waits, self._ends, time.monotonic)
        self._backlog: Backlog[Event] = Backlog(lambda event: event.entry_us, lambda event: event.size_bytes)
        self._waiting_since_s = 0.0
        self._arrived = asyncio.Event()
        self._outbox: list[Finished] = []
        self._batches_out = 0
        self._finished = asyncio.Event()
        self._sent = asyncio.Event()
        self._to_commit = asyncio.Event()
        self._holdings: dict[int, Holding] = {}
        self._assignment: Assignment | None = None
        self._max_batch_size = spec.max_batch_size
        self._max_wait_s = spec.max_wait_s
        self._leaving = ""
        self._gone = asyncio.Event()
        self._lapsed = False
        self._reread_to: int | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._records: Records

    # Life

    async def run(self) -> int:
        """Work until told to leave; returns the exit code.

        Raises:
            StageFailed: the stage cannot be built.
            Unreachable: Kafka does not answer.
        """
        timeout_s = self._settings.connect_timeout_s
        loop = asyncio.get_running_loop()
        await self._reports.start(timeout_s)
        reporting: asyncio.Task[None] | None = None
        try:
            reporting = asyncio.create_task(self._reporting.run(self._renewed))
            self._reporting.touch()
            building = loop.run_in_executor(
                self._worker, StageCall, self._wiring.stage.run, self._spec.hardware, self._spec.emulated_s
            )
            await asyncio.gather(self._reader.start(timeout_s), self._sender.start(timeout_s))
            topics = topics_written(self._wiring)
            counts = {topic: await self._sender.partitions_of(topic) for topic in topics}
            self._records = Records(self._wiring, counts, random.Random(self._spec.replica), self._report)  # noqa: S311
            stage = await building
            self._report.start_up_s = time.monotonic() - self._started_s
            gc.collect()
            gc.freeze()  # what was loaded stays: no need to look at it again and again
            if not self._leaving:
                await self._reporting.now("ready")
            return await self._work(stage, reporting)
        except StageFailed as error:
            await self._tell_last("failed", str(error))
            raise
        finally:
            if reporting is not None:
                reporting.cancel()
            await self._close()

    async def _work(self, stage: StageCall, reporting: asyncio.Task[None]) -> int:
        steps = [
            reporting,
            *map(
                asyncio.create_task,
                (
                    self._fetch(),
                    self._compute(stage),
                    self._deliver(),
                    self._watch_lease(),
                    self._gone.wait(),
                    *(() if self._exactly_once else (self._commit(),)),
                ),
            ),
        ]
        self._reconcile_soon()
        try:
            done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for step in steps:
                step.cancel()
            await asyncio.gather(*steps, return_exceptions=True)
        error = next((e for step in done if (e := step.exception()) is not None), None)
        if error is None:
            await self._tell_last("gone", self._leaving)
            return 0
        if isinstance(error, ProducerFenced):
            await self._tell_last("failed", "fenced: a successor has taken over")
            return EXIT_FENCED
        reason = str(error) if isinstance(error, StageFailed) else f"{type(error).__name__}: {error}"
        logger.error("replica %s failed: %s", self._spec.replica, reason, exc_info=error)
        await self._tell_last("failed", reason)
        return EXIT_STAGE_FAILED

    def leave(self, why: str) -> None:
        """Release every partition, say so, and end."""
        if not self._leaving:
            logger.info("replica %s leaves: %s", self._spec.replica, why)
            self._leaving = why
            self._report.phase = "draining"
            self._reporting.touch()
            self._reconcile_soon()

    async def _tell_last(self, phase: str, reason: str) -> None:
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._reporting.now("gone" if phase == "gone" else "failed", reason)
        except TimeoutError:
            logger.warning("replica %s could not report that it is %s", self._spec.replica, phase)

    async def _close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        for client in (self._reader, self._sender, self._reports):
            try:
                async with asyncio.timeout(2.0):
                    await client.stop()
            except (TimeoutError, KafkaError) as error:
                logger.warning("could not close a connection: %r", error)

    # Assignments

    def _held(self) -> dict[int, int]:
        held = dict.fromkeys(self._wanted(), -1)  # granted, and its offset not yet known
        held.update((partition, holding.completion.watermark) for partition, holding in self._holdings.items())
        return held

    def _assigned(self, assignment: Assignment) -> None:
        """Follow an assignment, unless a newer one was followed already."""
        now = self._assignment
        if now is not None and (assignment.term, assignment.sequence) <= (now.term, now.sequence):
            return
        self._assignment = assignment
        self._max_batch_size = assignment.max_batch_size
        self._max_wait_s = assignment.max_wait_s
        self._arrived.set()
        if assignment.drain:
            self.leave("drained")

    def _wanted(self) -> frozenset[int]:
        if self._leaving or self._lapsed or self._assignment is None:
            return frozenset()
        return frozenset(self._assignment.partitions)

    def _reconcile_soon(self) -> None:
        """What is held may differ from what is wanted: release at once, grant from the fetch loop."""
        wanted = self._wanted()
        released = [h for p, h in self._holdings.items() if p not in wanted and h.state == LIVE]
        if released:
            self._reader.release(holding.partition for holding in released)
            for holding in released:
                holding.state = RELEASING
                for event in self._backlog.drop(holding.partition):
                    assert event.holding is holding
        self._settle()

    def _settle(self) -> None:
        """Let go of partitions whose last batch is committed."""
        gone = [
            partition
            for partition, holding in self._holdings.items()
            if holding.state == RELEASING and not holding.in_flight and holding.to_commit() is None
        ]
        for partition in gone:
            self._holdings.pop(partition).state = LOST
            self._report.handovers += 1
        if gone:
            self._reporting.touch()
        elif any(h.state == RELEASING and not h.in_flight for h in self._holdings.values()):
            self._to_commit.set()
        if self._leaving and not self._holdings and not self._outbox:
            self._gone.set()

    async def _grant(self) -> None:
        """Take up partitions that are wanted and not held, from the offsets that their group has committed."""
        new = self._wanted() - self._holdings.keys()
        if not new:
            return
        self._reader.suspend()
        positions: dict[int, int] = {}
        try:
            began_s = time.monotonic()
            committed = await self._reader.committed(new)
            begins = await self._reader.beginnings(new) if self._wiring.is_join and not self._exactly_once else {}
            for partition in sorted(new & self._wanted()):
                positions.update(self._hold(partition, committed.get(partition), begins.get(partition)))
            self._report.handover_stall_s += time.monotonic() - began_s
        finally:
            self._reader.hold(positions)
        self._reporting.touch()

    def _hold(self, partition: int, committed: tuple[int, str] | None, begin: int | None) -> dict[int, int]:
        """Hold one partition; returns where to read it from, nothing if it cannot be."""
        join = Join(self._wiring.parents, remember_s=JOIN_AGE_S) if self._wiring.is_join else None
        offset, metadata = committed or (0, "")
        holding = self._holdings[partition] = Holding(partition, decode_metadata(offset, metadata or ""), join)
        if committed is None:
            self._halt(holding, "its group has committed no offset")
            return {}
        if join is None or begin is None:
            return {partition: offset}
        return {partition: max(begin, min(offset, offset - JOIN_RECALL_RECORDS))}

    def _halt(self, holding: Holding, why: str) -> None:
        """Stop reading a partition: starting anywhere else would lose events silently."""
        holding.halted = why
        self._reader.release([holding.partition])
        self._report.reason = f"{self._wiring.input_topic}/{holding.partition} is halted: {why}; reset it by hand"
        logger.error("%s", self._report.reason)
        self._reporting.touch()

    # Lease

    def _renewed(self) -> None:
        if self._lapsed and self._reread_to is None:
            self._reread_to = -1  # the fetch loop finds out how far to read

    async def _watch_lease(self) -> None:
        while True:
            left_s = self._lease.left_s
            if left_s <= 0 and not self._lapsed:
                self._lapse()
            await asyncio.sleep(max(left_s, 0.05))

    def _lapse(self) -> None:
        """The lease has expired: somebody else may own everything. Drop it all and commit nothing."""
        if self._lapsed:
            return
        self._lapsed, self._reread_to = True, None
        logger.warning("replica %s: lease expired, %d partitions dropped", self._spec.replica, len(self._holdings))
        self._reader.release(list(self._holdings))
        for partition, holding in self._holdings.items():
            holding.state = LOST
            self._backlog.drop(partition)
        self._holdings.clear()
        self._settle()

    async def _regain(self) -> None:
        """After a lapse, follow the newest assignment again once it is certain which one that is."""
        if not self._lapsed or self._reread_to is None:
            return
        if self._reread_to < 0:
            self._reread_to = await self._reader.control_end()
        if await self._reader.control_position() >= self._reread_to and self._lease.valid():
            self._lapsed, self._reread_to = False, None

    # Fetch

    async def _fetch(self) -> None:
        while True:
            fetched = await self._reader.fetch(self._full(), 0.05 if self._lapsed else 0.2)
            self._take_in(fetched)
            await self._regain()
            await self._grant()

    def _full(self) -> frozenset[int]:
        """Partitions that have enough waiting."""
        if self._backlog.size_bytes < PREFETCH_BYTES:
            return frozenset()
        share = PREFETCH_BYTES / max(1, len(self._holdings))
        return frozenset(p for p in self._holdings if self._backlog.bytes_of(p) >= share / 2)

    def _take_in(self, fetched: Fetched) -> None:
        for record in fetched.control:
            self._control(record)
        for partition, records in fetched.records.items():
            holding = self._holdings.get(partition)
            if holding is None or holding.state != LIVE:
                continue
            for record in records:
                self._intake.take_in(holding, record)
            if holding.join is not None:
                self._bound(holding, holding.join)
        for partition, offset in fetched.lost.items():
            if partition in self._holdings:
                self._halt(self._holdings[partition], f"offset {offset} is out of range")
        if fetched.records:
            self._report.duplicates = self._intake.duplicates
            self._to_commit.set()

    def _control(self, record: object) -> None:
        value = getattr(record, "value", None)
        if not value:
            return
        told = decode_control(value)
        if isinstance(told, Assignment) and told.replica == self._spec.replica:
            self._assigned(told)
            self._report.sequence = max(self._report.sequence, told.sequence)
            self._reconcile_soon()
            self._reporting.touch()
        elif isinstance(told, Lags):
            self._records.lags(told.lags)

    def _bound(self, holding: Holding, join: Join) -> None:
        """A join's state has bounds in age and bytes; what exceeds them becomes a dead letter."""
        now_s = time.monotonic()
        for parts in join.overdue(now_s - JOIN_AGE_S):
            self._intake.give_up(holding, parts, f"waited longer than {JOIN_AGE_S:g} s")
        for parts in join.over(JOIN_BYTES // max(1, len(self._holdings)), now_s):
            self._intake.give_up(holding, parts, f"the join's state exceeded {JOIN_BYTES} bytes")

    def _waits(self, event: Event) -> None:
        if not self._backlog:
            self._waiting_since_s = time.monotonic()
        self._backlog.add(event.holding.partition, event)
        self._arrived.set()

    def _ends(self, event: Event, ending: Ending) -> None:
        event.holding.in_flight += 1
        self._outbox.append(Finished(event, ending))
        self._finished.set()

    # Compute

    async def _compute(self, stage: StageCall) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._due()
            if not self._lease.valid():
                self._lapse()
                continue
            batch = self._drop_expired(self._backlog.take(self._max_batch_size))
            self._waiting_since_s = time.monotonic()
            if not batch:
                continue
            now_ms = time.time() * 1000
            self._report.wait_s += sum(max(0.0, now_ms - event.entered_ms) for event in batch) / 1000
            values = [event.value for event in batch]
            calls = await loop.run_in_executor(self._worker, run_batch, stage, self._settled, values)
            self._count(calls)
            self._outbox.extend(map(Finished, batch, calls.outcomes))
            self._batches_out += 1
            self._finished.set()

    def _settled(self, result: object) -> Done:
        """In the worker thread: conditions are the user's code, and a result may change once the stage runs again."""
        taken = self._wiring.taken(result)
        return Done(self._wiring.encode(result) if taken or self._wiring.is_final else b"", taken)

    async def _due(self) -> None:
        """Wait until a batch is to begin: eagerly, or once it is full or its oldest event has waited enough."""
        while True:
            if self._batches_out >= BATCHES_AHEAD:
                self._sent.clear()
                await self._sent.wait()
            left_s = self._waiting_since_s + self._max_wait_s - time.monotonic() if self._max_wait_s else 0.0
            if self._backlog and (left_s <= 0 or len(self._backlog) >= self._max_batch_size):
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left_s if self._backlog else None):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _drop_expired(self, batch: list[Event]) -> list[Event]:
        if self._spec.on_expired == "process":
            kept = batch
        else:
            oldest_us = (time.time() - self._slo_s) * 1e6
            kept = [event for event in batch if event.entry_us >= oldest_us]
            for event in batch:
                if event.entry_us < oldest_us:
                    event.holding.in_flight += 1
                    self._outbox.append(Finished(event, Expired(self._spec.on_expired == "dlq")))
                    self._finished.set()
        for event in kept:
            event.holding.in_flight += 1
        return kept

    def _count(self, calls: Calls) -> None:
        self._report.busy_s += calls.busy_s
        for batch_size, service_s in calls.calls:
            count_batch(self._report, batch_size, service_s)

    # Deliver

    async def _deliver(self) -> None:
        while True:
            await self._finished.wait()
            self._finished.clear()
            finished, self._outbox = self._outbox, []
            self._batches_out = 0
            self._sent.set()
            if not self._lease.valid():
                self._lapse()
            alive = [entry for entry in finished if entry.event.holding.state != LOST]
            for event, outcome in alive:
                self._records.add(event, outcome)
            outgoing = self._records.take()
            if outgoing:
                await self._sender.send(outgoing)
            self._acknowledged(alive)

    def _acknowledged(self, finished: list[Finished]) -> None:
        now_us = time.time() * 1e6
        for event, outcome in finished:
            holding = event.holding
            holding.in_flight -= 1
            for offset in event.offsets:
                holding.completion.complete(offset)
            if self._wiring.is_final and type(outcome) is Done:
                count_latency(self._report, self._bounds_s, (now_us - event.entry_us) / 1e6)
        self._to_commit.set()

    # Commit

    async def _commit(self) -> None:
        while True:
            await self._to_commit.wait()
            self._to_commit.clear()
            holdings = [h for h in self._holdings.values() if not h.halted]
            offsets = {h.partition: entry for h in holdings if (entry := h.to_commit()) is not None}
            if offsets and self._lease.valid():
                try:
                    async with asyncio.timeout(self._lease.left_s):
                        await self._reader.commit(offsets)
                except TimeoutError:
                    self._to_commit.set()
                    continue
                for holding in holdings:
                    if holding.partition in offsets:
                        holding.was_committed(offsets[holding.partition])
            self._settle()


__all__ = ["Moving"]
