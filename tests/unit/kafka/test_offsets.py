"""Offsets of a group that its coordinator is still loading: the whole answer is an error, and names no partition."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import (
    GroupLoadInProgressError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
)

from inferline_stream.embedded_broker.broker_state import Broker, Client
from inferline_stream.embedded_broker.server import APIS, Api, EmbeddedBroker
from inferline_stream.embedded_broker.wire import Fields
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.wire.later_requests import OFFSET_FETCH


@pytest.mark.parametrize("asked_by", ["tools", "followers"])
async def test_what_is_still_being_loaded_is_not_taken_for_nothing(
    asked_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = APIS[OFFSET_FETCH], [3]

    async def loading(broker: Broker, request: Fields, client: Client) -> Fields | None:
        left[0] -= 1
        if left[0] >= 0:
            raise GroupLoadInProgressError
        return await whole.serve(broker, request, client)

    async with asyncio.timeout(20.0), EmbeddedBroker() as broker:
        where = broker.bootstrap_servers
        await create_topics(where, [WantedTopic("t", 2, "")], replication=1)
        async with Offsets(where) as offsets:
            await offsets.commit("g", "t", {0: (5, ""), 1: (7, "")})
            monkeypatch.setitem(APIS, OFFSET_FETCH, Api(whole.versions, loading))  # type: ignore[arg-type]  # a dict
            monkeypatch.setattr("inferline_stream.kafka.offsets._REQUEST_TIMEOUT_MS", 0)  # loading may take longer
            if asked_by == "tools":
                assert [at.offset for at in await offsets.committed("g", "t", 2)] == [5, 7]
                return
        async with TopicFollower(where, "t", "committed", group="g") as follower:
            assert follower.positions == {0: 5, 1: 7}


@pytest.mark.parametrize("error", [KafkaConnectionError, NodeNotReadyError, NotCoordinatorForGroupError])
async def test_a_coordinator_that_is_lost_is_looked_for_again(
    error: type[KafkaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20.0), EmbeddedBroker() as broker:
        await create_topics(broker.bootstrap_servers, [WantedTopic("t", 1, "")], replication=1)
        async with Offsets(broker.bootstrap_servers) as offsets:
            await offsets.commit("g", "t", {0: (5, "")})
            send, lost = offsets._admin._send_request, [error()]

            async def once(request: Any, node: Any = None) -> Any:
                if lost:
                    raise lost.pop()
                return await send(request, node)

            monkeypatch.setattr(offsets._admin, "_send_request", once)
            assert [at.offset for at in await offsets.committed("g", "t", 1)] == [5]
