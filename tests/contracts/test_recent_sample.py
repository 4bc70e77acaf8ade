"""A pipeline that declares no sample is planned on the last hour of its source topic."""

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.cli.main import app
from inferline_stream.dataplane import source_sample
from inferline_stream.dataplane.source_sample import recent_sample
from inferline_stream.errors import InvalidTopology
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.planner.plan_document import plan_from_bytes
from inferline_stream.testing.kafka import KafkaServer


def pipeline(topic: str) -> Pipeline:
    stage = Stage("only", list, hardware=["cpu-1"])
    return Pipeline("p", slo="1s", source=Topic(topic), sink=Topic("out"), stages=[stage])


@pytest.fixture
async def topic(kafka: KafkaServer) -> str:
    name = f"recent-{secrets.token_hex(4)}"
    await create_topics(kafka.bootstrap_servers, [WantedTopic(name, 3, "a source")], replication=1)
    return name


async def fill(kafka: KafkaServer, topic: str, ages_s: list[float], now_s: float) -> None:
    async with RecordProducer(kafka.bootstrap_servers) as producer:
        for number, age_s in enumerate(ages_s):
            at_ms = round((now_s - age_s) * 1000)
            await producer.send(topic, b'{"number": %d}' % number, key=b"%d" % number, timestamp_ms=at_ms)
        await producer.flush()
        assert producer.acknowledged == len(ages_s)


async def test_arrivals_are_the_timestamps_of_the_last_hour_over_all_partitions(kafka: KafkaServer, topic: str) -> None:
    now_s = time.time()
    await fill(kafka, topic, [7200.0, 3700.0, *(600.0 - i for i in range(60))], now_s)
    trace, events, keys, _ = await recent_sample(kafka.bootstrap_servers, pipeline(topic), now_s=now_s)
    assert trace.arrivals_s.tolist() == pytest.approx(range(60), abs=2e-3)
    assert sorted(events) == sorted(b'{"number": %d}' % number for number in range(2, 62))
    assert [b'{"number": %s}' % key for key in keys] == events


async def test_each_source_has_its_arrivals_when_they_came(kafka: KafkaServer, topic: str) -> None:
    now_s, later = time.time(), f"{topic}-later"
    await create_topics(kafka.bootstrap_servers, [WantedTopic(later, 1, "a source")], replication=1)
    await fill(kafka, topic, [600.0, 500.0], now_s)
    await fill(kafka, later, [550.0, 540.0, 400.0], now_s)
    stages = [
        Stage(name, list, hardware=["cpu-1"], source=Topic(source), sink=Topic(f"to-{name}"))
        for name, source in (("one", topic), ("other", later))
    ]
    both = Pipeline("p", slo="1s", stages=stages)
    trace, events, _, sources = await recent_sample(kafka.bootstrap_servers, both, now_s=now_s)
    assert trace.arrivals_s.tolist() == pytest.approx([0, 50, 60, 100, 200], abs=2e-3)
    assert trace.source_of.tolist() == [0, 1, 1, 0, 1]
    assert (len(events), sources) == (5, [0, 0, 1, 1, 1])


@pytest.mark.parametrize("header", [None, "at"])
async def test_one_wrong_time_changes_no_rate(
    kafka: KafkaServer, topic: str, header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = time.time()
    good_ms = [round((now_s - 600 + i) * 1000) for i in range(60)]
    wrong_ms = [0, round((now_s - 7200) * 1000), round((now_s + 1800) * 1000)]  # later ones brokers refuse
    async with RecordProducer(kafka.bootstrap_servers) as producer:
        for number, at_ms in enumerate([*good_ms[:30], *wrong_ms, *good_ms[30:]]):
            # With a header the record's own timestamp is wrong as well, or it would be believed instead.
            headers = [("at", b"%d" % at_ms)] if header else []
            await producer.deliver(topic, b"%d" % number, timestamp_ms=at_ms, key=b"k", headers=headers)
    source = Topic(topic, timestamp_header=header)
    stage = Stage("only", list, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=source, sink=Topic("out"), stages=[stage])
    trace, events, *_ = await recent_sample(kafka.bootstrap_servers, pipeline, now_s=now_s)
    assert trace.arrivals_s.tolist() == pytest.approx(range(60), abs=2e-3)
    assert len(events) == 60
    assert "3 of 63 records bear times outside the last hour" in caplog.text


async def test_events_are_a_sample_where_there_are_many(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_sample, "EVENTS_KEPT", 20)
    now_s = time.time()
    await fill(kafka, topic, [600.0 - i for i in range(300)], now_s)
    trace, events, *_ = await recent_sample(kafka.bootstrap_servers, pipeline(topic), now_s=now_s)
    assert len(trace) == 300
    assert len(set(events)) == 20


async def test_an_empty_or_missing_topic_is_reported(kafka: KafkaServer, topic: str) -> None:
    with pytest.raises(InvalidTopology, match=r"declares no sample, and topic .* holds 0 events of the last hour"):
        await recent_sample(kafka.bootstrap_servers, pipeline(topic))
    with pytest.raises(InvalidTopology, match="holds 0 events of the last hour"):
        await recent_sample(kafka.bootstrap_servers, pipeline("no-such-topic"))


@pytest.fixture
def as_before() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.mark.usefixtures("as_before")
async def test_plan_takes_the_last_hour_from_kafka(kafka: KafkaServer, topic: str, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["init", str(tmp_path)]).exit_code == 0
    text = (tmp_path / "topology.py").read_text()
    declared = '    sample=Sample(arrivals="arrivals.csv", events="events.jsonl", replay="live.csv"),\n'
    assert declared in text
    text = text.replace(declared, "")
    (tmp_path / "topology.py").write_text(text.replace('Topic("reviews-in")', f'Topic("{topic}")'))
    now_s = time.time()
    async with RecordProducer(kafka.bootstrap_servers) as producer:
        for number in range(400):
            words = " ".join(["word"] * (3 + number % 10))
            at_ms = round((now_s - 40 + number / 10) * 1000)
            await producer.send(topic, b'{"number": %d, "text": "%s"}' % (number, words.encode()), timestamp_ms=at_ms)
        await producer.flush()
    arguments = ["plan", str(tmp_path), "--bootstrap-servers", kafka.bootstrap_servers, "--output", "json"]
    arguments += ["--slo", "5s"]  # a busy machine may be too slow for the starter's
    command = [str(Path(sys.executable).with_name("inferline-stream")), *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    plan = plan_from_bytes(done.stdout)
    assert plan.arrival_rate == pytest.approx(10.0, rel=0.01)
