"""Connections that ask for nothing make room; requests beyond the limit get 503."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket

import pytest
from aiohttp import web

from inferline_stream.connectors.sources.http import Listener, _address
from inferline_stream.connectors.sources.http_application import Ingest, IngestLimits
from inferline_stream.kafka.record_producer import RecordProducer

HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n"


@contextlib.asynccontextmanager
async def listening(limits: IngestLimits):
    ingest = Ingest(RecordProducer("127.0.0.1:9"), "posts", None, limits)
    ingest.open = True
    runner = web.AppRunner(ingest.application(), lingering_time=0.0)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as opened:
        task = asyncio.create_task(Listener(runner.server, opened, None, ingest.connections).run())
        try:
            async with asyncio.timeout(30):
                yield opened.getsockname()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


async def answer_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(HEALTH)
    return (await reader.readuntil(b"\r\n")).rstrip()


async def test_headers_that_do_not_come_are_not_waited_for_however_slowly_they_drip():
    async with listening(IngestLimits(idle_s=0.5)) as address:
        silent, writer = await asyncio.open_connection(*address)
        slow, dripping = await asyncio.open_connection(*address)
        for byte in HEALTH[:-1]:
            if slow.at_eof() or dripping.is_closing():
                break
            dripping.write(bytes([byte]))
            await asyncio.sleep(0.05)
        for reader in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        reader, asking = await asyncio.open_connection(*address)
        assert await answer_to(reader, asking) == b"HTTP/1.1 200 OK"
        for each in (writer, dripping, asking):
            each.close()


async def test_any_number_of_idle_connections_leaves_room_for_those_that_ask():
    async with listening(IngestLimits(requests=4, connections=8)) as address:
        idle = [await asyncio.open_connection(*address) for _ in range(40)]
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*address)
            assert await answer_to(reader, writer) == b"HTTP/1.1 200 OK"
            writer.close()
        for _, writer in idle:
            writer.close()


async def test_a_request_beyond_the_limit_is_asked_to_come_again():
    body = (
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    async with listening(IngestLimits(requests=2, connections=8, body_s=20.0)) as address:
        waiting = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, writer in waiting:
            writer.write(body)
        async with asyncio.timeout(10):
            while True:
                reader, writer = await asyncio.open_connection(*address)
                status = await answer_to(reader, writer)
                rest = await reader.readuntil(b"\r\n\r\n")
                writer.close()
                if status != b"HTTP/1.1 200 OK":
                    break
        assert status == b"HTTP/1.1 503 Service Unavailable"
        assert b"Retry-After: 1\r\n" in rest
        for _, writer in waiting:
            writer.close()


@pytest.mark.parametrize("text", ["localhost:8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:65536"])
def test_an_address_to_listen_on_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be an address and a port, e\.g\. 127\.0\.0\.1:8080"):
        _address(text)


def test_an_address_to_listen_on_may_be_of_ipv6() -> None:
    assert _address("[::1]:8080") == ("::1", 8080)
