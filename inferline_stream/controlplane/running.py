"""A running pipeline by its names, and whether anything is left in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferline_stream.dataplane.control import OffsetReader
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import Settings


@dataclass(frozen=True, slots=True)
class Running:
    """What a controller is given of its pipeline.

    Args:
        names: of topics and groups.
        source: full name of the source topic.
        sink: full name of the sink topic.
        entries: stages that read the source topic.
        bootstrap_servers: host:port, comma separated.
        settings: periods and time limits.
        advisory: decide without acting.
    """

    names: Names
    source: str
    sink: str
    entries: frozenset[str]
    bootstrap_servers: str
    settings: Settings
    advisory: bool = False

    def topic(self, stage: str) -> str:
        """Input topic of a stage."""
        return self.source if stage in self.entries else self.names.stage_topic(stage)


async def drained(offsets: OffsetReader, running: Running, partitions: Mapping[str, int]) -> bool:
    """Whether every stage has committed all that its topic holds, now.

    Committed offsets are read before end offsets. A stage commits an event only after its results are in
    the next topic, so if nothing is left by these numbers, nothing is left anywhere.
    """
    committed = {
        stage: await offsets.committed(running.names.group(stage), running.topic(stage), n)
        for stage, n in partitions.items()
    }
    ends = await offsets.ends({running.topic(stage): n for stage, n in partitions.items()})
    return all(
        max(0, done) >= end
        for stage in partitions
        for done, end in zip(committed[stage], ends[running.topic(stage)], strict=True)
    )
