"""The end of a run that is longer than what is looked up by id."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.end_offsets import EndOffsets
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer


async def test_the_newest_events_are_looked_up_and_the_others_counted(
    swing, tmp_path: Path, apache_kafka: KafkaServer
) -> None:
    """Markers of transactions take offsets as well."""
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(60, 2)], delivery="exactly_once")
    marks = EndOffsets(verified=150, apart=10)
    async with asyncio.timeout(120), open_run(run) as under_way:
        await under_way.ready()
        collector = under_way.controller.collector
        assert collector is not None
        collector.end_offsets = marks
        await under_way.fed(asyncio.Event())
        fed = len((tmp_path / "trace.csv").read_text().split()) - 1

        async def marked() -> bool:
            return sum(marks._marks[-1].source if marks._marks else ()) > fed - 10

        assert await until(marked, 60.0), "nobody looked after all events had come"
        await under_way.fed(asyncio.Event())
        report = await under_way.report(await under_way.drain())
    assert report.events_in == 2 * fed > 150
    assert fed <= report.verified <= 150
    assert (report.lost, report.unaccounted, report.duplicated, report.unknown) == (0, 0, 0, 0)
    assert report.p99_s is not None
    assert report.slo_miss_rate is not None
