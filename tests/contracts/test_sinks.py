"""What every sink keeps to, as a process: options that it refuses, and topics that change or go away under it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaStorageError
from aiokafka.protocol.commit import OffsetCommitRequest

from inferline_stream.connectors.sinks.topic_sink import Away, Refusal, SinkCounts, TopicSink
from inferline_stream.embedded_broker.groups import Group
from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.kafka.records import LIMIT_BYTES, Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import ERRORS_PREFIX, EVENT_ID, HEADER_PREFIX
from inferline_stream.testing.kafka import EmbeddedKafka
from tests.contracts.commands import DEADLINE_S, command, isolated_part_of, until_lines
from tests.contracts.sink_process import Command, moving, numbered, running, send, topic_on, until_stored
from tests.contracts.webhook_receiver import Receiver
from tests.support.deadlines import until


class Refusing:
    """A store that takes nothing, ever."""

    def __init__(self) -> None:
        self.counts = SinkCounts()

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        return [Refusal(record, "no") for record in records]


class Busy:
    """A store that asks once to come again later."""

    def __init__(self, after_s: float) -> None:
        self.counts = SinkCounts()
        self.tried_s: list[float] = []
        self._after_s = after_s

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        self.tried_s.append(asyncio.get_running_loop().time())
        if len(self.tried_s) == 1:
            raise Away("busy", self._after_s)
        return []


class Faltering:
    """A store that takes one event at each attempt."""

    def __init__(self) -> None:
        self.counts = SinkCounts()

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        self.counts.written += 1
        if self.counts.written < len(records):
            raise Away("no more now")
        return []


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("postgres", "--database", "postgresql://me:pw@h/db", "--table", "t"), "a password in a URL is seen"),
        (("postgres", "--database", "postgresql://me@h/db", "--table", "t; DROP TABLE t"), "letters, digits"),
        (("webhook", "--url", "file:///etc/passwd"), "must begin with https:// or http://"),
        (("postgres", "--database", "postgresql://me@h/db?sslmode=require", "--table", "t"), "give it as --tls on"),
        (("webhook", "--url", "http://me:pw@h/"), "a password in a URL is seen"),
        (("webhook", "--url", "http://h:99999/"), "'http://h:99999/': Port out of range"),
        (("webhook", "--url", "http://[::1"), "'http://[::1': Invalid IPv6 URL"),
        (("webhook", "--url", "http://h/", "--timeout-s", "inf"), "--timeout-s inf: must be a number of seconds"),
        (("webhook", "--url", "http://h/", "--dead-letters", "t"), "--dead-letters t: the sink reads that topic"),
    ],
)
async def test_what_cannot_be_or_would_show_a_secret_is_refused_before_anything_starts(options, said):
    kind, *others = options
    async with running(f"sinks.{kind}", "127.0.0.1:9", "t", *others) as sink:
        _, error = await sink.process.communicate()
    assert sink.process.returncode == 2
    assert said in error.decode()


async def test_a_store_that_says_when_to_come_again_is_not_asked_before(embedded_broker):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    await send(where, topic, numbered(range(1)))
    busy = Busy(after_s=0.5)
    sink = TopicSink(where, topic=topic, store=busy, what="it", group=f"{topic}-out", again_at_most_s=0.01)
    async with asyncio.timeout(DEADLINE_S), moving(sink):
        await until_stored(where, topic, f"{topic}-out")
    first_s, second_s = busy.tried_s
    assert second_s - first_s >= 0.5


async def test_a_store_that_takes_some_events_each_time_is_not_left_alone_longer_and_longer(
    embedded_broker, monkeypatch
):
    monkeypatch.setattr("inferline_stream.connectors.sinks.topic_sink._AGAIN_S", 0.01)
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    await send(where, topic, numbered(range(30)))
    sink = TopicSink(where, topic=topic, store=Faltering(), what="it", group=f"{topic}-out", again_at_most_s=1e9)
    async with asyncio.timeout(20), moving(sink):
        await until_stored(where, topic, f"{topic}-out")
    assert sink.counts.written == 30


async def test_a_setting_reaches_the_sealed_process_which_refuses_what_is_no_duration(tmp_path):
    sink = await jsonl("127.0.0.1:9", "t", tmp_path / "out.jsonl", check_s="often")
    _, error = await sink.process.communicate()
    assert sink.process.returncode == 2
    assert "INFERLINE_TOPIC_CHECK_S='often' is not a number of seconds" in error.decode()


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("sinks.jsonl", "/dev/null", "/dev/null: is no ordinary file"),
        ("sinks.jsonl", "/dev/stdout", "/dev/stdout: is no ordinary file"),
        ("sources.files", "/dev/zero", "/dev/zero: is no file or folder"),
    ],
)
async def test_what_is_no_file_is_refused(embedded_broker, tmp_path, kind, path, said):
    where, state = embedded_broker.bootstrap_servers, ("--state", str(tmp_path / "state"))
    topic = await topic_on(where)
    async with running(kind, where, topic, "--path", path, *(state if kind == "sources.files" else ())) as started:
        _, error = await started.process.communicate()
    assert (started.process.returncode, said in error.decode(), b"Traceback" in error) == (3, True, False)


async def test_no_address_of_kafka_is_named():
    async with running("sinks.jsonl", "", "t", "--path", "unused") as sink:
        _, error = await sink.process.communicate()
    assert sink.process.returncode == 2
    assert "argument --bootstrap-servers: '' is not an address of Kafka" in error.decode()


async def test_ctrl_c_while_a_connector_starts_ends_it_without_a_traceback(embedded_broker, tmp_path):
    topic = await topic_on(embedded_broker.bootstrap_servers)
    for wait_s in (0.0, 0.0, 0.1, 0.3, 0.5):
        async with command(
            sys.executable, "-m", "inferline_stream.connectors.sinks.jsonl", "--topic", topic,
            "--bootstrap-servers", embedded_broker.bootstrap_servers, "--path", str(tmp_path / "out.jsonl"),
            start_new_session=True,
        ) as process:  # fmt: skip
            await until(lambda started=process: isolated_part_of(started) != started.pid, "the isolated process")
            await asyncio.sleep(wait_s)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, error = await process.communicate()
        assert b"Traceback" not in error
        assert process.returncode in (0, 143)


async def test_sinks_and_sources_whose_kafka_is_gone_end_in_order(receiver, tmp_path):
    with EmbeddedKafka() as kafka:
        where = kafka.bootstrap_servers
        topic, other = await topic_on(where), await topic_on(where)
        await send(where, topic, numbered(range(20)))
        written = tmp_path / "written.jsonl"
        async with (
            receiver.up(),
            running("sinks.webhook", where, topic, "--url", receiver.url) as posting,
            running("sinks.jsonl", where, topic, "--path", str(written)) as writing,
            running("sources.topic", where, other, "--from-topic", topic) as copying,
        ):
            await until(lambda: len(receiver.posts) == 20, "every event is posted")
            await until(lambda: written.exists() and written.read_bytes().count(b"\n") == 20, "all are written")
            await copied(where, other, 20)
            for group in (
                f"{topic}-to-{urlsplit(receiver.url).hostname}",
                f"{topic}-to-{written.name}",
                f"{topic}-to-{other}",
            ):
                await until_stored(where, topic, group)
            kafka.process.kill()
            kafka.process.wait()
            ends = await asyncio.gather(posting.stopped(), writing.stopped(), copying.stopped())
    assert [counts.get("written", counts.get("sent")) for counts in ends] == [20, 20, 20]


async def copied(bootstrap_servers: str, topic: str, count: int) -> None:
    async with TopicFollower(bootstrap_servers, topic) as follower:
        found = 0
        async with asyncio.timeout(DEADLINE_S):
            while found < count:
                found += len(await follower.read(0.5))


async def test_a_sink_that_retention_has_passed_halts_that_partition_and_goes_on_where_it_is_asked(
    apache_kafka, tmp_path
):
    where, topic = apache_kafka.bootstrap_servers, await topic_on(apache_kafka.bootstrap_servers)
    path = tmp_path / "out.jsonl"

    async def sink(*more: str) -> Command:
        return await jsonl(where, topic, path, *more)

    async def write(numbers: range, partition: int) -> None:
        async with AIOKafkaProducer(bootstrap_servers=where) as producer:
            for known, value in numbered(numbers):
                await producer.send_and_wait(topic, value, headers=[(EVENT_ID, known.encode())], partition=partition)

    async with asyncio.timeout(DEADLINE_S):
        await write(range(5), 0)
        first = await sink()
        await until_lines(path, 5)
        assert (await first.stopped())["halted"] == {}
        await write(range(5, 9), 0)
        await write(range(20, 23), 1)
        admin = AIOKafkaAdminClient(bootstrap_servers=where)
        await admin.start()
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=7)})
        await admin.close()
        halted = await sink()
        await until_lines(path, 8)
        counts = await halted.stopped(1)
        assert counts["written"] == 3, "the other partition is served"
        assert counts["halted"] == {"0": "Kafka no longer has offset 5, but 7 and those after it"}
        assert b"say --start earliest or latest" in await halted.errors()
        again = await sink("--start", "earliest")
        await until_lines(path, 10)
        assert (await again.stopped())["halted"] == {}
    ids = [json.loads(line)["event_id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == sorted(f"e{n}" for n in (0, 1, 2, 3, 4, 7, 8, 20, 21, 22))


async def test_a_group_whose_coordinator_knows_nothing_for_a_moment_goes_on_where_it_stood(
    embedded_broker, monkeypatch
):
    where = embedded_broker.bootstrap_servers
    topic, ask, asked = await topic_on(where, 1), GroupCoordinator.fetch_committed_offsets, []
    await send(where, topic, numbered(range(3)))
    async with TopicFollower(where, topic, "committed", group=f"{topic}-sink", gapless=True) as follower:
        while await follower.read(0.2):
            await follower.commit()

    async def forgetful(self, partitions):
        asked.append(partitions)
        return {} if len(asked) < 3 else await ask(self, partitions)

    monkeypatch.setattr(GroupCoordinator, "fetch_committed_offsets", forgetful)
    async with TopicFollower(where, topic, "committed", group=f"{topic}-sink", gapless=True) as follower:
        assert follower.positions == {0: 3}


async def test_kafka_keeps_what_a_follower_commits_for_years_also_where_nothing_comes_for_weeks(
    embedded_broker, monkeypatch
):
    where = embedded_broker.bootstrap_servers
    topic, ask, kept_ms = await topic_on(where), GroupCoordinator._send_req, []

    async def noted(self, request):
        if isinstance(request, OffsetCommitRequest):
            kept_ms.append(request._retention_time)
        return await ask(self, request)

    monkeypatch.setattr(GroupCoordinator, "_send_req", noted)
    async with TopicFollower(where, topic, "committed", group=f"{topic}-sink", gapless=True) as follower:
        await follower.commit()
    assert kept_ms == [10 * 365 * 24 * 3600 * 1000]


class Memory:
    """A store that remembers what it was given."""

    def __init__(self):
        self.counts = SinkCounts()
        self.values = []

    async def store(self, records, ids_from):
        self.values += [record.value for record in records]
        return []


async def test_a_sink_that_was_stopped_before_its_first_record_begins_where_it_had_begun(embedded_broker):
    where, store = embedded_broker.bootstrap_servers, Memory()
    topic = await topic_on(where)

    def sink(start: str) -> TopicSink:
        return TopicSink(where, topic=topic, store=store, what="memory", group=f"{topic}-sink", start=start)

    await send(where, topic, numbered(range(5)))
    async with moving(sink("latest")):
        pass
    await send(where, topic, numbered(range(5, 8)))
    async with moving(sink("committed")):
        await until_stored(where, topic, f"{topic}-sink")
    assert sorted(store.values) == [value for _, value in numbered(range(5, 8))]


async def test_a_sink_goes_on_once_a_broker_whose_disk_is_full_takes_its_commits_again(monkeypatch):
    commit, refused = Group.commit, []

    def refuse(self, partition, committed):
        refused.append(partition)
        raise KafkaStorageError

    async with asyncio.timeout(DEADLINE_S), EmbeddedBroker() as broker:
        where, store = broker.bootstrap_servers, Memory()
        topic = await topic_on(where)
        async with moving(TopicSink(where, topic=topic, store=store, what="memory", group="storing")):
            await until_stored(where, topic, "storing")
            monkeypatch.setattr(Group, "commit", refuse)
            await send(where, topic, numbered(range(5)))
            await until(lambda: len(refused) > 4, "the broker refuses commits", within_s=30)
            monkeypatch.setattr(Group, "commit", commit)
            await until_stored(where, topic, "storing")
        async with TopicFollower(where, topic, "committed", group="storing", gapless=True) as again:
            assert again.positions == await again.end()
    assert sorted(store.values) == [value for _, value in numbered(range(5))]


async def test_what_no_line_can_hold_is_a_dead_letter_and_without_one_ends_the_sink(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic, path = await topic_on(where, 1), tmp_path / "out.jsonl"
    packed, deep = b"\x81\xa1n\x01", b"[" * 1000 + b"]" * 1000
    await send(where, topic, [("a", b"1"), ("b", packed), ("c", deep), ("d", b"4")])
    async with running("sinks.jsonl", where, topic, "--path", str(path)) as ending:
        _, error = await ending.process.communicate()
    assert ending.process.returncode == 1
    assert "refuses event 'b': its value is no JSON" in error.decode()
    assert "give --dead-letters" in error.decode()
    sink = await jsonl(where, topic, path, "--dead-letters", f"{topic}.dlq")
    async with asyncio.timeout(DEADLINE_S), TopicFollower(where, f"{topic}.dlq") as follower:
        letters = []
        while len(letters) < 2:
            letters += await follower.read(0.5)
        counts = await sink.stopped()
    assert [(letter.header(EVENT_ID), letter.value) for letter in letters] == [(b"b", packed), (b"c", deep)]
    assert (counts["written"], counts["duplicates"], counts["refused"]) == (0, 2, 2)
    assert [json.loads(line)["event_id"] for line in path.read_text().splitlines()] == ["a", "d"]


async def test_a_refused_record_of_any_size_is_kept_as_far_as_the_dead_letters_take_it(embedded_broker):
    where = embedded_broker.bootstrap_servers
    topic, letters = await topic_on(where, 1), f"{await topic_on(where, 1)}.dlq"
    key, own, value = b"k" * 300, ("own", b"x" * 1000), b"v" * 1_047_100
    async with AIOKafkaProducer(bootstrap_servers=where, max_request_size=LIMIT_BYTES) as producer:
        for given in (b"small", value):
            await producer.send_and_wait(topic, given, key=key, headers=[(EVENT_ID, b"e"), own])
        await producer.send_and_wait(topic, b"", key=key, headers=[(EVENT_ID, b"f"), ("own", value + own[1][:950])])
        like_ours = [(f"{HEADER_PREFIX}{number:03}", b"x" * 8047) for number in range(130)]
        await producer.send_and_wait(topic, b"", key=b"k", headers=[(EVENT_ID, b"g"), *like_ours])
    sink = TopicSink(where, topic=topic, store=Refusing(), what="it", group="g", dead_letters=letters)
    async with moving(sink), asyncio.timeout(DEADLINE_S):
        await until_stored(where, topic, "g")
    async with asyncio.timeout(DEADLINE_S), TopicFollower(where, letters) as follower:
        found = []
        while len(found) < 4:
            found += await follower.read(0.5)
    assert [(letter.key, letter.value) for letter in found] == [(key, b"small"), (key, None), (key, None), (b"k", None)]
    assert [letter.header(EVENT_ID) for letter in found] == [b"e", b"e", b"f", b"g"]
    assert [letter.header("own") is not None for letter in found] == [True, True, False, False]
    cut = [letter.header(f"{ERRORS_PREFIX}cut_bytes") for letter in found]
    assert cut == [None, b"1047100", b"0", b"0"]
    assert all(letter.header(f"{ERRORS_PREFIX}message") == b"no" for letter in found)


async def test_a_sink_that_starts_before_the_last_one_of_its_file_ends_waits_and_writes_nothing_twice(
    embedded_broker, tmp_path
):
    where = embedded_broker.bootstrap_servers
    topic, path = await topic_on(where), tmp_path / "out.jsonl"
    await send(where, topic, numbered(range(20)))
    to = ("sinks.jsonl", where, topic, "--path", str(path))
    async with running(*to) as first:
        await until_lines(path, 20)
        async with running(*to) as second, running(*to) as needless:
            for waiting in (second, needless):
                while b"another sink has this file" not in await waiting.process.stderr.readline():
                    pass
            await send(where, topic, numbered(range(20, 40)))
            await until_lines(path, 40)
            assert (await needless.stopped())["written"] == 0
            assert (await first.stopped())["written"] == 40
            await send(where, topic, numbered(range(40, 60)))
            await until_lines(path, 60)
            counts = await second.stopped()
    assert (counts["written"], counts["duplicates"]) == (20, 0)
    assert sorted(json.loads(line)["event_id"] for line in path.read_text().splitlines()) == sorted(
        f"e{n}" for n in range(60)
    )


async def test_a_sink_takes_the_events_of_a_topic_that_was_created_again_for_new_ones(kafka, clients, tmp_path):
    topic, path = await clients.topic(), tmp_path / "out.jsonl"
    producer = await clients.producer()

    async def write(count: int) -> None:
        for number in range(count):
            await producer.send_and_wait(topic, b"%d" % number)  # without ids of their own

    async with asyncio.timeout(DEADLINE_S):
        await write(3)
        sink = await jsonl(kafka.bootstrap_servers, topic, path)
        await until_lines(path, 3)
        await sink.stopped()
        await clients.recreate(topic, 1)
        await producer.client.force_metadata_update()
        await write(4)
        sink = await jsonl(kafka.bootstrap_servers, topic, path, "--start", "earliest")
        await until_lines(path, 7)
        counts = await sink.stopped()
    assert (counts["written"], counts["duplicates"]) == (4, 0)
    assert len({json.loads(line)["event_id"] for line in path.read_text().splitlines()}) == 7


async def test_a_sink_reads_partitions_that_its_topic_is_given_and_leaves_out_what_cannot_be_unpacked(
    kafka, clients, tmp_path
):
    topic, path = await clients.topic(), tmp_path / "out.jsonl"
    producer = await clients.producer(compression_type="gzip", max_batch_size=1 << 30, max_request_size=1 << 30)
    bomb = producer.create_batch()
    for _ in range(24):
        bomb.append(key=None, value=bytes(1 << 20), timestamp=None)
    async with asyncio.timeout(DEADLINE_S):
        sink = await jsonl(kafka.bootstrap_servers, topic, path)
        await producer.send_and_wait(topic, b"1", partition=0)
        await until_lines(path, 1)
        await (await producer.send_batch(bomb, topic, partition=0))
        await clients.grow(topic, 2)
        await producer.client.force_metadata_update()
        await producer.send_and_wait(topic, b"2", partition=1)
        await producer.send_and_wait(topic, b"3", partition=0)
        await until_lines(path, 3)
        counts = await sink.stopped()
    assert (counts["written"], counts["unreadable"]) == (3, 1)


async def jsonl(bootstrap_servers: str, topic: str, path: Path, *more: str, check_s: str = "0.3") -> Command:
    module = "inferline_stream.connectors.sinks.jsonl"
    where = ("--bootstrap-servers", bootstrap_servers, "--topic", topic, "--path", str(path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *where, *more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "INFERLINE_TOPIC_CHECK_S": check_s},
    )  # fmt: skip
    return Command(process)
