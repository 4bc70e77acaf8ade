"""Service time by batch size of one stage on one kind of hardware (InferLine §4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.replica.stage_call import emulated_service_s
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PROBABILITIES, ServiceTime
from inferline_stream.profiler.messages import Measure, Times
from inferline_stream.profiler.process import WorkerFailed

FEWEST_BATCHES, MOST_BATCHES = 2, 200
"""Of each size and pass."""

NO_GAIN = 1.01
"""Throughput must grow by this factor to count as growing: less is noise."""

PATIENCE = 2
"""Larger batches without a gain after which the search for one ends."""


class Measures(Protocol):
    """A worker, as far as measuring needs one."""

    async def ask(self, request: Measure, answer: type[Times]) -> Times:
        """Time batches of one size."""


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to ``most``."""
    return tuple(1 << i for i in range(most.bit_length()))


async def measure(
    worker: Measures,
    hardware: Hardware,
    inputs: Sequence[StageInput],
    max_batch_size: int,
    *,
    seconds: float,
    device_bytes: Callable[[], int] = lambda: 0,
    progress: Callable[[int], None] = lambda batch_size: None,
) -> tuple[tuple[ServiceTime, ...], str]:
    """Service times at powers of two, and why there are none of larger batches, if so.

    Every size is measured twice, upwards and then downwards, so that a machine that grows slower or busier
    meanwhile does so for all of them. The memory of its devices is read on the way up: frameworks keep what they
    took for a larger batch.

    Raises:
        WorkerFailed: the stage cannot even run a batch of one.
    """
    found: dict[int, list[float]] = {}
    memory: dict[int, int] = {}
    why = ""
    sizes = powers_of_two(max_batch_size)
    share_s = seconds / (2 * len(sizes))
    best, without_gain = 0.0, 0
    for size in sizes:
        progress(size)
        try:
            found[size] = await _times_s(worker, hardware, inputs, size, share_s)
        except WorkerFailed as error:
            if not error.memory or size == 1:
                raise
            why = f"batches of {size}: {error}"
            break
        memory[size] = device_bytes()
        throughput = size / float(np.mean(found[size]))
        without_gain = 0 if throughput > best * NO_GAIN else without_gain + 1
        best = max(best, throughput)
        if without_gain == PATIENCE and size != sizes[-1]:
            why = f"throughput did not grow beyond batches of {size >> PATIENCE}"
            break
    try:
        for size in reversed(found):
            progress(size)
            found[size] += await _times_s(worker, hardware, inputs, size, share_s)
    except WorkerFailed as error:
        if not error.memory:  # memory may have run out for good: the first pass stands
            raise
    return tuple(service_time(size, times_s, memory[size]) for size, times_s in found.items()), why


async def measure_emulated(
    worker: Measures,
    hardware: Hardware,
    inputs: Sequence[StageInput],
    max_batch_size: int,
    table_s: Mapping[int, float],
) -> tuple[ServiceTime, ...]:
    """The declared service times, each longer by what sleeping and handing over were measured to take.

    Raises:
        WorkerFailed: the stage cannot run.
    """
    declared_s = emulated_service_s(table_s, 1)
    fewest = 10 if declared_s <= 0.1 else 3
    order = Measure(list(inputs), hardware, dict(table_s), 1, 0.3, fewest, MOST_BATCHES)
    over_s = np.array((await worker.ask(order, Times)).service_s) - declared_s
    sizes = sorted({*table_s, *powers_of_two(max(table_s))})
    return tuple(
        service_time(size, [emulated_service_s(table_s, size) + max(0.0, float(over)) for over in over_s])
        for size in sizes
        if size <= max_batch_size
    )


def service_time(batch_size: int, times_s: Sequence[float], device_bytes: int = 0) -> ServiceTime:
    """Mean and distribution of measured times."""
    quantiles = np.maximum.accumulate(np.quantile(times_s, PROBABILITIES))
    return ServiceTime(batch_size, float(np.mean(times_s)), tuple(map(float, quantiles)), device_bytes)


async def _times_s(
    worker: Measures, hardware: Hardware, inputs: Sequence[StageInput], size: int, seconds: float
) -> list[float]:
    order = Measure(list(inputs), hardware, {}, size, seconds, FEWEST_BATCHES, MOST_BATCHES)
    return (await worker.ask(order, Times)).service_s
