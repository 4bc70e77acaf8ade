"""A pipeline whose first stage is new or renamed since it last ran goes on where the first stages of before stood."""

from __future__ import annotations

import asyncio

import pytest

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.errors import UsageError
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run, run_to_report
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import unfed_run

WORK = """
from inferline_stream import Pipeline, Sample, Stage, Topic

def work(events: list[int]) -> list[int]:
    return events

{name} = Stage({name!r}, work, hardware=["emulated-cpu"], emulated={{1: "1ms", 16: "2ms"}}, max_batch_size=16)
pipeline = Pipeline(
    "renamed", slo="500ms", source=Topic({source!r}, partitions=2), sink=Topic("out", partitions=1),
    stages=[{name}], sample=Sample(arrivals="arrivals.csv", events="events.jsonl"),
)
"""


@pytest.fixture
def build(tmp_path, embedded_broker: KafkaServer):
    """Builds a run of one stage of this name, on the topics of the others."""

    def built(name: str, source: str = "in") -> Run:
        folder = tmp_path / f"{name}-{source}"
        folder.mkdir(exist_ok=True)
        code = WORK.format(name=name, source=source)
        return unfed_run(code, embedded_broker.bootstrap_servers, folder, prefix=f"{tmp_path.name}.")

    return built


async def put(run: Run, events: int) -> None:
    source = Names(run.pipeline.name, run.records.prefix).topic(run.pipeline.source.name)
    for number in range(events):
        await write_once(run.bootstrap_servers, Record.keyed(source, str(number), b"%d" % number, number % 2))


async def test_a_renamed_first_stage_takes_what_came_while_nothing_ran(build) -> None:
    first, renamed = build("before"), build("after")
    async with asyncio.timeout(120):
        await run_to_report(first, done())
        await put(first, 100)
        report = await run_to_report(renamed, done())
        await put(first, 10)
        named_back = await run_to_report(first, done())
    assert (report.events_in, report.events_out, report.lost, report.duplicated) == (100, 100, 0, 0)
    assert (named_back.events_in, named_back.events_out, named_back.lost, named_back.duplicated) == (10, 10, 0, 0)


async def test_a_new_first_stage_is_refused_where_the_run_before_may_still_be_at_work(build) -> None:
    first, renamed = build("before"), build("after")
    async with asyncio.timeout(120):
        async with open_run(first) as under_way:
            await under_way.ready()
            await asyncio.sleep(1.0)  # what is wanted is written down within a moment
            under_way.control.cancel()  # it falls silent: no resignation
            await asyncio.wait([under_way.control])
        with pytest.raises(UsageError, match=r"stage after is new.*did not end in order.*Run the pipeline as it was"):
            await run_to_report(renamed, done())


def done() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
