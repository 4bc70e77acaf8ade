"""Service time by batch size: which sizes, how often, and when to stop."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.pipeline.fallback import FALLBACK
from inferline_stream.pipeline.profile import PROBABILITIES
from inferline_stream.profiler.bench_messages import Measure
from inferline_stream.profiler.replica_failures import ReplicaFailed
from inferline_stream.profiler.service_times import (
    measure,
    measure_contention,
    measure_emulated,
    measure_fallback,
    powers_of_two,
)
from inferline_stream.profiler.variation_fit import service_time

INPUTS = [b"1", b"2"]


class Uneven:
    """Runs batches of events whose numbers are what they ask for: 5 ms and as many ms for all of them."""

    def __init__(self, costs: bool) -> None:
        self.costs = costs
        self.singles = 0

    async def time(self, inputs: Sequence[StageInput], order: Measure) -> list[float]:
        taken = itertools.cycle(map(number, inputs))
        batches = [[next(taken) for _ in range(order.batch_size)] for _ in range(101)]
        self.singles += 100 * (order.batch_size == 1)
        return [0.005 + 0.001 * sum(batch) for batch in batches[1:]]

    async def weigh(self, inputs: Sequence[StageInput], *, emulated: bool = False) -> list[float] | None:
        return list(map(number, inputs)) if self.costs else None


def number(event: StageInput) -> float:
    assert isinstance(event, bytes)
    return float(event)


@pytest.mark.parametrize("costs", [True, False])
async def test_batches_are_known_by_their_events_whatever_their_order(costs: bool) -> None:
    """A file that is sorted: its large events come last."""
    inputs = [b"1"] * 160 + [b"9"] * 40
    replica = Uneven(costs)
    times, variation, _ = await measure(replica, inputs, 4, seconds=1.0)
    assert variation is not None
    assert len(variation.units) == 2
    assert variation.units[1][1] / 256 == pytest.approx(0.2, abs=0.05)
    assert [entry.mean_s for entry in times] == pytest.approx([0.0076, 0.0102, 0.0154], rel=0.12)
    assert replica.singles == (200 if costs else 300)


class Replica:
    """Pretends to measure: S(b) is given, or the memory that ends above some size."""

    def __init__(self, service_s: Callable[[int], float], memory_for: int = 1 << 30, dies_after: int = 1 << 30) -> None:
        self.service_s = service_s
        self.memory_for = memory_for
        self.dies_after = dies_after
        self.sizes: list[int] = []

    async def time(self, inputs: object, order: Measure) -> list[float]:
        self.sizes.append(order.batch_size)
        if order.batch_size > self.memory_for or len(self.sizes) > self.dies_after:
            raise ReplicaFailed("out of memory", memory=True)
        return [self.service_s(order.batch_size)] * max(order.fewest, 3)

    async def weigh(self, inputs: object, *, emulated: bool = False) -> None:
        return None


def gains(size: int) -> float:
    """Batching pays: S(b) = 10 + b, in ms."""
    return (10 + size) / 1000


async def test_sizes_are_powers_of_two_up_to_the_limit() -> None:
    replica = Replica(gains)
    times, _, why = await measure(replica, INPUTS, 48, seconds=1.0)
    assert [entry.batch_size for entry in times] == [1, 2, 4, 8, 16, 32]
    assert [entry.mean_s for entry in times] == pytest.approx([gains(size) for size in (1, 2, 4, 8, 16, 32)])
    assert why == ""


async def test_every_size_is_measured_upwards_and_downwards() -> None:
    replica = Replica(gains)
    await measure(replica, INPUTS, 8, seconds=1.0)
    assert replica.sizes == [1, 2, 4, 8, 8, 4, 2, 1]


async def test_both_passes_count() -> None:
    """On a machine that becomes half as fast meanwhile, every size is seen at both speeds."""
    replica = Replica(gains)
    replica.service_s = lambda size: gains(size) * (1 if len(replica.sizes) <= 4 else 2)
    times, _, _ = await measure(replica, INPUTS, 8, seconds=1.0)
    assert [entry.mean_s for entry in times] == pytest.approx([1.5 * gains(size) for size in (1, 2, 4, 8)])


async def test_the_search_ends_after_two_sizes_without_a_gain() -> None:
    replica = Replica(lambda size: 0.01 * size)
    times, _, why = await measure(replica, INPUTS, 64, seconds=1.0)
    assert [entry.batch_size for entry in times] == [1, 2, 4]
    assert why == "throughput did not grow beyond batches of 1"


async def test_one_size_without_a_gain_does_not_end_it() -> None:
    slow_at_4 = {1: 10.0, 2: 11.0, 4: 30.0, 8: 32.0, 16: 64.0, 32: 128.0, 64: 256.0}
    times, _, why = await measure(Replica(lambda size: slow_at_4[size]), INPUTS, 64, seconds=1.0)
    assert [entry.batch_size for entry in times] == [1, 2, 4, 8, 16, 32]
    assert "beyond batches of 8" in why


async def test_memory_caps_the_batch() -> None:
    times, _, why = await measure(Replica(gains, memory_for=8), INPUTS, 64, seconds=1.0)
    assert [entry.batch_size for entry in times] == [1, 2, 4, 8]
    assert why == "batches of 16: out of memory"


async def test_what_was_measured_stands_if_the_process_is_gone_afterwards() -> None:
    times, _, why = await measure(Replica(gains, memory_for=8, dies_after=4), INPUTS, 64, seconds=1.0)
    assert [entry.batch_size for entry in times] == [1, 2, 4, 8]
    assert "out of memory" in why


async def test_no_memory_for_a_single_event_is_an_error() -> None:
    with pytest.raises(ReplicaFailed):
        await measure(Replica(gains, memory_for=0), INPUTS, 64, seconds=1.0)


async def test_emulated_times_are_the_declared_ones_and_what_was_measured_on_top() -> None:
    table = {1: 0.020, 8: 0.060}
    replica = Replica(lambda size: 0.0203)
    times, _, _ = await measure_emulated(replica, INPUTS, 64, table)
    assert replica.sizes == [1]
    assert [entry.batch_size for entry in times] == [1, 2, 4, 8]
    declared = [0.020, 0.020 + 0.040 / 7, 0.020 + 3 * 0.040 / 7, 0.060]
    assert [entry.mean_s for entry in times] == pytest.approx([time_s + 0.0003 for time_s in declared])


async def test_emulated_sizes_end_at_the_limit() -> None:
    table, replica = {1: 0.02, 8: 0.06}, Replica(lambda size: 0.02)
    times, _, _ = await measure_emulated(replica, INPUTS, 4, table)
    assert [entry.batch_size for entry in times] == [1, 2, 4]


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=50))
def test_the_distribution_is_that_of_the_times(times_s: list[float]) -> None:
    found = service_time(4, times_s)
    ranked = sorted(times_s)
    assert found.mean_s == pytest.approx(sum(times_s) / len(times_s))
    for probability, quantile in zip(PROBABILITIES, found.quantiles_s, strict=True):
        place = probability * (len(ranked) - 1)
        low, high = ranked[int(place)], ranked[min(int(place) + 1, len(ranked) - 1)]
        assert quantile == pytest.approx(low + (place - int(place)) * (high - low))


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2)), (64, (1, 2, 4, 8, 16, 32, 64))])
def test_powers_of_two(most: int, sizes: tuple[int, ...]) -> None:
    assert powers_of_two(most) == sizes


async def test_memory_of_a_gpu_is_read_after_each_size_on_the_way_up_and_running_out_caps_the_batch() -> None:
    replica = Replica(gains, memory_for=4)

    times, _, why = await measure(replica, INPUTS, 16, seconds=1.0, device=Device(replica))
    assert [(entry.batch_size, entry.device_bytes) for entry in times] == [
        (1, 1010 << 20),
        (2, 1020 << 20),
        (4, 1040 << 20),
    ]
    assert why == "batches of 8: out of memory"


class Device:
    """Of which a stage takes more the larger its batches are."""

    def __init__(self, replica: "Replica", share_bytes: float = math.inf, *, reports: bool = True) -> None:
        self._replica = replica
        self._reports = reports
        self.share_bytes = share_bytes

    @property
    def taken_bytes(self) -> int | None:
        return (1000 + 10 * max(self._replica.sizes)) << 20 if self._reports else None


async def test_batches_that_do_not_fit_into_a_share_of_a_gpu_are_left_out_of_its_profile() -> None:
    replica = Replica(gains)
    times, _, why = await measure(replica, INPUTS, 16, seconds=1.0, device=Device(replica, 1040 << 20))
    assert [entry.batch_size for entry in times] == [1, 2, 4]
    assert why == "batches of 8 take 1080 MiB of the GPU, and the share comes to 1040 MiB"
    for device, reason in (
        (Device(replica := Replica(gains), 1009 << 20), "batches of 1 take"),
        (Device(replica, 1009 << 20, reports=False), "nothing says how much memory of the GPU it takes"),
    ):
        with pytest.raises(ReplicaFailed, match=reason):
            await measure(replica, INPUTS, 16, seconds=1.0, device=device)
    whole, _, _ = await measure(
        replica := Replica(gains), INPUTS, 2, seconds=1.0, device=Device(replica, reports=False)
    )
    assert [entry.device_bytes for entry in whole] == [0, 0]


class TwoModels:
    """A replica on a share of a GPU that gives no memory back: its fallback takes 30 MiB more once it has run."""

    def __init__(self, share_mib: float) -> None:
        self.share_bytes, self.taken_bytes = share_mib * 2**20, 100 << 20

    async def time(self, inputs: object, order: Measure) -> list[float]:
        assert order.version == FALLBACK
        self.taken_bytes = 130 << 20
        return [0.002 * order.batch_size] * 20

    async def weigh(self, inputs: object, *, emulated: bool = False) -> None:
        return None


async def test_the_memory_of_a_stage_is_that_of_both_its_models_and_they_have_to_fit_together() -> None:
    alone = tuple(replace(entry, device_bytes=(90 + entry.batch_size) << 20) for entry in ALONE)
    fits = TwoModels(130)
    own, fast = await measure_fallback(fits, INPUTS, alone, seconds=1.0, device=fits)
    assert [entry.device_bytes >> 20 for entry in own] == [121, 124]
    assert [(entry.batch_size, entry.mean_s) for entry in fast] == [
        (1, pytest.approx(0.002)),
        (4, pytest.approx(0.008)),
    ]
    tight = TwoModels(129)
    with pytest.raises(ReplicaFailed, match="take 130 MiB of the GPU, and the share comes to 129 MiB, with its fall"):
        await measure_fallback(tight, INPUTS, alone, seconds=1.0, device=tight)


class Crowded:
    """Batches that take as many times as long as `slowed` says for the number of them at once."""

    def __init__(self, slowed: Callable[[int], float]) -> None:
        self.slowed = slowed
        self.asked: list[tuple[int, int]] = []

    async def time(self, inputs: object, order: Measure) -> list[float]:
        self.asked.append((order.concurrency, order.batch_size))
        return [0.01 * order.batch_size * self.slowed(order.concurrency)] * 20

    async def weigh(self, inputs: object, *, emulated: bool = False) -> None:
        return None


ALONE = tuple(service_time(size, np.full(4, 0.01 * size)) for size in (1, 4))


async def test_every_batch_size_is_measured_beside_others_at_powers_of_two() -> None:
    replica = Crowded(lambda at_once: 1 + at_once / 8)
    found, _ = await measure_contention(replica, INPUTS, ALONE, 8, seconds=1.0)
    assert [entry.concurrency for entry in found] == [2, 4, 8]
    assert [entry.factors for entry in found] == [pytest.approx((f, f)) for f in (1.25, 1.5, 2.0)]
    assert replica.asked == [(at_once, size) for at_once in (2, 4, 8) for size in (1, 4)]


async def test_more_at_once_is_not_tried_after_two_steps_without_a_gain() -> None:
    replica = Crowded(lambda at_once: at_once)
    found, why = await measure_contention(replica, INPUTS, ALONE, 64, seconds=1.0)
    assert [entry.concurrency for entry in found] == [2, 4]
    assert why == ""


async def test_no_more_at_once_is_tried_than_a_server_takes() -> None:
    def slowed(at_once: int) -> float:
        if at_once > 4:
            raise ReplicaFailed("server answers 429", unavailable=True)
        return 1.0

    found, why = await measure_contention(Crowded(slowed), INPUTS, ALONE, 16, seconds=1.0)
    assert [entry.concurrency for entry in found] == [2, 4]
    assert why == "8 batches at once: server answers 429"


async def test_a_machine_that_grows_faster_meanwhile_makes_no_batch_faster_beside_others() -> None:
    replica = Crowded({2: 1.4, 4: 0.7}.__getitem__)
    found, _ = await measure_contention(replica, INPUTS, ALONE, 4, seconds=1.0)
    assert [entry.factors for entry in found] == [pytest.approx((1.4, 1.4))] * 2
