"""Service time by batch size of one stage on one kind of hardware (InferLine §4.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

import numpy as np

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.replica.emulated_hardware import emulated_service_s
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.fallback import FALLBACK
from inferline_stream.pipeline.profile import STEADY, Contention, Profile, ServiceTime, Variation
from inferline_stream.profiler.bench_messages import Measure
from inferline_stream.profiler.benches import Bench
from inferline_stream.profiler.replica_failures import ReplicaFailed
from inferline_stream.profiler.this_host import HeldDevice
from inferline_stream.profiler.variation_fit import FEWEST_EVENTS, TimedBatch, fitted, service_time

FEWEST_BATCHES, MOST_BATCHES = 2, 256
"""Of each size and pass."""

NO_GAIN = 1.01
"""Throughput must grow by this factor to count as growing: less is noise."""

SINGLES = 4
"""Times the seconds of a stage are spent on single events where they differ: plans follow from how many are large."""

EMULATED_BATCHES = 400
"""Of each size, where emulated times vary."""

PATIENCE = 2
"""Larger batches without a gain after which the search for one ends."""


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to ``most``."""
    return tuple(1 << i for i in range(most.bit_length()))


async def measure(
    bench: Bench,
    inputs: Sequence[StageInput],
    max_batch_size: int,
    *,
    seconds: float,
    device: HeldDevice | None = None,
    progress: Callable[[int], None] = lambda batch_size: None,
) -> tuple[tuple[ServiceTime, ...], Variation | None, str]:
    """Service times at powers of two, how they vary, and why there are none of larger batches, if so.

    Every size is measured twice, upwards and then downwards, so that a machine that grows slower or busier
    meanwhile does so for all of them, and so that repeats of a batch tell its events from chance. The memory of its
    devices is read on the way up: frameworks keep what they took for a larger batch.

    A stage on a share of a GPU has batches whose memory fits into that share, and no larger ones: nothing else keeps
    those who share a device from taking each other's.

    Where single events differ and the topology does not say what they cost, more of them are measured alone, and
    batches are made of those.

    Raises:
        ReplicaFailed: the stage cannot even run a batch of one, or that does not fit into its share of a GPU.
    """
    inputs = [inputs[i] for i in np.random.default_rng(0).permutation(len(inputs))]  # order must not matter
    costs = await bench.weigh(inputs)
    run = _TimedRun(bench, inputs)
    memory: dict[int, int] = {}
    why = ""
    sizes = powers_of_two(max_batch_size)
    share_s = seconds / (2 * len(sizes))
    best, without_gain = 0.0, 0
    for size in sizes:
        progress(size)
        try:
            await run.time(size, max(share_s, seconds / 2) if size == 1 else share_s)
        except ReplicaFailed as error:
            if not error.memory or size == 1:
                raise
            why = f"batches of {size}: {error}"
            break
        memory[size] = 0 if device is None else device.taken_bytes or 0
        if device is not None and (why := _beyond_share(device, size)):
            if size == 1:
                raise ReplicaFailed(why)
            del run.timed[size]
            break
        if size == 1 and costs is None:
            await run.time_more_singles(SINGLES * seconds)
        throughput = size / float(np.mean([batch.time_s for batch in run.timed[size]]))
        without_gain = 0 if throughput > best * NO_GAIN else without_gain + 1
        best = max(best, throughput)
        if without_gain == PATIENCE and size != sizes[-1]:
            why = f"throughput did not grow beyond batches of {size >> PATIENCE}"
            break
    try:
        for size in reversed(list(run.timed)):
            progress(size)
            await run.time(size, max(share_s, seconds / 2) if size == 1 else share_s)
    except ReplicaFailed as error:
        if not error.memory:  # memory may have run out for good: the first pass stands
            raise
    times, variation = fitted(run.timed, costs)
    return tuple(replace(entry, device_bytes=memory[entry.batch_size]) for entry in times), variation, why


def _beyond_share(device: HeldDevice, size: int) -> str:
    """Why batches of a size do not fit into a share of a GPU, in words; empty if they do."""
    if device.share_bytes == math.inf:
        return ""
    if device.taken_bytes is None:
        return "nothing says how much memory of the GPU it takes, so that nothing shows that a share of one will do"
    if device.taken_bytes <= device.share_bytes:
        return ""
    taken_mib, share_mib = device.taken_bytes >> 20, int(device.share_bytes) >> 20
    return f"batches of {size} take {taken_mib} MiB of the GPU, and the share comes to {share_mib} MiB"


async def measure_contention(
    bench: Bench,
    inputs: Sequence[StageInput],
    alone: Sequence[ServiceTime],
    concurrency: int,
    *,
    seconds: float,
    progress: Callable[[int], None] = lambda concurrency: None,
) -> tuple[tuple[Contention, ...], str]:
    """How much longer batches take beside others, at powers of two until throughput grows no more.

    It ends, too, where what the stage asks takes no more at once: a server that answers 429, or 503.

    Args:
        bench: of the stage on a kind.
        inputs: of the stage.
        alone: service times of batches that were alone.
        concurrency: most batches at once.
        seconds: time to spend on one concurrency.
        progress: called as each concurrency begins.

    Returns:
        What was found, and why more at once was not tried, if so.

    Raises:
        ReplicaFailed: the stage cannot run so many at once.
    """
    found: list[Contention] = []
    least = [1.0] * len(alone)
    best = max(entry.throughput for entry in alone)
    without_gain = 0
    for at_once in powers_of_two(concurrency)[1:]:
        progress(at_once)
        factors: list[float] = []
        for entry, before in zip(alone, least, strict=True):
            fewest, most = FEWEST_BATCHES * at_once, MOST_BATCHES * at_once
            try:
                times_s = await bench.time(
                    inputs, Measure(entry.batch_size, seconds / len(alone), fewest, most, at_once)
                )
            except ReplicaFailed as error:
                if not error.unavailable:
                    raise
                return tuple(found), f"{at_once} batches at once: {error}"
            # No batch is faster beside more of them: where it seems so, the machine was.
            factors.append(max(before, float(np.mean(times_s)) / entry.mean_s))
        found.append(Contention(at_once, tuple(factors)))
        least = factors
        throughput = max(at_once * e.throughput / factor for e, factor in zip(alone, factors, strict=True))
        without_gain = 0 if throughput > best * NO_GAIN else without_gain + 1
        best = max(best, throughput)
        if without_gain == PATIENCE:
            break
    return tuple(found), ""


async def measure_wake(bench: Bench, inputs: Sequence[StageInput], alone: Sequence[ServiceTime]) -> float:
    """Return how long the server of a served stage takes to wake, with whatever batch comes first."""
    took_s = await bench.time(inputs, Measure(1, 0.0, FEWEST_BATCHES, FEWEST_BATCHES, asleep=True))
    return max(0.0, max(took_s) - alone[0].mean_s)


async def measure_fallback(
    bench: Bench,
    inputs: Sequence[StageInput],
    own: Sequence[ServiceTime],
    *,
    seconds: float,
    device: HeldDevice | None = None,
    progress: Callable[[int], None] = lambda batch_size: None,
) -> tuple[tuple[ServiceTime, ...], tuple[ServiceTime, ...]]:
    """Time the stage's fallback in batches of the sizes that the stage itself was timed in.

    Args:
        bench: of the stage on a kind; its replica has loaded both.
        inputs: of the stage.
        own: service times of the stage itself.
        seconds: time to spend.
        device: that the replica holds.
        progress: called as each size begins.

    Returns:
        The stage's own times again, with the memory of both, and those of the fallback.

    Raises:
        ReplicaFailed: the fallback cannot run such batches, or both do not fit into a share of a GPU together.
    """
    before = 0 if device is None else device.taken_bytes or 0
    found = []
    for entry in own:
        progress(entry.batch_size)
        order = Measure(entry.batch_size, seconds / len(own), FEWEST_BATCHES, MOST_BATCHES, version=FALLBACK)
        found.append(service_time(entry.batch_size, np.array(await bench.time(inputs, order))))
    if device is not None and (why := _beyond_share(device, own[-1].batch_size)):
        raise ReplicaFailed(f"{why}, with its fallback")
    more = 0 if device is None else max(0, (device.taken_bytes or 0) - before)
    return tuple(replace(entry, device_bytes=entry.device_bytes + more) for entry in own), tuple(found)


def longest(profiles: Sequence[Profile]) -> Profile:
    """Return the profile that holds on each of several products of a kind: the longest times, of what all of them can.

    How batches of one size differ is taken from the product whose single events take longest.

    Args:
        profiles: one stage's, a product each.
    """
    first = max(profiles, key=lambda profile: profile.service_times[0].mean_s)
    own = _longest(first.service_times, [profile.service_times for profile in profiles])
    beside = zip(*(profile.contention for profile in profiles), strict=False)  # of concurrencies that all have
    factors = ((entries[0], zip(*(entry.factors for entry in entries), strict=False)) for entries in beside)
    return replace(
        first,
        service_times=own,
        contention=tuple(replace(entry, factors=tuple(map(max, found))[: len(own)]) for entry, found in factors),
        fallback=_longest(first.fallback, [profile.fallback for profile in profiles]),
        start_up_s=max(profile.start_up_s for profile in profiles),
        waited_share=max(profile.waited_share for profile in profiles),
        wake_s=max((profile.wake_s for profile in profiles if profile.wake_s is not None), default=None),
    )


def _longest(first: Sequence[ServiceTime], every: Sequence[Sequence[ServiceTime]]) -> tuple[ServiceTime, ...]:
    """Return times of the sizes that all have; those of the first are stretched to the longest mean."""
    return tuple(
        replace(
            entries[0].longer(max(entry.mean_s / entries[0].mean_s for entry in entries)),
            device_bytes=max(entry.device_bytes for entry in entries),
        )
        for entries in zip(first, *every, strict=False)
    )


class _TimedRun:
    """Batches of a stage's inputs, taken in turn, and how long each took."""

    def __init__(self, bench: Bench, inputs: Sequence[StageInput]) -> None:
        self.timed: dict[int, list[TimedBatch]] = {}
        self._bench = bench
        self._inputs = list(inputs)

    async def time(self, size: int, seconds: float) -> None:
        """Time batches of one size; the first, which warms it up, counts for nothing."""
        found = await self._bench.time(self._inputs, Measure(size, seconds, FEWEST_BATCHES, MOST_BATCHES))
        batches = [
            TimedBatch(tuple(i % len(self._inputs) for i in range(first, first + size)), time_s)
            for first, time_s in zip(itertools.count(size, size), found, strict=False)
        ]
        self.timed.setdefault(size, []).extend(batches)

    async def time_more_singles(self, seconds: float) -> None:
        """Where events differ, time more of them alone, and make batches of those from now on."""
        singles = self.timed[1]
        times_s = np.array([batch.time_s for batch in singles])
        if times_s.std() < STEADY * times_s.mean() or len(self._inputs) < FEWEST_EVENTS:
            return
        if len(singles) < min(MOST_BATCHES, len(self._inputs)):
            self.timed.clear()
            await self.time(1, seconds)
        events = list(dict.fromkeys(batch.events[0] for batch in self.timed[1]))
        if len(events) >= FEWEST_EVENTS:
            places = {event: place for place, event in enumerate(events)}
            self.timed[1] = [TimedBatch((places[batch.events[0]],), batch.time_s) for batch in self.timed[1]]
            self._inputs = [self._inputs[event] for event in events]


async def measure_emulated(
    bench: Bench,
    inputs: Sequence[StageInput],
    max_batch_size: int,
    table_s: Mapping[int, float],
    *,
    fallback_s: Mapping[int, float] | None = None,
    varies: Emulated | None = None,
) -> tuple[tuple[ServiceTime, ...], Variation | None, tuple[ServiceTime, ...]]:
    """The declared service times, each longer by what sleeping and handing a batch over were measured to take.

    The last of what is returned are those of the fallback, none without ``fallback_s``.

    Where the times vary, random batches of the sample are timed as the emulation would, and fitted as measured ones
    are.

    Raises:
        ReplicaFailed: the stage cannot run.
    """
    declared_s = emulated_service_s(table_s, 1)
    fewest = 10 if declared_s <= 0.1 else 3
    times = await bench.time(inputs, Measure(1, 0.3, fewest, MOST_BATCHES, sleeps_s=declared_s))
    over_s = np.maximum(0.0, np.array(times) - declared_s)
    sizes = [s for s in sorted({*table_s, *powers_of_two(max(table_s))}) if s <= max_batch_size]
    fallback = tuple(service_time(b, emulated_service_s(fallback_s, b) + over_s) for b in sizes) if fallback_s else ()
    if varies is None or (varies.cv == 0 and varies.weight is None):
        return tuple(service_time(size, emulated_service_s(table_s, size) + over_s) for size in sizes), None, fallback
    costs = await bench.weigh(inputs)
    weights = np.array(await bench.weigh(inputs, emulated=True) or np.ones(len(inputs)))
    rng, chance = np.random.default_rng(0), Random(0)  # noqa: S311  no secret depends on it
    timed: dict[int, list[TimedBatch]] = {}
    for size in sizes:
        drawn = rng.integers(len(inputs), size=(EMULATED_BATCHES, size))
        if size == 1:  # every event twice: repeats tell what is its own
            drawn = np.tile(np.arange(len(inputs)), 2)[:, None]
        drawn_s = emulated_service_s(table_s, size) * weights[drawn].mean(axis=1) + rng.choice(over_s, len(drawn))
        timed[size] = [
            TimedBatch(tuple(map(int, events)), float(time_s) * varies.factor(chance))
            for events, time_s in zip(drawn, drawn_s, strict=True)
        ]
    return *fitted(timed, costs), fallback
