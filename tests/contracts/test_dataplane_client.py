"""How the data plane reads and sends, on both brokers."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import wait_for_kafka
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.records import Fenced, KafkaFailed, Record, RecordsGone, record_bytes
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.writer import Writer
from inferline_stream.testing.local_kafka import free_ports

HEADERS = [("shop", b"7"), ("empty", b"")]


class Place:
    """Topics of one test, and clients that read and write them."""

    def __init__(self, bootstrap_servers: str, stack: AsyncExitStack) -> None:
        self.servers, self._stack = bootstrap_servers, stack
        name = secrets.token_hex(4)
        self.topic, self.group = f"{name}.in", f"{name}.group"
        self.assignments = f"{name}.assignments"

    async def create(self, **settings: str) -> None:
        given = {"retention.ms": "-1", **{name.replace("_", "."): value for name, value in settings.items()}}
        topics = [WantedTopic(self.topic, 3, "a test's", given)]
        topics.append(WantedTopic(self.assignments, 1, "a test's"))
        await create_topics(self.servers, topics, replication=1)

    async def reader(self) -> TopicReader:
        reader = TopicReader(self.servers, self.topic, self.group, self.assignments, fetch_wait_s=0.02)
        self._stack.push_async_callback(reader.stop)
        await reader.start(20)
        return reader

    async def sender(self, transactional_id: str | None = None, packed: tuple[str, ...] = ()) -> Writer:
        sender = Writer(self.servers, "a-test", transactional_id, packed=packed)
        self._stack.push_async_callback(sender.stop)
        await sender.start(20)
        return sender


@pytest.fixture
async def place(kafka) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        found = Place(kafka.bootstrap_servers, stack)
        await found.create()
        yield found


def messages(*numbers: int) -> list[Record]:
    return [Record(b"k%d" % n, b"%d" % n, HEADERS, 1_700_000_000_000 + n) for n in numbers]


async def read(reader: TopicReader, count: int, full: tuple[int, ...] = ()) -> dict[int, list]:
    """So many records by partition; fails if they do not come."""
    found: dict[int, list] = {}
    try:
        async with asyncio.timeout(60):
            while sum(map(len, found.values())) < count:
                for partition, records in (await reader.fetch(full, 0.2)).records.items():
                    found.setdefault(partition, []).extend(records)
    except TimeoutError:
        pytest.fail(f"waited 15 s in vain for {count} records; got {found}")
    return found


async def nothing(reader: TopicReader, full: tuple[int, ...] = (), for_s: float = 0.4) -> None:
    deadline_s = time.monotonic() + for_s
    while time.monotonic() < deadline_s:
        fetched = await reader.fetch(full, 0.1)
        assert not fetched.records, fetched


def values(records: list) -> list[bytes]:
    return [record.value for record in records]


async def test_records_arrive_as_they_were_sent_in_the_order_of_their_partition(place):
    sender = await place.sender()
    await sender.send({(place.assignments, 0): messages(7)})
    reader = await place.reader()
    assert (await sender.partitions_of(place.topic), reader.topic.partitions) == (3, 3)
    await sender.send({(place.topic, p): messages(*range(p, 300, 3)) for p in range(3)})
    await sender.send({(place.topic, 0): [Record(None, None, [], None)], (place.assignments, 0): messages(9)})
    reader.hold({0: 0, 1: 0, 2: 50})
    grants, found = [], {0: [], 1: [], 2: []}
    async with asyncio.timeout(60):
        while sum(map(len, found.values())) < 251 or len(grants) < 2:
            fetched = await reader.fetch((), 0.2)
            grants += fetched.control
            for partition, records in fetched.records.items():
                found[partition] += records
    assert values(found[1]) == [b"%d" % n for n in range(1, 300, 3)]
    assert [record.offset for record in found[2]] == list(range(50, 100))
    first, last = found[0][0], found[0][-1]
    assert (first.topic, first.partition, first.key, first.timestamp_ms) == (place.topic, 0, b"k0", 1_700_000_000_000)
    assert [(name, value) for name, value in first.headers] == HEADERS
    assert (last.key, last.value, list(last.headers)) == (None, None, [])
    assert abs(last.timestamp_ms / 1000 - time.time()) < 30
    assert values(grants) == [b"7", b"9"]


@pytest.mark.parametrize("transactional", [False, True])
async def test_many_records_that_say_the_same_take_little_space_in_a_packed_topic(place, transactional):
    topic = place.topic
    sender = await place.sender(f"{topic}.tx" if transactional else None, packed=(topic,))
    same = [("errors", b"ValueError: why this one failed, and much more of that")]
    sent = [Record(b"k%d" % n, None, same, 1_700_000_000_000 + n) for n in range(1000)]
    if transactional:
        await sender.start_again(20, {topic: 3}, [place.group])
        await sender.begin()
    await sender.send({(topic, 0): sent})
    if transactional:
        await sender.commit({})
    plain_bytes = sum(record_bytes(message.key, None, message.headers) for message in sent)
    assert await stored_bytes(place) < plain_bytes / 20
    reader = await place.reader()
    reader.hold({0: 0})
    found = (await read(reader, 1000))[0]
    assert [(r.key, list(r.headers), r.timestamp_ms) for r in found] == [(m.key, same, m.timestamp_ms) for m in sent]


async def stored_bytes(place: Place) -> int:
    """Size of what partition 0 holds, as Kafka gives it to a client."""
    client = AIOKafkaClient(bootstrap_servers=place.servers)
    await client.bootstrap()
    try:
        async with asyncio.timeout(60):
            await client._wait_on_metadata(place.topic)
            leader = client.cluster.leader_for_partition(TopicPartition(place.topic, 0))
            asked = FetchRequest(60_000, 1, 1 << 24, 0, [(place.topic, [(0, 0, 1 << 24)])])
            ((_, ((*_, records),)),) = (await client.send(leader, asked)).topics
            return len(records)
    finally:
        await client.close()


async def test_a_reader_has_caught_up_once_it_has_read_every_grant_that_there_was(place):
    sender = await place.sender()
    await sender.send({(place.assignments, 0): messages(*range(5))})
    reader = await place.reader()
    assert not reader.caught_up()
    grants: list = []
    async with asyncio.timeout(60):
        while not reader.caught_up():
            grants += (await reader.fetch((), 0.2)).control
        await sender.send({(place.assignments, 0): messages(5)})
        await reader.look_for_grants()
        assert not reader.caught_up()
        while not reader.caught_up():
            grants += (await reader.fetch((), 0.2)).control
    assert len(grants) == 6


async def test_what_was_released_is_not_read_and_is_read_again_from_where_it_is_held(place):
    sender, reader = await place.sender(), await place.reader()
    await sender.send({(place.topic, 0): messages(*range(10)), (place.topic, 1): messages(*range(10))})
    reader.hold({0: 0, 1: 0})
    await read(reader, 20)
    reader.release([0])
    await sender.send({(place.topic, 0): messages(10), (place.topic, 1): messages(10)})
    assert list(await read(reader, 1)) == [1]
    await nothing(reader)
    for offset in (4, 9):  # back, as a partition whose batch was never committed
        reader.hold({0: offset})
        found = await read(reader, 11 - offset)
        assert [record.offset for record in found[0]] == list(range(offset, 11))
        reader.release([0])


async def test_a_release_and_a_hold_before_the_next_fetch_lose_and_repeat_nothing(place):
    sender, reader = await place.sender(), await place.reader()
    await sender.send({(place.topic, 0): messages(*range(200))})
    for offset in (0, 150, 20, 100, 0):
        reader.hold({0: offset})
        found = await read(reader, 1)
        while len(found[0]) < 200 - offset:
            found[0] += (await read(reader, 1))[0]
        assert [record.offset for record in found[0]] == list(range(offset, 200))
        reader.release([0])


async def test_a_full_partition_is_left_alone_and_goes_on_where_it_was(place):
    sender, reader = await place.sender(), await place.reader()
    reader.hold({0: 0, 1: 0})
    await sender.send({(place.topic, p): messages(*range(5)) for p in (0, 1)})
    before = await read(reader, 10)
    await nothing(reader, full=(0,), for_s=0.1)
    await sender.send({(place.topic, p): messages(*range(5, 8)) for p in (0, 1)})
    meanwhile = await read(reader, 3, full=(0,))
    await nothing(reader, full=(0,))
    after = await read(reader, 3)
    assert list(meanwhile) == [1]
    assert values([*before[0], *after[0]]) == [b"%d" % n for n in range(8)]


async def test_a_commit_keeps_offset_and_metadata_and_partitions_without_one_are_missing(place):
    reader = await place.reader()
    assert await reader.committed([0, 1, 2]) == {}
    await reader.commit({0: (7, ""), 2: (9, "i1;o=me")})
    assert await reader.committed([0, 1, 2]) == {0: (7, ""), 2: (9, "i1;o=me")}
    assert await (await place.reader()).committed([2]) == {2: (9, "i1;o=me")}


async def test_records_are_read_again_by_their_offsets_and_one_that_is_gone_is_an_error(place):
    sender, reader = await place.sender(), await place.reader()
    await sender.send({(place.topic, 1): messages(*range(3000)), (place.topic, 0): messages(7)})
    for offsets in ([0, 5, 6], [2, 2999, 1500], [3]):
        found = await reader.read_again(1, offsets)
        assert {offset: record.value for offset, record in found.items()} == {o: b"%d" % o for o in offsets}
    assert (await reader.read_again(0, [0]))[0].headers == tuple(HEADERS)
    with pytest.raises(RecordsGone, match="no longer has offset 6000"):
        await reader.read_again(1, [2999, 6000])


async def test_beginnings_are_those_of_the_log_and_what_is_not_there_is_lost(place):
    sender, reader = await place.sender(), await place.reader()
    await sender.send({(place.topic, 0): messages(*range(6))})
    assert await reader.beginnings([0, 1]) == {0: 0, 1: 0}
    reader.hold({0: 60})
    async with asyncio.timeout(60):
        while not (fetched := await reader.fetch((), 0.2)).lost:
            assert not fetched.records
    assert fetched.lost == {0: "Kafka no longer has offset 60"}


async def test_a_transaction_is_read_whole_with_its_offsets_or_not_at_all(place):
    sender, reader = await place.sender(f"{place.group}.one"), await place.reader()
    reader.hold({0: 0})
    await sender.begin()
    await sender.send({(place.topic, 0): messages(1, 2)})
    await nothing(reader)
    await sender.commit({place.group: reader.offsets_for_transaction({1: (5, "i1;o=me")})})
    found = await read(reader, 2)
    assert values(found[0]) == [b"1", b"2"]
    assert await reader.committed([0, 1]) == {1: (5, "i1;o=me")}
    position = 0
    async with asyncio.timeout(60):
        while position < 3:  # the transaction's marker has an offset, and is no record
            position = max(position, (await reader.fetch((), 0.2)).positions.get(0, 0))
    assert position == 3
    await sender.begin()
    await sender.commit({})


async def in_one_go(sender: Writer, place: Place, number: int) -> None:
    await sender.send({(place.topic, 0): messages(number)})
    await sender.commit({})


async def test_a_sender_that_takes_a_transactional_id_fences_the_one_before(place):
    old = await place.sender(f"{place.group}.one")
    await old.begin()
    await old.send({(place.topic, 0): messages(1)})
    new = await place.sender(f"{place.group}.one")
    with pytest.raises(Fenced):  # a producer may learn of it when it sends, or only when it commits
        await in_one_go(old, place, 2)
    await new.begin()
    await new.send({(place.topic, 0): messages(3)})
    await new.commit({})
    reader = await place.reader()
    reader.hold({0: 0})
    assert values((await read(reader, 1))[0]) == [b"3"]


async def test_a_sender_that_is_void_sends_nothing_until_it_starts_again(place):
    sender = await place.sender(name := f"{place.group}.one")
    await sender.begin()
    await sender.send({(place.topic, 0): messages(1)})
    sender.void()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await sender.commit({})
    fencing = await place.sender(name)
    await fencing.begin()
    await in_one_go(fencing, place, 2)
    await sender.start_again(10.0, {place.topic: 1}, [place.group])
    await sender.begin()
    await in_one_go(sender, place, 3)
    reader = await place.reader()
    reader.hold({0: 0})
    assert values((await read(reader, 2))[0]) == [b"2", b"3"]


async def test_a_record_that_kafka_refuses_is_an_error_with_its_reason(place):
    small = Place(place.servers, place._stack)
    await small.create(max_message_bytes="1000")
    sender = await small.sender()
    with pytest.raises(KafkaFailed, match=r"refuses a record: .*larger.*DescribeConfigs"):
        await sender.send({(small.topic, 0): [Record(None, b"x" * 2000, [], None)]})


async def test_records_that_fit_their_topic_one_by_one_are_taken_together(place):
    small = Place(place.servers, place._stack)
    await small.create(max_message_bytes="1000")
    sender = await small.sender()
    sender.limits = {small.topic: 1000}
    sent = [Record(b"k", bytes([n]) * size, HEADERS, None) for n, size in enumerate((700, 1, 100, 600, 600, 1, 1))]
    await sender.send({(small.topic, 0): sent})
    reader = await small.reader()
    reader.hold({0: 0})
    found = await read(reader, len(sent))
    assert [record.value for record in found[0]] == [message.value for message in sent]


async def test_where_nobody_answers_a_client_says_so_in_time():
    reader = TopicReader("127.0.0.1:1", "in", "group", "assignments", fetch_wait_s=0.02)
    began_s = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        await reader.start(1.0)
    await reader.stop()
    sender = Writer("127.0.0.1:1", "a-test")
    with pytest.raises(Unreachable, match="does not answer"):
        await sender.start(1.0)
    await sender.stop()
    assert time.monotonic() - began_s < 10


async def test_a_run_waits_for_a_broker_that_is_starting_and_no_longer_than_it_may():
    (port,) = free_ports(1)
    servers = f"127.0.0.1:{port}"
    with pytest.raises(Unreachable, match=r"does not answer within 0\.5 s"):
        await wait_for_kafka(servers, 0.5)
    waiting = asyncio.create_task(wait_for_kafka(servers, 30.0))
    await asyncio.sleep(0.5)  # it has been refused
    assert not waiting.done()
    async with EmbeddedBroker(port=port):
        await waiting
