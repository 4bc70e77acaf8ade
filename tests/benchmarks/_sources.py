"""What a live run was fed, read back from its source topic: to estimate or to replay exactly that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from inferline_stream.estimator.workload import Recorded
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.shape import Shape
from tests.benchmarks._pipelines import mask_of


@dataclass(frozen=True, slots=True)
class Source:
    """What was in the source topic, in order of entry: times in seconds, what becomes of each event, and its
    (partition, offset)."""

    entry_s: np.ndarray
    recorded: Recorded
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of an event, given its decoded value.

    Args:
        goes_to: whether it goes to the stages behind a condition, by name.
        results: how many it is given by the stages that give many, by name.
    """

    goes_to: Callable[[Any], Mapping[str, bool]] = lambda _: {}
    results: Callable[[Any], Mapping[str, int]] = lambda _: {}


async def source_of(bootstrap_servers: str, topic: str, shape: Shape, fates: Fates) -> Source:
    """Everything that a pipeline was fed.

    Args:
        bootstrap_servers: of the Kafka.
        topic: the source topic.
        shape: the pipeline's.
        fates: of its events.
    """
    async with TopicFollower(bootstrap_servers, topic) as follower:
        records = await follower.read_to(await follower.end())
    records.sort(key=lambda record: (record.time_ms, record.partition, record.offset))
    values = [msgspec.json.decode(record.value or b"") for record in records]
    paths = np.array([mask_of(shape, fates.goes_to(value)) for value in values])
    counts = [fates.results(value) for value in values]
    results = {stage: np.array([count[shape.stages[stage]] for count in counts]) for stage in shape.many}
    entry_s = np.array([record.time_ms for record in records]) / 1e3
    return Source(entry_s, Recorded(paths, results), [(record.partition, record.offset) for record in records])
