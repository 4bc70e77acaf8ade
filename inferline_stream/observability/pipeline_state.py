"""One consistent picture of a running pipeline: what metrics, the live table and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from inferline_stream.pipeline.names import WIRE_VERSION


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """Replicas of one stage on one hardware kind."""

    hardware: str
    planned: int
    wanted: int
    ready: int
    pending: int
    standby: int = 0
    """Ready, and given no batch until one of the others dies."""


@dataclass(frozen=True, slots=True)
class IsolationState:
    """What really keeps a stage's replicas in, as they found by trial: of each figure the worst.

    Args:
        level: declared.
        replicas: ready replicas that reported.
        sealed: of them, those that have given up all but the system calls of moving records.
        landlock: version of Landlock that keeps them from files; 0 if nothing does.
        ports: TCP ports that they may connect to; None if any.
        system_calls: how many they can reach; None if all.
        limits: by name, in bytes or numbers; only those that every one has.
        missing: what was declared and does not hold, in words.
    """

    level: str
    replicas: int
    sealed: int
    landlock: int
    ports: tuple[int, ...] | None
    system_calls: int | None
    limits: Mapping[str, int]
    missing: tuple[str, ...] = ()

    @property
    def lacking(self) -> frozenset[str]:
        """The kinds of isolation that are missing, a runtime among them; what `missing` says before its colons."""
        return frozenset(lack.partition(":")[0] for lack in self.missing)


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a stage has on one node of a cluster: dispatchers that serve, and replicas that are ready."""

    dispatchers: int
    replicas: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One GPU of the replicas' host, or slice of one, as its driver reports it; None where that says nothing.

    Args:
        device: UUID, as `nvidia-smi -L` lists it; of one that has never answered, which it is.
        model: as it reports itself.
        memory_used: share of its memory that is in use.
        utilization: share of the time in which kernels ran, over about the last second. NVML has none of slices.
        temperature_c: of the GPU.
        throttled: whether heat or its power supply holds its clocks down.
        xid: NVIDIA's number of the last error that was the device's own; 0 for none.
        lost: why nothing can be learned of it; empty if it answers.
    """

    device: str
    model: str = ""
    memory_used: float | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    xid: int = 0
    lost: str = ""

    @property
    def trouble(self) -> str:
        """What is wrong with it, in words; empty if nothing is."""
        if self.lost:
            return f"{self.device} is lost: {self.lost}"
        return f"{self.device} reported Xid {self.xid}" if self.xid else ""


@dataclass(frozen=True, slots=True)
class StageState:
    """One stage now. Times are means over the last seconds; None where nothing was measured."""

    name: str
    replicas: tuple[ReplicaCounts, ...]
    max_batch_size: int
    hold_s: float
    """How long a free replica waits for a fuller batch."""
    arrival_rate: float
    utilization: float | None
    wait_s: float | None
    service_time_s: float | None
    mean_batch_size: float | None
    partition_lags: tuple[int, ...]
    """Records that are not finished, by partition."""
    lag_s: float
    """Age of the oldest record that is not finished."""
    uncommitted_share: float | None = None
    """Of an inner topic: share of the records that Kafka keeps that are not committed, in its fullest partition."""
    letter_age_share: float | None = None
    """Age of the oldest dead letter, as a share of the time that its topic keeps it; 0 without one."""
    start_up_s: float | None = None
    start_ups_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By hardware kind and by how the replica came to run: its node had the image, pulled it, or had to be made."""
    events: int = 0
    dead_lettered: int = 0
    expired: int = 0
    batches: int = 0
    """Batches run since the start, over all replicas that ever were; likewise the totals below."""
    batches_lost: int = 0
    """Batches in hand of a replica that ended or was given up; each was run again."""
    busy_total_s: float = 0.0
    predicted_service_s: float | None = None
    """Mean service time of the batches that ran lately, as the plan's profiles have it; None where too few ran."""
    cpu_total_s: float = 0.0
    """CPU time of replicas since the start, native threads included."""
    core_wait_total_s: float = 0.0
    """Time that replicas could have run and had no core, stops for their shares of one left out."""
    wait_total_s: float = 0.0
    restarts: int = 0
    """Replicas that died and were started again."""
    limit: str = ""
    """What keeps the stage from growing further: ``stock``, its model ``server``, or nothing."""
    stuck_partitions: tuple[int, ...] = ()
    """Partitions with lag whose committed offset stands still although replicas are ready."""
    halted: Mapping[int, str] = field(default_factory=dict)
    """Partition → why it is not read any more."""
    partition_rates: tuple[float, ...] = ()
    """Arrivals per second by partition; empty where not measured."""
    join_events: int = 0
    """Events that wait for parts now; 0 where the stage is no join."""
    join_bytes: int = 0
    """Size of those parts."""
    isolation: IsolationState | None = None
    """What keeps its replicas in; None before the first is ready."""
    clock_lead_s: float = 0.0
    """Largest lead of a record's time over its dispatcher's clock in the last minute."""
    queued: int = 0
    """Events that its dispatchers hold and that wait for a replica now."""
    dispatcher_utilization: float | None = None
    """CPU seconds per second of its busiest dispatcher; 1 is a whole core, and the most that a slot can use."""
    suspects: int = 0
    """Events that run alone now, because one of them may have killed a replica."""
    quarantined: int = 0
    """Replicas that run such events only."""
    slots: int = 1
    """Dispatchers that the stage's partitions are dealt to."""
    concurrency: int = 1
    """Most batches that a replica has in hand."""
    trouble: str = ""
    """What is wrong with its pool, in words; empty if nothing is."""
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    """In a cluster: what it has on each node."""

    @property
    def batch_fill(self) -> float | None:
        """Mean batch over the largest that is allowed."""
        return None if self.mean_batch_size is None else self.mean_batch_size / self.max_batch_size

    @property
    def service_ratio(self) -> float | None:
        """Mean service time measured lately over the predicted one."""
        if self.service_time_s is None or not self.predicted_service_s:
            return None
        return self.service_time_s / self.predicted_service_s

    @property
    def lag_records(self) -> int:
        """Records that are not finished, over all partitions."""
        return sum(self.partition_lags)


@dataclass(frozen=True, slots=True)
class EnvelopeWindow:
    """Most arrivals in any window of this length: live, and in the trace that the plan was made for."""

    window_s: float
    live: int
    planned: int


class DecisionRecord(msgspec.Struct, frozen=True):
    """One decision from the moment that it is made: in Kafka, in the state of a pipeline, on screens and in reports."""

    number: int
    """Grows over all terms."""
    controller: str
    term: int
    time_s: float
    """Seconds since the epoch."""
    action: str
    """``scale_up``, ``scale_down``, ``replan``, ``hold`` …"""
    reason: str
    """From the closed enum of the policy."""
    detail: str
    """In words, with the numbers it was made on."""
    replicas: dict[str, dict[str, int]]
    """Wanted from now on: stage → hardware kind → replicas."""
    applied: bool
    """False when only advised."""
    arrival_rate: float = 0.0
    envelope: list[int] = []
    """Most arrivals in each window, shortest first."""
    lags: dict[str, int] = {}
    """Records that were not finished, by stage."""
    ready: dict[str, int] = {}
    """Replicas ready, by stage."""
    version: int = WIRE_VERSION

    @property
    def by_stage(self) -> dict[str, int]:
        """Replicas wanted by stage, of all hardware kinds."""
        return {stage: sum(kinds.values()) for stage, kinds in self.replicas.items()}


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A plan that came into force, and why."""

    number: int
    """Grows over all controllers."""
    time_s: float
    """Seconds since the epoch."""
    reason: str
    detail: str
    slo_s: float
    predicted_p99_s: float
    cost_per_hour: float
    arrival_rate: float
    """Mean of the traffic that it was made for."""
    allocations: Mapping[str, tuple[tuple[str, int, int, float, int], ...]]
    """By stage: hardware, batch limit, replicas, hold in seconds, batches at once."""


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """End-to-end latency of events that reached the sink.

    Args:
        bounds_s: upper bounds of the buckets, ascending; the SLO is one of them.
        counts: events per bucket, not cumulative; one more than bounds, the last unbounded.
        sum_s: sum of latencies.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float

    def quantile_s(self, probability: float) -> float | None:
        """Linear within the bucket, as Prometheus' histogram_quantile; None without events."""
        total = sum(self.counts)
        if not total:
            return None
        rank, seen, lower = probability * total, 0, 0.0
        for upper, count in zip(self.bounds_s, self.counts, strict=False):
            if count and seen + count >= rank:
                return lower + (upper - lower) * (rank - seen) / count
            seen, lower = seen + count, upper
        return self.bounds_s[-1]


@dataclass(frozen=True, slots=True)
class PipelineState:
    """The whole pipeline now. Totals count from the start of the run."""

    time_s: float
    """Seconds since the epoch."""
    pipeline: str
    slo_s: float
    objective: float
    predicted_p99_s: float
    arrival_rate: float
    envelope: tuple[EnvelopeWindow, ...]
    latency: LatencyHistogram
    """Since the start."""
    recent_p50_s: float | None
    """Over about the last 10 s."""
    recent_p99_s: float | None
    stages: tuple[StageState, ...]
    decisions: tuple[DecisionRecord, ...]
    """Latest last; the newest few hundred."""
    late_events: int
    """Events that reached the sink above the SLO of their time: people may change it, and what was late stays late."""
    cost_per_hour: float
    cost: float
    """Replica-seconds × catalogue price since the start."""
    events_in: int
    events_out: int
    completed_without_output: int
    duplicates: int
    input_age_s: Mapping[str, float]
    """Age of the newest value of each input: ``arrivals``, ``offsets`` (committed ones), ``reports/<stage>`` (of its
    dispatcher that was heard longest ago)."""
    backlog: int = 0
    """Events that were in the source topic before the run and have reached the sink: in no latency."""
    paused: bool = False
    decision_counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Decisions since the start by (action, reason)."""
    plan_algorithm: str = ""
    plan_id: str = ""
    """First digits of the plan document's digest: another one means another plan."""
    plan_cost_per_hour: float = 0.0
    """What the plan's replicas would cost; `cost_per_hour` is what those held now do."""
    replica_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Replica-seconds held since the start by (stage, hardware kind): what `cost` is the priced sum of."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Dollars per hour of a replica by hardware kind."""
    failures: int = 0
    """Steps of the control loop that raised something unforeseen and were logged."""
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """Records of the pipeline's own topics that could not be read and were skipped, by topic."""
    plan_feasible: bool = True
    """False while the newest planning run found no plan that meets the SLO."""
    term: int = 0
    """Term of the leading controller."""
    plans: tuple[PlanRecord, ...] = ()
    """Those that came into force, latest last."""
    oversubscribed: str = ""
    """Why replicas do not have the cores that they were planned with, in words; empty while they have."""
    recent_p95_s: float | None = None
    devices: tuple[DeviceState, ...] = ()
    """GPUs of this host, once a replica needed one. In a cluster, others report them."""
    coarse_peak_per_hour: float | None = None
    """What replicating the pipeline as one unit, sized for its peak, would cost (InferLine's CG-Peak)."""
