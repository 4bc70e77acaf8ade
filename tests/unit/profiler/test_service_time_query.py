"""Service times by a query: what Prometheus' API answers, and what is made of it."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from inferline_stream.pipeline.consumer_group import ConsumerGroup, PromQL
from inferline_stream.profiler import service_time_query
from inferline_stream.profiler.service_time_query import ServiceTimeQueries

DEADLINE_S = 20.0


def vector(*values: str) -> dict[str, Any]:
    result = [{"metric": {"pod": str(n)}, "value": [1.7e9, value]} for n, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def scalar(value: str) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "scalar", "result": [1.7e9, value]}}


@asynccontextmanager
async def asking(answers: list[dict[str, Any] | str], *, in_pieces: bool = False) -> AsyncIterator[ServiceTimeQueries]:
    """Queries of a server that gives these answers in turn, the last one again and again."""
    asked = []

    async def query(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["query"])
        answer = answers[min(len(asked), len(answers)) - 1]
        text = answer if isinstance(answer, str) else json.dumps(answer)
        if not in_pieces:
            return web.Response(text=text)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (text[:20], text[20:]):
            await response.write(piece.encode())
            await asyncio.sleep(0.02)
        return response

    app = web.Application()
    app.router.add_get("/prometheus/api/v1/query", query)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/prometheus/"
    group = ConsumerGroup("enrich", group="g", topic="t", service_time=PromQL(url, "sum(x)"))
    try:
        async with asyncio.timeout(DEADLINE_S), ServiceTimeQueries([group]) as queries:
            while len(asked) <= len(answers):
                await asyncio.sleep(0.01)
            yield queries
        assert set(asked) == {"sum(x)"}
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_time_query, "ASK_S", 0.01)


async def test_the_throughput_is_of_the_mean_of_the_answers_and_its_doubt_is_their_spread() -> None:
    times_s = [0.08, 0.1, 0.12]
    async with asking([vector("0.08"), scalar("0.1"), vector("NaN"), vector("0.12"), "busy"]) as queries:
        found = queries.throughput("enrich")
        assert found is not None
        assert (found.value, found.count) == (pytest.approx(10.0), 3)
        assert found.error == pytest.approx(statistics.stdev(times_s) / 0.1)
        assert queries.throughput("other") is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (vector(), "the query gives 0 series; aggregate them to one"),
        (vector("1", "2"), "the query gives 2 series; aggregate them to one"),
        (vector("0"), "gives 0.0, which is no time of an event"),
        ({"status": "error", "error": "parse error: unexpected end"}, "parse error: unexpected end"),
        ({"status": "success", "data": {"resultType": "matrix", "result": []}}, "gives a matrix, not a number"),
        ("<html>", "status 200, which is no answer of Prometheus"),
        ("[]", "status 200, which is no answer of Prometheus"),
        ('{"status": "success", "data": {"resultType": "vector"}}', "status 200, which is no answer of Prometheus"),
        ('{"status": "success", "data": {"resultType": "scalar", "result": []}}', "which is no answer of Prometheus"),
        (
            '{"status": "success", "data": {"resultType": "scalar", "result": [1, "x"]}}',
            "could not convert string to float",
        ),
    ],
)
async def test_an_answer_that_is_no_time_is_reported_and_not_used(answer: dict[str, Any] | str, why: str) -> None:
    async with asking([answer, answer, answer]) as queries:
        assert why in queries.trouble["enrich"]
        assert queries.throughput("enrich") is None


async def test_an_answer_that_comes_in_pieces_is_read_as_a_whole() -> None:
    async with asking([vector("0.1")] * 3, in_pieces=True) as queries:
        found = queries.throughput("enrich")
        assert found is not None, queries.trouble
        assert found.value == pytest.approx(10.0)


async def test_a_prometheus_that_is_away_is_asked_again() -> None:
    group = ConsumerGroup("enrich", group="g", topic="t", service_time=PromQL("http://127.0.0.1:9", "x"))
    async with ServiceTimeQueries([group]) as queries, asyncio.timeout(DEADLINE_S):
        while "http://127.0.0.1:9 has no service time" not in queries.trouble["enrich"]:
            await asyncio.sleep(0.01)
        assert queries.throughput("enrich") is None
