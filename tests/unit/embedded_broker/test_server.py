"""The embedded broker within this process, and its manners towards strangers."""

import asyncio
import socket
import struct
import subprocess
import sys

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.fetch import FetchRequest

from inferline_stream.embedded_broker.server import EmbeddedBroker


@pytest.fixture
async def broker():
    async with EmbeddedBroker() as broker:
        yield broker


async def ask(broker, frame, answer_bytes):
    host, port = broker.bootstrap_servers.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(frame)
        async with asyncio.timeout(60):
            return await (reader.readexactly(answer_bytes) if answer_bytes else reader.read())
    finally:
        writer.close()
        await writer.wait_closed()


def request(key, version, body=b""):
    header = struct.pack(">hhih", key, version, 99, -1)
    return struct.pack(">i", len(header + body)) + header + body


FETCH = request(1, 11, FetchRequest(60_000, 1, 1000, 0, [("topic", [(0, 0, 1000)])]).prepare({1: (11, 11)}).encode())


async def test_it_closes_while_clients_wait_for_records():
    async with EmbeddedBroker() as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("topic", 1, 1)])
        await admin.close()
        waiting = asyncio.create_task(ask(broker, FETCH, 0))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        closing = asyncio.get_running_loop().time()
    assert await waiting == b""
    assert asyncio.get_running_loop().time() - closing < 5


async def test_a_fetch_that_waits_ends_when_its_topic_is_deleted(broker):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic("topic", 1, 1)])
    waiting = asyncio.create_task(ask(broker, FETCH, 4))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await admin.delete_topics(["topic"])
    await waiting
    await admin.close()


async def test_a_newer_client_is_asked_for_an_older_version(broker):
    size, correlation, code = struct.unpack(">iih", await ask(broker, request(18, 4), 10))
    assert (correlation, code) == (99, 35)
    size, correlation, code, kinds = struct.unpack(">iihi", await ask(broker, request(18, 0), 14))
    assert (code, size) == (0, 4 + 2 + 4 + kinds * 6)


@pytest.mark.parametrize(
    "frame",
    [
        request(999, 0),
        request(1, 99),
        b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
        struct.pack(">i", -5),
        request(3, 5, b"\xff"),
    ],
)
async def test_what_it_does_not_speak_ends_the_connection_and_nothing_else(broker, frame):
    assert await ask(broker, frame, 0) == b""
    assert await ask(broker, request(18, 0), 14)


def test_a_port_that_is_taken_is_named_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "inferline_stream.embedded_broker", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
