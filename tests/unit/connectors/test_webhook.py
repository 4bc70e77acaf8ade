"""What a webhook makes of a receiver's answers, and by which keys it knows events, on a server of this process."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from inferline_stream.connectors.sinks.topic_sink import Away
from inferline_stream.connectors.sinks.webhook import Webhook
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID
from tests.contracts.webhook_receiver import Receiver


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    async with made.up():
        yield made


def events(*ids: str) -> list[Record]:
    return [Record(None, b"1", [(EVENT_ID, known.encode())], offset=at) for at, known in enumerate(ids)]


@pytest.mark.parametrize(
    ("said", "after_s"), [("2", 2.0), ("²", 0.0), ("soon", 0.0), ("-1", 0.0), ("1764550000", 3600.0)]
)
async def test_a_receiver_that_is_busy_says_when_to_come_again_and_nothing_else_ends_the_sink(
    receiver: Receiver, said: str, after_s: float
) -> None:
    receiver.answers = [web.Response(status=503, headers={"Retry-After": said})]
    async with Webhook(receiver.url) as webhook:
        with pytest.raises(Away) as away:
            await webhook.store(events("a"), "topic")
    assert away.value.after_s == after_s


@pytest.mark.parametrize(
    "ids", [("é", "%E9", "\u0e99", "é9"), ("a b", "a%20b"), ("x" * 2000, "x" * 2001), ("", "topic/0/0")]
)
async def test_events_of_other_ids_have_other_keys(receiver: Receiver, ids: tuple[str, ...]) -> None:
    async with Webhook(receiver.url) as webhook:
        await webhook.store(events(*ids), "topic")
    assert len(set(receiver.keys)) == len({known or "topic/0/0" for known in ids})
    assert all(re.fullmatch("[!-~]{1,1024}", key) for key in receiver.keys)
