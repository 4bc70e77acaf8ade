"""The connection between hosts: bytes and messages in order, silence noticed, strangers refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferline_stream.actuators.network import host_link as links
from inferline_stream.actuators.network.credentials import (
    Credential,
    dispatcher_context,
    new_credential,
    replica_context,
)
from inferline_stream.actuators.network.host_link import HostHello, HostLink, Leaving, Message, Offer

DEADLINE_S = 10.0


class End:
    """One end of a link, and what has come of it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.link = HostLink(lambda link, message: self.heard.put_nowait(message), lambda link, why: self._closed(why))

    def _closed(self, why: str) -> None:
        self.over.set_result(why)


@contextlib.asynccontextmanager
async def linked(
    server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> AsyncIterator[list[End]]:
    loop, near, far = asyncio.get_running_loop(), End(), End()
    listening = await loop.create_server(lambda: near.link, "127.0.0.1", 0, ssl=server)
    port = listening.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE_S):
        try:
            await loop.create_connection(lambda: far.link, "127.0.0.1", port, ssl=client)
            far.link.send(HostHello("r", "cpu"))
            assert await near.heard.get() == HostHello("r", "cpu")
            yield [near, far]
        finally:
            listening.close()
            near.link.close()
            far.link.close()
            await asyncio.sleep(0.05)  # transports end in the next rounds of the loop


def written(credential: Credential, folder: Path) -> tuple[Path, Path]:
    for side, files in (("dispatcher", credential.dispatcher), ("replica", credential.replica)):
        (folder / side).mkdir(parents=True)
        for name, content in files.items():
            (folder / side / name).write_bytes(content)
    return folder / "dispatcher", folder / "replica"


async def test_bytes_of_a_local_socket_come_out_at_the_other_end_whole_while_messages_pass_between_them() -> None:
    async with linked() as (near, far):
        ours, theirs = socket.socketpair()
        mine, yours = socket.socketpair()
        near.link.carry(theirs)
        far.link.carry(yours)
        data = bytes(range(256)) * 40_000  # more than any buffer holds: each side waits for the other
        for sock in (ours, mine):
            sock.setblocking(False)
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(ours, data))
        far.link.send(Leaving())
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(mine, 1 << 16)
        await sending
        assert got == data
        assert await near.heard.get() == Leaving()
        ours.close()
        assert await far.over == "the other side closed the connection"
        assert await loop.sock_recv(mine, 1) == b"", "its end passes on"
        mine.close()


async def test_a_side_that_says_nothing_is_given_up_and_one_that_lives_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PING_S", 0.05)
    monkeypatch.setattr(links, "SILENT_S", 0.3)
    async with linked() as (near, far):
        await asyncio.sleep(0.6)
        assert not near.over.done(), "both live, and have nothing to say"
        far.link._timer.cancel()  # it hangs
        assert "nothing came for" in await near.over


async def test_what_is_no_record_ends_the_connection() -> None:
    async with linked() as (near, far):
        far.link._transport.write(b"GET / HTTP/1.1\r\n\r\n")
        assert "is none of this release" in await near.over


async def test_a_message_of_another_release_ends_the_connection() -> None:
    async with linked() as (near, far):
        far.link._write(links._MESSAGE, b"\x81\xa4type\xa5novel")
        assert "cannot be read" in await near.over


async def test_both_sides_of_one_credential_know_each_other(tmp_path: Path) -> None:
    server, client = written(new_credential("p/a"), tmp_path)
    async with linked(dispatcher_context(server), replica_context(client)) as (near, far):
        near.link.send(Offer("d", 2, 3))
        assert await far.heard.get() == Offer("d", 2, 3)


@pytest.mark.parametrize("stranger", ["another stage's replica", "a replica as dispatcher", "nobody"])
async def test_who_has_not_the_other_sides_key_is_refused(stranger: str, tmp_path: Path) -> None:
    server, client = written(new_credential("p/a"), tmp_path / "a")
    _, other_client = written(new_credential("p/b"), tmp_path / "b")
    theirs = dispatcher_context(server)
    if stranger == "another stage's replica":
        ours = replica_context(other_client)
        ours.load_verify_locations(client / "other.pem")
    elif stranger == "a replica as dispatcher":
        theirs, ours = dispatcher_context(client), replica_context(client)
    else:
        ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ours.check_hostname = False
        ours.load_verify_locations(client / "other.pem")
    with pytest.raises((ssl.SSLError, ConnectionError, TimeoutError)):
        async with asyncio.timeout(2.0), linked(theirs, ours):
            pass
