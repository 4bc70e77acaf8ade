"""The pipeline's state as Prometheus metrics: one scrape target per pipeline.

Every scrape renders the newest `PipelineState`, so a series whose partition or replica is gone vanishes
with it. docs/reference/metrics.md lists them and counts the series.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from threading import Thread

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from inferline_stream.errors import UsageError
from inferline_stream.observability.buckets import bucket_label
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer, limits
from inferline_stream.observability.pipeline_state import DeviceState, IsolationState, PipelineState, StageState


class StateCollector(Collector):
    """Renders the newest state at each scrape.

    Args:
        state: returns the newest state, or None before there is one.
        now_s: seconds since the epoch.
    """

    def __init__(self, state: Callable[[], PipelineState | None], now_s: Callable[[], float] = time.time) -> None:
        self._state = state
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """Metric families of the newest state; only the build's information before there is one."""
        yield _info("inferline_build", "Version of inferline-stream.", {"version": _version()})
        state = self._state()
        if state is not None:
            age = GaugeMetricFamily(
                "inferline_state_age_seconds", "Age of all that this scrape shows: grows where the control loop hangs.",
                labels=["pipeline"],
            )  # fmt: skip
            age.add_metric([state.pipeline], max(0.0, self._now_s() - state.time_s))
            yield age
            yield from _pipeline_families(state)
            yield from _stage_families(state)
            yield from _device_families(state)

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the families depend on the state."""
        return []


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running `/metrics` endpoint."""

    port: int
    _server: LimitedServer
    _thread: Thread

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(state: Callable[[], PipelineState | None], port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve `/metrics` from a thread of its own, to those who ask for it by an address or name of its own.

    Args:
        state: returns the newest state; called at each scrape, from another thread.
        port: TCP port, 0 for any free one.
        host: address to listen on.

    Raises:
        UsageError: the port is taken or may not be used.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StateCollector(state))
    try:
        server = LimitedServer(host, port, _handler(registry), limits(request_s=20.0))
    except OSError as error:
        raise UsageError(
            f"metrics cannot listen on {host}:{port} ({error.strerror}); choose another --metrics-port, 0 for any"
        ) from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(server.server_port, server, thread)


def _handler(registry: CollectorRegistry) -> type[LimitedHandler]:
    class MetricsHandler(LimitedHandler):
        other_host = "ask for the metrics by their own address, or by the name given to --metrics-host"

        def do_GET(self) -> None:
            encoded, kind = choose_encoder(self.headers.get("Accept", ""))
            body = encoded(registry)
            if gzip_accepted(self.headers.get("Accept-Encoding", "")):
                self.answer(HTTPStatus.OK, kind, gzip.compress(body), Content_Encoding="gzip")
            else:
                self.answer(HTTPStatus.OK, kind, body)

    return MetricsHandler


@cache
def _version() -> str:
    try:
        return version("inferline-stream")
    except PackageNotFoundError:
        return "unknown"


def _info(name: str, help_text: str, labels: dict[str, str]) -> Metric:
    family = InfoMetricFamily(name, help_text, labels=[])
    family.add_metric([], labels)
    return family


def _pipeline_families(state: PipelineState) -> Iterator[Metric]:
    pipeline = [state.pipeline]

    def gauge(name: str, help_text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            family = GaugeMetricFamily(name, help_text, labels=["pipeline"])
            family.add_metric(pipeline, value)
            yield family

    def counter(name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=["pipeline"])
        family.add_metric(pipeline, value)
        return family

    yield _latency(state)
    lost = sum(stage.dead_lettered + stage.expired for stage in state.stages)
    yield counter("inferline_slo_events", "Events that count for the SLO.", sum(state.latency.counts) + lost)
    yield counter("inferline_slo_missed", "Events above the SLO, dead-lettered or expired.", state.late_events + lost)
    yield from gauge("inferline_slo_seconds", "Target of the end-to-end P99.", state.slo_s)
    yield from gauge("inferline_slo_objective_ratio", "Share of events that must meet the SLO.", state.objective)
    yield from gauge("inferline_predicted_p99_seconds", "P99 the plan was chosen on.", state.predicted_p99_s)
    yield from gauge("inferline_recent_p99_seconds", "P99 observed over about the last 10 s.", state.recent_p99_s)
    if state.recent_p99_s:
        drift = state.predicted_p99_s / state.recent_p99_s
        yield from gauge("inferline_model_drift_ratio", "Predicted P99 over the observed one.", drift)
    yield from gauge("inferline_arrival_rate_per_second", "Arrivals per second, recent mean.", state.arrival_rate)
    yield from _envelope(state)
    yield from gauge("inferline_cost_dollars_per_hour", "Catalogue price of the replicas held.", state.cost_per_hour)
    yield from gauge(
        "inferline_plan_cost_dollars_per_hour", "Catalogue price of the plan's replicas.", state.plan_cost_per_hour
    )
    yield from gauge(
        "inferline_coarse_peak_cost_dollars_per_hour",
        "What replicating the pipeline as one unit sized for its peak would cost (InferLine's CG-Peak).",
        state.coarse_peak_per_hour,
    )
    yield counter("inferline_cost_dollars", "Replica-seconds held times catalogue price.", state.cost)
    yield counter("inferline_arrivals", "Events that entered the source topic.", state.events_in)
    yield counter("inferline_events_out", "Events that reached the sink.", state.events_out)
    yield counter(
        "inferline_completed_without_output",
        "Events that ended without a sink record: branch not taken, dead-lettered or expired.",
        state.completed_without_output,
    )
    yield counter("inferline_backlog_events", "Events done that had entered before the run.", state.backlog)
    yield counter("inferline_duplicates", "Records dropped because their event had been seen.", state.duplicates)
    decisions = CounterMetricFamily(
        "inferline_decisions", "Decisions of Tuner and Planner.", labels=["pipeline", "action", "reason"]
    )
    for (action, reason), count in sorted(state.decision_counts.items()):
        decisions.add_metric([state.pipeline, action, reason], count)
    yield decisions
    ages = GaugeMetricFamily(
        "inferline_input_age_seconds",
        "Age of the newest value of each input of the control loop.",
        None,
        ["pipeline", "input"],
    )
    for name, age_s in sorted(state.input_age_s.items()):
        ages.add_metric([state.pipeline, name], age_s)
    yield ages
    yield from gauge("inferline_paused", "1 while scaling decisions are held.", float(state.paused))
    yield from gauge(
        "inferline_oversubscribed",
        "1 while others take cores that replicas were planned with.",
        float(bool(state.oversubscribed)),
    )
    yield from gauge("inferline_plan_feasible", "0 when no plan meets the SLO.", float(state.plan_feasible))
    yield from gauge("inferline_controller_term", "Term of the leading controller.", state.term)
    yield counter("inferline_loop_failures", "Steps of the control loop that failed.", state.failures)
    unreadable = CounterMetricFamily(
        "inferline_unreadable_records",
        "Records of the pipeline's own topics that could not be read and were skipped.",
        labels=["pipeline", "topic"],
    )
    for topic, count in sorted(state.unreadable.items()):
        unreadable.add_metric([state.pipeline, topic], count)
    yield unreadable
    plan = InfoMetricFamily("inferline_plan", "The plan in force.", labels=["pipeline"])
    plan.add_metric(pipeline, {"algorithm": state.plan_algorithm or "unknown", "id": state.plan_id or "unknown"})
    yield plan
    prices = GaugeMetricFamily(
        "inferline_hardware_price_dollars_per_hour", "Catalogue price of a replica.", None, ["pipeline", "hardware"]
    )
    for hardware, price in sorted(state.prices.items()):
        prices.add_metric([state.pipeline, hardware], price)
    yield prices


def _latency(state: PipelineState) -> Metric:
    bounds = [bucket_label(bound) for bound in (*state.latency.bounds_s, float("inf"))]
    family = HistogramMetricFamily(
        "inferline_latency_seconds", "End to end: entry to the sink's acknowledgement.", labels=["pipeline"]
    )
    buckets = list(zip(bounds, map(float, accumulate(state.latency.counts)), strict=True))
    family.add_metric([state.pipeline], buckets, state.latency.sum_s)
    return family


def _envelope(state: PipelineState) -> Iterator[Metric]:
    labels = ["pipeline", "window_seconds"]
    live = GaugeMetricFamily("inferline_envelope_arrivals", "Most arrivals in any such window, live.", None, labels)
    planned = GaugeMetricFamily("inferline_envelope_planned_arrivals", "The same in the plan's trace.", None, labels)
    excess = GaugeMetricFamily("inferline_envelope_excess_ratio", "Live over planned; above 1 is beyond.", None, labels)
    for window in state.envelope:
        key = [state.pipeline, f"{window.window_s:.6g}"]
        live.add_metric(key, window.live)
        planned.add_metric(key, window.planned)
        if window.planned:
            excess.add_metric(key, window.live / window.planned)
    yield from (live, planned, excess)


def _of_isolation(figure: Callable[[IsolationState], float | None]) -> Callable[[StageState], float | None]:
    return lambda stage: None if stage.isolation is None else figure(stage.isolation)


def _in_trouble(stage: StageState) -> float:
    return float(bool(stage.trouble))


_STAGE_GAUGES: tuple[tuple[str, str, Callable[[StageState], float | None]], ...] = (
    ("arrival_rate_per_second", "Records per second into the stage, recent mean.", lambda s: s.arrival_rate),
    ("utilization_ratio", "Busy share of the stage's replicas, recent mean.", lambda s: s.utilization),
    ("wait_seconds", "Mean time queued in the stage, recent.", lambda s: s.wait_s),
    ("service_time_seconds", "Mean service time of a batch, recent.", lambda s: s.service_time_s),
    (
        "service_time_ratio",
        "Mean service time over what the plan's profiles predict for the same batches, recent.",
        lambda s: s.service_ratio,
    ),
    ("batch_size", "Mean batch size, recent.", lambda s: s.mean_batch_size),
    ("batch_fill_ratio", "Mean batch size over the limit, recent.", lambda s: s.batch_fill),
    ("max_batch_size", "Batch limit in force.", lambda s: s.max_batch_size),
    ("hold_seconds", "Longest time that a free replica waits for a fuller batch.", lambda s: s.hold_s),
    ("lag_records", "Records that are not finished.", lambda s: s.lag_records),
    ("lag_seconds", "Age of the oldest record that is not finished.", lambda s: s.lag_s),
    (
        "uncommitted_ratio",
        "Share of what an inner topic keeps that is not committed.",
        lambda s: s.uncommitted_share,
    ),
    (
        "dead_letter_age_ratio",
        "Age of the oldest dead letter over the time that its topic keeps it.",
        lambda s: s.letter_age_share,
    ),
    ("start_up_seconds", "Learned time from asking for a replica to its READY.", lambda s: s.start_up_s),
    ("partitions", "Partitions of the stage's input topic.", lambda s: len(s.partition_lags)),
    (
        "stuck_partitions",
        "Partitions whose commits stand still although replicas are ready.",
        lambda s: len(s.stuck_partitions),
    ),
    ("halted_partitions", "Partitions that are not read any more.", lambda s: len(s.halted)),
    (
        "clock_lead_seconds",
        "Largest lead of a record's time over its dispatcher's clock, last minute.",
        lambda s: s.clock_lead_s,
    ),
    ("queued_events", "Events that wait for a replica.", lambda s: s.queued),
    ("suspects", "Events that run alone, because one of them may have killed a replica.", lambda s: s.suspects),
    ("quarantined_replicas", "Replicas that run such events only.", lambda s: s.quarantined),
    ("in_trouble", "1 while something is wrong with the pool, e.g. replicas that fail on every batch.", _in_trouble),
    ("dispatchers", "Dispatchers that the stage's partitions are dealt to.", lambda s: s.slots),
    (
        "dispatcher_utilization_ratio",
        "CPU seconds per second of the busiest dispatcher, recent.",
        lambda s: s.dispatcher_utilization,
    ),
    ("join_waiting_events", "Events of a join that wait for parts.", lambda s: s.join_events),
    ("join_waiting_bytes", "Size of the parts that wait in a join.", lambda s: s.join_bytes),
    ("sealed_replicas", "Ready replicas that are sealed, by their own trial.", _of_isolation(lambda i: i.sealed)),
    ("landlock_version", "Landlock that keeps replicas from files; 0: none.", _of_isolation(lambda i: i.landlock)),
    (
        "reachable_system_calls",
        "System calls that a replica can reach; missing where all.",
        _of_isolation(lambda i: i.system_calls),
    ),
    (
        "isolation_missing",
        "Kinds of isolation that are declared and do not hold.",
        _of_isolation(lambda i: len(i.missing)),
    ),
)

_STAGE_COUNTERS: tuple[tuple[str, str, Callable[[StageState], float]], ...] = (
    ("events", "Events that left the stage.", lambda s: s.events),
    ("batches", "Batches run.", lambda s: s.batches),
    ("busy_seconds", "Time replicas spent in batches.", lambda s: s.busy_total_s),
    ("cpu_seconds", "CPU time of replicas, native threads included.", lambda s: s.cpu_total_s),
    (
        "core_wait_seconds",
        "Time replicas could have run and had no core, stops for their shares of one left out.",
        lambda s: s.core_wait_total_s,
    ),
    ("waited_seconds", "Time events spent queued in the stage.", lambda s: s.wait_total_s),
    ("dead_lettered", "Events sent to the dead-letter topic.", lambda s: s.dead_lettered),
    ("expired", "Events that passed their deadline before the stage.", lambda s: s.expired),
    ("batches_lost", "Batches in hand of a replica that ended or was given up.", lambda s: s.batches_lost),
    ("restarts", "Replicas that died and were started again.", lambda s: s.restarts),
)


_DEVICE_GAUGES: tuple[tuple[str, str, Callable[[DeviceState], float | None]], ...] = (
    ("memory_used_ratio", "Share of the device's memory that is in use.", lambda d: d.memory_used),
    ("utilization_ratio", "Share of the time in which it ran kernels, recent.", lambda d: d.utilization),
    ("temperature_celsius", "Temperature of the GPU.", lambda d: d.temperature_c),
    ("throttled", "1 while heat or its power supply holds its clocks down.", lambda d: d.throttled),
    ("xid", "NVIDIA's number of the last error that was the device's own; 0: none.", lambda d: d.xid),
    ("lost", "1 while nothing can be learned of it.", lambda d: bool(d.lost)),
)


def _device_families(state: PipelineState) -> Iterator[Metric]:
    for name, help_text, value in _DEVICE_GAUGES:
        gauge = GaugeMetricFamily(f"inferline_device_{name}", help_text, labels=["pipeline", "device", "model"])
        for device in state.devices:
            if (measured := value(device)) is not None:
                gauge.add_metric([state.pipeline, device.device, device.model], float(measured))
        yield gauge


def _stage_families(state: PipelineState) -> Iterator[Metric]:
    labels = ["pipeline", "stage"]
    for name, help_text, value in _STAGE_GAUGES:
        gauge = GaugeMetricFamily(f"inferline_stage_{name}", help_text, labels=labels)
        for stage in state.stages:
            measured = value(stage)
            if measured is not None:
                gauge.add_metric([state.pipeline, stage.name], measured)
        yield gauge
    for name, help_text, total in _STAGE_COUNTERS:
        counter = CounterMetricFamily(f"inferline_stage_{name}", help_text, labels=labels)
        for stage in state.stages:
            counter.add_metric([state.pipeline, stage.name], total(stage))
        yield counter
    replicas = GaugeMetricFamily(
        "inferline_replicas", "Replicas by what they are.", labels=[*labels, "hardware", "state"]
    )
    lags = GaugeMetricFamily(
        "inferline_partition_lag_records", "Records that are not finished.", None, [*labels, "partition"]
    )
    rates = GaugeMetricFamily(
        "inferline_partition_arrival_rate_per_second", "Records per second.", None, [*labels, "partition"]
    )
    for stage in state.stages:
        for counts in stage.replicas:
            for kind in ("planned", "wanted", "ready", "pending", "standby"):
                replicas.add_metric([state.pipeline, stage.name, counts.hardware, kind], getattr(counts, kind))
        for partition, lag in enumerate(stage.partition_lags):
            lags.add_metric([state.pipeline, stage.name, str(partition)], lag)
        for partition, rate in enumerate(stage.partition_rates):
            rates.add_metric([state.pipeline, stage.name, str(partition)], rate)
    limits = GaugeMetricFamily(
        "inferline_stage_at_limit", "1 while it keeps the stage from growing.", labels=[*labels, "limit"]
    )
    for stage in state.stages:
        for limit in ("stock", "server"):
            limits.add_metric([state.pipeline, stage.name, limit], float(stage.limit == limit))
    ways = GaugeMetricFamily(
        "inferline_start_up_seconds",
        "Learned time from asking for a replica to its READY, by how it came to run.",
        labels=[*labels, "hardware", "way"],
    )
    for stage in state.stages:
        for (hardware, way), seconds in sorted(stage.start_ups_s.items()):
            ways.add_metric([state.pipeline, stage.name, hardware, way], seconds)
    held = CounterMetricFamily(
        "inferline_replica_seconds", "Replica-seconds held; times the price, the cost.", labels=[*labels, "hardware"]
    )
    for (name, hardware), seconds in sorted(state.replica_seconds.items()):
        held.add_metric([state.pipeline, name, hardware], seconds)
    yield from (replicas, limits, ways, held, lags, rates)
