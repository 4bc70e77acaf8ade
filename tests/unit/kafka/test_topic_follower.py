"""A follower on the embedded broker whose topic's records are deleted while nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.topic_follower import TopicFollower

_SMALL = {"cleanup.policy": "delete", "segment.bytes": "100", "retention.bytes": "100"}


async def test_one_whose_place_retention_has_passed_goes_on_with_what_is_left() -> None:
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        where = broker.bootstrap_servers
        await create_topics(where, [WantedTopic("reports", 1, "", _SMALL)], replication=1)
        async with RecordProducer(where, "reports") as producer:
            for number in range(9):
                await producer.deliver("reports", b"%d" % number * 50)
            async with TopicFollower(where, "reports", {0: 0}) as follower:
                fetcher: Any = follower._reader._consumer._fetcher
                ask, allowed = fetcher._proc_offset_request, asyncio.Event()

                async def slow(*of: Any) -> Any:
                    await allowed.wait()
                    return await ask(*of)

                fetcher._proc_offset_request = slow
                while not fetcher._subscriptions.subscription.assignment.state_value(
                    follower._reader._tp(0)
                ).awaiting_reset:
                    assert await follower.read(0.02) == []
                assert await follower.read(0.02) == [], "Kafka has not said yet where to go on"
                allowed.set()
                records = await follower.read(10.0)
                end = await follower.end()
    assert records
    assert records[0].offset > 0
    assert dict(follower.positions) == end
