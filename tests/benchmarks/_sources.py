"""What a live run was fed, read back from its source topic: to estimate or to replay exactly that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.shape import Shape
from tests.benchmarks._pipelines import mask_of


@dataclass(frozen=True, slots=True)
class Source:
    """What was in the source topic, in order of entry: times in seconds, arrows taken as in `Paths.masks`, and
    (partition, offset) of each event."""

    entry_s: np.ndarray
    paths: np.ndarray
    places: list[tuple[int, int]]


async def source_of(
    bootstrap_servers: str, topic: str, partitions: int, shape: Shape, goes_to: Callable[[Any], Mapping[str, bool]]
) -> Source:
    """Everything that a pipeline was fed.

    Args:
        bootstrap_servers: of the Kafka.
        topic: the source topic.
        partitions: how many it has.
        shape: the pipeline's.
        goes_to: of an event: whether it goes to the stages behind a condition, by name.
    """
    async with TopicFollower(bootstrap_servers, topic) as follower:
        records = await follower.read_to(await follower.end())
    records.sort(key=lambda record: (record.time_ms, record.partition, record.offset))
    paths = np.array([mask_of(shape, goes_to(msgspec.json.decode(record.value or b""))) for record in records])
    entry_s = np.array([record.time_ms for record in records]) / 1e3
    return Source(entry_s, paths, [(record.partition, record.offset) for record in records])
