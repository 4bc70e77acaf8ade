"""What the HTTP source answers before Kafka is asked."""

from __future__ import annotations

import asyncio

from aiohttp import web

from inferline_stream.connectors.sources.http_application import Ingest, IngestLimits
from inferline_stream.kafka.record_producer import RecordProducer


async def test_a_body_that_does_not_come_is_not_waited_for_and_frees_its_place():
    nobody = RecordProducer("127.0.0.1:9")
    ingest = Ingest(nobody, "posts", None, IngestLimits(pending=1, body_s=0.1))
    ingest.open = True
    runner = web.AppRunner(ingest.application(), lingering_time=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*runner.addresses[0])
            writer.write(
                b"POST /events HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            async with asyncio.timeout(30):
                answer = await reader.readuntil(b"}")
            writer.close()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"the body did not come within 0.1 s" in answer
    finally:
        await runner.cleanup()
    assert (ingest.counts.refused, ingest.counts.accepted) == (2, 0)
