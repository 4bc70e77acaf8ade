"""A replica: the process that moves one stage's records.

``python -m inferline_stream.dataplane.bound_replica`` with a `ReplicaSpec` as one line of JSON on standard input, which
stays open: its end means that the supervisor is gone, and the replica leaves in good order. So does SIGTERM. An
argument is the file descriptor where a sealed replica asks for addresses, see `isolation.names`.

Exit codes: 0 left in good order; 3 the topology or stage cannot be loaded; 5 Kafka does not answer; 70 the stage broke
its contract, or Kafka refuses its records; 75 it was fenced, or lost its lease where results must be exactly once.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import uvloop

from inferline_stream.dataplane.client import Fenced
from inferline_stream.dataplane.handovers import Handovers
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.looping import Loop
from inferline_stream.dataplane.moving import Moving
from inferline_stream.dataplane.owning import Owning
from inferline_stream.dataplane.protocol import ReplicaPhase, ReplicaSpec, decode_spec
from inferline_stream.dataplane.reading import StageReader
from inferline_stream.dataplane.reporting import Lease, Reporting, new_report
from inferline_stream.dataplane.results import Records, topics_written
from inferline_stream.dataplane.sending import StageSender, TellingSender
from inferline_stream.dataplane.topics import record_limits
from inferline_stream.dataplane.tracing import batch_spans
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import StageCall
from inferline_stream.errors import InferlineError, StageFailed
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.refusals import Refusals
from inferline_stream.isolation.sealing import seal
from inferline_stream.observability.buckets import latency_bounds_s
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.settings import Settings

logger = logging.getLogger(__name__)

EXIT_STAGE_FAILED = 70
EXIT_FENCED = 75

_END_WITHIN_S = 15.0
"""A replica that failed has told so, and closed its connections, long before: the kernel ends it then."""

_SWITCH_INTERVAL_S = 0.001
"""A stage that holds the interpreter lets the event loop in this often; Python's own 5 ms add up over a hop."""


class Replica:
    """One replica from its start to its end.

    Args:
        spec: what the process was told.
        wiring: its stage.
        started_s: when the process began (`time.monotonic`), for the start-up time.
    """

    def __init__(self, spec: ReplicaSpec, wiring: Wiring, started_s: float) -> None:
        self._spec = spec
        self._wiring = wiring
        self._started_s = started_s
        self._settings = settings = Settings(**spec.settings)
        self._exactly_once = spec.delivery == "exactly_once"
        names, where = wiring.names, spec.bootstrap_servers
        buckets = len(latency_bounds_s(wiring.pipeline.slo_s)) + 1
        self._report = report = new_report(spec.replica, spec.stage, spec.hardware.name, buckets)
        self._confinement = confined(spec.isolation, spec.topology, spec.hardware, spec.bootstrap_servers)
        self._refusals = Refusals(self._confinement)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._lease = lease = Lease(settings.lease_s)
        read = (wiring.input_topic, wiring.group, names.assignments, names.handovers)
        self._reader = StageReader(where, *read, fetch_wait_s=settings.fetch_wait_s)
        transactional_id = names.transactional_id(spec.replica) if self._exactly_once else None
        self._sender = StageSender(where, f"inferline-{spec.replica}", transactional_id)
        self._telling = TellingSender(where, spec.replica, settings.lease_s)
        send_report = functools.partial(self._telling.send, names.stage_stats)
        self._reporting = Reporting(report, send_report, lease, settings.heartbeat_s)
        self._spans = batch_spans(spec.tracing, wiring, spec.replica, spec.hardware.name)
        self._moving = Moving(
            spec,
            wiring,
            reader=self._reader,
            sender=self._sender,
            lease=lease,
            report=report,
            settings=settings,
            worker=self._worker,
            spans=self._spans,
        )
        self._owning = Owning(
            wiring,
            self._reader,
            lease,
            report,
            settings,
            max_batch_size=spec.max_batch_size,
            touch=self._reporting.touch,
            dropped=self._moving.drop,
            begun=self._moving.begin,
            handovers=Handovers(spec.stage, functools.partial(self._telling.send, names.handovers)),
            exactly_once=self._exactly_once,
        )

    def leave(self, why: str) -> None:
        """Finish, commit, release, say so, and end; after the drain limit the kernel ends the process."""
        # Not a thread or a task of ours: code that holds the interpreter for ever must not keep an orphan alive.
        signal.setitimer(signal.ITIMER_REAL, self._settings.drain_timeout_s)
        self._owning.leave(why)

    async def run(self) -> int:
        """Work until told to leave; returns the exit code.

        Raises:
            Unreachable: Kafka does not answer.
        """
        await self._telling.start(self._settings.connect_timeout_s)
        reporting = asyncio.create_task(self._reporting.run(self._owning.held))
        self._reporting.touch()
        try:
            stage, records = await self._get_ready()
            gc.collect()
            gc.freeze()  # what was loaded stays: no need to look at it again and again
            self._seal()
            self._report.start_up_s = time.monotonic() - self._started_s
            if not self._owning.leaving:
                await self._reporting.now(self._owning.held(), "ready")
                if self._spec.ready_fd is not None:
                    os.write(self._spec.ready_fd, b"\n")
                    os.close(self._spec.ready_fd)
            await self._work(reporting, stage, records)
        except (Fenced, StageFailed) as error:
            return await self._failed(EXIT_FENCED if isinstance(error, Fenced) else EXIT_STAGE_FAILED, str(error))
        except InferlineError as error:
            return await self._failed(error.exit_code if error.exit_code != 1 else EXIT_STAGE_FAILED, str(error))
        except Exception as error:
            logger.exception("replica %s", self._spec.replica)
            return await self._failed(EXIT_STAGE_FAILED, f"{type(error).__name__}: {error}")
        else:
            await self._say("gone", self._owning.leaving)
            return 0
        finally:
            reporting.cancel()
            await self._close()

    async def _get_ready(self) -> tuple[StageCall, Records]:
        """Build the stage and connect, beside each other."""
        building = asyncio.get_running_loop().run_in_executor(
            self._worker,
            StageCall,
            self._refusals.guarded(self._wiring.stage.run),
            self._spec.hardware,
            self._spec.emulated_s,
        )
        timeout_s = self._settings.connect_timeout_s
        written = topics_written(self._wiring)
        limits, *_ = await asyncio.gather(
            record_limits(self._spec.bootstrap_servers, written, timeout_s),
            self._reader.start(timeout_s),
            self._sender.start(timeout_s),
            self._telling.look_for(self._wiring.names.handovers),  # else the first handover waits for it
        )
        partitions = {topic: await self._sender.partitions_of(topic) for topic in written}
        rng = random.Random(self._spec.replica)  # noqa: S311  spreads records, hides nothing
        return await building, Records(self._wiring, partitions, rng, self._report, limits)

    def _seal(self) -> None:
        """Give up what only a start needs, before the first record."""
        self._report.isolation = seal(self._confinement)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        self._refusals.sealed = loop.sealed = self._report.isolation.sealed

    async def _work(self, reporting: asyncio.Task[None], stage: StageCall, records: Records) -> None:
        """Until everything is released, or the first step fails."""
        moving, owning = self._moving, self._owning
        steps: list[Coroutine[Any, Any, None]] = [
            moving.fetch(owning, records),
            moving.compute(stage, owning),
            owning.take_up(),
            owning.watch_lease(),
            owning.commits.recommit(),
        ]
        if self._exactly_once:
            steps += [moving.transact(owning, records), self._end_with_the_lease()]
        else:
            steps += [moving.send(owning, records), owning.commits.run()]
        gone = asyncio.create_task(owning.gone.wait())
        tasks: list[asyncio.Task[Any]] = [reporting, gone, *map(asyncio.create_task, steps)]
        owning.reconcile()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
        for task in done:
            task.result()

    async def _end_with_the_lease(self) -> None:
        """A transaction under way when the lease expires may yet commit; only a new producer id is certain."""
        await self._owning.dropped_all.wait()
        raise Fenced("the lease has expired: a replica with a new transactional id must take over")

    async def _failed(self, code: int, why: str) -> int:
        logger.error("replica %s: %s", self._spec.replica, why)
        signal.setitimer(signal.ITIMER_REAL, _END_WITHIN_S)  # whatever a client or the stage still waits for
        await self._say("failed", why)
        return code

    async def _say(self, phase: ReplicaPhase, why: str) -> None:
        try:
            async with asyncio.timeout(self._settings.lease_s):
                await self._reporting.now({}, phase, why)
        except TimeoutError:
            logger.warning("replica %s could not report that it is %s", self._spec.replica, phase)

    async def _close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        for client in (self._reader, self._sender, self._telling):
            await client.stop()
        if self._spans is not None:
            self._spans.close()


def main(pipeline: Pipeline | None = None, channel: socket.socket | None = None) -> int:
    """Run a replica to its end; returns the process's exit code.

    Args:
        pipeline: if a parent has loaded it already.
        channel: where addresses are asked for, if not at the descriptor that is the first argument.
    """
    started_s = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    line = sys.stdin.buffer.readline()
    if not line.strip():
        sys.stderr.write("a replica is started with its ReplicaSpec as one line of JSON on standard input\n")
        return 2
    spec = decode_spec(line)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        wiring = Wiring(pipeline or load_topology(spec.topology), spec.stage, spec.prefix)
    except InferlineError as error:
        logger.error("replica %s: %s", spec.replica, error)
        return error.exit_code
    if channel is None and len(sys.argv) > 1:
        channel = socket.socket(fileno=int(sys.argv[1]))
    return _run(spec, wiring, started_s, channel)


def _run(spec: ReplicaSpec, wiring: Wiring, started_s: float, channel: socket.socket | None) -> int:
    async def live() -> int:
        replica = Replica(spec, wiring, started_s)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.channel = channel
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, replica.leave, f"{number.name} received")
        _when_closed(sys.stdin.buffer, lambda: loop.call_soon_threadsafe(replica.leave, "the supervisor is gone"))
        try:
            return await replica.run()
        except InferlineError as error:
            logger.error("replica %s: %s", spec.replica, error)
            return error.exit_code

    return uvloop.run(live(), loop_factory=Loop)


def _when_closed(stream: IO[bytes], told: Callable[[], object]) -> None:
    """Call back once a stream ends. A thread, because standard input may be a file, which no event loop watches."""

    def wait() -> None:
        while os.read(stream.fileno(), 4096):
            pass
        try:
            told()
        except RuntimeError:  # the event loop is closed: we are leaving anyway
            return

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a stage that hangs in its thread must not keep the process
