"""Pipelines whose stages give an event many results, filter them, and gather them again."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.dead_letters import dead_letters, send_again
from inferline_stream.dataplane.headers import FALLBACK
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import FanOut, Paths
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import on_this_host, put_before, ran, records_in, unfed_run

TOPOLOGY = """
import functools
import os

from inferline_stream import Emulated, Pipeline, Result, Sample, Stage, Topic

QUICK = {"hardware": ["emulated-cpu"], "emulated": {1: "1ms", 16: "2ms"}, "max_batch_size": 16}


def split(counts: list[int]) -> list[list[Result[int]]]:
    return [map(functools.partial(part, count), range(10_000_000 if count == 13 else count)) for count in counts]


def part(count: int, at: int) -> Result[int]:
    return Result(at, key=f"{count}/{at}", headers={"of": str(count)})


def roughly(counts: list[int]) -> list[list[Result[int]]]:
    return [[Result(-at, key=f"{count}/{at}") for at in range(count)] for count in counts]


def read(places: list[int]) -> list[int | None]:
    if 5 in places and not os.path.exists(HEALED):
        raise ValueError("no 5")
    return [None if place == 3 else place for place in places]


def text(lists: list[list[int | None]]) -> list[list[int | None]]:
    return lists


IN_VAIN = {  # no event is on time by the stage itself
    "hardware": ["emulated-cpu"], "emulated": Emulated({1: "10s"}, fallback={1: "1ms"}), "max_batch_size": 1,
    "fallback": roughly, "fallback_share": "100%",
}
many = Stage("split", split, many=True, most=12, **(IN_VAIN if FALLS else QUICK))
one = Stage("read", read, after=[many], sink=Topic("lines", partitions=1) if GATHERS else None, **QUICK)
stages = [many, one]
if GATHERS:
    edge = one.gathered(missing=None) if FILLS else one.gathered()
    stages.append(Stage("text", text, after=[edge], **QUICK))
pipeline = Pipeline(
    "shapes", slo="10s" if FALLS else "500ms",
    source=[Topic("in", partitions=2), Topic("premium", slo="400ms", partitions=2)], sink=Topic("out", partitions=1),
    stages=stages, sample=Sample(arrivals="arrivals.csv", events="events.jsonl"),
)
"""

COUNTS = [0, 1, 2, 4, 4, 13, 6, 0, 3, 12]

BOTH = pytest.mark.parametrize(
    ("kafka", "delivery"), [("embedded", "at_least_once"), ("apache", "exactly_once")], indirect=["kafka"]
)
EMBEDDED = pytest.mark.parametrize("kafka", ["embedded"], indirect=True)


@pytest.fixture
def build(tmp_path: Path, kafka: KafkaServer) -> Any:
    """Builds a run of the pipeline, whose stage `read` fails on 5 until the file `healed` is there."""

    def built(*, gathers: bool, delivery: str, fills: bool = False, falls: bool = False) -> Run:
        flags = {"HEALED": str(tmp_path / "healed"), "GATHERS": gathers, "FILLS": fills, "FALLS": falls}
        code = "".join(f"{name} = {value!r}\n" for name, value in flags.items()) + TOPOLOGY
        paths = Paths((0,), (1.0,), (FanOut(0, (0, 12), (0.5, 0.5), (1,), (1.0,)),))
        return unfed_run(code, kafka.bootstrap_servers, tmp_path, paths=paths, delivery=delivery)

    return built


async def put(run: Run) -> None:
    """Events of each of the two classes by turns."""
    await put_before(run, "in", [b"%d" % count for count in COUNTS[::2]])
    await put_before(run, "premium", [b"%d" % count for count in COUNTS[1::2]])


@BOTH
async def test_results_reach_the_sink_gathered_by_their_event(build: Any, tmp_path: Path, delivery: str) -> None:
    run = build(gathers=True, delivery=delivery)
    await put(run)
    report = await ran(run, start="earliest")
    assert (report.lost, report.duplicated) == (0, 0), report.lost_ids
    whole = [[at for at in range(count) if at != 3] for count in COUNTS if count < 6]
    found = [json.loads(record.value) for record in await records_in(run, "out")]
    assert Counter(map(str, found)) == Counter(map(str, whole))
    lines = Counter(at for count in COUNTS if count < 13 for at in range(count) if at not in (3, 5))
    assert Counter(json.loads(record.value) for record in await records_in(run, "lines")) == lines
    letters = await dead_letters(run.bootstrap_servers, run.pipeline, run.records.prefix)
    assert {letter.says("type") for letter in letters} == {"TooManyResults", "ValueError", "DiedUpstream"}

    (tmp_path / "healed").touch()
    dead = next(letter for letter in letters if letter.says("type") == "ValueError")
    await send_again(run.bootstrap_servers, run.pipeline, run.records.prefix, ids=[dead.event_id])
    await send_again(run.bootstrap_servers, run.pipeline, run.records.prefix)
    await ran(run)
    whole += [[at for at in range(count) if at != 3] for count in COUNTS if 6 <= count < 13]
    found = [json.loads(record.value) for record in await records_in(run, "out")]
    assert Counter(map(str, found)) == Counter(map(str, whole))
    lines[5] += sum(6 <= count < 13 for count in COUNTS)
    assert Counter(json.loads(record.value) for record in await records_in(run, "lines")) == lines


@EMBEDDED
async def test_without_a_gather_each_result_is_accounted_for(build: Any) -> None:
    run = build(gathers=False, delivery="exactly_once")
    await put(run)
    report = await ran(run, start="earliest")
    assert (report.lost, report.duplicated) == (0, 0), report.lost_ids
    assert report.results_each == {"split": sum(COUNTS[:5] + COUNTS[6:]) / len(COUNTS)}  # of one they are too many
    out = [(record.key, json.loads(record.value), record.header("of")) for record in await records_in(run, "out")]
    places = [(n, at) for n in COUNTS if n < 13 for at in range(n) if at not in (3, 5)]
    every = [(f"{n}/{at}".encode(), at, str(n).encode()) for n, at in places]
    assert Counter(out) == Counter(every)
    assert report.completed["filtered"] == 2 + sum(3 < n < 13 for n in COUNTS)


@EMBEDDED
async def test_what_died_stays_none_in_the_list_and_is_a_dead_letter_again_once_it_is_sent_again(
    build: Any, tmp_path: Path
) -> None:
    run = build(gathers=True, delivery="exactly_once", fills=True)
    run = replace(run, settings=replace(run.settings, join_age_s=1.0))
    await put(run)
    report = await ran(run, start="earliest")
    assert (report.lost, report.duplicated) == (0, 0), report.lost_ids

    def whole(count: int) -> list[int | None]:
        return [None if at == 5 else at for at in range(count) if at != 3]

    expected = Counter(str(whole(count)) for count in COUNTS if count < 13)
    assert Counter(str(json.loads(record.value)) for record in await records_in(run, "out")) == expected

    (tmp_path / "healed").touch()
    await send_again(run.bootstrap_servers, run.pipeline, run.records.prefix)
    await ran(run)
    assert Counter(str(json.loads(record.value)) for record in await records_in(run, "out")) == expected
    letters = await dead_letters(run.bootstrap_servers, run.pipeline, run.records.prefix)
    died = Counter(letter.says("type") for letter in letters)
    assert died["IncompleteJoin"] == died["ValueError"] == 2  # of those that give 6 and 12
    assert "DiedUpstream" not in died


@EMBEDDED
async def test_each_of_many_results_of_a_fallback_says_so(build: Any) -> None:
    run = build(gathers=False, delivery="exactly_once", falls=True)
    source = Names(run.pipeline.name, run.records.prefix).topic("in")
    counts = (3, 0, 2)
    async with on_this_host(run, 120) as (under_way, _):
        while not under_way.controller.view.reports.served("split", 1):  # until then it degrades nothing
            await asyncio.sleep(0.05)
        for number, count in enumerate(counts):
            await write_once(run.bootstrap_servers, Record.keyed(source, f"k{number}", b"%d" % count, number % 2))
        await under_way.drain()
        report = await under_way.report({})
    assert (report.lost, report.duplicated, report.degraded) == (0, 0, {"split": 3})
    made = [(record.key, json.loads(record.value), record.header(FALLBACK)) for record in await records_in(run, "out")]
    every = [(f"{count}/{at}".encode(), -at, b"split") for count in counts for at in range(count)]
    assert Counter(made) == Counter(every)
    assert report.completed == {"filtered": 1}
