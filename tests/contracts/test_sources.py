"""HTTP, file and topic sources as the processes that they are, sealed, into a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.record_producer import RecordProducer, RecordRefused
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import EVENT_ID
from tests.contracts.commands import DEADLINE_S, command, isolated_part_of
from tests.contracts.sink_process import send, send_nothing, topic_on
from tests.support.sandbox import SEALABLE

TOKEN = "a-token-of-this-test-alone"
SENDER = hashlib.sha256(TOKEN.encode()).hexdigest()[:16]


async def records_of(bootstrap_servers: str, topic: str, count: int) -> list[Record]:
    """The first records of a topic, with none behind them."""
    found: list[Record] = []
    async with asyncio.timeout(DEADLINE_S), TopicFollower(bootstrap_servers, topic) as follower:
        while len(found) < count:
            found += await follower.read(1.0)
        found += await follower.read(0.3)
    return found


def ids(records: list[Record]) -> list[str]:
    return sorted(record.header(EVENT_ID).decode() for record in records)


def running(
    kind: str, bootstrap_servers: str, topic: str, *options: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    module = f"inferline_stream.connectors.sources.{kind}"
    to = ("--bootstrap-servers", bootstrap_servers, "--topic", topic)
    return command(sys.executable, "-m", module, *to, *options)


async def stopped(process: asyncio.subprocess.Process) -> dict[str, int]:
    """Its counts, after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    output, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    counts: dict[str, int] = json.loads(output)
    return counts


async def said(process: asyncio.subprocess.Process, what: str) -> re.Match[str]:
    """What it says on standard error, once it does."""
    lines = ""
    assert process.stderr is not None
    while not (found := re.search(what, lines)):
        line = (await process.stderr.readline()).decode()
        assert line, f"it ended without {what!r}: {lines}"
        lines += line
    return found


class Client:
    """Sends to an HTTP source."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def post(self, value: object = None, *, raw: bytes | None = None, **headers: str) -> tuple[int, dict]:
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        body = json.dumps(value).encode() if raw is None else raw
        async with self._session.post(self.url, data=body, headers=given) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["Cache-Control"] == "no-store"
            assert "aiohttp" not in answer.headers["Server"]
            self.last = answer.headers
            return answer.status, await answer.json()


@contextlib.asynccontextmanager
async def http(
    bootstrap_servers: str, topic: str, folder: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    tokens = folder / "tokens"
    tokens.write_text(f"another-token-that-is-known\n{TOKEN}\n")
    given = ("--listen", "127.0.0.1:0", "--token-file", str(tokens), *options)
    async with running("http", bootstrap_servers, topic, *given) as process, aiohttp.ClientSession() as session:
        url = (await said(process, r"taken at (http://\S+)"))[1]
        yield process, Client(session, url)


async def test_a_post_is_a_record_by_the_id_that_its_answer_tells(kafka, tmp_path):
    where = kafka.bootstrap_servers
    topic = await topic_on(where)
    async with http(where, topic, tmp_path, "--key-field", "user") as (process, client):
        status, answer = await client.post({"user": "u1", "n": 1})
        assert status == 202
        assert await client.post({"user": "u2"}, Idempotency_Key="mine/1") == (202, {"event_id": f"{SENDER}/mine/1"})
        counts = await stopped(process)
    assert counts == {"accepted": 2, "answered": 0, "refused": 0, "held_off": 0}
    records = await records_of(where, topic, 2)
    assert {r.header(EVENT_ID).decode(): (r.key, r.value) for r in records} == {
        answer["event_id"]: (b"u1", b'{"user": "u1", "n": 1}'),
        f"{SENDER}/mine/1": (b"u2", b'{"user": "u2"}'),
    }


async def test_nobody_sends_without_a_token_and_nothing_that_is_wrong_gets_in(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    async with http(where, topic, tmp_path, "--most-body-bytes", "100") as (process, client):
        assert (await client.post(1, Authorization="Bearer wrong"))[0] == 401
        assert client.last["WWW-Authenticate"] == "Bearer"
        assert (await client.post(1, Authorization=f"Basic {TOKEN}"))[0] == 401
        assert (await client.post(1, Authorization=""))[0] == 401
        assert (await client.post("x" * 200))[0] == 413
        assert (await client.post(raw=b"{"))[0] == 400
        assert (await client.post(raw=b"[" * 99))[0] == 400
        assert (await client.post(raw=b"\xff"))[0] == 400
        assert (await client.post(1, Content_Type="text/plain"))[0] == 415
        assert (await client.post(1, Idempotency_Key="two words"))[0] == 400
        for method, path, status in (("GET", "events", 405), ("POST", "other", 404), ("GET", "health", 200)):
            async with aiohttp.request(method, client.url.replace("events", path)) as answer:
                assert answer.status == status
        assert (await client.post(7))[0] == 202
        if SEALABLE:
            status = Path(f"/proc/{isolated_part_of(process)}/status").read_text()
            assert "Seccomp_filters:\t2" in status
            assert TOKEN.encode() not in Path(f"/proc/{isolated_part_of(process)}/cmdline").read_bytes()
        assert (await stopped(process))["refused"] == 9
    assert [record.value for record in await records_of(where, topic, 1)] == [b"7"]


async def test_what_is_no_http_or_ends_in_the_middle_is_no_error_of_ours(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    async with http(where, topic, tmp_path) as (process, client):
        status, answer = await client.post(raw=b"{}", Content_Encoding="gzip")
        assert (status, answer["error"].startswith("the body cannot be read (")) == (400, True)
        address = re.search(r"//(.+):(\d+)/", client.url)
        head = (
            f"POST /events HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        )
        for sent in ("garbage\r\n\r\n", f"{head}Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{{}}"):
            reader, writer = await asyncio.open_connection(address[1], int(address[2]))
            writer.write(sent.encode())
            assert (await reader.readline()).split()[1] == b"400"
            writer.close()
        for sent in ("Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            _, writer = await asyncio.open_connection(address[1], int(address[2]))
            writer.write((head + sent).encode())
            await asyncio.sleep(0.2)
            writer.close()
        assert (await client.post(7))[0] == 202
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert b"Traceback" not in errors
    assert b"ERROR" not in errors


async def test_a_thousand_idle_connections_cost_a_sealed_source_no_event(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    async with http(where, topic, tmp_path) as (process, client):
        address = re.search(r"//(.+):(\d+)/", client.url)
        idle = []
        for number in range(1100):  # it may have 1024 files
            idle.append(await asyncio.open_connection(address[1], int(address[2])))
            if number % 200 == 199:
                assert (await client.post({"n": number}))[0] == 202
        assert (await client.post({"n": -1}))[0] == 202
        for _, writer in idle:
            writer.close()
        counts = await stopped(process)
    assert (counts["accepted"], counts["refused"], counts["held_off"]) == (6, 0, 0)


async def test_more_than_the_rate_is_asked_to_come_again(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    async with http(where, topic, tmp_path, "--rate", "5") as (process, client):
        statuses = Counter([(await client.post(n))[0] for n in range(50)])
        assert set(statuses) <= {202, 429}
        assert statuses[202] >= 5
        counts = await stopped(process)
    assert (counts["accepted"], counts["held_off"]) == (statuses[202], statuses[429])
    assert len(await records_of(where, topic, statuses[202])) == statuses[202]


async def test_a_pipeline_that_is_behind_pushes_back(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    options = ("--most-behind", "3", "--group", "nobody.first")
    async with http(where, topic, tmp_path, *options) as (process, client):
        async with asyncio.timeout(DEADLINE_S):
            while (answer := await client.post(1))[0] == 202:
                await asyncio.sleep(0.05)
        assert answer[0] == 429
        assert "behind" in answer[1]["error"]
        assert client.last["Retry-After"] == "1"
        await stopped(process)


async def test_a_client_that_waits_gets_the_result_and_one_that_waits_in_vain_the_id(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic, sink = await topic_on(where), await topic_on(where)
    async with http(where, topic, tmp_path, "--results", sink) as (process, client):
        waiting = asyncio.create_task(client.post({"n": 1}, Idempotency_Key="a", Prefer="wait=30"))
        await records_of(where, topic, 1)
        producer = AIOKafkaProducer(bootstrap_servers=where)
        await producer.start()
        await producer.send_and_wait(sink, b'{"verdict": true}', headers=[(EVENT_ID, f"{SENDER}/a".encode())])
        await producer.stop()
        assert await waiting == (200, {"event_id": f"{SENDER}/a", "result": {"verdict": True}})
        assert await client.post({}, Idempotency_Key="b", Prefer="wait=1") == (202, {"event_id": f"{SENDER}/b"})
        assert (await stopped(process))["answered"] == 1


async def test_what_was_accepted_outlives_an_outage_and_what_was_not_is_said_to_be(own_apache_kafka, tmp_path):
    where = own_apache_kafka.bootstrap_servers
    topic = await topic_on(where)
    accepted: set[str] = set()
    tried = 0

    async def keep_sending(client: Client, until: asyncio.Event) -> None:
        nonlocal tried
        while not until.is_set():
            key = f"e{tried}"
            tried += 1
            async with asyncio.timeout(DEADLINE_S):
                while (await client.post(1, Idempotency_Key=key))[0] != 202:  # 503: it is sent again by its key
                    await asyncio.sleep(0.2)
            accepted.add(key)

    async with http(where, topic, tmp_path) as (process, client):
        enough = asyncio.Event()
        sending = [asyncio.create_task(keep_sending(client, enough)) for _ in range(4)]
        while len(accepted) < 20:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(own_apache_kafka.kill)
        await asyncio.sleep(1.0)
        before = len(accepted)
        await asyncio.to_thread(own_apache_kafka.start)
        while len(accepted) < before + 20:
            await asyncio.sleep(0.05)
        enough.set()
        await asyncio.gather(*sending)
        await stopped(process)
    assert accepted == {f"e{n}" for n in range(tried)}
    assert set(ids(await records_of(where, topic, tried))) == {f"{SENDER}/{key}" for key in accepted}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("http", ("--listen", "0.0.0.0:0"), "--token-file is needed"),
        ("http", ("--listen", "localhost"), "must be an address and a port"),
        ("http", ("--most-behind", "5"), "needs --group"),
        ("http", ("--key", "key.pem"), "HTTPS needs its --certificate"),
        ("topic", ("--from-topic", "t"), "cannot be sent into itself"),
        ("topic", ("--from-topic", "u", "--from-bootstrap-servers", "h:x"), "'h:x' is not an address of Kafka"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_starts(kind, options, said):
    async with running(kind, "127.0.0.1:9", "t", *options) as process:
        _, error = await process.communicate()
    assert process.returncode == 2
    assert said in error.decode()


async def test_without_tokens_only_this_machine_by_its_own_name_may_send(embedded_broker):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    async with running("http", where, topic, "--listen", "127.0.0.1:0") as process, aiohttp.ClientSession() as session:
        url = (await said(process, r"taken at (http://\S+)"))[1]
        client = Client(session, url)
        for host in ("evil.example:80", "evil.example", "", "localhost.evil.example", "[::1"):
            assert (await client.post(1, Authorization="", Host=host))[0] == 421
        for host in ("LocalHost", "localhost:80", "127.0.0.1", "[::1]", "[::1]:80"):  # 80 and 443 are left out
            assert (await client.post(1, Authorization="", Host=host))[0] == 202
        await stopped(process)


async def test_files_of_a_folder_are_events_once_through_a_crash_and_those_that_come_later_too(kafka, tmp_path):
    where = kafka.bootstrap_servers
    topic = await topic_on(where)
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(1500)))
    (folder / "b.csv").write_text("n,say\n1,hi\n")
    options = ("--path", str(folder), "--follow", "--numbers", "n")
    async with running("files", where, topic, *options) as process:
        await records_of(where, topic, 1501)
        os.kill(isolated_part_of(process), signal.SIGKILL)
        assert await process.wait() != 0
    with (folder / "a.jsonl").open("a") as more:
        more.write('{"n": 1500}\n{"n": 15')
    async with running("files", where, topic, *options) as process:
        (folder / "c.jsonl").write_text('"later"\n')
        async with asyncio.timeout(DEADLINE_S):
            while (
                len(found := {tuple(dict(r.headers).values()): r for r in await records_of(where, topic, 1503)}) < 1503
            ):
                await asyncio.sleep(0.1)
        await stopped(process)
    values = sorted(record.value for record in found.values())
    assert values == sorted([*(b'{"n": %d}' % n for n in range(1501)), b'{"n":1,"say":"hi"}', b'"later"'])
    by_id = {record.header(EVENT_ID): record.value for record in found.values()}
    assert by_id[b"a.jsonl:16890"] == b'{"n": 1500}'
    assert by_id[b"b.csv:6"] == b'{"n":1,"say":"hi"}'
    assert by_id[b"c.jsonl:0"] == b'"later"'


async def test_a_sealed_source_follows_files_that_are_rotated_in_its_folder_and_says_where_it_cannot(
    embedded_broker, tmp_path
):
    where, topic = embedded_broker.bootstrap_servers, await topic_on(embedded_broker.bootstrap_servers)
    file = tmp_path / "in" / "a.jsonl"
    file.parent.mkdir()
    file.write_text("1\n")
    options = ("--follow", "--state", str(tmp_path / "state"))
    async with running("files", where, topic, "--path", str(file.parent), *options) as process:
        await records_of(where, topic, 1)
        with file.open("a") as writer:
            file.rename(file.with_suffix(".1"))
            file.write_text("11\n")
            writer.write("2\n")
        assert ids(await records_of(where, topic, 3)) == ["a.jsonl:0", "a.jsonl:2", "a.jsonl~1:0"]
        assert await stopped(process) == {"sent": 3, "refused": 0}
    if SEALABLE:
        async with running("files", where, topic, "--path", str(file), *options, "--isolation", "sandbox") as process:
            await said(process, "sealed: ")
            (tmp_path / "other").write_text("12\n")
            (tmp_path / "other").rename(file)
            await said(process, "a.jsonl: is another file than at the start.*give its folder as --path")
            assert await process.wait() == 3


async def test_files_without_follow_are_sent_to_their_end_and_not_again(embedded_broker, tmp_path):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    file = tmp_path / "posts.jsonl"
    file.write_text("1\n2")
    for sent in (2, 0):
        async with running("files", where, topic, "--path", str(file)) as process:
            output, error = await process.communicate()
            assert (process.returncode, json.loads(output)) == (0, {"sent": sent, "refused": 0}), error.decode()
    assert ids(await records_of(where, topic, 2)) == ["posts.jsonl:0", "posts.jsonl:2"]


async def test_a_topic_that_is_not_there_is_named_once(embedded_broker, tmp_path):
    (tmp_path / "events.jsonl").write_text("1\n")
    servers = embedded_broker.bootstrap_servers
    async with running("files", servers, "no-such-topic", "--path", str(tmp_path / "events.jsonl")) as process:
        _, error = await process.communicate()
    assert process.returncode == Unreachable.exit_code
    assert error.decode() == "files: topic 'no-such-topic': Kafka has no such topic; create it first\n"


async def test_a_topic_of_small_batches_gets_every_record_that_fits_it(kafka, tmp_path):
    where = kafka.bootstrap_servers
    topic = await topic_on(where, 1, **{"max.message.bytes": "3000"})
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(f'"{n:0100}"\n' for n in range(300)) + f'"{0:05000}"\n"last"\n')
    async with running("files", where, topic, "--path", str(file), "--skip-refused") as process:
        output, error = await process.communicate()
    assert (process.returncode, json.loads(output)) == (0, {"sent": 301, "refused": 1}), error.decode()
    assert [record.value for record in await records_of(where, topic, 301)][-1] == b'"last"'


async def test_a_record_that_kafka_refuses_does_not_stop_those_after_it(kafka):
    where = kafka.bootstrap_servers
    topic = await topic_on(where, 1, **{"max.message.bytes": "3000"})
    async with RecordProducer(where) as producer:  # it does not know the limit, as where settings may not be read
        outcomes = await asyncio.gather(
            *(producer.deliver(topic, b"%d" % n if n != 3 else b"x" * 5000) for n in range(6)), return_exceptions=True
        )
        await producer.deliver(topic, b"last")
    assert [type(outcome) for outcome in outcomes if outcome is not None][:1] == [RecordRefused]
    values = [record.value for record in await records_of(where, topic, 1)]
    assert values[-1] == b"last"
    assert len(values) == 7 - sum(outcome is not None for outcome in outcomes)


async def test_a_record_that_kafka_refuses_takes_none_with_it_that_were_sent_in_its_batch(kafka, tmp_path):
    where = kafka.bootstrap_servers
    topic = await topic_on(where, 1, **{"cleanup.policy": "compact"})
    lines = [json.dumps({"k": str(n)} if n % 20 else {}) for n in range(1, 101)]
    file = tmp_path / "posts.jsonl"
    file.write_text("\n".join(lines) + "\n")
    options = ("--path", str(file), "--key-field", "k", "--skip-refused")
    async with running("files", where, topic, *options) as process:
        output, error = await process.communicate()
    assert (process.returncode, json.loads(output)) == (0, {"sent": 95, "refused": 5}), error.decode()
    found = await records_of(where, topic, 95)
    assert {record.key for record in found} == {b"%d" % n for n in range(1, 101) if n % 20}


async def test_a_record_that_kafka_refuses_takes_none_with_it_that_nobody_waited_for(kafka):
    where = kafka.bootstrap_servers
    topic = await topic_on(where, 1, **{"cleanup.policy": "compact"})
    async with asyncio.timeout(60), RecordProducer(where, topic) as producer:
        for n in range(1, 101):
            await producer.send(topic, b"{}", key=b"%d" % n if n % 20 else None)
        await producer.flush()
        assert (producer.acknowledged, producer.failed) == (95, 5)
        assert producer.last_error.startswith("RecordRefused")
    found = await records_of(where, topic, 95)
    assert sorted(int(record.key) for record in found) == [n for n in range(1, 101) if n % 20]


async def test_a_source_waits_for_a_kafka_that_is_away_and_loses_nothing(own_apache_kafka, tmp_path):
    where = own_apache_kafka.bootstrap_servers
    raw, topic = await topic_on(where), await topic_on(where)
    file = tmp_path / "posts.jsonl"
    file.write_text("".join(f"{n}\n" for n in range(100)))
    async with (
        running("files", where, raw, "--path", str(file), "--follow") as reading,
        running("topic", where, topic, "--from-topic", raw) as copying,
    ):
        await records_of(where, topic, 100)
        await asyncio.to_thread(own_apache_kafka.kill)
        with file.open("a") as more:
            more.writelines(f"{n}\n" for n in range(100, 200))
        await asyncio.sleep(1.0)
        await asyncio.to_thread(own_apache_kafka.start)
        found = await records_of(where, topic, 200)
        assert reading.returncode is None
        assert copying.returncode is None
        await stopped(copying)
        await stopped(reading)
    assert {record.value for record in found} == {b"%d" % n for n in range(200)}
    assert all(known.startswith("posts.jsonl:") for known in ids(found))


async def test_a_record_that_holds_nothing_is_copied_and_stops_none_of_those_after_it(kafka):
    where = kafka.bootstrap_servers
    raw, topic = await topic_on(where, 1), await topic_on(where, 2)
    await send_nothing(where, raw)
    await send(where, raw, [("after", b"1")])
    async with running("topic", where, topic, "--from-topic", raw) as process:
        found = await records_of(where, topic, 2)
        assert await stopped(process) == {"sent": 2, "refused": 0}
    assert {(record.key, record.value) for record in found} == {(None, None), (None, b"1")}


async def test_a_source_that_retention_has_passed_on_a_partition_sends_the_others_and_ends_with_a_message(apache_kafka):
    where = apache_kafka.bootstrap_servers
    topic, other = await topic_on(where), await topic_on(where)
    async with AIOKafkaProducer(bootstrap_servers=where) as producer:
        await producer.send_and_wait(topic, b"1", partition=0)
        async with running("topic", where, other, "--from-topic", topic) as process:
            await records_of(where, other, 1)
            await stopped(process)
        for value in (b"2", b"3"):
            await producer.send_and_wait(topic, value, partition=0)
        await producer.send_and_wait(topic, b"4", partition=1)
    admin = AIOKafkaAdminClient(bootstrap_servers=where)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=2)})
    await admin.close()
    async with running("topic", where, other, "--from-topic", topic) as process:
        assert {record.value for record in await records_of(where, other, 2)} == {b"1", b"4"}
        process.send_signal(signal.SIGTERM)
        output, error = await process.communicate()
    assert (process.returncode, json.loads(output)["sent"]) == (1, 1)
    assert b"not sent. partition 0: Kafka no longer has offset 1, but 2" in error


async def test_a_topic_is_not_sent_into_itself_by_another_address(kafka):
    where = kafka.bootstrap_servers
    topic = await topic_on(where)
    other = ("--from-topic", topic, "--from-bootstrap-servers", f"PLAINTEXT://{where}")
    async with running("topic", where, topic, *other) as process:
        _, error = await process.communicate()
    assert process.returncode == 2
    assert f"--from-topic {topic}: at PLAINTEXT://{where} it is the topic that is sent into" in error.decode()


async def test_a_topic_is_copied_with_keys_headers_and_ids_and_goes_on_where_it_stopped(kafka):
    where = kafka.bootstrap_servers
    raw, topic = await topic_on(where, 1), await topic_on(where)
    producer = AIOKafkaProducer(bootstrap_servers=where)
    await producer.start()
    try:
        headers = [("mine", b"h"), ("null", None), (EVENT_ID, b"known"), ("__inferline.entry_time_us", b"1")]
        await producer.send_and_wait(raw, b"1", key=b"k", headers=headers, timestamp_ms=1_700_000_000_000)
        async with running("topic", where, topic, "--from-topic", raw, "--keep-timestamps") as process:
            (first,) = await records_of(where, topic, 1)
            await stopped(process)
        await producer.send_and_wait(raw, None, key=b"k")
        async with running("topic", where, topic, "--from-topic", raw) as process:
            both = await records_of(where, topic, 2)
            assert await stopped(process) == {"sent": 1, "refused": 0}
    finally:
        await producer.stop()
    assert (first.key, first.value, first.timestamp_ms) == (b"k", b"1", 1_700_000_000_000)
    assert dict(first.headers) == {EVENT_ID: b"known", "mine": b"h", "null": None}
    known, named = ids(both)
    assert known == "known"
    assert re.fullmatch(rf"{raw}@[\w-]{{8}}/0/1", named)
