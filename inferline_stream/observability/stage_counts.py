"""What is counted of a stage: by each of its dispatchers, summed over all of them, and shown as metrics.

A new counter is a field here, and the line that counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from inferline_stream.observability.figure import Figure, counter


@dataclass(slots=True)
class BatchStats:
    """Sums for one batch size on one hardware kind."""

    batches: int = 0
    service_s: float = 0.0
    squares: float = 0.0
    """Of the service times, in s²: how much they vary."""
    in_hand: int = 0
    """Batches that the replica had in hand when each began, itself included."""


Batches = Mapping[int, BatchStats]
"""By batch size."""


@dataclass(slots=True)
class StageCounts:
    """Sums since the start of a dispatcher; added up, of all that a stage ever had."""

    events: int = counter("stage_events", "Events that left the stage.", 0)
    """Result produced, skipped, or dead-lettered."""
    busy_s: float = counter("stage_busy_seconds", "Time replicas spent in batches.", 0.0)
    """A batch counts by how many its replica may have in hand."""
    wait_s: float = counter("stage_waited_seconds", "Time events spent queued in the stage.", 0.0)
    """From entering the stage's topic to the start of their batch."""
    results: int = counter("stage_results", "Results that the stage has given.", 0)
    filtered: int = counter("stage_filtered", "Events that the stage has given no result.", 0)
    moved: int = counter("stage_moved", "Events of another class, by a header, moved to its topic.", 0)
    dead_lettered: int = counter("stage_dead_lettered", "Events sent to the dead-letter topic.", 0)
    expired: int = counter("stage_expired", "Events that passed their deadline before the stage.", 0)
    degraded: int = counter("stage_degraded", "Events that the stage's fallback has made.", 0)
    batches_lost: int = counter("stage_batches_lost", "Batches in hand of a replica that ended or was given up.", 0)
    """Each was run again."""
    records: int = 0
    """Read from the stage's topic. Those that are read once more count again."""
    replica_s: float = 0.0
    """Time in which replicas were ready."""
    cpu_s: float = 0.0
    """CPU time of the dispatchers' processes."""
    batch_stats: dict[str, dict[int, BatchStats]] = field(default_factory=dict)
    """By hardware kind and batch size."""
    edges_taken: dict[str, int] = field(default_factory=dict)
    """Results that took the edge to each child stage."""
    completed: int = 0
    """Events that ended here without a sink record."""
    duplicates: int = 0
    """Records dropped because their event had been seen."""
    backlog: int = 0
    """Final stage only: results of events that are no live traffic; they are in no bucket."""
    latency_buckets: list[int] = field(default_factory=list)
    """Final stage only: events per bucket of end-to-end latency (not cumulative), the last one unbounded."""
    latency_sum_s: float = 0.0
    remote_batches: int = 0
    """Batches that replicas on other hosts have answered."""
    network_s: float = 0.0
    """Sum over those of the time from handing a batch over to having its results, less the replica's own."""
    copies: int = 0
    """Events that the stage was called on beside those of the queue: samples."""

    derived: ClassVar = (Figure("counter", "stage_batches", "Batches run.", lambda counts: counts.batches),)

    def add(self, other: StageCounts, sign: int = 1) -> StageCounts:
        """Add, or with ``sign`` -1 subtract, other sums; return these."""
        _add(self, other, sign)
        for hardware, sizes in other.batch_stats.items():
            own = self.batch_stats.setdefault(hardware, {})
            for size, stats in sizes.items():
                _add(own.setdefault(size, BatchStats()), stats, sign)
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
        """Events of the queue that the stage was called on, its fallback's among them."""
        return self.degraded + self.called - self.copies

    @property
    def called(self) -> int:
        """Events that the stage itself was called on."""
        return sum(size * stats.batches for sizes in self.batch_stats.values() for size, stats in sizes.items())


Sums = BatchStats | StageCounts

_NUMBERS = {kind: tuple(of.name for of in fields(kind) if of.default == 0) for kind in (BatchStats, StageCounts)}


def numbers(of: Sums) -> list[float]:
    """All that is counted as one number."""
    return [getattr(of, name) for name in _NUMBERS[type(of)]]


def _add(own: Sums, other: Sums, sign: int) -> None:
    for name in _NUMBERS[type(other)]:
        if number := getattr(other, name):  # most are 0
            setattr(own, name, getattr(own, name) + sign * number)
