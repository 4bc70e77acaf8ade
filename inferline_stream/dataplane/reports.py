"""What a dispatcher reports of itself and of the replicas of its pool, to the topic `Names.stage_stats`."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferline_stream.isolation.enforced import Enforced
from inferline_stream.observability.stage_counts import StageCounts, numbers
from inferline_stream.pipeline.fallback import BINS, Served
from inferline_stream.pipeline.names import WIRE_VERSION, check_version

DispatcherPhase = Literal["starting", "standby", "serving", "draining", "gone", "failed"]
"""starting: not connected yet; standby: waits for a grant that lets it begin; serving: owns its partitions;
draining: finishes what replicas have in hand; gone and failed: it exits."""

_MOST = 2**53
"""Numbers stay below this, so that their sums as floats are exact."""

_MOST_BUCKETS = 10_000
"""A histogram has some tens; what else claims to be a report may not fill the memory of its readers."""

ReplicaPhase = Literal["starting", "ready", "leaving"]


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
    counts: StageCounts = msgspec.field(default_factory=StageCounts)
    """Of live events, and of the pool. Latencies are less what the SLO of an event's class is longer."""
    background: dict[str, StageCounts] = {}
    """Of background events and their batches, by their topic."""
    latencies: dict[str, list[int]] = {}
    """Of each live class, where there are several, by its topic: events by bucket, the bounds those of its SLO."""
    clock_lead_s: float = 0.0
    """Largest lead of a record's time over this host's clock in the last minute."""
    clock_lag_s: float = 0.0
    """Largest time by which a record was older than one before it in its partition, in the last minute."""
    queued: int = 0
    """Live events that wait for a replica now."""
    hopeless: dict[int, int] = {}
    """Partition → how many of those can no longer be on time."""
    hidden: dict[int, int] = {}
    """The same, of those that are too young to be a backlog for that."""
    waited_for: list[int] = []
    """Partitions whose first event that is not complete is one of those: its offset stands still until it is served."""
    oldest_wait_s: float = 0.0
    """How long ago the oldest of those that wait for a replica entered the pipeline."""
    stay: tuple[float, float, float] | None = None
    """How long events lately stayed that could be on time, as `deadline_order.Stay` has it, its `last_s` counted from
    this report: never above 0. None where there was no such event."""
    served: Served = []
    """What a slot of a stage with a fallback has served in the last hour; empty until it knows."""
    background_queued: int = 0
    """Background events that wait for a replica now."""
    background_enough: bool = False
    """Whether those are work for half as long as may wait: the stages before have no need to bring more."""
    join_events: int = 0
    """Events whose parts wait for the rest now."""
    join_bytes: int = 0
    """Size of those parts in memory."""
    join_overdue: bool = False
    """Whether some have waited for longer than `join_age_s`: the dispatcher needs `Grant.settled` to give them up."""
    suspects: int = 0
    """Events that are run alone now, because one of them may have killed a replica."""
    reason: str = ""
    """Why the dispatcher failed or left, or what is wrong with its pool, in words."""
    node: str = ""
    """That the dispatcher is on, in a cluster."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        every = (self.counts, *self.background.values())
        sums = [sizes for counts in every for sizes in counts.batch_stats.values()]
        stats = [(size, of) for sizes in sums for size, of in sizes.items()]
        if any(size < 1 for size, _ in stats):
            raise ValueError(f"batch sizes {sorted(size for size, _ in stats)}")
        found = [number for _, of in stats for number in numbers(of)]
        for counts in every:
            found += [*numbers(counts), *counts.edges_taken.values(), *counts.latency_buckets]
        found += [count for own in self.latencies.values() for count in own]
        found += [r.start_up_s for r in self.replicas]
        found += [getattr(self, name) for name in _NUMBERS]
        if self.stay is not None:
            found += self.stay
        found += [number for pair in self.served for number in pair]
        if len(self.served) > BINS:
            raise ValueError(f"{len(self.served)} bins of an hour")
        if not all(abs(number) < _MOST for number in found):
            raise ValueError("a number is out of range")
        buckets = max(*(len(counts.latency_buckets) for counts in every), *map(len, self.latencies.values()), 0)
        if buckets > _MOST_BUCKETS:
            raise ValueError(f"{buckets} latency buckets")


_NUMBERS = tuple(
    field.name for field in msgspec.structs.fields(PoolReport) if field.name != "version" and field.type in (int, float)
)


def encode_report(report: PoolReport) -> bytes:
    """A report as JSON."""
    return msgspec.json.encode(report)


decode_report = msgspec.json.Decoder(PoolReport).decode
