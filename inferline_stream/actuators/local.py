"""Replicas and dispatchers as processes of this machine, children of a supervisor that outlives the controller."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from inferline_stream.actuators import supervisor_calls as calls
from inferline_stream.actuators.actuator import (
    DispatcherExit,
    ObservedDispatcher,
    ObservedReplica,
    ProcessTerms,
    ReplicaExit,
    deaths_in_a_row,
    restart_in_s,
)
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.errors import InvalidFile
from inferline_stream.isolation.limits import unbounded_memory
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.settings import dispatcher_environment

logger = logging.getLogger(__name__)

_SUPERVISOR_MODULE = "inferline_stream.actuators.supervisor_process"
_SOCKET = "supervisor.sock"
_REAP_S = 1.0
_ANSWER_S = 30.0
"""A supervisor answers within so long, and what it is asked to wait for: starting many processes takes seconds."""

_LOST = "the supervisor has ended, and every process with it"


class LocalActuator:
    """A client of this machine's supervisor, which it starts with the first call.

    A supervisor that dies takes its children with it: each is reported as an exit, and all that was asked for is
    started again by a new one. Once another controller has taken over the supervisor, calls have no effect. Must be
    used and closed within one event loop; `async with` closes it.

    Args:
        terms: how processes run.
        folder: private folder of the supervisor's socket, at which the next controller finds it; None for a
            supervisor that no other controller can find.
        term: of the leadership of the controller that uses it.
    """

    def __init__(self, terms: ProcessTerms, folder: Path | None = None, term: int = 0) -> None:
        self._terms, self._log_folder = terms, Path(terms.log_folder)
        self._socket = "" if folder is None else str(folder.absolute() / _SOCKET)
        self._hello = calls.Hello(terms, self._socket, secrets.token_hex(8), term)
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._exits: asyncio.Queue[ReplicaExit | DispatcherExit] = asyncio.Queue()
        self._specs: dict[tuple[str, str], ReplicaSpec] = {}
        self._scaled: dict[tuple[str, str], int] = {}
        self._dispatched: dict[str, list[DispatcherSpec]] = {}
        self._incarnations: dict[str, int] = {}
        self._replicas: tuple[ObservedReplica, ...] = ()
        self._failures = 0
        self._closed = False
        self.supervisor_pid: int | None = None
        """Process of the supervisor, once there is one."""

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`."""
        self._specs = dict(specs)
        for stage, isolation in {spec.stage: spec.isolation for spec in specs.values()}.items():
            if lack := unbounded_memory(isolation):
                logger.warning("stage %r: %s", stage, lack)
        await self._call("know", list(specs.items()))

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        await self._call("scale", stage, hardware, replicas, list(retiring))
        self._scaled[stage, hardware] = replicas

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage; see `Actuator.dispatch`."""
        self._dispatched[stage] = list(dispatchers)
        for spec in dispatchers:
            self._incarnations.setdefault(spec.dispatcher, spec.incarnation)
        await self._call("dispatch", stage, list(dispatchers))

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """Kill a silent dispatcher and start it again; see `Actuator.replace_dispatcher`."""
        await self._call("replace_dispatcher", dispatcher)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""
        found = await self._call("observe")
        self._replicas = msgspec.convert(found, tuple[ObservedReplica, ...])
        return self._replicas

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that was asked for and is not gone, oldest first."""
        found = msgspec.convert(await self._call("dispatchers"), tuple[ObservedDispatcher, ...])
        wanted = {spec.dispatcher for specs in self._dispatched.values() for spec in specs}
        self._incarnations = {d: at for d, at in self._incarnations.items() if d in wanted}
        self._incarnations |= {seen.dispatcher: seen.incarnation for seen in found}
        return found

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """Wait for the next process that ends."""
        return await self._exits.get()

    async def capacity(self) -> Mapping[str, int]:
        """Return the replicas that have a place, of each hardware kind that has none left."""
        return msgspec.convert(await self._call("capacity"), dict[str, int])

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return how the GPUs of this host stand, once a replica needed one."""
        return msgspec.convert(await self._call("devices"), tuple[DeviceState, ...])

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher, then retire every replica; see `Actuator.drain`."""
        self._scaled.clear()
        self._dispatched.clear()
        await self._call("drain", deadline_s)

    async def aclose(self) -> None:
        """End every process now, and the supervisor; none is left when this returns."""
        if self._closed:
            return
        async with self._connecting:
            self._closed = True
        wait_s = _REAP_S  # it may live on, for another controller
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                try:
                    await self._ask(self._writer, "aclose")
                except (ValueError, RuntimeError) as error:
                    logger.error("%s: it is killed, and its children with it", error)
                    if self.supervisor_pid is not None:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(self.supervisor_pid, signal.SIGKILL)
                wait_s = _ANSWER_S  # a thread within a driver that hangs keeps its process
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, wait_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _call(self, method: str, *arguments: Any) -> Any:
        while not self._closed:
            with contextlib.suppress(ConnectionError):  # what was asked for is asked again of the next supervisor
                return await self._ask(await self._connected(), method, *arguments)
        return {} if method == "capacity" else ()

    async def _ask(self, writer: asyncio.StreamWriter, method: str, *arguments: Any) -> Any:
        number = next(self._numbers)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        answer_s = _ANSWER_S + (arguments[0] if method == "drain" else 0.0)
        if method in calls.LEFT_TO_THE_NEXT:
            answer_s = max(answer_s, self._terms.drain_timeout_s)
        limit_s = answer_s + 2 * self._terms.kill_after_s
        try:
            writer.write(calls.encode_line(calls.request(number, method, *arguments)))
            async with asyncio.timeout(limit_s):
                return await answered
        except TimeoutError:
            raise RuntimeError(
                f"the supervisor (process {self.supervisor_pid}) has not answered {method} for "
                f"{limit_s:g} s; see {self._log_folder / 'supervisor.log'}"
            ) from None
        finally:
            self._asked.pop(number, None)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                adopted = await self._adopted()
                if self._closed:
                    raise ConnectionResetError(calls.SUPERSEDED)
                reader, writer = adopted or await self._started()
                self._writer = writer
                self._reading = asyncio.create_task(self._read(reader, writer))
                await self._ask_again(writer)
            return self._writer

    async def _adopted(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to a supervisor that an earlier controller has left; None where there is none of ours."""
        if not self._socket:
            return None
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=calls.LONGEST_LINE_BYTES)
        except OSError:
            return None
        return await self._greeted(reader, writer)

    async def _started(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(sock=self._start(), limit=calls.LONGEST_LINE_BYTES)
        greeted = await self._greeted(reader, writer)
        if greeted is None:
            raise RuntimeError(f"the supervisor could not be started; see {self._log_folder / 'supervisor.log'}")
        return greeted

    def _start(self) -> socket.socket:
        """Start a supervisor; returns the connection to it.

        Raises:
            InvalidFile: its socket or its log cannot be written.
        """
        written, remedy = Path(self._socket), "set XDG_RUNTIME_DIR to a folder of your own"
        try:
            if self._socket:
                written.parent.mkdir(parents=True, exist_ok=True)
                written.parent.chmod(0o700)
                written.unlink(missing_ok=True)  # of a supervisor that was killed
            written, remedy = self._log_folder / "supervisor.log", "copy the topology into a folder that can be written"
            written.parent.mkdir(parents=True, exist_ok=True)
            log = written.open("ab")
        except OSError as error:
            raise InvalidFile(f"{written}: cannot be written ({error.strerror}); {remedy}") from None
        ours, theirs = socket.socketpair()
        with theirs, log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SUPERVISOR_MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dispatcher_environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # it outlives this process, and Ctrl-C in the terminal is for that one
            )
        return ours

    async def _greeted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        with contextlib.suppress(ConnectionError):
            writer.write(calls.encode_line(self._hello))
            try:
                async with asyncio.timeout(_ANSWER_S):
                    line = await calls.next_line(reader)
            except TimeoutError:
                writer.close()
                raise RuntimeError(
                    f"the supervisor has not answered for {_ANSWER_S:g} s; see {self._log_folder / 'supervisor.log'}"
                ) from None
            reply = calls.decode_from_supervisor(line) if line else calls.Reply(0, error="it has ended")
            if isinstance(reply, calls.Reply) and not reply.error:
                self.supervisor_pid = reply.result
                return reader, writer
            if isinstance(reply, calls.Reply) and reply.error == calls.SUPERSEDED:
                self._stay_away()
        writer.close()
        return None

    async def _ask_again(self, writer: asyncio.StreamWriter) -> None:
        """Ask a new supervisor for all that the last one was asked for."""
        lost: list[tuple[str, list[Any]]] = [("know", [list(self._specs.items())])] if self._specs else []
        lost += [("scale", [*key, replicas, []]) for key, replicas in self._scaled.items()]
        for stage, specs in self._dispatched.items():
            again = [msgspec.structs.replace(s, incarnation=self._incarnations[s.dispatcher]) for s in specs]
            lost.append(("dispatch", [stage, again]))
        for method, arguments in lost:
            try:
                await self._ask(writer, method, *arguments)
            except (ValueError, RuntimeError) as error:
                logger.error("what the last supervisor was asked for is not taken by this one: %s", error)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began_s = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            while line := await calls.next_line(reader):
                message = calls.decode_from_supervisor(line)
                if isinstance(message, calls.Ended):
                    self._report(message)
                elif not message.number:
                    self._stay_away()
                elif (answered := self._asked.get(message.number)) is not None and not answered.done():
                    if message.error:
                        answered.set_exception(ValueError(message.error))
                    else:
                        answered.set_result(message.result)
        writer.close()
        self._writer = None
        for answered in self._asked.values():
            if not answered.done():
                answered.set_exception(ConnectionResetError(_LOST))
        if self._closed:
            return
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it lives, and serves another controller
                await asyncio.to_thread(self._process.wait, _REAP_S)
        self._failures = deaths_in_a_row(self._failures, asyncio.get_running_loop().time() - began_s)
        self._report_all_lost()
        await asyncio.sleep(0.0 if self._failures == 1 else restart_in_s(self._failures - 1))
        if not self._closed:
            try:
                await self._connected()
            except (OSError, RuntimeError, InvalidFile):  # the next call tries again, and raises
                logger.exception("no supervisor could be started")

    def _stay_away(self) -> None:
        if not self._closed:
            logger.warning("the supervisor serves this controller no more: %s", calls.SUPERSEDED)
            self._closed = True

    def _report(self, ended: calls.Ended) -> None:
        gone = ended.replica or ended.dispatcher
        assert gone is not None
        name = gone.replica if isinstance(gone, ReplicaExit) else gone.dispatcher
        if isinstance(gone, DispatcherExit):
            self._incarnations[name] = gone.incarnation + 1
        if gone.expected:  # who takes the others from the queue says why they ended, and what follows
            logger.info("%s ended: %s", name, gone.reason)
        self._exits.put_nowait(gone)

    def _report_all_lost(self) -> None:
        logger.error("%s", _LOST)
        for seen in self._replicas:
            self._exits.put_nowait(ReplicaExit(seen.replica, seen.stage, seen.hardware, -9, False, _LOST, 0.0))
        self._replicas = ()
        for specs in self._dispatched.values():
            for spec in specs:
                name, incarnation = spec.dispatcher, self._incarnations[spec.dispatcher]
                self._exits.put_nowait(
                    DispatcherExit(name, spec.routes.stage, spec.slot, incarnation, -9, False, _LOST, restarted=True)
                )
                self._incarnations[name] = incarnation + 1
