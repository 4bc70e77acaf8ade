"""The end of a run that is longer than what is looked up by id."""

from __future__ import annotations

import asyncio

from inferline_stream.controlplane.observe.event_ledger import EndOffsets
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer


async def test_the_newest_events_are_looked_up_and_the_others_counted(swing, apache_kafka: KafkaServer) -> None:
    """Markers of transactions take offsets as well."""
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(60, 8)], delivery="exactly_once")
    async with asyncio.timeout(120), open_run(run) as under_way:
        await under_way.ready()
        collector = under_way.controller.collector
        assert collector is not None
        collector.end_offsets = EndOffsets(verified=150, apart=10)
        await under_way.fed(asyncio.Event())
        report = await under_way.report(await under_way.drain())
    assert report.events_in > 300
    assert 50 < report.verified <= 150
    assert (report.lost, report.unaccounted, report.duplicated, report.unknown) == (0, 0, 0, 0)
    assert report.p99_s is not None
    assert report.slo_miss_rate is not None
