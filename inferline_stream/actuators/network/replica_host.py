"""``python -m inferline_stream.actuators.network.replica_host``: the parent of one replica of a cluster.

It starts the replica, which loads its stage and seals itself with a pair of sockets as its only way out, and connects
to a dispatcher of its stage, again and again. A dispatcher that is lost costs the replica nothing but its batch: the
model stays loaded. SIGTERM has it finish its batch and leave. Name and `ReplicaHostSpec` come from the environment.

A host runs one replica in its life, and exits as it did. One that is started again, as a container is in its pod,
waits until its pod is deleted, so that no name is used twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import uvloop

from inferline_stream.actuators.child import Child
from inferline_stream.actuators.child_logs import copied_logs
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.network.credentials import replica_context
from inferline_stream.actuators.network.host_link import (
    SHUTDOWN_S,
    EndReplica,
    HostEnded,
    HostHello,
    HostLink,
    Leaving,
    Message,
    Offer,
    SeenElsewhere,
    Take,
)
from inferline_stream.dataplane.process_specs import REPLICA_MODULE, ReplicaSpec
from inferline_stream.errors import InferlineError
from inferline_stream.observability.plain_logs import log_to_stderr_plainly
from inferline_stream.settings import HOST_NAME, HOST_SPEC, host_given, host_node

logger = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 0.6
"""Between attempts: short, since a stage stands still without its replicas."""

_AT_ONCE = 12
"""Attempts under way. The common address may still lead to a node that is lost, where an attempt hangs: the next one is
not held up by it, and finds another dispatcher."""

_DIAL_S = 3.0
"""Longest time to a dispatcher's offer."""

_TRIES = 3
"""Connections per dispatcher of the stage, to find the one with the fewest replicas behind one common address."""

_FIRST_LOOK_S, _LONGEST_LOOK_S = 1.0, 60.0
"""Between looks at what other dispatchers have, a quarter of the time since it was connected with its own: one that was
lost, and whose replicas went to others, is back soon, if it comes back."""


class HostEnd(msgspec.Struct, frozen=True):
    """How a life of a host's child has ended."""

    exit_code: int
    """As the system reports it; negative for a signal."""
    reason: str
    tail: str = ""
    """The last lines that it wrote, if it failed."""
    restarted: bool = False
    """Of a dispatcher: whether its host has started it again."""
    replaced: bool = False
    """Of a replica: whether its dispatcher has asked for another one."""


class _Offered:
    """A link on which `HostHello` was sent."""

    def __init__(self, host: ReplicaHost) -> None:
        self._host = host
        self.offer: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    def heard(self, link: HostLink, message: Message) -> None:
        """Take what the dispatcher's host sends."""
        if isinstance(message, Offer) and not self.offer.done():
            self.offer.set_result(message)
        elif isinstance(message, EndReplica):
            self._host.end(message.reason)

    def closed(self, link: HostLink, why: str) -> None:
        """The connection is gone."""
        logger.info("the connection to the dispatcher ended: %s", why)
        if not self.offer.done():
            self.offer.set_exception(ConnectionResetError(why))
            self.offer.exception()  # nobody asks for it where the attempt was given up
        self.over.set()


class ReplicaHost:
    """Keeps one replica connected.

    Args:
        spec: of the replica.
        node: that it is on.
        dispatchers: see the attribute.
        context: TLS with the replicas' credential.
        logs: folder for what the replica prints.
        ready: called once the replica has something to say.
        module: what the replica's process runs as ``__main__``.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        node: str,
        dispatchers: Sequence[str],
        context: ssl.SSLContext,
        logs: Path,
        *,
        ready: Callable[[], object] = lambda: None,
        module: str = REPLICA_MODULE,
    ) -> None:
        self.dispatchers = list(dispatchers)
        """``host:port`` where dispatchers of its stage are found: of each one, or of all, perhaps another each time."""
        self._spec = spec
        self._node = node
        self._context = context
        self._ready = ready
        self._children = Children(logs, self._ended, placed=True, replica_module=module, single=True)
        self._child: Child | None = None
        self._link: HostLink | None = None
        self._attached = self._leaving = False
        self._why = ""
        self._end: asyncio.Future[HostEnd] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        """The replica's process, once it was started."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the replica.

        Raises:
            InvalidInput: its isolation needs what this machine does not have.
            OSError: the process could not be started.
        """
        self._child = self._children.start_replica(self._spec)

    async def run(self) -> HostEnd:
        """Keep the replica connected to its end."""
        connecting = asyncio.create_task(self._stay_connected())
        try:
            done, _ = await asyncio.wait((self._end, connecting), return_when=asyncio.FIRST_COMPLETED)
            if connecting in done:
                connecting.result()
            return await self._end
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            if self._link is not None:
                self._link.close()
            self._children.close()

    def leave(self) -> None:
        """Have the replica finish its batch and leave."""
        self._leaving = True
        if self._link is not None:
            self._link.send(Leaving())
        elif self._child is not None:
            self._child.leave()

    def end(self, reason: str) -> None:
        """End the replica now, because its dispatcher wants another one."""
        self._why = reason
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Signal the replica."""
        if self._child is not None:
            self._child.signal(number)

    def _ended(self, child: Child, code: int, reason: str, tail: str) -> None:
        reason = self._why or reason
        logger.log(logging.INFO if code == 0 else logging.ERROR, "replica %s ended: %s", child.name, reason)
        if self._link is not None:
            self._link.send(HostEnded(reason))
        if not self._end.done():
            self._end.set_result(HostEnd(code, reason, tail, replaced=bool(self._why)))

    async def _stay_connected(self) -> None:
        while not self._end.done():
            link, offered, offer = await self._connect()
            self._attach(link)
            looking = asyncio.create_task(self._look_elsewhere(link, offer))
            try:
                await offered.over.wait()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            self._link = None
            if self._leaving and self._child is not None:
                self._child.leave()

    async def _look_elsewhere(self, link: HostLink, own: Offer) -> None:
        """Tell the replica's dispatcher what others have, now and then: each look is at as many as there are others."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while own.slots > 1:
            pause_s = min(_LONGEST_LOOK_S, max(_FIRST_LOOK_S, (loop.time() - began_s) / 4))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311  spreads looks
            for _ in range(own.slots - 1):
                other, _, offer = await self._served()
                other.close()
                if offer.dispatcher != own.dispatcher and not self._leaving:
                    link.send(SeenElsewhere(offer.replicas))

    async def _connect(self) -> tuple[HostLink, _Offered, Offer]:
        """Connect to the dispatcher that has the fewest replicas, however long none serves."""
        link, offered, best = await self._served()
        seen = {best.dispatcher}
        for _ in range(_TRIES * best.slots if best.slots > 1 else 0):
            if len(seen) >= best.slots or offered.over.is_set():
                break
            other, other_offered, offer = await self._served()
            seen.add(offer.dispatcher)
            if offer.replicas < best.replicas:
                link.close()
                link, offered, best = other, other_offered, offer
            else:
                other.close()
        return link, offered, best

    async def _served(self) -> tuple[HostLink, _Offered, Offer]:
        """Connect to a dispatcher that serves, by attempts that overlap."""
        wait_s, pending = _FIRST_WAIT_S, set[asyncio.Task[tuple[HostLink, _Offered, Offer]]]()
        try:
            while True:
                if len(pending) < _AT_ONCE:
                    pending.add(asyncio.create_task(self._offered()))
                pause_s = wait_s * random.uniform(0.5, 1.5)  # noqa: S311  spreads attempts
                done, pending = await asyncio.wait(pending, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                found = [task.result() for task in done if task.exception() is None]
                serving = [each for each in found if each[2].dispatcher]
                for each in found:
                    if not serving or each is not serving[0]:
                        each[0].close()
                if serving:
                    return serving[0]
                if done:
                    await asyncio.sleep(pause_s)
                wait_s = min(1.5 * wait_s, _LONGEST_WAIT_S)
        finally:
            for task in pending:
                task.cancel()
            for late in await asyncio.gather(*pending, return_exceptions=True):
                if not isinstance(late, BaseException):
                    late[0].close()

    async def _offered(self) -> tuple[HostLink, _Offered, Offer]:
        offered = _Offered(self)
        if not self.dispatchers:
            raise ConnectionError("no dispatcher is known")
        address, _, port = random.choice(self.dispatchers).rpartition(":")  # noqa: S311  spreads replicas
        async with asyncio.timeout(_DIAL_S):
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: HostLink(offered.heard, offered.closed),
                address,
                int(port),
                ssl=self._context,
                ssl_handshake_timeout=_DIAL_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
            try:
                kind, again = self._spec.hardware, self._attached
                link.send(HostHello(self._spec.replica, kind.name, self._node, gpu=kind.gpus > 0, again=again))
                return link, offered, await offered.offer
            except BaseException:
                link.close()
                raise

    def _attach(self, link: HostLink) -> None:
        assert self._child is not None
        ours, theirs = socket.socketpair()
        self._child.connect(theirs)
        self._attached = True
        link.on_first(self._ready)
        self._link = link
        link.send(Take())
        link.carry(ours)
        if self._leaving:
            link.send(Leaving())


# In a pod


class ReplicaHostSpec(msgspec.Struct, frozen=True):
    """What a replica's host is given."""

    replica: ReplicaSpec
    """Without a name: the host's becomes the replica's."""
    dispatcher: str
    """``host:port`` at which a dispatcher of the stage is found, perhaps another one each time."""
    life: str
    """Folder that lasts as long as the host's name does, over restarts of this process."""
    credential: str
    """Folder of the replicas' credential."""


async def run(name: str, spec: ReplicaHostSpec, module: str = REPLICA_MODULE) -> int:
    """Run the replica to its end, or wait where this host has had its replica; returns the exit code."""
    loop, life = asyncio.get_running_loop(), Path(spec.life)
    (life / "ready").unlink(missing_ok=True)
    begun = life / "begun"
    if begun.exists():
        going = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, going.set)
        logger.warning("%s has had its replica; it waits to be deleted", name)
        await going.wait()
        return 0
    begun.touch()
    replica = msgspec.structs.replace(spec.replica, replica=name)
    context, logs, ready = replica_context(Path(spec.credential)), life / "logs", (life / "ready").touch
    host = ReplicaHost(replica, host_node(), [spec.dispatcher], context, logs, ready=ready, module=module)
    loop.add_signal_handler(signal.SIGTERM, host.leave)
    async with copied_logs(logs):
        try:
            host.start()
            code = (await host.run()).exit_code
        except InferlineError as error:
            sys.stderr.write(f"{error}\n")
            return error.exit_code
    return 128 - code if code < 0 else code


def main() -> int:
    """Run what the environment says; returns the exit code."""
    log_to_stderr_plainly()
    name, _, given = host_given()
    if not (name and given):
        sys.stderr.write(f"a host is given its name in {HOST_NAME} and its spec in {HOST_SPEC}\n")
        return 2
    return uvloop.run(run(name, msgspec.json.decode(given, type=ReplicaHostSpec)))


if __name__ == "__main__":
    sys.exit(main())
