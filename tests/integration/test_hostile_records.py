"""Generated hostile records between good ones through a whole run: the short form of the benchmark `hostile`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferline_stream.testing.kafka import KafkaServer
from tests.benchmarks.hostile import UNSERVED, attacked

PEAK_MB = 160
"""Less than the bombs would take: 64 and 128 MiB, and as much again for the record that is taken out of them."""


async def test_hostile_records_cost_no_good_event_no_process_and_no_memory(
    apache_kafka: KafkaServer, tmp_path: Path
) -> None:
    async with asyncio.timeout(240):
        figures = await attacked(
            apache_kafka.bootstrap_servers, tmp_path, hostile=300, bombs=4, empty=2_000, unserved=UNSERVED, seed=19
        )
    assert figures["good_lost"] == 0
    assert figures["good_repeated"] == 0  # no process ended, so nothing had to be computed again
    assert figures["processes_ended"] == 0
    assert figures["control_records_blocked"] == 0
    assert figures["control_failures"] == 0
    assert figures["unaccounted"] == 0, (
        "a hostile event that is not in the sink has ended for a reason that is written down"
    )
    assert figures["memory_growth_mb"] <= 50
    assert figures["memory_peak_mb"] <= PEAK_MB
    assert figures["records"] > 250
