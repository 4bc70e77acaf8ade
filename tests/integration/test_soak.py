"""Under load on Apache Kafka, scaled up and down: the short form of the benchmark `soak`."""

from __future__ import annotations

from pathlib import Path

from inferline_stream.testing.kafka import KafkaServer
from tests.benchmarks.soak import soaked

LEAK_MB = 8.0
"""More than twenty seconds of traffic may leave behind: joins remember which events were finished."""


async def test_scaling_under_load_loses_nothing_and_ends_with_the_memory_descriptors_tasks_and_groups_it_began_with(
    apache_kafka: KafkaServer, tmp_path: Path
) -> None:
    figures = await soaked(apache_kafka.bootstrap_servers, tmp_path, 42.0, 45.0)
    assert (figures["lost"], figures["duplicated"], figures["exits"], figures["failures"]) == (0, 0, 0, 0)
    assert figures["events"] > 1500
    assert figures["changes"] == 2
    assert figures["descriptors_ended"] <= figures["descriptors_began"]
    assert figures["groups_began"] == figures["groups_ended"] == figures["groups_of_the_beginning"] == 3
    assert figures["lived_long"] >= 2
    for figure in ("memory_growth_mb", "controller_memory_growth_mb"):
        assert figures[figure] < LEAK_MB, figure
    for figure in ("descriptors_growth", "controller_descriptors_growth", "tasks_growth", "controller_tasks_growth"):
        assert figures[figure] <= 4, figure
