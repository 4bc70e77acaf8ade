"""A pipeline with two sources and three sinks: an event has ended once all sinks that it leads to have its record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.dead_letters import send_again
from inferline_stream.pipeline.shape import Paths
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import ids_in, put_before, ran, records_in, unfed_run

TOPOLOGY = """
import os

from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic

QUICK = {"hardware": ["emulated-cpu"], "emulated": {1: "1ms", 16: "2ms"}, "max_batch_size": 16}


def score(events: list[int]) -> list[int | None]:
    return [None if event == 7 else event for event in events]


def warn(events: list[int]) -> list[str]:
    if 8 in events and not os.path.exists(HEALED):
        raise ValueError("no 8")
    return [f"warned of {event}" for event in events]


def ask(questions: list[str]) -> list[str]:
    return [question + "?" for question in questions]


class Either(Struct):
    score: int | None = None
    ask: str | None = None


def describe(events: list[Either]) -> list[str]:
    return [f"is {event.score}" if event.ask is None else f"asks {event.ask}" for event in events]


def even(event: int) -> bool:
    return event % 2 == 0


scored = Stage("score", score, sink=Topic("scores", partitions=1), **QUICK)
warned = Stage("warn", warn, after=[scored.when(even)], sink=Topic("alerts", partitions=1), **QUICK)
asked = Stage("ask", ask, source=Topic("questions", partitions=1, codec="msgpack"), **QUICK)
described = Stage("describe", describe, after=[scored, asked], **QUICK)
pipeline = Pipeline(
    "ends", slo="500ms", source=Topic("in", partitions=2), sink=Topic("out", partitions=1),
    stages=[scored, asked, warned, described],
    sample=Sample(arrivals="arrivals.csv", events="events.jsonl"),
)
"""

EVENTS, QUESTIONS = range(12), ("who", "why")

BOTH = pytest.mark.parametrize(
    ("kafka", "delivery"), [("embedded", "at_least_once"), ("apache", "exactly_once")], indirect=["kafka"]
)


@pytest.fixture
def build(tmp_path: Path, kafka: KafkaServer) -> Any:
    """Builds a run of the pipeline, whose stage `warn` fails on 8 until the file `healed` is there."""

    def built(delivery: str) -> Run:
        code = f"HEALED = {str(tmp_path / 'healed')!r}\n{TOPOLOGY}"
        paths = Paths((0b0010, 0b0011, 0b1100), (0.25, 0.25, 0.5))
        return unfed_run(code, kafka.bootstrap_servers, tmp_path, paths=paths, events="1\n2\n", delivery=delivery)

    return built


async def sent_to(run: Run, sink: str) -> Counter[Any]:
    return Counter([json.loads(record.value or b"") for record in await records_in(run, sink)])


@BOTH
async def test_each_sink_gets_its_records_and_each_event_is_accounted_for(
    build: Any, tmp_path: Path, delivery: str
) -> None:
    run = build(delivery)
    await put_before(run, "in", [b"%d" % event for event in EVENTS])
    taken = [*(await ids_in(run, "in"))[:1], "order-1"]  # ids of the other topic's events are not theirs
    await put_before(run, "questions", [msgspec.msgpack.encode(word) for word in QUESTIONS], taken)
    report = await ran(run, start="earliest")
    assert (report.lost, report.duplicated, report.unknown) == (0, 0, 0), report.lost_ids
    assert (report.events_in, report.events_out) == (14, 13)
    assert (report.classes["in"].events_in, report.classes["questions"].events_out) == (12, 2)
    assert report.completed == {"filtered": 1, "dead_lettered": 1}  # a branch not taken is no ending: others went on
    assert report.slo_counts == "events"
    through = [event for event in EVENTS if event != 7]
    assert await sent_to(run, "scores") == Counter(through)
    said = [*(f"is {event}" for event in through), *(f"asks {word}?" for word in QUESTIONS)]
    assert await sent_to(run, "out") == Counter(said)
    assert await sent_to(run, "alerts") == Counter(f"warned of {event}" for event in (0, 2, 4, 6, 10))

    if delivery == "at_least_once":  # the second half is of no other delivery
        return
    (tmp_path / "healed").touch()
    await send_again(run.bootstrap_servers, run.pipeline, run.records.prefix)
    await ran(run)
    assert await sent_to(run, "alerts") == Counter(f"warned of {event}" for event in EVENTS if event % 2 == 0)
    assert await sent_to(run, "scores") == Counter(through)
