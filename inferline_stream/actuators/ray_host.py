"""The actor that is the host of one dispatcher or one replica on a node of a Ray cluster, as a pod's first process is.

Calls say only where things are and how they end: batches go over TLS, see `actuators.network`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import ray
from ray.util import get_node_ip_address

from inferline_stream.actuators.actuator import DispatcherExit, ProcessTerms
from inferline_stream.actuators.network.credentials import Credential, dispatcher_context, replica_context
from inferline_stream.actuators.network.replica_host import HostEnd, ReplicaHost
from inferline_stream.actuators.nvml import NoDevice
from inferline_stream.dataplane.process_specs import EXIT_FAILED, DispatcherSpec, ReplicaSpec
from inferline_stream.errors import InvalidInput

if TYPE_CHECKING:
    from inferline_stream.actuators.network.dispatcher_host import DispatcherHost

logger = logging.getLogger(__name__)

_POLL_S = 5.0
"""Longest that a controller waits for news. It asks again at once, which says that it lives."""

_LOOK_S, _NEWS_S = 0.5, 0.05
"""How often a host looks whether its controller still asks, and whether it has news for it."""

_KEPT_ENDS = 100
"""Ends of a dispatcher that no controller has heard of yet; there are more where it dies again and again."""


class HostTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is started with: by a call, since what an actor is made with is kept by the cluster."""

    replica: ReplicaSpec | None = None
    dispatcher: DispatcherSpec | None = None
    """One of the two."""
    slots: int = 1
    """Of a dispatcher's stage."""
    dispatchers: list[str] = []
    """Of a replica: ``host:port`` of its stage's dispatchers."""
    credential: Credential
    environment: dict[str, str] = {}
    """Variables for the child beside this node's own."""
    forgotten: list[str] = []
    """Replicas that ended long ago: what they wrote on this node is removed."""
    processes: ProcessTerms
    """How long it goes on without a controller, and how long its child has to end then."""
    controller: str
    """Whose orders count; those of a later one that has asked for the state do from then on."""


class HostState(msgspec.Struct, frozen=True):
    """Where a host is, and what it runs."""

    node: str
    """Name of the machine and first digits of the id of Ray's node, which may be one of several there."""
    node_id: str
    address: str
    """Of a dispatcher: ``host:port`` for replicas; empty where it could not be started."""
    pid: int | None
    age_s: float
    ends: int
    """So many lives of its child are over."""
    terms: HostTerms


class HostNews(msgspec.Struct, frozen=True):
    """What has happened since a controller asked last; nothing for one whose orders do not count any more."""

    superseded: bool = False
    pid: int | None = None
    ends: list[HostEnd] = []
    heard: int = 0
    """Ends so far."""


class RayHost:
    """The actor. What it takes and returns is JSON or plain values: its caller may be of another release."""

    def __init__(self) -> None:
        self._terms: HostTerms | None = None
        self._controller = ""
        self._place = ("", "")
        self._host: DispatcherHost | ReplicaHost | None = None
        self._address = ""
        self._began_s = self._heard_s = time.monotonic()
        self._ends: deque[HostEnd] = deque(maxlen=_KEPT_ENDS)
        self._ended = 0
        self._up, self._over = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._retires = False

    async def start(self, terms: bytes) -> bytes:
        """Start the child of a `HostTerms`; return the `HostState`."""
        given = msgspec.json.decode(terms, type=HostTerms)
        for name in given.forgotten:
            Path(given.processes.log_folder, f"{name}.log").unlink(missing_ok=True)  # noqa: ASYNC240  a few files
        context = ray.get_runtime_context()
        node_id = str(context.get_node_id())
        self._place = f"{socket.gethostname()}/{node_id[:8]}", node_id
        devices = ",".join(context.get_accelerator_ids().get("GPU", []))
        os.environ.update({**given.environment, "CUDA_VISIBLE_DEVICES": devices})  # the actor is this one child's
        self._terms = given = msgspec.structs.replace(given, environment={}, forgotten=[])
        self._tasks = [asyncio.create_task(self._run(given)), asyncio.create_task(self._watch_controller(given))]
        return await self.state(given.controller)

    async def state(self, controller: str) -> bytes:
        """Obey this controller from now on; return the `HostState`, once there is one."""
        self._controller = controller
        await self._up.wait()
        assert self._terms is not None
        age_s = time.monotonic() - self._began_s
        found = HostState(*self._place, self._address, await self._pid(), age_s, self._ended, self._terms)
        return msgspec.json.encode(found)

    async def news(self, controller: str, heard: int, pid: int | None) -> bytes:
        """Wait for news, or a while; return a `HostNews`. A controller that waits is alive, as far as anyone knows.

        Args:
            controller: that asks.
            heard: ends that the controller has heard of.
            pid: the child's process, as far as it knows.
        """
        if controller == self._controller:
            self._heard_s = time.monotonic() + _POLL_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                asked = controller, heard, pid
                while (self._controller, self._ended, await self._pid()) == asked:  # noqa: ASYNC110  of several things
                    await asyncio.sleep(_NEWS_S)
        if controller != self._controller:
            return msgspec.json.encode(HostNews(superseded=True))
        self._heard_s = time.monotonic()
        new = min(self._ended - heard, len(self._ends))
        ends = list(self._ends)[len(self._ends) - new :]
        return msgspec.json.encode(HostNews(pid=await self._pid(), ends=ends, heard=self._ended))

    async def find(self, controller: str, dispatchers: Sequence[str]) -> None:
        """Have a replica look for its dispatcher at these addresses from now on."""
        if controller == self._controller and isinstance(self._host, ReplicaHost):
            self._host.dispatchers = list(dispatchers)

    async def leave(self, controller: str) -> None:
        """Have a dispatcher stop, or a replica end once it has no batch in hand."""
        if controller == self._controller:
            await self._leave()

    async def _leave(self) -> None:
        if isinstance(self._host, ReplicaHost):
            self._host.leave()
        elif self._host is not None:
            await self._host.dispatch(None)

    async def signal(self, controller: str, number: int) -> None:
        """Signal a replica; kill a dispatcher, which is started again unless it was to stop."""
        if controller == self._controller:
            await self._signal(number)

    async def _signal(self, number: int) -> None:
        if isinstance(self._host, ReplicaHost):
            self._host.signal(signal.Signals(number))
        elif self._host is not None and self._terms is not None and self._terms.dispatcher is not None:
            await self._host.supervisor.replace_dispatcher(self._terms.dispatcher.dispatcher)

    async def retire(self) -> None:
        """End in order, as if no controller had been there for long."""
        self._retires = True
        if not self._tasks:  # it was never started: its controller died first
            ray.kill(ray.get_runtime_context().current_actor)

    async def _pid(self) -> int | None:
        if isinstance(self._host, ReplicaHost):
            return self._host.pid
        there = () if self._host is None else await self._host.supervisor.dispatchers()
        return next((dispatcher.pid for dispatcher in there), None)

    async def _run(self, terms: HostTerms) -> None:
        try:
            if terms.replica is not None:
                await self._run_replica(terms, terms.replica)
            elif terms.dispatcher is not None:
                await self._run_dispatcher(terms, terms.dispatcher)
        except InvalidInput as error:
            self._end(HostEnd(error.exit_code, str(error)))
        except (NoDevice, OSError) as error:
            self._end(HostEnd(127, f"could not be started: {error}"))
        except Exception as error:  # the controller waits for an end
            logger.exception("the host failed")
            self._end(HostEnd(EXIT_FAILED, f"its host failed: {error!r}"))
        finally:
            self._up.set()
            self._over.set()

    async def _run_replica(self, terms: HostTerms, spec: ReplicaSpec) -> None:
        context = _context(replica_context, terms.credential.replica)
        logs, module = Path(terms.processes.log_folder), terms.processes.replica_module
        host = ReplicaHost(spec, self._place[0], terms.dispatchers, context, logs, module=module)
        host.start()
        self._host = host
        self._up.set()
        self._end(await host.run())

    async def _run_dispatcher(self, terms: HostTerms, spec: DispatcherSpec) -> None:
        from inferline_stream.actuators.network.dispatcher_host import DispatcherHost  # and with it a Kafka client

        host = DispatcherHost(
            spec.routes.stage,
            self._place[0],
            Path(terms.processes.log_folder),
            drain_timeout_s=terms.processes.drain_timeout_s,
            module=terms.processes.dispatcher_module,
        )
        context = _context(dispatcher_context, terms.credential.dispatcher)
        address: str = get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own
        async with host.listening(address, 0, context) as port:
            await host.dispatch(spec, terms.slots)
            self._host, self._address = host, f"{address}:{port}"
            self._up.set()
            while not self._ends or self._ends[-1].restarted:
                exit_ = await host.supervisor.next_exit()
                again = isinstance(exit_, DispatcherExit) and exit_.restarted
                self._end(HostEnd(exit_.exit_code, exit_.reason, exit_.tail, again))

    def _end(self, end: HostEnd) -> None:
        self._ends.append(end)
        self._ended += 1

    async def _watch_controller(self, terms: HostTerms) -> None:
        """Once no controller has asked for long, end: dispatchers first, since they finish what replicas have."""
        while not self._retires and time.monotonic() - self._heard_s < terms.processes.orphan_s:  # noqa: ASYNC110  nobody says so
            await asyncio.sleep(_LOOK_S)
        why = "it was asked to" if self._retires else f"no controller has asked for {terms.processes.orphan_s:g} s"
        logger.warning("this ends: %s", why)
        if terms.replica is not None:
            await self._over_within(terms.processes.drain_timeout_s)
        await self._leave()
        await self._over_within(terms.processes.drain_timeout_s)
        if not self._over.is_set():
            await self._signal(signal.SIGKILL)
            await self._over_within(1.0)
        ray.kill(ray.get_runtime_context().current_actor)

    async def _over_within(self, deadline_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._over.wait()


def _context(make: Callable[[Path], ssl.SSLContext], files: Mapping[str, bytes]) -> ssl.SSLContext:
    """TLS takes keys from files only: they are private, and gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="inferline-") as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        return make(Path(folder))
