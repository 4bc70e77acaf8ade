"""``python -m inferline_stream.actuators.network.dispatcher_host``: the parent of one dispatcher of a cluster.

It runs what its posting names, takes connections of its stage's replicas while that dispatcher serves, and starts it
again at once when it dies. SIGTERM drains it. Name, address and `DispatcherHostSpec` come from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from inferline_stream.actuators.child_logs import copied_logs
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.network.credentials import dispatcher_context
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
from inferline_stream.actuators.supervisor import Attachable, Supervisor
from inferline_stream.dataplane.host_postings import Posting, decode_posting, posting_key
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, DispatcherSpec
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.errors import UNREADABLE, Unreachable
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.plain_logs import log_to_stderr_plainly
from inferline_stream.settings import HOST_ADDRESS, HOST_NAME, HOST_SPEC, host_given, host_node

logger = logging.getLogger(__name__)

_HANDSHAKE_S = 5.0
_LIVES = 1000
"""Restarts of a dispatcher that one life of its host is given numbers for."""


class DispatcherHostSpec(msgspec.Struct, frozen=True):
    """What a dispatcher's host is given."""

    stage: str
    bootstrap_servers: str
    assignments: str
    """Full name of the topic that has its postings."""
    life: str
    """Folder that lasts as long as the host's name does, over restarts of this process."""
    credential: str
    """Folder of the dispatchers' credential."""
    port: int
    """That replicas connect to."""
    drain_timeout_s: float = 30.0
    module: str = DISPATCHER_MODULE
    """What the dispatcher's process runs as ``__main__``."""


class DispatcherHost:
    """Runs one dispatcher of a stage at a time, and connects replicas of other hosts with it while it serves.

    Args:
        stage: of both.
        node: that this is on.
        logs: folder for what dispatchers print.
        drain_timeout_s: time that one has to stop.
        module: what its process runs as ``__main__``.
    """

    def __init__(self, stage: str, node: str, logs: Path, *, drain_timeout_s: float, module: str) -> None:
        children = partial(Children, logs, dispatcher_module=module)
        self.supervisor = Supervisor(children, drain_timeout_s=drain_timeout_s)
        self._stage = stage
        self._node = node
        self._drain_timeout_s = drain_timeout_s
        self._hellos: dict[HostLink, HostHello] = {}
        self._remotes: dict[HostLink, Attachable] = {}
        self._slots = 1

    @asynccontextmanager
    async def listening(self, address: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
        """Take connections of replicas within the block, at whose end the dispatcher drains.

        Yields:
            the port; a free one was taken for 0.

        Raises:
            OSError: the port is taken.
        """
        async with self.supervisor:
            server = await asyncio.get_running_loop().create_server(
                lambda: HostLink(self._heard, self._lost),
                address,
                port,
                ssl=context,
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
            try:
                yield server.sockets[0].getsockname()[1]
            finally:
                server.close()
                await self.supervisor.drain(self._drain_timeout_s)
                for link in [*self._hellos, *self._remotes]:
                    link.close()

    async def dispatch(self, dispatcher: DispatcherSpec | None, slots: int = 1) -> None:
        """Run a dispatcher in the place of the one before, which drains.

        Args:
            dispatcher: what to run; None for nothing.
            slots: of its stage.
        """
        if dispatcher is None:
            await self.supervisor.dispatch(self._stage, [])
            return
        self._slots = slots
        await self.supervisor.dispatch(self._stage, [msgspec.structs.replace(dispatcher, node=self._node)])

    def _heard(self, link: HostLink, message: Message) -> None:
        match message:
            case HostHello():
                self._hellos[link] = message
                dispatcher, replicas = self.supervisor.serving(self._stage)
                link.send(Offer(dispatcher, self._slots, replicas))
            case Take() if link in self._hellos:
                self._take(link, self._hellos.pop(link))
            case Leaving() if link in self._remotes:
                self.supervisor.retire_remote(self._remotes[link])
            case SeenElsewhere() if link in self._remotes:
                self.supervisor.move_remote(self._remotes[link], message.replicas)
            case HostEnded() if link in self._remotes:
                remote = self._remotes.pop(link)
                logger.info("replica %s ended: %s", remote.name, message.reason)
                self.supervisor.remote_gone(self._stage, remote, lost=False)
                link.close()

    def _take(self, link: HostLink, hello: HostHello) -> None:
        for other in [other for other, remote in self._remotes.items() if remote.name == hello.replica]:
            self._lost(other, "it has connected again")
            other.close()
        remote = Attachable(
            hello.replica,
            hello.hardware,
            hello.node,
            hello.gpu,
            hello.again,
            link.carry,
            lambda reason: link.send(EndReplica(reason)),
        )
        if self.supervisor.admit(self._stage, remote):
            self._remotes[link] = remote
            logger.info("replica %s on %s is connected", hello.replica, hello.hardware)
        else:
            link.close()

    def _lost(self, link: HostLink, why: str) -> None:
        """A connection has ended, and its replica did not say that it has."""
        self._hellos.pop(link, None)
        remote = self._remotes.pop(link, None)
        if remote is None:
            return
        logger.info("replica %s: %s", remote.name, why)
        self.supervisor.remote_gone(self._stage, remote, lost=True)
        if (sock := link.drop()) is not None:
            _close_after_peer(sock)


def _close_after_peer(sock: socket.socket) -> None:
    """Close a socket once the dispatcher has closed its end: it shall read first why."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                if sock.recv(1 << 16):
                    return
            except BlockingIOError:
                raise
            except OSError:
                pass
            loop.remove_reader(sock.fileno())
            sock.close()

    loop.add_reader(sock.fileno(), read)


async def _follow(spec: DispatcherHostSpec, name: str, host: DispatcherHost) -> None:
    """Run what the host's newest posting names, for ever."""
    starts = _starts(Path(spec.life))
    wait_s = 0.1
    while True:
        try:
            async with TopicFollower(spec.bootstrap_servers, spec.assignments) as topic:
                wait_s = 0.1
                records = await topic.read_to(await topic.end())
                while True:
                    if found := list(_postings(records, posting_key(name))):
                        await _post(found[-1], host, starts)
                    records = await topic.read(0.5)
        except Unreachable as error:
            logger.warning("%s; again in %.1f s", error, wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(5.0, 2 * wait_s)


def _postings(records: Iterable[Record], key: str) -> Iterator[Posting | None]:
    """Yield what records of a host say; those that cannot be read are skipped."""
    for record in records:
        if record.key == key.encode():
            try:
                yield None if record.value is None else decode_posting(key, record.value)
            except UNREADABLE as error:
                logger.error("a posting cannot be read and is skipped: %.200s", repr(str(error)))


async def _post(posting: Posting | None, host: DispatcherHost, starts: int) -> None:
    if posting is None:
        await host.dispatch(None)
        return
    incarnation = posting.dispatcher.incarnation + starts * _LIVES
    await host.dispatch(msgspec.structs.replace(posting.dispatcher, incarnation=incarnation), posting.slots)


def _starts(life: Path) -> int:
    """Count this start of the host; its dispatchers' incarnations go on from those of the process before.

    A start adds a byte: one that is killed meanwhile, or finds the disk full, leaves nothing that cannot be read.
    """
    with (life / "starts").open("ab") as file:
        starts = file.tell()
        file.write(b".")
    return starts


async def run(name: str, address: str, spec: DispatcherHostSpec) -> int:
    """Serve until SIGTERM; returns the exit code."""
    life, going = Path(spec.life), asyncio.Event()
    (life / "ready").unlink(missing_ok=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, going.set)
    logs, context = life / "logs", dispatcher_context(Path(spec.credential))
    host = DispatcherHost(spec.stage, host_node(), logs, drain_timeout_s=spec.drain_timeout_s, module=spec.module)
    async with copied_logs(logs), host.listening(address, spec.port, context):
        (life / "ready").touch()
        await until_first(_follow(spec, name, host), going.wait())
    return 0


def main() -> int:
    """Run what the environment says; returns the exit code."""
    log_to_stderr_plainly()
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    name, address, given = host_given()
    if not (name and address and given):
        sys.stderr.write(f"a host is given its name, address and spec in {HOST_NAME}, {HOST_ADDRESS} and {HOST_SPEC}\n")
        return 2
    return uvloop.run(run(name, address, msgspec.json.decode(given, type=DispatcherHostSpec)))


if __name__ == "__main__":
    sys.exit(main())
