"""Webhook and PostgreSQL sinks as the processes that they are, sealed, against what they really write to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from inferline_stream.dataplane.following import RecordFollower
from inferline_stream.isolation.sealing import unsupported
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.testing.kafka import EmbeddedKafka
from inferline_stream.testing.local_postgres import LocalPostgres
from tests.contracts.commands import DEADLINE_S, command

asyncpg = pytest.importorskip("asyncpg", reason="the PostgreSQL sink's client is not installed")

SEALABLE = not unsupported(Isolation())


@pytest.fixture
async def topic(kafka) -> str:
    return await topic_on(kafka.bootstrap_servers)


async def topic_on(bootstrap_servers: str, partitions: int = 2) -> str:
    name = f"sinks-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1), NewTopic(f"{name}.dlq", 1, 1)])
    finally:
        await admin.close()
    return name


async def send(bootstrap_servers: str, topic: str, events: list[tuple[str, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        for known, value in events:
            await producer.send_and_wait(topic, value, headers=[(EVENT_ID, known.encode())])
    finally:
        await producer.stop()


def numbered(numbers: range) -> list[tuple[str, bytes]]:
    return [(f"e{n}", b'{"n": %d}' % n) for n in numbers]


class Command:
    """A sink's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._errors = b""

    async def stopped(self, code: int = 0) -> dict[str, Any]:
        """Its counts, after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        output, self._errors = await self.process.communicate()
        assert self.process.returncode == code, self._errors
        counts: dict[str, Any] = json.loads(output)
        return counts

    async def errors(self) -> bytes:
        """What it wrote to standard error, once it has ended."""
        return self._errors

    def worker(self) -> int:
        """The isolated process beneath, that moves the records."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@contextlib.asynccontextmanager
async def running(kind: str, bootstrap_servers: str, topic: str, *options: str) -> AsyncIterator[Command]:
    module = f"inferline_stream.connectors.{kind}"
    to = ("--bootstrap-servers", bootstrap_servers, "--topic", topic)
    async with command(sys.executable, "-m", module, *to, *options) as process:
        yield Command(process)


async def until(condition, what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not in {DEADLINE_S:g} s: {what}")


class Receiver:
    """An HTTP server that takes events, or does what a test asks instead."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, bytes, str]] = []
        self.answers: list[web.Response] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.port = 0

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.posts]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/verdicts"

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/verdicts", self._post)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        if self.answers:
            return self.answers.pop(0)
        reported = request.headers
        self.posts.append((reported["Idempotency-Key"], await request.read(), reported.get("Authorization", "")))
        await self.answering.wait()
        return web.Response()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


async def test_a_webhook_gets_every_event_with_its_id_and_the_token_that_no_command_line_shows(
    kafka, topic, receiver, tmp_path
):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    await send(kafka.bootstrap_servers, topic, numbered(range(20)))
    async with receiver.up():
        options = ("--url", receiver.url, "--token-file", str(token))
        async with running("sinks.webhook", kafka.bootstrap_servers, topic, *options) as sink:
            await until(lambda: len(receiver.posts) == 20, "20 posts")
            for process in (sink.process.pid, sink.worker()) if SEALABLE else (sink.process.pid,):
                assert b"s3cret" not in Path(f"/proc/{process}/cmdline").read_bytes()
                assert b"s3cret" not in Path(f"/proc/{process}/environ").read_bytes()
            assert await sink.stopped() == {
                "written": 20,
                "duplicates": 0,
                "undecodable": 0,
                "unreadable": 0,
                "halted": {},
                "refused": 0,
            }
        async with running("sinks.webhook", kafka.bootstrap_servers, topic, *options) as sink:
            await send(kafka.bootstrap_servers, topic, numbered(range(20, 21)))
            await until(lambda: len(receiver.posts) == 21, "one more post")
            assert (await sink.stopped())["written"] == 1
    assert sorted(receiver.posts) == sorted((k, v, "Bearer s3cret") for k, v in numbered(range(21)))


@pytest.mark.skipif(not SEALABLE, reason="no sandbox on this machine")
async def test_a_sink_is_sealed_before_its_first_record(embedded_broker, receiver):
    topic = await topic_on(embedded_broker.bootstrap_servers)
    await send(embedded_broker.bootstrap_servers, topic, numbered(range(1)))
    async with (
        receiver.up(),
        running(
            "sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url, "--isolation", "sandbox"
        ) as sink,
    ):
        await until(lambda: receiver.posts, "a post")
        status = dict(line.split(":\t") for line in Path(f"/proc/{sink.worker()}/status").read_text().splitlines())
        assert (status["Seccomp"], status["Seccomp_filters"].strip(), status["NoNewPrivs"]) == ("2", "2", "1")
        assert int(status["CapEff"], 16) == 0
        await sink.stopped()


async def test_a_webhook_that_is_away_or_busy_loses_nothing_and_keeps_the_order(embedded_broker, receiver):
    topic = await topic_on(embedded_broker.bootstrap_servers, partitions=1)
    async with receiver.up():
        pass  # it has a port now, where nobody listens
    await send(embedded_broker.bootstrap_servers, topic, numbered(range(5)))
    async with running("sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url) as sink:
        line = b""
        while b"trying again" not in line:
            line = await sink.process.stderr.readline()
        receiver.answers = [web.Response(status=503), web.Response(status=429, headers={"Retry-After": "1"})]
        async with receiver.up():
            await until(lambda: len(receiver.posts) == 5, "5 posts")
            assert receiver.keys == [f"e{n}" for n in range(5)]
            os.kill(sink.worker() if SEALABLE else sink.process.pid, signal.SIGKILL)
            await sink.process.wait()
            async with running(
                "sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url
            ) as again:
                await send(embedded_broker.bootstrap_servers, topic, numbered(range(5, 6)))
                await until(lambda: "e5" in receiver.keys, "the next event")
                await again.stopped()
    assert set(receiver.keys) == {f"e{n}" for n in range(6)}


async def test_a_sink_that_has_to_end_leaves_a_silent_receiver_and_what_that_has_not_taken_comes_again(
    embedded_broker, receiver
):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    await send(where, topic, numbered(range(20)))
    receiver.answering.clear()
    async with receiver.up():
        async with running("sinks.webhook", where, topic, "--url", receiver.url, "--timeout-s", "600") as sink:
            await until(lambda: receiver.posts, "the first event is posted")
            sink.process.send_signal(signal.SIGTERM)
            _, said = await sink.process.communicate()
        assert sink.process.returncode == 5
        assert b"not written in time; they come again" in said
        receiver.answering.set()
        async with running("sinks.webhook", where, topic, "--url", receiver.url) as sink:
            await until(lambda: len(set(receiver.keys)) == 20, "every event is posted")
            assert (await sink.stopped())["written"] == 20


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
            kafka.process.kill()
            kafka.process.wait()
            ends = await asyncio.gather(posting.stopped(), writing.stopped(), copying.stopped())
    assert [counts.get("written", counts.get("sent")) for counts in ends] == [20, 20, 20]


async def copied(bootstrap_servers: str, topic: str, count: int) -> None:
    async with RecordFollower(bootstrap_servers, topic, None) as follower:
        found = 0
        async with asyncio.timeout(DEADLINE_S):
            while found < count:
                found += len(await follower.batch(0.5))


async def test_what_a_webhook_refuses_for_good_is_a_dead_letter_and_without_one_ends_the_sink(
    embedded_broker, receiver
):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    await send(where, topic, numbered(range(3)))
    receiver.answers = [web.Response(status=422, text="no such verdict")]
    async with receiver.up():
        async with running("sinks.webhook", where, topic, "--url", receiver.url) as sink:
            _, said = await sink.process.communicate()
            assert sink.process.returncode == 1
            assert b"refuses event 'e0': HTTP status 422: no such verdict" in said
        receiver.answers = [web.Response(status=422, text="no such verdict")]
        async with running(
            "sinks.webhook", where, topic, "--url", receiver.url, "--dead-letters", f"{topic}.dlq"
        ) as sink:
            await until(lambda: "e2" in receiver.keys[2:], "the others are posted again")
            assert (await sink.stopped())["refused"] == 1
    async with RecordFollower(where, f"{topic}.dlq", None) as letters:
        (letter,) = await letters.batch(10.0)
    assert (letter.value, letter.headers[EVENT_ID]) == (b'{"n": 0}', b"e0")
    assert b"422" in letter.headers["__inferline.errors.message"]
    assert int(letter.headers["__inferline.errors.timestamp_ms"]) <= letter.timestamp_ms


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres() as server:
        yield server


@pytest.fixture
def password(postgres, tmp_path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{postgres.password}\n")
    return file


async def rows(postgres: LocalPostgres, table: str) -> dict[str, object]:
    connection = await asyncpg.connect(postgres.url, password=postgres.password)
    try:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return {}
        return {row["event_id"]: json.loads(row["value"]) for row in await connection.fetch(f"SELECT * FROM {table}")}
    finally:
        await connection.close()


async def until_rows(postgres: LocalPostgres, table: str, count: int) -> dict[str, object]:
    async with asyncio.timeout(DEADLINE_S):
        while len(found := await rows(postgres, table)) < count:
            await asyncio.sleep(0.1)
    return found


async def test_a_table_holds_every_event_once_through_an_outage_of_the_database_and_a_crash(
    kafka, topic, postgres, password
):
    table = f"verdicts_{uuid.uuid4().hex[:8]}"
    options = ("--database", postgres.url, "--table", table, "--password-file", str(password))
    await send(kafka.bootstrap_servers, topic, [*numbered(range(10)), ("e3", b'{"n": 33}')])
    async with running("sinks.postgres", kafka.bootstrap_servers, topic, *options) as sink:
        await until_rows(postgres, table, 10)
        postgres.stop()
        await send(kafka.bootstrap_servers, topic, numbered(range(10, 20)))
        line = b""
        while b"trying again" not in line:
            line = await sink.process.stderr.readline()
        postgres.start()
        await until_rows(postgres, table, 20)
        os.kill(sink.worker() if SEALABLE else sink.process.pid, signal.SIGKILL)
        assert await sink.process.wait() != 0
    await send(kafka.bootstrap_servers, topic, numbered(range(20, 25)))
    async with running("sinks.postgres", kafka.bootstrap_servers, topic, *options) as sink:
        found = await until_rows(postgres, table, 25)
        await sink.stopped()
    assert found.pop("e3") in ({"n": 3}, {"n": 33})  # whichever came last; two partitions have no order
    assert found == {f"e{n}": {"n": n} for n in range(25) if n != 3}


async def test_values_that_a_table_can_never_take_are_dead_letters(embedded_broker, postgres, password):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    events = [("a", b"1"), ("b", b"no json"), ("c", b'"\\u0000"'), ("d", b"null")]
    await send(where, topic, events)
    table = f"public.letters_{uuid.uuid4().hex[:8]}"
    async with running(
        "sinks.postgres", where, topic, "--database", postgres.url, "--table", table, "--password-file", str(password),
        "--dead-letters", f"{topic}.dlq",
    ) as sink:  # fmt: skip
        assert await until_rows(postgres, table, 2) == {"a": 1, "d": None}
        async with RecordFollower(where, f"{topic}.dlq", None) as letters:
            found = []
            while len(found) < 2:
                found += await letters.batch(1.0)
        assert [letter.value for letter in found] == [b"no json", b'"\\u0000"']
        counts = await sink.stopped()
    assert (counts["written"], counts["refused"]) == (2, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("postgres", "--database", "postgresql://me:pw@h/db", "--table", "t"), "a password in a URL is seen"),
        (("postgres", "--database", "postgresql://me@h/db", "--table", "t; DROP TABLE t"), "letters, digits"),
        (("webhook", "--url", "file:///etc/passwd"), "must begin with https:// or http://"),
        (("webhook", "--url", "http://me:pw@h/"), "a password in a URL is seen"),
    ],
)
async def test_what_cannot_be_or_would_show_a_secret_is_refused_before_anything_starts(options, said):
    kind, *others = options
    async with running(f"sinks.{kind}", "127.0.0.1:9", "t", *others) as sink:
        _, error = await sink.process.communicate()
    assert sink.process.returncode == 2
    assert said in error.decode()


async def test_a_password_that_is_wrong_is_said_at_once(embedded_broker, postgres, tmp_path):
    topic = await topic_on(embedded_broker.bootstrap_servers)
    (tmp_path / "wrong").write_text("wrong")
    async with running(
        "sinks.postgres", embedded_broker.bootstrap_servers, topic, "--database", postgres.url, "--table", "t",
        "--password-file", str(tmp_path / "wrong"),
    ) as sink:  # fmt: skip
        _, error = await sink.process.communicate()
    assert sink.process.returncode == 3
    assert "password authentication failed" in error.decode()
    assert "Traceback" not in error.decode()


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
        await lines_of(path, 5)
        assert (await first.stopped())["halted"] == {}
        await write(range(5, 9), 0)
        await write(range(20, 23), 1)
        admin = AIOKafkaAdminClient(bootstrap_servers=where)
        await admin.start()
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=7)})
        await admin.close()
        halted = await sink()
        await lines_of(path, 8)
        counts = await halted.stopped(1)
        assert counts["written"] == 3, "the other partition is served"
        assert counts["halted"] == {"0": "Kafka no longer has offset 5, but 7 and those after it"}
        assert b"say --start earliest or latest" in await halted.errors()
        again = await sink("--start", "earliest")
        await lines_of(path, 10)
        assert (await again.stopped())["halted"] == {}
    ids = [json.loads(line)["event_id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == sorted(f"e{n}" for n in (0, 1, 2, 3, 4, 7, 8, 20, 21, 22))


async def test_a_sink_takes_the_events_of_a_topic_that_was_created_again_for_new_ones(kafka, clients, tmp_path):
    topic, path = await clients.topic(), tmp_path / "out.jsonl"
    producer = await clients.producer()

    async def write(count: int) -> None:
        for number in range(count):
            await producer.send_and_wait(topic, b"%d" % number)  # without ids of their own

    async with asyncio.timeout(DEADLINE_S):
        await write(3)
        sink = await jsonl(kafka.bootstrap_servers, topic, path)
        await lines_of(path, 3)
        await sink.stopped()
        await clients.recreate(topic, 1)
        await producer.client.force_metadata_update()
        await write(4)
        sink = await jsonl(kafka.bootstrap_servers, topic, path, "--start", "earliest")
        await lines_of(path, 7)
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
        await lines_of(path, 1)
        await (await producer.send_batch(bomb, topic, partition=0))
        await clients.grow(topic, 2)
        await producer.client.force_metadata_update()
        await producer.send_and_wait(topic, b"2", partition=1)
        await producer.send_and_wait(topic, b"3", partition=0)
        await lines_of(path, 3)
        counts = await sink.stopped()
    assert (counts["written"], counts["unreadable"]) == (3, 1)


async def jsonl(bootstrap_servers: str, topic: str, path: Path, *more: str) -> Command:
    module = "inferline_stream.connectors.sinks.jsonl"
    where = ("--bootstrap-servers", bootstrap_servers, "--topic", topic, "--path", str(path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *where, *more,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "INFERLINE_TOPIC_CHECK_S": "0.3"},
    )  # fmt: skip
    return Command(process)


async def lines_of(path: Path, count: int) -> None:
    while not path.exists() or len(path.read_bytes().splitlines()) < count:
        await asyncio.sleep(0.05)
