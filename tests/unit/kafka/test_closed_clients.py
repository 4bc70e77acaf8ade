"""Clients that are closed while aiokafka still connects for them."""

from __future__ import annotations

import asyncio
from typing import Any

import aiokafka.client
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import ConnectionGroup

from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.kafka.connection import client_options, closed


async def test_a_connection_on_its_way_is_closed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, goes_on, opened = aiokafka.client.create_conn, asyncio.Event(), []

    async def later(*args: Any, **options: Any) -> Any:
        opened.append(await connect(*args, **options))
        await goes_on.wait()
        return opened[-1]

    async with asyncio.timeout(20.0), EmbeddedBroker() as broker:
        consumer = AIOKafkaConsumer(**client_options(broker.bootstrap_servers))
        await consumer.start()
        network = consumer._client
        (node,) = (each.nodeId for each in network.cluster.brokers())
        monkeypatch.setattr(aiokafka.client, "create_conn", later)
        asks = asyncio.create_task(network._get_conn(node, group=ConnectionGroup.COORDINATION))
        while not opened:
            await asyncio.sleep(0.01)
        await closed(consumer)
        assert opened[0].connected()
        goes_on.set()
        await asks
        assert not opened[0].connected()


async def test_a_start_that_is_cancelled_before_its_first_broker_answers_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asyncio.timeout(20.0), EmbeddedBroker() as broker:
        consumer, opened = AIOKafkaConsumer(**client_options(broker.bootstrap_servers)), []
        connect = aiokafka.client.create_conn

        async def silent(*args: Any, **options: Any) -> Any:
            opened.append(await connect(*args, **options))
            monkeypatch.setattr(opened[-1], "send", lambda *_, **__: asyncio.sleep(60.0))
            return opened[-1]

        monkeypatch.setattr(aiokafka.client, "create_conn", silent)
        starts = asyncio.create_task(consumer.start())
        while not opened:
            await asyncio.sleep(0.01)
        assert opened[0].connected()
        starts.cancel()
        await asyncio.gather(starts, return_exceptions=True)
        assert not opened[0].connected()
        await closed(consumer)
