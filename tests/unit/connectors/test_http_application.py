"""What the HTTP source answers before Kafka is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from inferline_stream.connectors.sources.http_application import AwaitedResults, BearerTokens, Ingest, IngestLimits
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID


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


class Pipeline:
    """Stands for Kafka and the pipeline: what it is given comes out as results, once it is let."""

    def __init__(self, *results: tuple[bytes, bytes]) -> None:
        self.ids: list[bytes] = []
        self.results = results or ((b"", b'"a result"'),)
        """Of each result: what its id has before the event's, and what it is."""
        self.let = asyncio.Event()

    async def deliver(self, topic, value, *, key, timestamp_ms, headers) -> None:
        self.ids.append(dict(headers)[EVENT_ID])

    async def read(self, wait_s: float) -> list[Record]:
        await self.let.wait()
        self.let.clear()
        return [Record(None, result, [(EVENT_ID, before + self.ids[0])]) for before, result in self.results]


@contextlib.asynccontextmanager
async def taking(pipeline: Pipeline, *tokens: str) -> AsyncIterator[str]:
    results = AwaitedResults(pipeline, "posts")
    ingest = Ingest(pipeline, "posts", BearerTokens(tokens), IngestLimits(), results=results)
    ingest.open = True
    runner = web.AppRunner(ingest.application(), lingering_time=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    following = asyncio.create_task(results.follow())
    try:
        yield "http://{}:{}/events".format(*runner.addresses[0])
    finally:
        following.cancel()
        await runner.cleanup()


async def posted(url: str, token: str, prefer: str) -> tuple[int, dict]:
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "order/1", "Prefer": prefer}
    async with aiohttp.request("POST", url, json={}, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_key_of_one_token_is_no_key_of_another_which_gets_no_result_of_it():
    pipeline = Pipeline()
    async with asyncio.timeout(30), taking(pipeline, "alice" * 4, "bob" * 6) as url:
        alice = asyncio.create_task(posted(url, "alice" * 4, "wait=20"))
        while not pipeline.ids:
            await asyncio.sleep(0.01)
        bob = asyncio.create_task(posted(url, "bob" * 6, "wait=1"))
        while len(pipeline.ids) < 2:
            await asyncio.sleep(0.01)
        pipeline.let.set()
        assert (await alice)[1].get("result") == "a result"
        assert (await bob)[0] == 202
        assert (await posted(url, "alice" * 4, ""))[0] == 202
    first, others, again = pipeline.ids
    assert first == again, "what is sent again is the same event"
    assert first != others


async def test_where_ids_are_bound_to_their_topic_a_result_that_came_by_another_answers_nobody():
    pipeline = Pipeline((b"returns/", b'"forged"'), (b"returns/posts/", b'"forged"'), (b"posts/", b'"a result"'))
    async with asyncio.timeout(30), taking(pipeline, "alice" * 4) as url:
        alice = asyncio.create_task(posted(url, "alice" * 4, "wait=20"))
        while not pipeline.ids:
            await asyncio.sleep(0.01)
        pipeline.let.set()
        assert (await alice)[1].get("result") == "a result"
