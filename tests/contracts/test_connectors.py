"""Trace replay and JSONL sink, on Apache Kafka and on the embedded broker alike."""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import signal
import sys

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from inferline_stream.connectors.sinks.jsonl import JsonlFile
from inferline_stream.connectors.sinks.topic_sink import TopicSink
from inferline_stream.connectors.sources.replay_process import TraceReplay
from inferline_stream.connectors.sources.trace_replay import ReplaySpec
from inferline_stream.errors import InvalidInput, Unreachable
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.testing.kafka import EmbeddedKafka
from tests.contracts.commands import isolated_part_of, until_lines
from tests.contracts.sink_process import moving, topic_on, until_stored

DEADLINE_S = 30.0


@pytest.fixture
async def topic(kafka):
    return await topic_on(kafka.bootstrap_servers, 3)


async def everything_in(kafka, topic):
    async with TopicFollower(kafka.bootstrap_servers, topic) as follower:
        return await follower.read_to(await follower.end())


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(3)
    due_s = np.concatenate([[0.0], np.cumsum(rng.exponential(0.02, 99))])
    (tmp_path / "arrivals.csv").write_text("arrival_s\n" + "".join(f"{t!r}\n" for t in (due_s * 4).tolist()))
    (tmp_path / "events.jsonl").write_text("".join(f'{{"user": "u{i}",  "n": {i}}}\n' for i in range(7)))
    return tmp_path, due_s


def spec_of(kafka, topic, folder, **fields):
    return ReplaySpec(
        bootstrap_servers=kafka.bootstrap_servers,
        topic=topic,
        arrivals=str(folder / "arrivals.csv"),
        events=str(folder / "events.jsonl"),
        **fields,
    )


async def test_a_replay_sends_every_event_once_in_turn_at_the_traces_times(kafka, topic, files):
    folder, due_s = files
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, topic, folder, speed_up=4)) as replay:
        ready = await replay.ready()
        replay.start()
        report = await replay.finished()
    assert ready.events == report.events == report.sent == report.acknowledged == 100
    assert ready.duration_s == pytest.approx(due_s[-1])
    assert not report.stopped
    assert 0 <= report.lateness_p50_s <= report.lateness_p99_s <= report.lateness_max_s
    records = sorted(await everything_in(kafka, topic), key=lambda r: (r.timestamp_ms, r.partition, r.offset))
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    sent_in_turn = sorted(line for line, _ in zip(itertools.cycle(lines), range(100), strict=False))
    assert sorted(r.value for r in records) == sent_in_turn
    assert all(r.key is None for r in records)
    # Timestamps follow the trace as closely as the reported lateness says; they are cut to milliseconds.
    late_s = np.array([r.timestamp_ms for r in records]) / 1e3 - report.first_sent_s - due_s
    assert late_s.min() > -0.0015 - report.lateness_max_s
    assert late_s.max() < 0.0015 + report.lateness_max_s


async def test_events_of_one_key_share_a_partition_in_order(kafka, topic, files):
    folder, _ = files
    spec = spec_of(kafka, topic, folder, speed_up=40, key_field="user")
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec) as replay:
        replay.start()
        assert (await replay.finished()).acknowledged == 100
    of_key = {}
    for record in await everything_in(kafka, topic):
        assert json.loads(record.value)["user"] == record.key.decode()
        of_key.setdefault(record.key, set()).add(record.partition)
    assert len(of_key) == 7
    assert all(len(partitions) == 1 for partitions in of_key.values())


async def test_a_replay_that_is_stopped_reports_exactly_what_is_in_kafka(kafka, topic, files):
    folder, _ = files
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, topic, folder)) as replay:
        await replay.ready()
        replay.start()
        await asyncio.sleep(1.0)
        replay.stop()
        report = await replay.finished()
    assert report.stopped
    assert 0 < report.sent < 100
    assert report.acknowledged == report.sent == len(await everything_in(kafka, topic))


async def test_a_replay_that_is_stopped_while_kafka_is_gone_ends_and_says_so(files, monkeypatch):
    folder, _ = files
    monkeypatch.setenv("INFERLINE_CONNECT_TIMEOUT_S", "1")
    with EmbeddedKafka() as kafka:
        name = await topic_on(kafka.bootstrap_servers, 3)
        async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, name, folder)) as replay:
            await replay.ready()
            replay.start()
            while not replay.acknowledged:
                await asyncio.sleep(0.05)
            kafka.process.kill()
            while replay.sent < replay.acknowledged + 5:  # fewer may have been on their way when it was killed
                await asyncio.sleep(0.05)
            replay.stop()
            report = await replay.finished()
    assert report.stopped
    assert 0 < report.acknowledged < report.sent
    assert "Kafka had not acknowledged everything" in report.last_error


async def test_a_replay_that_was_not_started_sends_nothing(kafka, topic, files):
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, topic, files[0])) as replay:
        await replay.ready()
    assert (await replay.finished()).sent == 0
    assert await everything_in(kafka, topic) == []


async def test_a_topic_that_is_missing_is_said_before_anything_is_sent(kafka, files, monkeypatch):
    monkeypatch.setenv("INFERLINE_CONNECT_TIMEOUT_S", "2")
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, "no-such-topic", files[0])) as replay:
        with pytest.raises(Unreachable, match="no-such-topic"):
            await replay.ready()


async def test_a_broken_events_file_is_reported_to_the_starter_of_the_replay(kafka, topic, files):
    (files[0] / "events.jsonl").write_text("{\n")
    async with asyncio.timeout(DEADLINE_S), TraceReplay(spec_of(kafka, topic, files[0])) as replay:
        with pytest.raises(InvalidInput, match=r"events\.jsonl:1"):
            await replay.finished()


async def test_a_kafka_that_is_not_there_is_said_in_time(files, unused_tcp_port):
    spec = ReplaySpec(
        bootstrap_servers=f"127.0.0.1:{unused_tcp_port}",
        topic="t",
        arrivals=str(files[0] / "arrivals.csv"),
        events=str(files[0] / "events.jsonl"),
    )
    async with asyncio.timeout(15), TraceReplay(spec) as replay:
        with pytest.raises(Unreachable, match="does not answer"):
            await replay.ready()


async def send(kafka, topic, records):
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    try:
        for number, event_id in records:
            await producer.send_and_wait(topic, b'{"n": %d}' % number, headers=[(EVENT_ID, event_id.encode())])
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def jsonl(kafka, topic, path, group):
    """A sink that has stored what is in the topic; its counts."""
    where = kafka.bootstrap_servers
    async with JsonlFile(path) as file, moving(TopicSink(where, topic=topic, store=file, what="it", group=group)):
        await until_stored(where, topic, group)
        yield file.counts


async def test_the_sink_writes_each_event_once_and_goes_on_where_it_stopped(kafka, topic, tmp_path):
    path = tmp_path / "out.jsonl"
    await send(kafka, topic, [(i, f"e{i % 8}") for i in range(10)])
    async with asyncio.timeout(DEADLINE_S):
        async with jsonl(kafka, topic, path, f"{topic}-out") as counts:
            assert (counts.written, counts.duplicates) == (8, 2)
        await send(kafka, topic, [(20, "e20"), (21, "e3")])
        async with jsonl(kafka, topic, path, f"{topic}-out") as counts:
            assert (counts.written, counts.duplicates) == (1, 1), "read again what had been committed"
    ids = [json.loads(line)["event_id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == sorted({*(f"e{i}" for i in range(8)), "e20"})


async def test_a_sink_whose_commits_were_lost_writes_nothing_twice(kafka, topic, tmp_path):
    path = tmp_path / "out.jsonl"
    await send(kafka, topic, [(i, f"e{i}") for i in range(5)])
    async with asyncio.timeout(DEADLINE_S):
        for group in ("first", "another, without commits"):
            async with jsonl(kafka, topic, path, f"{topic}-{group}") as counts:
                pass
    assert (counts.written, counts.duplicates) == (0, 5)
    assert len(path.read_text().splitlines()) == 5


async def test_the_sinks_command_counts_and_ends_on_sigterm(kafka, topic, tmp_path):
    path = tmp_path / "out.jsonl"
    await send(kafka, topic, [(i, f"e{i}") for i in range(5)])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferline_stream.connectors.sinks.jsonl", "--bootstrap-servers", kafka.bootstrap_servers,
        "--topic", topic, "--path", str(path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        await until_lines(path, 5)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(output) == {
        "written": 5,
        "duplicates": 0,
        "unreadable": 0,
        "halted": {},
        "refused": 0,
    }


async def test_a_full_disk_holds_the_sink_up_and_nothing_is_lost_or_torn(kafka, topic, tmp_path):
    path = tmp_path / "out.jsonl"
    await send(kafka, topic, [(i, f"e{i}") for i in range(3)])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferline_stream.connectors.sinks.jsonl", "--bootstrap-servers", kafka.bootstrap_servers,
        "--topic", topic, "--path", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        await until_lines(path, 3)
        worker = isolated_part_of(process)
        _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
        await send(kafka, topic, [(i, f"e{i}") for i in range(3, 9)])
        while b"File too large; trying again" not in await process.stderr.readline():
            pass
        assert len(path.read_bytes().splitlines()) == 3
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
        await until_lines(path, 9)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = await process.communicate()
    assert json.loads(output) == {
        "written": 9,
        "duplicates": 0,
        "unreadable": 0,
        "halted": {},
        "refused": 0,
    }
    assert sorted(json.loads(line)["event_id"] for line in path.read_text().splitlines()) == [f"e{i}" for i in range(9)]
