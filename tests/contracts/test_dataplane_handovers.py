"""A partition moves at the words of its owner and its heir; commits follow, and stand in for words not heard."""

import asyncio
import secrets
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.dataplane.offsets import Committed, encode_metadata
from inferline_stream.dataplane.owning import HEIR_WITHIN_S, owner_name
from inferline_stream.dataplane.protocol import ReadAhead, Release, decode_handover, encode
from inferline_stream.dataplane.sending import TellingSender
from inferline_stream.dataplane.topics import TopicSettings, create_topics
from inferline_stream.testing.directing import TERM, Director

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


work = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "1ms", 16: "2ms"})
pipeline = Pipeline("releasing", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[work])
"""
TAKEN = (TERM, 99)
"""Term and sequence of the assignment that takes the partition from its owner, who is played by the test."""


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


async def waiting(director: Director, records: int) -> str:
    """A replica that is to take up the only partition, with so many records, once its owner has let it go."""
    heir = await director.start("work")
    for number in range(records):
        await director.producer.send_and_wait(director.names.topic("in"), b"%d" % number)
    await director.assign(heir, [0], awaits={0: TAKEN})
    await director.until(lambda: 0 in director.reports[heir].held, "the assignment is followed")
    return heir


async def say(director: Director, heir: str, offset: int, freed: tuple[int, int] = TAKEN) -> tuple[int, str]:
    """Say what an owner says that has let the partition go; returns what it commits."""
    entry = offset, encode_metadata(Committed(offset, owner=owner_name(heir), freed=freed))
    await director.producer.send_and_wait(director.names.handovers, encode(Release("work", {0: entry})), partition=0)
    return entry


async def results(director: Director) -> list[int]:
    return sorted(int(record.value) for record in await director.read(director.names.topic("out")))


async def test_an_heir_begins_at_the_word_and_commits_after_its_last_owner(kafka, topology):
    settings = {"lease_s": 20.0, "dead_after_s": 30.0}
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 1}, settings=settings) as director:
        heir = await waiting(director, 10)
        await say(director, heir, 2, freed=(TERM, 98))  # of another handover
        await asyncio.sleep(0.3)
        assert await results(director) == []
        entry = await say(director, heir, 6)
        await director.until(lambda: director.reports[heir].events == 4, "what follows the word is done")
        await asyncio.sleep(0.3)
        assert await director.lag() == 10, "committed before the owner"
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.bootstrap_servers, group_id=director.names.group("work"), enable_auto_commit=False
        )
        async with consumer:
            consumer.assign([TopicPartition(director.names.topic("in"), 0)])
            await consumer.commit({TopicPartition(director.names.topic("in"), 0): entry})
        await director.caught_up(5.0)
        assert await results(director) == [6, 7, 8, 9]


async def test_an_heir_whose_last_owner_dies_before_its_commit_commits_after_that_ones_lease(kafka, topology):
    settings = {"lease_s": 1.5}
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 1}, settings=settings) as director:
        heir = await waiting(director, 10)
        await say(director, heir, 6)
        await director.until(lambda: director.reports[heir].events == 4, "what follows the word is done")
        assert await director.lag() == 10
        await director.caught_up(5.0)
        assert await results(director) == [6, 7, 8, 9]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_owner_and_heir_say_when_a_partition_moves(kafka, topology, delivery):
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 4}, delivery=delivery) as director:
        first, second = await asyncio.gather(director.start("work"), director.start("work"))
        await director.share([first])
        await director.share([first, second])
        said = [decode_handover(record.value) for record in await director.read(director.names.handovers)]
        if delivery == "at_least_once":  # else they may have been let go before the heir asks
            assert [sorted(told.awaits) for told in said if isinstance(told, ReadAhead)] == [[1, 3]]
        let_go = sorted(partition for told in said if isinstance(told, Release) for partition in told.offsets)
        assert let_go == [1, 3]


async def test_an_owner_goes_on_until_its_heir_reads_ahead_or_is_not_heard_of(kafka, topology):
    async with Director(kafka.bootstrap_servers, topology, partitions={"work": 2}) as director:
        source = director.names.topic("in")
        owner = await director.start("work")
        await director.assign(owner, [0, 1])
        await director.until(lambda: set(director.reports[owner].held.values()) == {0}, "both are held")
        sequence = await director.assign(owner, [], heirs={0: "work-heir", 1: "work-heir"})
        told_s = time.monotonic()
        for partition in (0, 1):
            await director.producer.send_and_wait(source, b"%d" % partition, partition=partition)
        await director.until(lambda: director.reports[owner].events == 2, "events that came later are done")
        ready = ReadAhead("work", {0: (TERM, sequence), 1: (TERM, sequence - 1)})
        await director.producer.send_and_wait(director.names.handovers, encode(ready), partition=0)
        await director.until(lambda: list(director.reports[owner].held) == [1], "the one that is read ahead is let go")
        assert time.monotonic() - told_s < HEIR_WITHIN_S, "a machine too slow to tell"
        await director.until(lambda: not director.reports[owner].held, "the other is let go")
        assert time.monotonic() - told_s >= HEIR_WITHIN_S
        said = [decode_handover(record.value) for record in await director.read(director.names.handovers)]
        assert [list(told.offsets) for told in said if isinstance(told, Release)] == [[0], [1]]


async def test_where_handovers_are_told_is_known_before_the_first(kafka):
    topic = f"{secrets.token_hex(4)}.handovers"
    await create_topics(kafka.bootstrap_servers, [TopicSettings(topic, 1, "a test's")], replication=1)
    sender = TellingSender(kafka.bootstrap_servers, "a test's", 5.0)
    try:
        await sender.start(20)
        assert sender._producer.client.cluster.partitions_for_topic(topic) is None
        await sender.look_for(topic)
        assert sender._producer.client.cluster.partitions_for_topic(topic) == {0}
    finally:
        await sender.stop()
