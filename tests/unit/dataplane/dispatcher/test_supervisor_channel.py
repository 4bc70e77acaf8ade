"""A dispatcher's end of the channel to its supervisor."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inferline_stream.dataplane.dispatcher.supervisor_channel import SupervisorChannel
from inferline_stream.dataplane.supervisor_messages import (
    Attach,
    FromSupervisor,
    Replace,
    ReplicaLost,
    Retire,
    Serving,
    Stop,
    decode_from_dispatcher,
    encode_attachment,
)

ATTACH = Attach("a-1", "cpu-1", 0)


class Heard:
    def __init__(self) -> None:
        self.messages: list[FromSupervisor | None] = []
        self.sockets: list[socket.socket] = []

    def attach(self, message: Attach, sock: socket.socket) -> None:
        self.messages.append(message)
        self.sockets.append(sock)

    async def until(self, messages: int) -> None:
        async with asyncio.timeout(10.0):
            while len(self.messages) < messages:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def channel() -> AsyncIterator[tuple[socket.socket, SupervisorChannel, Heard]]:
    supervisor, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard = Heard()
    found = SupervisorChannel(ours, heard.attach, heard.messages.append)
    with supervisor, ours:
        found.listen()
        yield supervisor, found, heard
        found.close()
        for sock in heard.sockets:
            sock.close()


async def test_messages_come_in_their_order_and_the_end_comes_once() -> None:
    sent = (Retire("a-1"), ReplicaLost("a-2"), Stop())
    async with channel() as (supervisor, _, heard):
        for message in sent:
            supervisor.send(encode_attachment(message))
        supervisor.close()
        await heard.until(4)
        await asyncio.sleep(0.01)
    assert heard.messages == [*sent, None]


async def test_a_replica_comes_with_the_connection_to_it() -> None:
    replica, theirs = socket.socketpair()
    async with channel() as (supervisor, _, heard):
        with replica, theirs:
            socket.send_fds(supervisor, [encode_attachment(ATTACH)], [theirs.fileno()])
            await heard.until(1)
            heard.sockets[0].send(b"batch")
            assert replica.recv(5) == b"batch"
    assert heard.messages == [ATTACH]


async def test_a_replica_whose_connection_did_not_arrive_is_replaced() -> None:
    async with channel() as (supervisor, _, heard):
        supervisor.send(encode_attachment(ATTACH))
        supervisor.send(encode_attachment(Stop()))
        await heard.until(1)
        replace = decode_from_dispatcher(supervisor.recv(1024))
    assert isinstance(replace, Replace)
    assert replace.replica == "a-1"
    assert heard.messages == [Stop()]


async def test_a_supervisor_that_is_gone_takes_no_message_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with channel() as (supervisor, found, _):
        supervisor.close()
        found.say(Serving())
    assert "the supervisor does not take a message" in caplog.text
