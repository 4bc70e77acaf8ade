"""Counters of dispatchers' reports, summed, and measured service times against profiled ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.dataplane.reports import BatchStats, PoolReport
from inferline_stream.pipeline.profile import Profile

Batches = Mapping[int, BatchStats]
"""By batch size."""


@dataclass(slots=True)
class Totals:
    """Counters of reports, summed; see `PoolReport`."""

    events: int = 0
    busy_s: float = 0.0
    replica_s: float = 0.0
    wait_s: float = 0.0
    cpu_s: float = 0.0
    dead_lettered: int = 0
    expired: int = 0
    duplicates: int = 0
    backlog: int = 0
    batches_lost: int = 0
    remote_batches: int = 0
    network_s: float = 0.0
    latency_sum_s: float = 0.0
    batch_stats: dict[str, dict[int, BatchStats]] = field(default_factory=dict)
    edges_taken: dict[str, int] = field(default_factory=dict)
    latency_buckets: list[int] = field(default_factory=list)

    def add(self, other: PoolReport | Totals, sign: int = 1) -> Totals:
        """Add, or with ``sign`` -1 subtract, a report's counters or others' sums; returns itself."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for hardware, sizes in other.batch_stats.items():
            own = self.batch_stats.setdefault(hardware, {})
            for size, stats in sizes.items():
                sums = own.setdefault(size, BatchStats())
                sums.batches += sign * stats.batches
                sums.service_s += sign * stats.service_s
                sums.squares += sign * stats.squares
                sums.in_hand += sign * stats.in_hand
        for child, count in other.edges_taken.items():
            self.edges_taken[child] = self.edges_taken.get(child, 0) + sign * count
        self.latency_buckets += [0] * (len(other.latency_buckets) - len(self.latency_buckets))
        for at, count in enumerate(other.latency_buckets):
            self.latency_buckets[at] += sign * count
        return self

    @property
    def batches(self) -> int:
        """Batches run."""
        return sum(stats.batches for sizes in self.batch_stats.values() for stats in sizes.values())

    @property
    def service_s(self) -> float:
        """Sum of their service times."""
        return sum(stats.service_s for sizes in self.batch_stats.values() for stats in sizes.values())

    @property
    def served(self) -> int:
        """Events that the stage was called on."""
        return sum(size * stats.batches for sizes in self.batch_stats.values() for size, stats in sizes.items())


_SUMS = tuple(name for name, of in Totals.__dataclass_fields__.items() if of.default == 0)


def since(last: Totals, first: Totals) -> Totals:
    """Return what came between two sums."""
    return Totals().add(last).add(first, -1)


def expected_service_s(profile: Profile, batches: Batches) -> float:
    """Return the time that batches would have taken as profiled, all together."""
    largest, most = profile.batch_sizes[-1], profile.concurrencies[-1]
    return sum(
        stats.batches * profile.service_time_s(min(size, largest), min(max(1.0, stats.in_hand / stats.batches), most))
        for size, stats in batches.items()
        if stats.batches
    )


def slowdown(profile: Profile, batches: Batches, fewest: int, waited_s: float = 0.0) -> float | None:
    """Measured service time over the profile's, at the batch sizes that ran; None from too few batches.

    Time without a core counts as far as the profile has it, too: beyond that the machine is full, not the model slower.

    Args:
        profile: of the stage on the kind.
        batches: that ran.
        fewest: batches that are enough to judge by.
        waited_s: time that their replicas could have run meanwhile and had no core.
    """
    count = sum(stats.batches for stats in batches.values())
    if not count or count < fewest:
        return None
    expected_s = expected_service_s(profile, batches)
    service_s = sum(stats.service_s for stats in batches.values())
    beyond_s = max(0.0, waited_s - profile.waited_share * expected_s)
    return max(service_s - beyond_s, min(service_s, expected_s)) / expected_s
