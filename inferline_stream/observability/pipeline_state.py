"""One consistent picture of a running pipeline: what metrics, the live table and the page show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import msgspec

from inferline_stream.observability.figure import Figure, counter, gauge
from inferline_stream.observability.latency_histogram import LatencyHistogram
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.names import WIRE_VERSION
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.version import Structure
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.tuner.hour_ahead import HourAhead


class ReplicaCounts(NamedTuple):
    """Replicas of one stage on one hardware kind."""

    hardware: str
    planned: int
    wanted: int
    ready: int
    pending: int
    standby: int = 0
    """Ready, and given no batch until one of the others dies."""


_STATES = ReplicaCounts._fields[1:]


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
    sealed: int = gauge("stage_sealed_replicas", "Ready replicas that are sealed, by their own trial.", 0)
    landlock: int = gauge("stage_landlock_version", "Landlock that keeps replicas from files; 0: none.", 0)
    ports: tuple[int, ...] | None = None
    system_calls: int | None = gauge(
        "stage_reachable_system_calls", "System calls that a replica can reach; missing where all.", None
    )
    limits: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = gauge(
        "stage_isolation_missing", "Kinds of isolation that are declared and do not hold.", ()
    )


class NodeState(NamedTuple):
    """What a stage has on one node of a cluster: dispatchers that serve, and replicas that are ready."""

    dispatchers: int
    replicas: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One GPU of the replicas' host, or slice of one, as its driver reports it; None where that says nothing.

    Args:
        device: UUID, as `nvidia-smi -L` lists it; of one that has never answered, which it is.
        model: as it reports itself.
        utilization: over about the last second. NVML has none of slices.
        lost: why nothing can be learned of it; empty if it answers.
    """

    device: str
    model: str = ""
    memory_used: float | None = gauge("device_memory_used_ratio", "Share of the device's memory that is in use.", None)
    utilization: float | None = gauge(
        "device_utilization_ratio", "Share of the time in which it ran kernels, recent.", None
    )
    temperature_c: float | None = gauge("device_temperature_celsius", "Temperature of the GPU.", None)
    throttled: bool | None = gauge("device_throttled", "1 while heat or its power supply holds its clocks down.", None)
    xid: int = gauge("device_xid", "NVIDIA's number of the last error that was the device's own; 0: none.", 0)
    lost: str = gauge("device_lost", "1 while nothing can be learned of it.", "")

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
    replicas: tuple[ReplicaCounts, ...] = ()
    total: StageCounts = field(default_factory=StageCounts)
    """Since the start of the run, of all dispatchers that ever were."""
    arrival_rate: float = gauge(
        "stage_arrival_rate_per_second",
        "Records per second into the stage, recent mean; of an inner one, those that it reads.",
        0.0,
    )
    utilization: float | None = gauge(
        "stage_utilization_ratio", "Busy share of the stage's replicas, recent mean.", None
    )
    wait_s: float | None = gauge("stage_wait_seconds", "Mean time queued in the stage, recent.", None)
    service_time_s: float | None = gauge("stage_service_time_seconds", "Mean service time of a batch, recent.", None)
    predicted_service_s: float | None = None
    """The same as profiled; None where too few batches ran lately, or some on what was never profiled."""
    slowdown: Mapping[str, float] = field(default_factory=dict)
    """By hardware kind: measured service time over the profile's, at the batch sizes that ran.

    Waiting for a core beyond the profile's share is left out."""
    mean_batch_size: float | None = gauge("stage_batch_size", "Mean batch size, recent.", None)
    max_batch_size: int = gauge("stage_max_batch_size", "Batch limit in force.", 1)
    hold_s: float = gauge("stage_hold_seconds", "Longest time that a free replica waits for a fuller batch.", 0.0)
    concurrency: int = 1
    """Most batches that a replica has in hand."""
    lag_s: float = gauge("stage_lag_seconds", "Age of the oldest record that is not finished.", 0.0)
    uncommitted_share: float | None = gauge(
        "stage_uncommitted_ratio", "Share of what an inner topic keeps that is not committed.", None
    )
    """In its fullest partition."""
    letter_age_share: float | None = gauge(
        "stage_dead_letter_age_ratio", "Age of the oldest dead letter over the time that its topic keeps it.", None
    )
    """0 without one."""
    start_up_s: float | None = gauge(
        "stage_start_up_seconds", "Learned time from asking for a replica to its READY.", None
    )
    stuck: tuple[int, ...] = gauge(
        "stage_stuck_partitions", "Partitions whose commits stand still although replicas are ready.", ()
    )
    halted: Mapping[int, str] = gauge("stage_halted_partitions", "Partitions that are not read any more.", dict)
    """Partition → why."""
    clock_lead_s: float = gauge(
        "stage_clock_lead_seconds", "Largest lead of a record's time over its dispatcher's clock, last minute.", 0.0
    )
    clock_lag_s: float = gauge(
        "stage_clock_lag_seconds", "Most by which a record was older than one before it, last minute.", 0.0
    )
    queued: int = gauge("stage_queued_events", "Events that wait for a replica.", 0)
    degraded_share: float = gauge(
        "stage_degraded_ratio", "Share of the last ten seconds' events that the fallback has made.", 0.0
    )
    hopeless: int = gauge("stage_hopeless_events", "Those of them that can no longer be on time.", 0)
    oldest_wait_s: float = gauge(
        "stage_oldest_wait_seconds", "Time since the oldest event that waits for a replica entered the pipeline.", 0.0
    )
    suspects: int = gauge("stage_suspects", "Events that run alone, because one of them may have killed a replica.", 0)
    quarantined: int = gauge("stage_quarantined_replicas", "Replicas that run such events only.", 0)
    trouble: str = gauge(
        "stage_in_trouble", "1 while something is wrong with the pool, e.g. replicas that fail on every batch.", ""
    )
    """In words."""
    many: bool = False
    """Whether it gives an event many results."""
    slots: int = gauge("stage_dispatchers", "Dispatchers that the stage's partitions are dealt to.", 1)
    dispatcher_utilization: float | None = gauge(
        "stage_dispatcher_utilization_ratio", "CPU seconds per second of the busiest dispatcher, recent.", None
    )
    """1 is a whole core, and the most that a slot can use."""
    join_events: int = gauge("stage_join_waiting_events", "Events of a join that wait for parts.", 0)
    join_bytes: int = gauge("stage_join_waiting_bytes", "Size of the parts that wait in a join.", 0)
    isolation: IsolationState | None = None
    """What keeps its replicas in; None before the first is ready."""
    cpu_total_s: float = counter("stage_cpu_seconds", "CPU time of replicas, native threads included.", 0.0)
    core_wait_total_s: float = counter(
        "stage_core_wait_seconds",
        "Time replicas could have run and had no core, stops for their shares of one left out.",
        0.0,
    )
    restarts: int = counter("stage_restarts", "Replicas that died and were started again.", 0)
    limit: str = ""
    """What keeps the stage from growing further: ``stock``, its model ``server``, or nothing."""
    start_ups_s: Mapping[tuple[str, str], float] = gauge(
        "start_up_seconds",
        "Learned time from asking for a replica to its READY, by how it came to run.",
        dict, "hardware", "way",
    )  # fmt: skip
    """By how the replica came to run: its node had the image, pulled it, or had to be made."""
    lags: tuple[int, ...] = gauge("partition_lag_records", "Records that are not finished.", (), "partition")
    partition_rates: tuple[float, ...] = gauge(
        "partition_arrival_rate_per_second", "Records per second.", (), "partition"
    )
    """Empty where not measured."""
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    """In a cluster: what it has on each node."""
    heard_s: float | None = None
    """When the oldest of its dispatchers' newest reports was read, on the controller's clock."""
    derived: ClassVar = (
        Figure(
            "gauge",
            "stage_service_time_ratio",
            "Mean service time over what the plan's profiles predict for the same batches, recent.",
            lambda s: s.service_ratio,
        ),
        Figure("gauge", "stage_batch_fill_ratio", "Mean batch size over the limit, recent.", lambda s: s.batch_fill),
        Figure("gauge", "stage_lag_records", "Records that are not finished.", lambda s: s.lag_records),
        Figure("gauge", "stage_partitions", "Partitions of the stage's input topic.", lambda s: len(s.lags)),
        Figure(
            "gauge", "replicas", "Replicas by what they are.",
            lambda s: {(c.hardware, state): n for c in s.replicas for state, n in zip(_STATES, c[1:], strict=True)},
            ("hardware", "state"),
        ),
        Figure(
            "gauge", "stage_at_limit", "1 while it keeps the stage from growing.",
            lambda s: {limit: s.limit == limit for limit in ("stock", "server")},
            ("limit",),
        ),
    )  # fmt: skip

    @property
    def batch_fill(self) -> float | None:
        """Mean batch over the largest that is allowed."""
        return None if self.mean_batch_size is None else self.mean_batch_size / self.max_batch_size

    @property
    def results_each(self) -> float | None:
        """Mean results of an event since the start, of a stage that gives many."""
        served = self.total.served
        return round(self.total.results / served, 3) if self.many and served else None

    @property
    def service_ratio(self) -> float | None:
        """Mean service time measured lately over the predicted one."""
        if self.service_time_s is None or not self.predicted_service_s:
            return None
        return self.service_time_s / self.predicted_service_s

    @property
    def lag_records(self) -> int:
        """Records that are not finished, over all partitions."""
        return sum(self.lags)

    @property
    def cpu_s(self) -> float | None:
        """Mean CPU time of a batch."""
        return self.cpu_total_s / self.total.batches if self.total.batches else None

    @property
    def core_wait_s(self) -> float | None:
        """Mean time that a batch waited for a core."""
        return self.core_wait_total_s / self.total.batches if self.total.batches else None


@dataclass(frozen=True, slots=True)
class ClassState:
    """One of several live classes now. Everything else in a state is of all of them together."""

    topic: str
    slo_s: float = gauge("class_slo_seconds", "Target of the P99 of a live class.")
    events: int = counter("class_results", "Events of a live class that reached the sink.", 0)
    late_events: int = counter("class_late_events", "Those of them above the SLO of the class.", 0)
    recent_p99_s: float | None = gauge("class_recent_p99_seconds", "P99 of the last ten seconds, by class.", None)
    recent_late_share: float | None = gauge(
        "class_recent_late_ratio", "Share of the last ten seconds' events above the SLO of their class.", None
    )
    lags: Mapping[str, int] = gauge(
        "class_lag_records", "Records of a live class that are not finished.", dict, "stage"
    )
    """By stage."""


@dataclass(frozen=True, slots=True)
class BackgroundState:
    """One class of background events now. Everything else in a state is of live events."""

    topic: str
    left: int = gauge("background_left_records", "Background records that not every first stage has finished.", 0)
    rate: float | None = gauge(
        "background_rate_per_second", "Such records finished per second, mean of the last minutes.", None
    )
    needed_rate: float = gauge(
        "background_needed_per_second", "Such records that have to be served per second, by rate and finish_by.", 0.0
    )
    done_in_s: float | None = gauge(
        "background_done_in_seconds", "Time until none is left at that rate; missing where nobody can tell.", None
    )
    results: int = counter("background_results", "Background events that the final stage has finished.", 0)
    dead_lettered: int = counter("background_dead_lettered", "Background events sent to the dead letters.", 0)
    busy_s: float = counter("background_busy_seconds", "Time replicas spent in batches of background events.", 0.0)
    lags: Mapping[str, int] = gauge(
        "background_lag_records", "Background records that are not finished.", dict, "stage"
    )
    """By stage."""


@dataclass(frozen=True, slots=True)
class EnvelopeWindow:
    """Most arrivals in any window of this length: live, and in the trace that the plan was made for."""

    window_s: float
    live: int = gauge("envelope_arrivals", "Most arrivals in any such window, live.")
    planned: int = gauge("envelope_planned_arrivals", "The same in the plan's trace.")
    derived: ClassVar = (
        Figure(
            "gauge", "envelope_excess_ratio", "Live over planned; above 1 is beyond.",
            lambda window: window.live / window.planned if window.planned else None,
        ),
    )  # fmt: skip


class DecisionLine(msgspec.Struct, frozen=True):
    """One decision, as the page and reports have it."""

    time_s: float
    """Seconds since the epoch, in a report since the run's first sample."""
    action: str
    reason: str
    detail: str
    replicas: dict[str, int]
    applied: bool


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

    def line(self, time_s: float) -> DecisionLine:
        """What people are shown of it."""
        return DecisionLine(time_s, self.action, self.reason, self.detail, self.by_stage, self.applied)


class StoredPlan(msgspec.Struct, frozen=True):
    """A plan that came into force. Key ``plan-<n>`` of the decisions topic, and ``plan`` for the one in force."""

    controller: str
    term: int
    time_s: float
    """Seconds since the epoch."""
    reason: str
    detail: str
    document: PlanDocument = msgspec.field(name="plan")
    number: int = 0
    """Grows over all terms."""
    structure: Structure | None = None
    """Of the pipeline that it was made for."""
    topology: str = ""
    """File that the run was started with."""
    version: int = WIRE_VERSION

    @property
    def plan(self) -> Plan:
        """The plan itself."""
        return self.document.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineState:
    """The whole pipeline now. Totals count from the start of the run."""

    time_s: float
    """Seconds since the epoch."""
    pipeline: str
    slo_s: float = gauge("slo_seconds", "Target of the end-to-end P99.")
    objective: float = gauge("slo_objective_ratio", "Share of events that must meet the SLO.")
    predicted_p99_s: float = gauge("predicted_p99_seconds", "P99 the plan was chosen on.")
    recent_p50_s: float | None = None
    """Over about the last 10 s."""
    recent_p95_s: float | None = None
    recent_p99_s: float | None = gauge("recent_p99_seconds", "P99 observed over about the last 10 s.", None)
    recent_late_share: float | None = gauge(
        "recent_late_ratio", "Share of the events of about the last 10 s that were late at the sink.", None
    )
    """The P99 says little where late events wait until the others have been served."""
    latency: LatencyHistogram
    """Since the start."""
    late_events: int
    """Events that reached the sink above the SLO of their time: people may change it, and what was late stays late."""
    estimated: bool = gauge(
        "latency_estimated",
        "1 where latencies are those of consumer groups, summed as if they were independent.",
        False,
    )
    slo_wanted_s: float | None = None
    """What people or the topology want: the plan in force may keep another one still. None where nobody looked."""
    budget_left: float | None = gauge(
        "slo_budget_left_ratio",
        "What is left of the events that may be late in the SLO's window so far; below 0 where more were.",
        None,
    )
    arrival_rate: float = gauge("arrival_rate_per_second", "Arrivals per second, recent mean.")
    envelope: tuple[EnvelopeWindow, ...]
    cost_per_hour: float = gauge("cost_dollars_per_hour", "Catalogue price of the replicas held.")
    plan_cost_per_hour: float = gauge("plan_cost_dollars_per_hour", "Catalogue price of the plan's replicas.", 0.0)
    coarse_peak_per_hour: float | None = gauge(
        "coarse_peak_cost_dollars_per_hour",
        "What replicating the pipeline as one unit sized for its peak would cost (InferLine's CG-Peak).",
        None,
    )
    cost: float = counter("cost_dollars", "Replica-seconds held times catalogue price.")
    events_in: int = counter("arrivals", "Events that entered the source topic.")
    events_out: int = counter("events_out", "Events that reached the sink.")
    completed_without_output: int = counter(
        "completed_without_output",
        "Events that ended without a sink record: branch not taken, dead-lettered or expired.",
    )
    decision_counts: Mapping[tuple[str, str], int] = counter(
        "decisions", "Decisions of Tuner and Planner.", dict, "action", "reason"
    )
    input_age_s: Mapping[str, float] = gauge(
        "input_age_seconds", "Age of the newest value of each input of the control loop.", dict, "input"
    )
    """``arrivals``; ``offsets``, committed ones; ``reports/<stage>``, of its dispatcher that was heard longest ago."""
    paused: bool = gauge("paused", "1 while scaling decisions are held.", False)
    oversubscribed: str = gauge("oversubscribed", "1 while others take cores that replicas were planned with.", "")
    """Why replicas do not have the cores that they were planned with, in words."""
    plan_feasible: bool = gauge("plan_feasible", "0 when no plan meets the SLO.", True)
    """False while the newest planning run found none."""
    term: int = gauge("controller_term", "Term of the leading controller.", 0)
    failures: int = counter("loop_failures", "Steps of the control loop that failed.", 0)
    """Those that raised something unforeseen and were logged."""
    unreadable: Mapping[str, int] = counter(
        "unreadable_records",
        "Records of the pipeline's own topics that could not be read and were skipped.",
        dict, "topic",
    )  # fmt: skip
    plan_algorithm: str = ""
    plan_id: str = ""
    """First digits of the plan document's digest: another one means another plan."""
    prices: Mapping[str, float] = gauge(
        "hardware_price_dollars_per_hour", "Catalogue price of a replica.", dict, "hardware"
    )
    replica_seconds: Mapping[tuple[str, str], float] = counter(
        "replica_seconds", "Replica-seconds held; times the price, the cost.", dict, "stage", "hardware"
    )
    stages: tuple[StageState, ...]
    classes: tuple[ClassState, ...] = ()
    """Where there are several live ones, that of the pipeline's own SLO first."""
    backgrounds: tuple[BackgroundState, ...] = ()
    hours: tuple[HourAhead, ...] = ()
    """That come: traffic expected, replicas, cost."""
    devices: tuple[DeviceState, ...] = ()
    """GPUs of this host, once a replica needed one. In a cluster, others report them."""
    decisions: tuple[DecisionRecord, ...]
    """Latest last; the newest few hundred."""
    plans: tuple[StoredPlan, ...] = ()
    """Those that came into force, latest last."""
    derived: ClassVar = (
        Figure("counter", "slo_events", "Events that count for the SLO.", lambda s: s.slo_events),
        Figure("counter", "slo_missed", "Events above the SLO, dead-lettered or expired.", lambda s: s.slo_missed),
        Figure(
            "gauge", "model_drift_ratio", "Predicted P99 over the observed one.",
            lambda s: s.predicted_p99_s / s.recent_p99_s if s.recent_p99_s else None,
        ),
        Figure(
            "counter", "backlog_events", "Events done that had entered before the run.",
            lambda s: sum(stage.total.backlog for stage in s.stages),
        ),
        Figure(
            "counter", "duplicates", "Records dropped because their event had been seen.", lambda s: s.duplicates
        ),
    )  # fmt: skip

    @property
    def oldest_wait_s(self) -> float:
        """Time since the oldest event that waits for a replica of any stage entered the pipeline."""
        return max((stage.oldest_wait_s for stage in self.stages), default=0.0)

    @property
    def slo_events(self) -> int:
        """Events that reached the sink or never will."""
        return sum(self.latency.counts) + self.failed_events

    @property
    def slo_missed(self) -> int:
        """Those of them that missed the SLO."""
        return self.late_events + self.failed_events

    @property
    def failed_events(self) -> int:
        """Events that were dead-lettered or expired."""
        return sum(stage.total.dead_lettered + stage.total.expired for stage in self.stages)

    @property
    def duplicates(self) -> int:
        """Records dropped because their event had been seen."""
        return sum(stage.total.duplicates for stage in self.stages)
