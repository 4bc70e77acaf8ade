"""The actor that hosts one dispatcher or one replica on a node of a Ray cluster.

Its child is the ordinary program, sealed as on any host, with its ordinary channel and sockets. Between the hosts of a
dispatcher and of its replicas, frames are arguments and results of Ray's calls: `RayHost.attach` gives the dispatcher
one end of a socket pair and passes each frame that comes out at the other end to `RayHost.run` of the replica's host.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import ray
from ray.exceptions import RayError

from inferline_stream.actuators.child import Child
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.actuators.relay import frames
from inferline_stream.dataplane.process_specs import decode_dispatcher_spec, decode_replica_spec
from inferline_stream.dataplane.supervisor_messages import Attach, FromDispatcher, Replace, ReplicaLost, Serving, Stop
from inferline_stream.errors import InvalidInput
from inferline_stream.kafka.batch_mark import BatchId

logger = logging.getLogger(__name__)

Role = Literal["dispatcher", "replica"]

_POLL_S = 5.0
"""Longest that a controller waits for news. It asks again at once, which says that it lives."""

_LOOK_S = 0.5
"""How often a host looks whether its controller still asks."""

_decode_attach = msgspec.json.Decoder(Attach).decode


class HostTerms(msgspec.Struct, frozen=True):
    """What a host is made with."""

    role: Role
    spec: str
    """Of the dispatcher or replica, as JSON."""
    identity: str
    """What a later controller must have in common with the first one to take this over."""
    controller: str
    """Whose orders count; a later one replaces it."""
    log_folder: str
    replica_module: str
    dispatcher_module: str
    orphan_s: float
    """How long it goes on without a controller."""
    drain_timeout_s: float
    """Time that a dispatcher has to stop, and then a replica to leave."""


class HostPlace(msgspec.Struct, frozen=True):
    """Where the child runs."""

    node: str
    """Name of the host and first digits of the id of Ray's node, which may be one of several there."""
    node_id: str
    pid: int | None
    """None if it could not be started."""


class ChildEnd(msgspec.Struct, frozen=True):
    """How the child has ended."""

    exit_code: int
    reason: str
    tail: str = ""
    died_at: BatchId | None = None


class HostNews(msgspec.Struct, frozen=True):
    """What has happened since a controller asked last."""

    superseded: bool = False
    """Another controller has taken over."""
    messages: list[FromDispatcher] = []
    end: ChildEnd | None = None


class HostStanding(msgspec.Struct, frozen=True):
    """What a controller finds that takes a host over."""

    role: Role
    spec: str
    where: HostPlace
    age_s: float
    serving: bool
    """Of a dispatcher: whether it owns its partitions."""
    attached: list[str]
    """Of a dispatcher: the replicas that it is connected with."""


class RayHost:
    """The actor. What it takes and returns is JSON or plain values: its caller may be of another release.

    Args:
        terms: a `HostTerms`, as JSON.
    """

    def __init__(self, terms: bytes) -> None:
        self._terms = msgspec.json.decode(terms, type=HostTerms)
        self._controller: str | None = self._terms.controller
        self._child: Child | None = None
        self._where: HostPlace | None = None
        self._end: ChildEnd | None = None
        self._messages: list[FromDispatcher] = []
        self._changed = asyncio.Event()
        self._up, self._over = asyncio.Event(), asyncio.Event()
        self._began_s = self._heard_s = time.monotonic()
        self._serving = False
        self._bridges: dict[str, asyncio.Task[None]] = {}
        self._links: dict[int, _Link] = {}
        """Of a replica: the newest connection, by its number; until that is ready, also the one before."""
        self._numbers = itertools.count(1)
        self._going: asyncio.Task[None] | None = None

    # A controller's calls

    async def start(self, environment: Mapping[str, str], forgotten: Sequence[str] = ()) -> bytes:
        """Start the child; return its `HostPlace`.

        Args:
            environment: variables for the child beside this node's own. They come by a call, since what an actor is
                made with is kept by the cluster.
            forgotten: replicas that ended long ago: what they wrote on this node is removed.
        """
        terms = self._terms
        for name in forgotten:
            Path(terms.log_folder, f"{name}.log").unlink(missing_ok=True)  # noqa: ASYNC240  a few files
        context = ray.get_runtime_context()
        node_id = str(context.get_node_id())
        node = f"{socket.gethostname()}/{node_id[:8]}"
        given = ",".join(context.get_accelerator_ids().get("GPU", []))
        os.environ.update({**environment, "CUDA_VISIBLE_DEVICES": given})  # the actor is this one child's
        self._going = asyncio.create_task(self._watch_controller())
        try:
            if terms.role == "replica":
                self._child = self._children().start_replica(decode_replica_spec(terms.spec))
            else:
                dispatcher = msgspec.structs.replace(decode_dispatcher_spec(terms.spec), node=node)
                self._child = self._children().start_dispatcher(dispatcher)
        except InvalidInput as error:
            self._finish(ChildEnd(error.exit_code, str(error)))
        except (NoDevice, OSError) as error:
            self._finish(ChildEnd(127, f"could not be started: {error}"))
        self._where = HostPlace(node, node_id, self._child.pid if self._child is not None else None)
        self._began_s = time.monotonic()
        self._up.set()
        return msgspec.json.encode(self._where)

    async def news(self, controller: str) -> bytes:
        """Wait for news, or a while; return them. One that waits is alive, as far as anyone knows."""
        if controller == self._controller:
            self._heard_s = time.monotonic() + _POLL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._changed.wait()
        if controller != self._controller:
            return msgspec.json.encode(HostNews(superseded=True))
        self._heard_s = time.monotonic()
        self._changed.clear()
        messages, self._messages = self._messages, []
        return msgspec.json.encode(HostNews(messages=messages, end=self._end))

    async def adopt(self, controller: str, identity: str) -> bytes | None:
        """Obey another controller from now on, and return the `HostStanding`; None where it is of another identity."""
        if identity != self._terms.identity:
            return None
        self._controller, self._heard_s = controller, time.monotonic()
        self._changed.set()  # the one before is waiting
        await self._up.wait()
        assert self._where is not None
        age_s = time.monotonic() - self._began_s
        attached = [name for name, bridge in self._bridges.items() if not bridge.done()]
        standing = HostStanding(self._terms.role, self._terms.spec, self._where, age_s, self._serving, attached)
        return msgspec.json.encode(standing)

    async def retire(self) -> None:
        """End in order, as if no controller had been there for long. The one that still asks has no say any more."""
        self._controller, self._heard_s = None, float("-inf")
        self._changed.set()  # that one is waiting
        if self._going is None:  # it was never started: its controller died first
            self._going = asyncio.create_task(self._watch_controller())

    async def signal(self, controller: str, number: int) -> None:
        """Signal the child."""
        child = await self._running(controller)
        if child is not None:
            child.signal(signal.Signals(number))

    async def _running(self, controller: str) -> Child | None:
        """Return the child, once there is one, if it runs and the controller has a say."""
        await self._up.wait()
        return self._child if controller == self._controller and self._end is None else None

    # A dispatcher's host

    async def tell(self, controller: str, message: bytes) -> None:
        """Pass a message on to the dispatcher."""
        child = await self._running(controller)
        if child is not None:
            child.send(message)

    async def attach(self, controller: str, message: bytes, replica: Any) -> None:
        """Connect the dispatcher with a replica.

        Args:
            controller: whose order it is.
            message: an `Attach`.
            replica: handle of its host.
        """
        child = await self._running(controller)
        if child is None:
            return
        attach = _decode_attach(message)
        ours, theirs = socket.socketpair()
        child.take(attach, theirs)
        self._bridges[attach.replica] = asyncio.create_task(self._bridge(child, attach.replica, ours, replica))

    async def _bridge(self, dispatcher: Child, name: str, sock: socket.socket, replica: Any) -> None:
        """Carry frames between a dispatcher and one replica, until one of them ends the connection.

        A replica may have several batches in hand: each is a call of its own.
        """
        link, calls = _Link(sock), set[asyncio.Future[bytes]]()
        hearing: asyncio.Future[bytes] | None = None
        try:
            number, answer = await replica.connect.remote()
            while answer:
                await link.send(answer)
                answer = b""
                while not answer:
                    hearing = hearing or asyncio.ensure_future(link.receive())
                    done, _ = await asyncio.wait({hearing, *calls}, return_when=asyncio.FIRST_COMPLETED)
                    if hearing in done:
                        frame, hearing = hearing.result(), None
                        if not frame:
                            return
                        calls.add(asyncio.ensure_future(replica.run.remote(number, frame)))
                    elif not (answer := _taken(calls, done)):
                        return
        except RayError as error:
            logger.warning("the way to replica %s broke: %s", name, cause(error))
            dispatcher.tell(ReplicaLost(name))
            self._hear(dispatcher, Replace(name, f"the way to it broke: {cause(error)}"))
            while await (hearing or link.receive()):  # its end stays open until the dispatcher has closed its own
                hearing = None
        except OSError:
            pass  # the dispatcher has closed its end
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            link.close()
            if hearing is not None:  # which ends with the link
                await asyncio.gather(hearing, return_exceptions=True)

    # A replica's host

    async def connect(self) -> tuple[int, bytes]:
        """Connect the replica with the dispatcher that asks, and with no other from now on.

        Returns:
            Number of the connection, and the replica's first frame, once it is ready; empty if it has ended.
        """
        await self._up.wait()
        if self._child is None or self._end is not None:
            return 0, b""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        link = self._links[number] = _Link(ours)
        self._child.connect(theirs)
        ready = await link.receive()
        for older in [each for each in self._links if each < number]:  # the replica has answered what it had in hand
            self._links.pop(older).close()
        return number, ready

    async def run(self, number: int, frame: bytes) -> bytes:
        """Have the replica take a frame; return one of its answers, empty once it or the connection has ended.

        There are as many answers as frames, and each says what it is about.
        """
        link = self._links.get(number)
        if link is None:
            return b""
        try:
            await link.send(frame)
        except OSError:
            return b""
        return await link.receive()

    async def leave(self, controller: str) -> None:
        """Have the replica end once it has no batch in hand."""
        child = await self._running(controller)
        if child is not None:
            child.leave()

    # The child

    def _children(self) -> Children:
        terms = self._terms
        return Children(
            Path(terms.log_folder),
            lambda child, code, reason, tail: self._finish(ChildEnd(code, reason, tail, child.died_at)),
            self._hear,
            placed=True,
            replica_module=terms.replica_module,
            dispatcher_module=terms.dispatcher_module,
            single=True,
        )

    def _hear(self, child: Child, message: FromDispatcher) -> None:
        self._serving = self._serving or isinstance(message, Serving)
        self._messages.append(message)
        self._changed.set()

    def _finish(self, end: ChildEnd) -> None:
        self._end = end
        self._over.set()
        for bridge in self._bridges.values():
            bridge.cancel()
        self._changed.set()

    async def _watch_controller(self) -> None:
        """Once no controller has asked for long, end: dispatchers first, since they finish what replicas have."""
        terms = self._terms
        while time.monotonic() - self._heard_s < terms.orphan_s:  # noqa: ASYNC110  nobody says that it is gone
            await asyncio.sleep(_LOOK_S)
        logger.warning("no controller has asked for %g s: this ends", terms.orphan_s)
        child = self._child
        if child is not None and terms.role == "dispatcher":
            child.tell(Stop())
        elif child is not None:
            await self._ended_within(terms.drain_timeout_s)
            child.leave()
        await self._ended_within(terms.drain_timeout_s)
        if child is not None and self._end is None:
            child.signal(signal.SIGKILL)
            await self._ended_within(1.0)
        ray.kill(ray.get_runtime_context().current_actor)

    async def _ended_within(self, deadline_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._over.wait()


class _Link:
    """Our end of a socket pair to a child: whole frames, in the order in which they were asked for. This closes it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frames = frames(sock)
        self._receiving = self._closed = False
        self._sends, self._receives = asyncio.Lock(), asyncio.Lock()

    async def send(self, frame: bytes) -> None:
        """Send a frame.

        Raises:
            OSError: the other end is closed.
        """
        async with self._sends:
            await asyncio.get_running_loop().sock_sendall(self._sock, frame)

    async def receive(self) -> bytes:
        """Wait for the next frame; empty at the end."""
        async with self._receives:
            if self._closed:
                return b""
            self._receiving = True
            try:
                return await anext(self._frames, b"")
            except (OSError, ValueError):
                return b""
            finally:
                self._receiving = False
                if self._closed:
                    self._sock.close()

    def close(self) -> None:
        """Close it; the receiver gets an end first."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._receiving:
            self._sock.close()


def _taken(calls: set[asyncio.Future[bytes]], done: set[asyncio.Future[bytes]]) -> bytes:
    """Take one call that is done out of those under way; return what it answered."""
    call = next(iter(done))
    calls.discard(call)
    return call.result()


def cause(error: RayError) -> str:
    """Return why a call of an actor failed, in a sentence of the library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("The actor is dead because")), (lines or [""])[0])
    return reason.partition(". ")[0].rstrip(".") or type(error).__name__
