"""Transactions whose end Kafka has lost, on an Apache Kafka that lets them be made: see `hanging_transactions`."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import TxnOffsetCommitRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from inferline_stream.kafka import topic_reader
from inferline_stream.kafka.offsets import UndecidedOffsets, group_offsets
from inferline_stream.kafka.records import KafkaFailed
from inferline_stream.kafka.writer import Writer
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


Last = Literal["commit", "abort", "under way", "none"]


async def hang(director: Director, last: Last) -> None:
    """Leave what a dispatcher sent undecided, after a transaction of its id that ended so, or has not ended."""
    topic, name = director.routes["work"].input_topic, director.names.transactional_id("work-0")
    group = director.routes["work"].group
    async with (
        AIOKafkaConsumer(
            bootstrap_servers=director.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as reader,
        AIOKafkaProducer(bootstrap_servers=director.bootstrap_servers, transactional_id=name) as producer,
    ):
        offsets = await group_offsets(reader._coordinator, topic, [0], 20.0)
        if last != "none":
            await producer.begin_transaction()
            await producer.send_offsets_to_transaction({TopicPartition(topic, 0): offsets[0]}, group)
            await (producer.commit_transaction() if last == "commit" else producer.abort_transaction())
            await group_offsets(reader._coordinator, topic, [0], 20.0)  # its marker is written
        if last == "under way":
            await producer.begin_transaction()
            await producer.send_and_wait(director.names.dead_letters(topic), b"what its end reaches")
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
            await group_offsets(reader._coordinator, topic, [0], 0.2)


@pytest.mark.parametrize("last", ["commit", "abort", "under way"])
async def test_what_kafka_left_undecided_ends_as_its_transaction_did_and_the_stage_goes_on(gullible_kafka, last):
    async with Director(
        gullible_kafka.bootstrap_servers, PASSING, partitions={"work": 1}, delivery="exactly_once"
    ) as director:
        ids = await director.put([b"x"] * 10)
        await hang(director, last)
        await director.start()
        await director.caught_up()
        results = Counter(map(event_id, await director.results()))
    assert results == Counter(["finished before", *ids[DONE:]] if last == "commit" else ids)


async def test_where_nobody_knows_how_a_transaction_was_to_end_the_reader_names_what_ends_it(
    gullible_kafka, monkeypatch
):
    monkeypatch.setattr(topic_reader, "UNDECIDED_S", 0.3)
    where = gullible_kafka.bootstrap_servers
    async with Director(where, PASSING, partitions={"work": 1}, delivery="exactly_once") as director:
        await hang(director, "none")
        names, of = director.names, director.routes["work"]
        sender = Writer(where, "sender", names.transactional_id("work-0"))
        await sender.start_again(10.0, {of.sink_topic: 1}, [of.group])
        await sender.stop()
        reader = topic_reader.TopicReader(where, of.input_topic, of.group, names.assignments, fetch_wait_s=0.02)
        await reader.start(10.0)
        with pytest.raises(KafkaFailed, match="find-hanging` names it, and `abort` ends it"):
            await reader.committed([0])
        await reader.stop()
