"""The leading controller's transactions: on Apache Kafka and on the embedded broker."""

import secrets

import pytest
from aiokafka import TopicPartition

from inferline_stream.controlplane.leadership import LEADER_KEY, Leadership, read_log
from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.names import Names


async def test_a_leader_whose_writes_kafka_refuses_for_good_begins_a_new_term(kafka):
    names = Names("led", f"{secrets.token_hex(4)}.")
    await create_topics(kafka.bootstrap_servers, [WantedTopic(names.assignments, 1, "a test's")], replication=1)
    async with Leadership(kafka.bootstrap_servers, names, "only") as leading:
        # As after a batch that was given up while Kafka was away: every later one comes out of order.
        leading._producer._client._txn_manager.increment_sequence_number(TopicPartition(names.assignments, 0), 1)
        with pytest.raises(Unreachable, match="OutOfOrderSequenceNumber"):
            await leading.heartbeat()
        leading.devices = (DeviceState("GPU-a", lost="GPU is lost"),)
        for _ in range(2):
            await leading.heartbeat()
        assert (leading.renewals, leading.term) == (1, 2)
        async with TopicFollower(kafka.bootstrap_servers, names.assignments) as follower:
            records = await follower.read_to(await follower.end())
    assert [record.key for record in records] == [LEADER_KEY.encode()] * 3
    heartbeat = read_log(records, 0.0, RecordDecoder()).heartbeat
    assert (heartbeat.term, heartbeat.devices) == (2, leading.devices)
