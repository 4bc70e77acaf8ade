"""Transactions whose end Kafka has lost, on an Apache Kafka that lets them be made: see `transactional_producer`."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import TxnOffsetCommitRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from inferline_stream.kafka.stable_offsets import UndecidedOffsets, stable_offsets
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.testing.local_kafka import LocalKafka
from tests.contracts.pooled import PASSING
from tests.support.director import Director, event_id

DONE = 3
"""Events that the transaction finishes."""


@pytest.fixture(scope="module")
def gullible_kafka() -> Iterator[LocalKafka]:
    """Takes records and offsets of a transaction for partitions that it does not know to be part of one."""
    with LocalKafka({"transaction.partition.verification.enable": "false"}) as server:
        yield server


async def hang(director: Director, *, committed: bool | None) -> None:
    """Leave what a dispatcher sent undecided, after a transaction of its id that was committed or aborted, or none."""
    topic, name = director.routes["work"].input_topic, director.names.transactional_id("work-0")
    group = director.routes["work"].group
    async with (
        AIOKafkaConsumer(
            bootstrap_servers=director.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as reader,
        AIOKafkaProducer(bootstrap_servers=director.bootstrap_servers, transactional_id=name) as producer,
    ):
        offsets = await stable_offsets(reader._coordinator, topic, [0])
        if committed is not None:
            await producer.begin_transaction()
            await producer.send_offsets_to_transaction({TopicPartition(topic, 0): offsets[0]}, group)
            await (producer.commit_transaction() if committed else producer.abort_transaction())
            await stable_offsets(reader._coordinator, topic, [0])  # its marker is written
        manager = producer._txn_manager
        result = DefaultRecordBatchBuilder(2, 0, True, manager.producer_id, manager.producer_epoch, 0, 1_000_000)
        result.append(0, None, b"key", b"by whom it was sent", [(EVENT_ID, b"finished before")])
        of_sink = (director.routes["work"].sink_topic, [(0, bytes(result.build()))])
        of_group = (topic, [(0, DONE, offsets[0][1])])
        for request in (
            ProduceRequest(transactional_id=name, required_acks=-1, timeout=10_000, topics=[of_sink]),
            TxnOffsetCommitRequest(name, group, manager.producer_id, manager.producer_epoch, [of_group]),
        ):
            await producer.client.send(producer.client.get_random_node(), request)
        with pytest.raises(UndecidedOffsets):
            await stable_offsets(reader._coordinator, topic, [0], patience_s=0.2)


@pytest.mark.parametrize("committed", [True, False])
async def test_what_kafka_left_undecided_ends_as_its_transaction_did_and_the_stage_goes_on(gullible_kafka, committed):
    async with Director(
        gullible_kafka.bootstrap_servers, PASSING, partitions={"work": 1}, delivery="exactly_once"
    ) as director:
        ids = await director.put([b"x"] * 10)
        await hang(director, committed=committed)
        await director.start()
        await director.caught_up()
        results = Counter(map(event_id, await director.results()))
    assert results == Counter(["finished before", *ids[DONE:]] if committed else ids)


async def test_where_nobody_knows_how_a_transaction_was_to_end_the_stage_says_what_it_waits_for(gullible_kafka):
    async with Director(
        gullible_kafka.bootstrap_servers, PASSING, partitions={"work": 1}, delivery="exactly_once"
    ) as director:
        await hang(director, committed=None)
        starting = asyncio.create_task(director.start())
        await director.until(
            lambda: director.reports and "`kafka-transactions.sh find-hanging`" in director.report("work").reason,
            "the reason is reported",
        )
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
