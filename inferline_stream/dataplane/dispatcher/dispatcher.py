"""The dispatcher's process from its start to its end: connect, follow grants, serve the slot, report."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import random
import socket
import time
from collections.abc import Callable

import msgspec

from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.feeder import Feeder
from inferline_stream.dataplane.dispatcher.lease import Lease, LeaseExpired, Reporter
from inferline_stream.dataplane.dispatcher.pace import Pace
from inferline_stream.dataplane.dispatcher.pool import MIN_DEADLINE_S, SERVER_DEADLINE_FACTOR, Pool
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.session import FULL_WAIT_S, SlotSession
from inferline_stream.dataplane.dispatcher.supervisor_channel import SupervisorChannel
from inferline_stream.dataplane.dispatcher.tracing import batch_spans
from inferline_stream.dataplane.process_specs import EXIT_FAILED, EXIT_FENCED, DispatcherSpec
from inferline_stream.dataplane.reports import DispatcherPhase, PoolReport
from inferline_stream.dataplane.slot_grants import Grant, decode_control, grant_key, partitions_of
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire, Serving, Stop
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.errors import InferlineError
from inferline_stream.kafka.batch_mark import BatchWatch
from inferline_stream.kafka.fetched_batches import bound_batches
from inferline_stream.kafka.offsets import surely_committed
from inferline_stream.kafka.pipeline_topics import RecordRules, record_rules
from inferline_stream.kafka.records import Fenced, KafkaFailed
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.writer import Writer
from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

FETCH_WAIT_S = 0.2
_STRAGGLERS_EVERY_S = 1.0


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
        self._batch_watch = BatchWatch(routes.input_topic, mark, spec.deadly_batches)
        bound_batches(round(settings.decompressed_bytes), self._batch_watch)
        self._bounds_s = latency_bounds_s(routes.slo_s)
        self._report = report = new_report(
            spec.dispatcher, spec.incarnation, routes.stage, spec.slot, len(self._bounds_s) + 1
        )
        report.node = spec.node
        self._lease = Lease(settings.lease_s)
        servers, names = spec.bootstrap_servers, routes.names
        self._reader = TopicReader(
            servers, routes.input_topic, routes.group, names.assignments, fetch_wait_s=settings.fetch_wait_s
        )
        exactly_once = spec.delivery == "exactly_once"
        transactional_id = names.transactional_id(f"{routes.stage}-{spec.slot}") if exactly_once else None
        packed = (names.completed, names.dead_letters(routes.input_topic))
        self._sender = Writer(servers, f"inferline-{spec.dispatcher}", transactional_id, packed=packed)
        reporter = f"inferline-report-{spec.dispatcher}"
        self._reports = Writer(servers, reporter, once=False, request_timeout_s=settings.lease_s)
        send = functools.partial(self._reports.note, names.stage_stats, spec.dispatcher.encode())
        self._reporter = Reporter(report, send, self._lease, settings.heartbeat_s, self._fill)
        # A server that is slow ends no replica: that gives its batches back by itself.
        least_s = max(MIN_DEADLINE_S, SERVER_DEADLINE_FACTOR * spec.routes.server_budget_s)
        self._pool = Pool(settings.batch_deadline_s, least_s)
        self._spans = batch_spans(spec.tracing, routes, spec.dispatcher)
        self._feeder = Feeder(
            self._pool,
            report,
            changed=self._reporter.touch,
            replace=lambda replica, reason: self._supervisor.say(Replace(replica, reason)),
            spans=self._spans,
        )
        self._grant: Grant | None = None
        self._grant_changed = asyncio.Event()
        self._leaving = ""
        self._has_served = False
        self._partitions: dict[str, int] = {}
        self._rules = RecordRules({})
        self._session: SlotSession | None = None
        self._filled_s = time.monotonic()

    def leave(self, why: str) -> None:
        """Drain and exit."""
        if not self._leaving:
            logger.info("dispatcher %s leaves: %s", self._spec.dispatcher, why)
            self._leaving = why
            self._grant_changed.set()

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
            written = self._routes.topics_written
            self._rules, *_ = await asyncio.gather(
                record_rules(self._spec.bootstrap_servers, written, timeout_s),
                self._reader.start(timeout_s),
                *(() if self._sender.transactional else (self._sender.start(timeout_s),)),
            )
            self._sender.limits = self._rules.limits
            self._partitions = {topic: await self._reports.partitions_of(topic) for topic in written}
            self._connected()
            self._supervisor.listen()
            await self._reporter.now("standby")
            await until_first(
                self._fetch(), self._serve(), self._look_for_stragglers(), self._look_at_topic(), beside=reporting
            )
        except Fenced as error:
            return await self._failed(EXIT_FENCED, str(error))
        except InferlineError as error:
            return await self._failed(error.exit_code if error.exit_code != 1 else EXIT_FAILED, str(error))
        except Exception as error:
            logger.exception("dispatcher %s", self._spec.dispatcher)
            return await self._failed(EXIT_FAILED, f"{type(error).__name__}: {error}")
        else:
            await self._say("gone", self._leaving)
            return 0
        finally:
            reporting.cancel()
            self._supervisor.close()
            self._feeder.close()
            for client in (self._reader, self._sender, self._reports):
                await client.stop()
            if self._spans is not None:
                self._spans.close()

    # Supervisor

    def _attach(self, message: Attach, sock: socket.socket) -> None:
        self._feeder.attach(
            sock,
            message.replica,
            message.hardware,
            message.number,
            message.node,
            start_limit_s=self._settings.start_limit_s(gpu=message.gpu),
            again=message.again,
        )

    def _hear(self, message: Retire | ReplicaLost | Stop | None) -> None:
        """Do what the supervisor asks; None is its end."""
        match message:
            case Retire(replica):
                self._feeder.retire(replica)
            case ReplicaLost(replica):
                self._feeder.lost(replica)
            case Stop():
                self.leave("stopped")
            case None:
                self.leave("the supervisor is gone")

    # Grants

    async def _fetch(self) -> None:
        """Fetch for ever: grants, and the records of whatever session there is."""
        pace = Pace()
        while True:
            session = self._session
            full = session.full() if session is not None else frozenset()
            fetched = await self._reader.fetch(full, FULL_WAIT_S if full else FETCH_WAIT_S)
            for record in fetched.control:
                self._follow(record.key, record.value)
            # The present one: partitions that it began to hold during the fetch may have brought records already.
            if (session := self._session) is not None:
                session.take_in(fetched)
            self._batch_watch.done()
            if self._grant is None and self._reader.caught_up():
                self._grant_changed.set()
            if fetched.records:
                await pace.wait(sum(map(len, fetched.records.values())))

    def _follow(self, key: bytes | None, value: bytes | None) -> None:
        """Follow a record of the assignments topic: its order is that of the one leader, so the last one counts."""
        if key != grant_key(self._routes.stage, self._spec.slot).encode():
            return
        try:
            grant = decode_control(value) if value else None
        except (msgspec.MsgspecError, RecursionError) as error:
            logger.error("a grant cannot be read and is skipped: %s", error)
            return
        if isinstance(grant, Grant):
            self._report.term, self._report.number = grant.term, grant.number
            self._pool.configure(grant.plan)
            self._feeder.hold_s = grant.plan.hold_s
            if self._session is not None:
                self._session.learn(grant)
        else:
            grant = None  # deleted: the slot is nobody's
        self._grant = grant
        self._grant_changed.set()
        self._reporter.touch()
        self._feeder.kick()

    def _is_granted(self) -> bool:
        grant = self._grant
        return (
            not self._leaving
            and grant is not None
            and grant.dispatcher == self._spec.dispatcher
            and grant.begins
            and self._reader.caught_up()
        )

    def _holds(self, slots: int) -> bool:
        """Whether the slot is still ours, and its partitions the same."""
        return self._is_granted() and self._grant is not None and self._grant.slots == slots

    def _is_superseded(self) -> bool:
        grant = self._grant
        return self._reader.caught_up() and (grant is None or grant.dispatcher != self._spec.dispatcher)

    # Serve

    async def _serve(self) -> None:
        """Serve whenever the slot is ours and the lease is valid; return once it is another's."""
        while True:
            while not (self._is_granted() and self._lease.valid()):
                if self._leaving or (self._is_superseded() and self._has_served):
                    return
                self._grant_changed.clear()
                try:
                    async with asyncio.timeout(0.1):
                        await self._grant_changed.wait()
                except TimeoutError:
                    continue
            if not await self._serve_once():
                return
            await self._regain()

    async def _serve_once(self) -> bool:
        """Own the slot's partitions until it is another's (False) or the lease has expired (True)."""
        grant = self._grant
        assert grant is not None
        self._has_served = True
        numbers = partitions_of(self._spec.slot, grant.slots, self._reader.topic.partitions)
        session = await self._begin(numbers)
        if not (self._holds(grant.slots) and self._lease.valid()):
            # Lost on the way. Reports said "standby" until now, so the successor may serve already.
            self._drop(session)
            return True
        self._session = session
        self._report.phase = "serving"
        self._supervisor.say(Serving())
        self._feeder.serve(session)
        await self._reporter.now()
        working = asyncio.create_task(session.run())
        watching = asyncio.create_task(self._watch(grant.slots))
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and watching.result():
                return await self._drain(session, working)
            if working.done():
                _only(working)
            raise LeaseExpired
        except LeaseExpired:
            logger.warning("dispatcher %s: its lease has expired, the session is dropped", self._spec.dispatcher)
            self._drop(session)
            return True
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _begin(self, numbers: range) -> SlotSession:
        if self._sender.transactional:
            # Voids what anybody has under way: one that served before, or this one before its lease ended. Not done
            # sooner, since it fences the dispatcher that serves.
            timeout_s, group = self._settings.connect_timeout_s, self._routes.group
            await self._sender.start_again(timeout_s, self._partitions, group)
        committed = dict(await surely_committed(self._reader.committed, numbers))
        emitter = Emitter(
            self._routes,
            self._partitions,
            random.Random(self._spec.dispatcher),  # noqa: S311  spreads records, hides nothing
            self._report,
            self._rules,
        )
        session = SlotSession(
            self._routes,
            reader=self._reader,
            sender=self._sender,
            emitter=emitter,
            lease=self._lease,
            report=self._report,
            settings=self._settings,
            owner=owner_name(self._spec),
            live_since_us=self._spec.live_since_s * 1e6,
            kick=self._feeder.kick,
            watch=self._batch_watch,
        )
        if self._grant is not None:
            session.learn(self._grant)
        await session.begin(numbers, committed)
        return session

    async def _watch(self, slots: int) -> bool:
        """Wait until the slot is another's (True) or the lease has expired (False)."""
        while self._lease.valid():
            if not self._holds(slots):
                return True
            self._grant_changed.clear()
            try:
                async with asyncio.timeout(max(0.05, self._lease.left_s)):
                    await self._grant_changed.wait()
            except TimeoutError:
                continue
        return False

    async def _drain(self, session: SlotSession, working: asyncio.Task[None]) -> bool:
        """Finish what replicas have in hand, send and commit it."""
        self._report.phase = "draining"
        self._reporter.touch()
        draining = asyncio.create_task(session.drain())
        try:
            await asyncio.wait((draining, working), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                _only(working)
            draining.result()
        finally:
            draining.cancel()
        self._end_session("draining")
        return False

    def _drop(self, session: SlotSession) -> None:
        session.drop()
        self._sender.void()  # aiokafka would go on with the transaction once Kafka answers again
        self._end_session("standby")

    def _end_session(self, phase: DispatcherPhase) -> None:
        self._session = None
        self._feeder.serve(None)
        self._report.phase = phase
        self._report.held.clear()
        self._report.halted.clear()
        self._reporter.touch()

    async def _regain(self) -> None:
        """After a lapse: wait for the lease, then read every grant that was written meanwhile."""
        while not self._lease.valid():
            if self._leaving:
                return
            await asyncio.sleep(0.05)
        await self._reader.look_for_grants()
        while not self._reader.caught_up():  # noqa: ASYNC110  the fetching task brings it about
            await asyncio.sleep(0.01)

    # Report

    def _fill(self, report: PoolReport) -> None:
        """Complete a report with what is only known now."""
        now_s = time.monotonic()
        ready = sum(status.phase != "starting" for status in self._feeder.statuses())
        report.counts.replica_s += ready * (now_s - self._filled_s)
        self._filled_s = now_s
        report.counts.cpu_s = time.process_time()
        report.replicas = self._feeder.statuses()
        session = self._session
        if report.phase not in ("gone", "failed"):
            trouble = "" if session is None else session.trouble() or self._feeder.trouble
            report.reason = trouble or self._pool.tight
        if session is not None:
            report.held = {number: p.completion.watermark for number, p in session.partitions.items()}
            report.queued, report.suspects = len(session.queue), len(session.suspects)
        else:
            report.queued = report.suspects = 0

    async def _look_for_stragglers(self) -> None:
        while True:
            await asyncio.sleep(_STRAGGLERS_EVERY_S)
            self._feeder.check_stragglers()

    async def _look_at_topic(self) -> None:
        """Find out that the topic was deleted, or created again, or has more partitions."""
        while True:
            await asyncio.sleep(self._settings.topic_check_s)
            session = self._session
            why, added = await self._reader.look_at_topic()
            if why or added:
                self._reporter.touch()
            if session is None or session is not self._session:
                continue
            if why:
                session.halt(why)
            elif added and self._grant is not None:
                numbers = partitions_of(self._spec.slot, self._grant.slots, added.stop)
                await session.grow([n for n in numbers if n in added], added.start)

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


def _only(task: asyncio.Task[None]) -> None:
    """Raise what ended a task, out of the task groups around it; the first error where several came at once."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
    raise KafkaFailed("a session ended by itself")
