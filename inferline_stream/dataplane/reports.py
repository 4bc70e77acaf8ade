"""What a dispatcher reports of itself and of the replicas of its pool, to the topic `Names.stage_stats`."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.names import WIRE_VERSION, check_version

DispatcherPhase = Literal["starting", "standby", "serving", "draining", "gone", "failed"]
"""starting: not connected yet; standby: waits for a grant that lets it begin; serving: owns its partitions;
draining: finishes what replicas have in hand; gone and failed: it exits."""

_MOST = 2**53
"""Numbers stay below this, so that their sums as floats are exact."""

_MOST_BUCKETS = 10_000
"""A histogram has some tens; what else claims to be a report may not fill the memory of its readers."""

ReplicaPhase = Literal["starting", "ready", "leaving"]


class BatchStats(msgspec.Struct):
    """Sums since the dispatcher's start for one batch size on one hardware kind."""

    batches: int = 0
    service_s: float = 0.0
    squares: float = 0.0
    """Of the service times, in s²: how much they vary."""
    in_hand: int = 0
    """Batches that the replica had in hand when each began, itself included."""


class ReplicaStatus(msgspec.Struct):
    """One replica that the supervisor attached to the dispatcher; one that ended is missing from the next report."""

    replica: str
    hardware: str
    phase: ReplicaPhase
    start_up_s: float = 0.0
    isolation: Enforced | None = None
    """What restricts it, as it found by trial; None until it is ready."""
    quarantined: bool = False
    """Whether it runs suspected events only."""
    node: str = ""
    """That it is on, in a cluster."""


class PoolReport(msgspec.Struct):
    """At once on a change of phase or replicas, else each heartbeat. Key: ``dispatcher``.

    Counters grow from the process's start (`incarnation`), so that a lost or repeated report does no harm.
    """

    dispatcher: str
    incarnation: int
    stage: str
    slot: int
    phase: DispatcherPhase
    report: int
    """Number of this report within the incarnation, from 1."""
    term: int = 0
    number: int = 0
    """Of the newest grant of its slot that it has applied."""
    held: dict[int, int] = {}
    """Partition → next offset to commit, for every partition that it still owns."""
    halted: dict[int, str] = {}
    """Partition → why it is not read any more."""
    replicas: list[ReplicaStatus] = []
    events: int = 0
    """Events that left the stage (result produced, skipped, or dead-lettered)."""
    busy_s: float = 0.0
    """Sum over replicas of the time in which they had a batch in hand, by how many they may have."""
    replica_s: float = 0.0
    """Sum over replicas of the time in which they were ready."""
    wait_s: float = 0.0
    """Sum over events of the time from entering the stage's topic to the start of their batch."""
    cpu_s: float = 0.0
    """CPU time of the dispatcher's process."""
    batch_stats: dict[str, dict[int, BatchStats]] = {}
    """By hardware kind and batch size."""
    edges_taken: dict[str, int] = {}
    """Results that took the edge to each child stage."""
    completed: int = 0
    """Events that ended here without a sink record."""
    dead_lettered: int = 0
    expired: int = 0
    duplicates: int = 0
    """Records dropped because their event had been seen."""
    clock_lead_s: float = 0.0
    """Largest lead of a record's time over this host's clock in the last minute."""
    queued: int = 0
    """Events that wait for a replica now."""
    join_events: int = 0
    """Events whose parts wait for the rest now."""
    join_bytes: int = 0
    """Size of those parts in memory."""
    join_overdue: bool = False
    """Whether some have waited for longer than `join_age_s`: the dispatcher needs `Grant.settled` to give them up."""
    latency_buckets: list[int] = []
    """Final stage only: events per bucket of end-to-end latency (not cumulative), the last one unbounded."""
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    backlog: int = 0
    """Final stage only: results of events that are no live traffic; they are in no bucket."""
    remote_batches: int = 0
    """Batches that replicas on other hosts have answered."""
    network_s: float = 0.0
    """Sum over those of the time from handing a batch over to having its results, less the replica's own."""
    batches_lost: int = 0
    """Batches in hand of a replica that ended or was given up; each was run again."""
    suspects: int = 0
    """Events that are run alone now, because one of them may have killed a replica."""
    reason: str = ""
    """Why the dispatcher failed or left, or what is wrong with its pool, in words."""
    node: str = ""
    """That the dispatcher is on, in a cluster."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        stats = {size: of for sizes in self.batch_stats.values() for size, of in sizes.items()}
        if any(size < 1 for size in stats):
            raise ValueError(f"batch sizes {sorted(stats)}")
        numbers = [getattr(self, name) for name in _NUMBERS]
        numbers += [n for of in stats.values() for n in (of.batches, of.service_s, of.squares, of.in_hand)]
        numbers += [*self.edges_taken.values(), *self.latency_buckets, *(r.start_up_s for r in self.replicas)]
        if any(abs(number) >= _MOST for number in numbers):
            raise ValueError("a number is out of range")
        if len(self.latency_buckets) > _MOST_BUCKETS:
            raise ValueError(f"{len(self.latency_buckets)} latency buckets")


_NUMBERS = tuple(
    field.name for field in msgspec.structs.fields(PoolReport) if field.name != "version" and field.type in (int, float)
)


def encode_report(report: PoolReport) -> bytes:
    """A report as JSON."""
    return msgspec.json.encode(report)


decode_report = msgspec.json.Decoder(PoolReport).decode
