"""The shell around a slot: Kafka clients, grants, lease, timers and sockets. What to do with them, `slot.Slot` says."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import math
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.class_readers import ClassReaders
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.lease import Lease, LeaseExpired, Reporter, boot_clock_s
from inferline_stream.dataplane.dispatcher.pool import MIN_DEADLINE_S, SERVER_DEADLINE_FACTOR, Pool
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.result_delivery import Pace
from inferline_stream.dataplane.dispatcher.slot import Slot
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.dispatcher.supervisor_channel import SupervisorChannel
from inferline_stream.dataplane.dispatcher.tenure import Tenure
from inferline_stream.dataplane.dispatcher.tracing import batch_spans
from inferline_stream.dataplane.frames import ToDispatcher
from inferline_stream.dataplane.process_specs import EXIT_FAILED, EXIT_FENCED, DispatcherSpec
from inferline_stream.dataplane.reports import DispatcherPhase, PoolReport
from inferline_stream.dataplane.slot_grants import partitions_of
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire, Serving, Stop
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.errors import InferlineError
from inferline_stream.kafka.batch_mark import BatchWatch
from inferline_stream.kafka.fetched_batches import bound_batches
from inferline_stream.kafka.pipeline_topics import RecordRules, record_rules
from inferline_stream.kafka.records import Fenced, Record, RecordsGone
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.writer import Writer
from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.pipeline.event_classes import class_of, numbered
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

_Asked = TypeVar("_Asked", on.Produce, on.Commit, on.LookUp, on.LookAgain)

FETCH_WAIT_S = 0.2

FULL_WAIT_S = 0.01
"""Longest fetch where some partitions have enough waiting: the others may bring nothing meanwhile."""

BACKGROUND_WAIT_S = 0.05
"""The same where background events have enough waiting."""

REPORT_FIRST_S, REPORT_FIRST_BEATS = 0.01, 3
"""How often it is looked whether a report was acknowledged, where none was that was sent within so many heartbeats: a
host that leaves a dispatcher hardly any CPU time leaves it for reports first, and then for records."""


class Dispatcher:
    """Serves one slot of a stage for as long as the slot's grant names it.

    Args:
        spec: what the process was given.
        channel: to the supervisor.
        connected: called once all connections are made, before the first record.
        mark: see `BatchWatch`.
    """

    def __init__(
        self,
        spec: DispatcherSpec,
        channel: socket.socket,
        connected: Callable[[], object] = lambda: None,
        *,
        mark: int = -1,
    ) -> None:
        self._spec = spec
        self._supervisor = SupervisorChannel(channel, self._attach, self._hear)
        self._connected = connected
        self._routes = routes = spec.routes
        self._settings = settings = Settings(**spec.settings)
        topics = [of.input_topic for of in routes.classes]
        self._batch_watch = BatchWatch(topics, mark, spec.deadly_batches)
        bound_batches(round(settings.decompressed_bytes), self._batch_watch)
        buckets = len(latency_bounds_s(routes.slo_s)) + 1
        self._report = report = new_report(
            spec.dispatcher, spec.incarnation, routes.stage, spec.slot, buckets, routes=routes
        )
        report.node = spec.node
        self._lease = Lease(settings.lease_s)
        servers, names = spec.bootstrap_servers, routes.names
        grants, wait_s = ("" if of.of_class else names.assignments for of in routes.classes), settings.fetch_wait_s
        self._readers = ClassReaders(
            [
                TopicReader(servers, of.input_topic, of.group, control, fetch_wait_s=wait_s)
                for of, control in zip(routes.classes, grants, strict=True)
            ]
        )
        exactly_once = spec.delivery == "exactly_once"
        transactional_id = names.transactional_id(f"{routes.stage}-{spec.slot}") if exactly_once else None
        packed = (names.completed, *map(names.dead_letters, topics))
        self._sender = Writer(servers, f"inferline-{spec.dispatcher}", transactional_id, packed=packed)
        reporter = f"inferline-report-{spec.dispatcher}"
        self._reports = Writer(servers, reporter, once=False, request_timeout_s=settings.lease_s)
        send = functools.partial(self._reports.note, names.stage_stats, spec.dispatcher.encode())
        self._reporter = Reporter(report, send, self._lease, settings.heartbeat_s, self._fill)
        self._spans = batch_spans(spec.tracing, routes, spec.dispatcher)
        self._slot: Slot | None = None
        """Once the topics that it writes to are known."""
        self._session_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the session has drained, or with what ended it, and while there is none."""
        self._session_over.set_result(None)
        self._requests: set[asyncio.Task[None]] = set()
        self._connections: dict[str, ReplicaConnection] = {}
        self._timer: asyncio.Handle | None = None
        transactional = self._sender.transactional
        self._tenure = Tenure(spec, self._readers.live, self._lease, report, self._feed, transactional=transactional)
        self._partitions: dict[str, int] = {}
        self._partitions_read: list[int] = []
        """That the stage's topic of each class had when the session took its own of them."""
        self._filled_s = time.monotonic()
        self._performers: Mapping[type, Callable[[Any], None]] = {
            on.SendFrame: lambda action: self._connections[action.replica].send(action.frame),
            on.Disconnect: self._disconnect,
            Replace: self._supervisor.say,
            on.Hold: lambda action: self._readers.hold(action.positions),
            on.Release: lambda action: self._readers.release(action.partitions),
            on.Report: lambda _: self._reporter.touch(),
            on.WakeAt: self._set_timer,
            on.Produce: functools.partial(self._request, self._produce),
            on.Commit: functools.partial(self._request, self._commit),
            on.LookUp: functools.partial(self._request, self._look_up),
            on.LookAgain: functools.partial(self._request, self._look_again),
            on.LeaseLost: lambda _: self._lease_lost(),
            on.Drained: lambda _: self._end_of_session(None),
        }

    def leave(self, why: str) -> None:
        """Drain and exit."""
        self._tenure.leave(why)

    async def run(self) -> int:
        """Serve until another one is to, and return the exit code.

        Raises:
            Unreachable: Kafka does not answer.
        """
        timeout_s = self._settings.connect_timeout_s
        await self._reports.start(timeout_s)
        reporting = asyncio.create_task(self._reporter.run())
        self._reporter.touch()
        try:
            written = {topic for of in self._routes.classes for topic in of.topics_written}
            rules, *_ = await asyncio.gather(
                record_rules(self._spec.bootstrap_servers, written, timeout_s),
                self._readers.start(timeout_s),
                *(() if self._sender.transactional else (self._sender.start(timeout_s),)),
            )
            self._sender.limits = rules.limits
            self._know({topic: await self._reports.partitions_of(topic) for topic in written}, rules)
            self._connected()
            self._supervisor.listen()
            await self._reporter.now("standby")
            fetching = map(self._fetch, range(len(self._routes.classes)))
            await until_first(*fetching, self._serve(), self._look_at_topics(), beside=reporting)
        except Fenced as error:
            return await self._failed(EXIT_FENCED, str(error))
        except InferlineError as error:
            return await self._failed(error.exit_code if error.exit_code != 1 else EXIT_FAILED, str(error))
        except Exception as error:
            logger.exception("dispatcher %s", self._spec.dispatcher)
            return await self._failed(EXIT_FAILED, f"{type(error).__name__}: {error}")
        else:
            await self._say("gone", self._tenure.leaving)
            return 0
        finally:
            reporting.cancel()
            self._supervisor.close()
            self._close()
            for client in (self._readers, self._sender, self._reports):
                await client.stop()
            if self._spans is not None:
                self._spans.close()

    def _know(self, partitions: dict[str, int], rules: RecordRules) -> None:
        """Know the topics that are written to, so that the slot can be served."""
        spec, routes, settings = self._spec, self._routes, self._settings
        self._partitions = partitions
        rng = random.Random(spec.dispatcher)  # noqa: S311  spreads records, hides nothing
        context = SlotContext(
            routes,
            settings,
            self._report,
            Emitter(routes, partitions, rng, self._report, rules),
            self._lease,
            owner_name(spec),
            transactional=self._sender.transactional,
            live_since_us=spec.live_since_s * 1e6,
            spans=self._spans,
        )
        # A server that is slow ends no replica: that gives its batches back by itself.
        least_s = max(MIN_DEADLINE_S, SERVER_DEADLINE_FACTOR * routes.server_budget_s)
        self._slot = Slot(context, Pool(settings.batch_deadline_s, least_s))

    # Events in, actions out

    def _feed(self, event: on.SlotEvent) -> None:
        assert self._slot is not None
        for action in self._slot.on(event, boot_clock_s()):
            self._performers[type(action)](action)

    def _set_timer(self, action: on.WakeAt) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop, left_ms = asyncio.get_running_loop(), math.ceil(1e3 * max(0.0, action.at_s - boot_clock_s()))
        self._timer = loop.call_later(left_ms / 1e3, self._wake) if left_ms > 0 else loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._feed(on.Time())

    def _request(self, ask: Callable[[_Asked], Awaitable[on.SlotEvent]], action: _Asked) -> None:
        """Ask Kafka something beside everything else, until the session ends."""
        task = asyncio.create_task(self._answered(ask, action))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _answered(self, ask: Callable[[_Asked], Awaitable[on.SlotEvent]], action: _Asked) -> None:
        try:
            self._feed(await ask(action))
        except Exception as error:
            self._end_of_session(error)

    def _end_of_session(self, error: Exception | None) -> None:
        if self._session_over.done():
            logger.warning("dispatcher %s, between sessions: %r", self._spec.dispatcher, error)
        elif error is None:
            self._session_over.set_result(None)
        else:
            self._session_over.set_exception(error)

    async def _produce(self, action: on.Produce) -> on.SlotEvent:
        if self._sender.transactional:
            await self._sender.begin()
        if action.outgoing:
            await self._sender.send(action.outgoing)
        return on.Produced()

    async def _commit(self, action: on.Commit) -> on.SlotEvent:
        if self._sender.transactional:
            by_class = self._readers.by_class(action.entries)
            await self._sender.commit({reader.group: reader.offsets_for_transaction(own) for reader, own in by_class})
        else:
            await self._readers.commit(action.entries)
        return on.OffsetsCommitted()

    async def _look_up(self, action: on.LookUp) -> on.SlotEvent:
        return on.FoundCommitted(await self._readers.committed(action.partitions))

    async def _look_again(self, action: on.LookAgain) -> on.SlotEvent:
        try:
            return on.ReadAgain(action.partition, await self._readers.read_again(action.partition, action.offsets))
        except RecordsGone as error:
            return on.ReadAgain(action.partition, {}, str(error))

    # Supervisor and replicas

    def _attach(self, message: Attach, sock: socket.socket) -> None:
        name, slot = message.replica, self._slot
        assert slot is not None
        self._feed(message)

        def heard(frame: ToDispatcher) -> None:
            if self._connections.get(name) is connection:  # one that leaves may speak until it reads that
                self._feed(on.Heard(name, frame))

        def closed(why: str) -> None:
            if self._connections.get(name) is connection:
                del self._connections[name]
                self._feed(on.ConnectionEnded(name, why))

        connection = ReplicaConnection(sock, heard, closed, lambda *batch: slot.answer_bytes(name, *batch))
        self._connections[name] = connection

    def _disconnect(self, action: on.Disconnect) -> None:
        connection = self._connections.pop(action.replica, None)  # it may have ended by itself
        if connection is not None:
            connection.close()

    def _close(self) -> None:
        """Close every connection; replicas wait for the next dispatcher."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _hear(self, message: Retire | ReplicaLost | Stop | None) -> None:
        """Do what the supervisor asks; None is its end."""
        match message:
            case Retire() | ReplicaLost():
                self._feed(message)
            case Stop():
                self.leave("stopped")
            case None:
                self.leave("the supervisor is gone")

    # Grants

    async def _fetch(self, class_number: int) -> None:
        """Fetch a class for ever: the records of whatever session there is, and with the live one grants."""
        pace, slot = Pace(), self._slot
        assert slot is not None
        full_wait_s = BACKGROUND_WAIT_S if class_number in self._routes.backgrounds else FULL_WAIT_S
        while True:
            full = [number for number in slot.full() if class_of(number) == class_number]
            fetched = await self._readers.fetch(class_number, full, full_wait_s if full else FETCH_WAIT_S)
            for record in fetched.control:
                if self._tenure.follow(record):
                    self._reporter.touch()
            marked = {number: self._marked(number, records) for number, records in fetched.records.items()}
            self._feed(on.RecordsRead(marked, fetched.positions, fetched.lost, time.time()))
            self._batch_watch.done(class_number)
            if self._tenure.grant is None and self._readers.live.caught_up():
                self._tenure.changed.set()
            if fetched.records:
                # Also without a wait: what aiokafka has fetched it gives without a turn of the event loop.
                await asyncio.sleep(pace.wait_s(sum(map(len, fetched.records.values())), time.monotonic()))
                await self._reports_first()

    async def _reports_first(self) -> None:
        """Wait for the acknowledgement of one report, if it is long overdue."""
        lease, until_s = self._lease, self._lease.until_s
        least_s = self._settings.lease_s - REPORT_FIRST_BEATS * self._settings.heartbeat_s
        while (  # noqa: ASYNC110  the lease waits for time, too
            self._report.phase == "serving" and lease.left_s < least_s and lease.until_s == until_s
        ):
            await asyncio.sleep(REPORT_FIRST_S)

    def _marked(self, partition: int, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records; while one is taken in, its batch is marked."""
        last = -1
        for record in records:
            if record.offset > last:
                last = self._batch_watch.takes_in(partition, record.offset)
            yield record
        self._batch_watch.rests()

    # Serve

    async def _serve(self) -> None:
        """Serve whenever the slot is ours and the lease is valid; return once it is another's."""
        while await self._tenure.until_granted():
            if not await self._serve_once():
                return
            await self._tenure.regain()

    async def _serve_once(self) -> bool:
        """Own the slot's partitions until it is another's (False) or may have been, without a lease (True)."""
        slots = self._tenure.begin()
        if self._sender.transactional:
            # Voids what anybody has under way: one that served before, or this one before its lease ended. Not done
            # sooner, since it fences the dispatcher that serves.
            groups = [of.group for of in self._routes.classes]
            await self._sender.start_again(self._settings.connect_timeout_s, self._partitions, groups)
        self._partitions_read = [reader.topic.partitions for reader in self._readers.readers]
        owned, *others = await asyncio.gather(
            *(self._owned(class_number, slots, had) for class_number, had in enumerate(self._partitions_read))
        )
        if not (self._tenure.holds() and self._lease.valid()):
            # Lost on the way. Reports said "standby" until now, so the successor may serve already.
            self._drop()
            return True
        self._session_over = over = asyncio.get_running_loop().create_future()
        watching = asyncio.create_task(self._tenure.watch())
        try:
            self._report.phase = "serving"
            self._supervisor.say(Serving())
            self._feed(owned._replace(epoch=time.time_ns()))
            for of_class in others:
                self._feed(of_class)
            await self._reporter.now()
            await asyncio.wait((over, watching), return_when=asyncio.FIRST_COMPLETED)
            # Where the lease has expired after the last look, another may serve, and nothing more can be sent.
            if not over.done() and watching.result() and not self._tenure.lapsed:
                # Finish what replicas have in hand, send and commit it.
                self._report.phase = "draining"
                self._reporter.touch()
                self._feed(on.Drained())
                await over
                self._end_session("draining")
                return False
            if over.done():
                over.result()
            raise LeaseExpired
        except LeaseExpired:
            logger.warning("dispatcher %s: another may have served, the session is dropped", self._spec.dispatcher)
            self._drop()
            return True
        finally:
            tasks = (watching, *self._requests)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _owned(self, class_number: int, slots: int, partitions: int, before: int = 0) -> on.Owned:
        """Return what the slot owns of a class whose topic has so many partitions, and had ``before``."""
        assert self._slot is not None
        every = partitions_of(self._spec.slot, slots, partitions)
        numbers = numbered(class_number, [number for number in every if number >= before])
        committed = await self._readers.committed(numbers)
        begins = await self._readers.beginnings(self._slot.beginnings_needed(numbers, committed, before))
        topic = self._readers.readers[class_number].topic
        return on.Owned(numbers, committed, begins, topic, class_number=class_number, partitions_before=before)

    def _lease_lost(self) -> None:
        if self._report.phase == "draining":  # it is another's next
            self._end_of_session(LeaseExpired())
        self._tenure.lapse()

    def _drop(self) -> None:
        self._feed(on.Dropped())
        self._sender.void()  # aiokafka would go on with the transaction once Kafka answers again
        self._end_session("standby")

    def _end_session(self, phase: DispatcherPhase) -> None:
        self._report.phase = phase
        self._reporter.touch()

    async def _look_at_topics(self) -> None:
        """Find out that a topic was deleted, or created again, or has more partitions."""
        while True:
            await asyncio.sleep(self._settings.topic_check_s)
            for class_number, reader in enumerate(self._readers.readers):
                why, _ = await reader.look_at_topic()
                if why:
                    self._feed(on.TopicGone(why, class_number))
                else:
                    await self._look_for_added(class_number, reader)

    async def _look_for_added(self, class_number: int, reader: TopicReader) -> None:
        """Own the partitions that a topic was given since the session began."""
        session, now, grant = self._session_over, reader.topic.partitions, self._tenure.grant
        if session.done() or grant is None or self._partitions_read[class_number] >= now:
            return
        before = self._partitions_read[class_number]
        owned = await self._owned(class_number, grant.slots, now, before)
        if session is self._session_over:
            self._partitions_read[class_number] = now
            self._feed(owned)

    # Report

    def _fill(self, report: PoolReport) -> None:
        """Complete a report with what is only known now."""
        now_s = time.monotonic()
        trouble = self._slot.fill(report, boot_clock_s()) if self._slot is not None else ""
        report.counts.replica_s += sum(status.phase != "starting" for status in report.replicas) * (
            now_s - self._filled_s
        )
        self._filled_s = now_s
        report.counts.cpu_s = time.process_time()
        if report.phase not in ("gone", "failed"):
            report.reason = trouble

    async def _failed(self, code: int, why: str) -> int:
        logger.error("dispatcher %s: %s", self._spec.dispatcher, why)
        await self._say("failed", why)
        return code

    async def _say(self, phase: DispatcherPhase, why: str) -> None:
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._reporter.now(phase, why)
        except TimeoutError:
            logger.warning("dispatcher %s could not report that it is %s", self._spec.dispatcher, phase)


def owner_name(spec: DispatcherSpec) -> str:
    """Return what a commit's metadata calls a dispatcher process: space is short there."""
    return hashlib.blake2s(f"{spec.dispatcher}/{spec.incarnation}".encode(), digest_size=6).hexdigest()
