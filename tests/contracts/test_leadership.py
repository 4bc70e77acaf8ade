"""The leading controller's transactions: on Apache Kafka and on the embedded broker."""

import contextlib
import secrets

import pytest
from aiokafka import TopicPartition

from inferline_stream.controlplane import leadership
from inferline_stream.controlplane.leadership import LEADER_KEY, Leadership, LeadershipLost, read_log
from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.dataplane.slot_grants import Grant
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.names import Names


@contextlib.asynccontextmanager
async def only_leader(kafka):
    names = Names("led", f"{secrets.token_hex(4)}.")
    await create_topics(kafka.bootstrap_servers, [WantedTopic(names.assignments, 1, "a test's")], replication=1)
    async with Leadership(kafka.bootstrap_servers, names, "only") as leading:
        yield names, leading


async def fails(leading, names, write):
    """Have a write fail as after a batch that was given up while Kafka was away: every later one is out of order."""
    leading._producer._client._txn_manager.increment_sequence_number(TopicPartition(names.assignments, 0), 1)
    with pytest.raises(Unreachable, match="OutOfOrderSequenceNumber"):
        await write


async def test_a_leader_whose_writes_kafka_refuses_for_good_begins_a_new_term(kafka):
    async with only_leader(kafka) as (names, leading):
        await fails(leading, names, leading.heartbeat())
        leading.devices = (DeviceState("GPU-a", lost="GPU is lost"),)
        for _ in range(2):
            await leading.heartbeat()
        assert (leading.renewals, leading.term) == (1, 2)
        async with TopicFollower(kafka.bootstrap_servers, names.assignments) as follower:
            records = await follower.read_to(await follower.end())
    assert [record.key for record in records] == [LEADER_KEY.encode()] * 3
    heartbeat = read_log(records, 0.0, RecordDecoder()).heartbeat
    assert (heartbeat.term, heartbeat.devices) == (2, leading.devices)


async def test_one_that_another_took_over_from_as_it_began_again_leads_in_a_term_after_that(kafka, monkeypatch):
    async with only_leader(kafka) as (names, leading), contextlib.AsyncExitStack() as stack:
        other, new_producer = Leadership(kafka.bootstrap_servers, names, "other"), leading._new_producer

        async def at_once(*_):
            pass

        def fences_late():
            producer = new_producer()
            start = producer.start

            async def late(timeout_s, **how):
                await stack.enter_async_context(other)
                await other.write([Grant("work", 0, 1, "theirs", other.term, 1, True)])
                await start(timeout_s, **how)

            producer.start = late
            return producer

        monkeypatch.setattr(leadership, "until_silent", at_once)
        await fails(leading, names, leading.heartbeat())
        leading._new_producer = fences_late
        for _ in range(2):  # the first one was made in the term before
            await leading.heartbeat()
        assert (leading.term, [grant.dispatcher for grant in leading.log.grants]) == (other.term + 1, ["theirs"])
        with pytest.raises(LeadershipLost):
            await other.heartbeat()
        async with TopicFollower(kafka.bootstrap_servers, names.assignments) as follower:
            records = await follower.read_to(await follower.end())
    heartbeat = read_log(records, 0.0, RecordDecoder()).heartbeat
    assert (heartbeat.term, heartbeat.controller) == (leading.term, "only")


async def test_grants_of_a_term_that_is_over_are_not_written_and_a_new_term_begins_with_all_that_there_are(kafka):
    before, stale = (Grant("work", 0, 1, name, 1, number, True) for number, name in enumerate(("old", "new"), 1))
    async with only_leader(kafka) as (names, leading):
        await leading.write([before])
        await fails(leading, names, leading.write([stale]))
        with pytest.raises(Unreachable, match="term 2 has begun"):
            await leading.write([stale])
        async with TopicFollower(kafka.bootstrap_servers, names.assignments) as follower:
            records = await follower.read_to(await follower.end())
        assert leading.log.grants == read_log(records, 0.0, RecordDecoder()).grants == (before,)
        await leading.write([Grant("work", 0, 1, "new", leading.term, 2, True)])
