"""Where a first stage begins that is new or renamed; on Apache Kafka and on the embedded broker alike."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from inferline_stream.dataplane.start_offsets import StageGroup, commit_start_offsets
from inferline_stream.errors import UsageError
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.pipeline.version import Structure, structure_of


def through(events: list[bytes]) -> list[bytes]:
    return events


def pipeline(*entries: str) -> Pipeline:
    stages = [Stage(name, through, hardware=["cpu-1"]) for name in entries]
    return Pipeline("p", slo="1s", source=Topic("in", codec="raw", partitions=2), sink=Topic("out"), stages=stages)


def before(*entries: str, source: str = "in") -> Structure:
    return replace(structure_of(pipeline(*entries)), source=(source, "raw"))


@pytest.fixture
async def stood(kafka, clients):
    """Commits where groups stand in the source, then where the first stages begin that are given."""
    names = Names("p", f"{secrets.token_hex(4)}.")
    await create_topics(kafka.bootstrap_servers, topics_of(pipeline("any"), names.prefix), replication=1)
    producer = await clients.producer()
    for partition in (0, 1):
        for _ in range(20):
            await producer.send(names.topic("in"), b"x", partition=partition)
    await producer.flush()

    async def begin(
        at: dict[str, Sequence[Committed]], entries: Sequence[str], structure: Structure
    ) -> dict[str, list[Any]]:
        async with Offsets(kafka.bootstrap_servers) as offsets:
            for stage, stood_at in at.items():
                group = await StageGroup.of(offsets, names.group(stage), names.topic("in"))
                await group.commit(dict(enumerate(stood_at)))
        await commit_start_offsets(kafka.bootstrap_servers, pipeline(*entries), names.prefix, before=structure)
        async with Offsets(kafka.bootstrap_servers) as offsets:
            found = {s: await offsets.committed(names.group(s), names.topic("in"), 2) for s in entries}
        return {stage: [(each.offset, each.runs) for each in of] for stage, of in found.items()}

    return begin


async def test_a_renamed_stage_begins_where_its_predecessor_stood_and_repeats_nothing_that_is_finished(stood):
    at = {"old": [Committed(5, ((7, 9),), owner="old-0"), Committed(20)]}
    assert await stood(at, ["new"], before("old")) == {"new": [(5, ((7, 9),)), (20, ())]}


async def test_a_stage_beside_others_begins_where_the_last_of_them_stands(stood):
    at = {"a": [Committed(5, ((7, 9),)), Committed(20)], "b": [Committed(8), Committed(3, ((4, 12),))]}
    found = await stood(at, ["a", "b", "new"], before("a", "b"))
    assert found["new"] == [(5, ((7, 8),)), (3, ((4, 12),))]
    assert found["a"] == [(5, ((7, 9),)), (20, ())], "the others stay"


async def test_a_stage_that_is_named_back_does_not_begin_where_it_once_stood(stood):
    at = {"back": [Committed(2), Committed(2)], "now": [Committed(12), Committed(20)]}
    assert await stood(at, ["back"], before("now")) == {"back": [(12, ()), (20, ())]}


async def test_a_stage_that_has_worked_before_its_structure_was_written_down_does_not_begin_again(stood):
    at = {"old": [Committed(5), Committed(6)], "new": [Committed(9, ((11, 13),)), Committed(6)]}
    assert await stood(at, ["new"], before("old")) == {"new": [(9, ((11, 13),)), (6, ())]}


@pytest.mark.parametrize("structure", [before("old"), before("old", source="elsewhere")])
async def test_a_stage_is_refused_where_nobody_knows_where_it_begins(stood, structure):
    with pytest.raises(UsageError, match=r"'new' has not read topic .*in before.*partitions 0,1: say with --start"):
        await stood({}, ["new"], structure)


def of_own_sources(**sources: str) -> Pipeline:
    """A pipeline each of whose stages has a source of its own."""
    stages = [
        Stage(
            name, through, hardware=["cpu-1"], source=Topic(topic, codec="raw", partitions=1), sink=Topic(f"to-{name}")
        )
        for name, topic in sources.items()
    ]
    return Pipeline("p", slo="1s", stages=stages)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"b": "others", "a": "in"}, {"a": ("a.in", 5), "b": ("b", 3)}),
        ({"a": "in", "new": "others"}, {"a": ("a", 5), "new": ("new.others", 3)}),
        ({"first": "firsts", "a": "in", "b": "others"}, {"a": ("a.in", 5), "b": ("b.others", 3)}),
    ],
)
async def test_each_source_of_a_stage_is_read_on_from_where_it_was_read_to(kafka, clients, caplog, now, expected):
    running, wanted = of_own_sources(a="in", b="others"), of_own_sources(**now)
    names = Names("p", f"{secrets.token_hex(4)}.")
    for pipeline_then in (running, wanted):
        await create_topics(kafka.bootstrap_servers, topics_of(pipeline_then, names.prefix), replication=1)
    producer = await clients.producer()
    for topic in ("in", "others"):
        for _ in range(20):
            await producer.send(names.topic(topic), b"x", partition=0)
    await producer.flush()
    await commit_start_offsets(kafka.bootstrap_servers, running, names.prefix)
    async with Offsets(kafka.bootstrap_servers) as offsets:
        for group, topic, at in ((names.group("a"), "in", 5), (names.group("b", "others"), "others", 3)):
            await (await StageGroup.of(offsets, group, names.topic(topic))).commit({0: Committed(at)})
        if "first" in now:  # nobody knows where a source that is new begins
            with pytest.raises(UsageError, match=r"'first' has not read topic .*firsts before"):
                await commit_start_offsets(kafka.bootstrap_servers, wanted, names.prefix, before=structure_of(running))
            first = await StageGroup.of(offsets, names.group("first"), names.topic("firsts"))
            await first.commit({0: Committed(0)})
        await commit_start_offsets(kafka.bootstrap_servers, wanted, names.prefix, before=structure_of(running))
        for stage, (group, at) in expected.items():
            (found,) = await offsets.committed(f"{names.prefix}p.{group}", names.topic(now[stage]), 1)
            assert found.offset == at, stage
    assert "halted" not in caplog.text
