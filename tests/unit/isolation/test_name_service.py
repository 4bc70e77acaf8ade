"""Names of hosts, for replicas that cannot look them up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from inferline_stream.isolation.name_service import Loop, NameService


@pytest.fixture
async def service() -> AsyncIterator[NameService]:
    service = NameService()
    yield service
    service.close()


async def asked(service: NameService, name: bytes) -> list[str]:
    """What the service answers, asked as a replica would."""
    service.theirs.setblocking(True)
    service.theirs.settimeout(10)
    await asyncio.to_thread(service.theirs.send, name)
    host, addresses = json.loads(await asyncio.to_thread(service.theirs.recv, 65536))
    assert host == name.decode("ascii", errors="replace")[:253]
    return list(addresses)


async def test_a_host_has_its_addresses(service: NameService) -> None:
    assert "127.0.0.1" in await asked(service, b"localhost")


@pytest.mark.parametrize("name", [b"no such host", b"a" * 254, b"\xff\xfe", b"-x-", b"a/b", b"a..b", b"a" * 64])
async def test_what_is_no_host_has_none(service: NameService, name: bytes) -> None:
    assert await asked(service, name) == []


async def test_a_replica_may_not_ask_for_name_after_name(service: NameService) -> None:
    service.known.update(f"broker-{number}.invalid" for number in range(64))
    assert await asked(service, b"localhost") == []


async def connect(service: NameService | None, host: str, port: int, *, known: bool) -> bytes:
    """Connect to a host from a sealed replica's loop, that knew the host before the seal or did not."""

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        if known:
            await loop.addresses(host)
        loop.channel = service.theirs if service is not None else None
        loop.sealed = True
        reader, writer = await asyncio.open_connection(host, port)
        greeting = await reader.read()
        writer.close()
        return greeting

    def run() -> bytes:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return runner.run(asyncio.wait_for(talk(), 10))

    return await asyncio.to_thread(run)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server that greets."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_name_that_is_new_after_the_seal_is_looked_up_by_the_starter_of_the_replica(
    service: NameService, port: int
) -> None:
    service.theirs.setblocking(False)
    assert await connect(service, "localhost", port, known=False) == b"hello"


async def test_without_anyone_to_ask_the_addresses_of_before_the_seal_count(port: int) -> None:
    assert await connect(None, "localhost", port, known=True) == b"hello"
    with pytest.raises(OSError, match="no such host was known when the replica was sealed"):
        await connect(None, "localhost", port, known=False)
