"""The pipeline's state as Prometheus metrics: one scrape target per pipeline. `pipeline_state` declares them.

Every scrape renders the newest `PipelineState`, so a series whose partition or replica is gone vanishes
with it. docs/reference/metrics.md lists them and counts the series.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate

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

from inferline_stream.observability.figure import figures
from inferline_stream.observability.latency_histogram import bucket_label
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer
from inferline_stream.observability.pipeline_state import (
    BackgroundState,
    ClassState,
    DeviceState,
    EnvelopeWindow,
    IsolationState,
    PipelineState,
    StageState,
)
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.settings import release


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
        yield _info("inferline_build", "Version of inferline-stream.", {"version": release()})
        state = self._state()
        if state is not None:
            age = GaugeMetricFamily(
                "inferline_state_age_seconds", "Age of all that this scrape shows: grows where the control loop hangs.",
                labels=["pipeline"],
            )  # fmt: skip
            age.add_metric([state.pipeline], max(0.0, self._now_s() - state.time_s))
            yield age
            yield from _families(state)

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the families depend on the state."""
        return []


def serve_metrics(state: Callable[[], PipelineState | None], port: int, host: str = "127.0.0.1") -> LimitedServer:
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
    return LimitedServer("metrics", "--metrics-port", host, port, _handler(registry), request_s=20.0)


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


def _info(name: str, help_text: str, says: dict[str, str], **labels: str) -> Metric:
    family = InfoMetricFamily(name, help_text, labels=list(labels))
    family.add_metric(list(labels.values()), says)
    return family


def _families(state: PipelineState) -> Iterator[Metric]:
    stages = [([state.pipeline, stage.name], stage) for stage in state.stages]
    stage = ("pipeline", "stage")
    yield _latency(state)
    yield from _declared(PipelineState, ("pipeline",), [([state.pipeline], state)])
    plan = {"algorithm": state.plan_algorithm or "unknown", "id": state.plan_id or "unknown"}
    yield _info("inferline_plan", "The plan in force.", plan, pipeline=state.pipeline)
    windows = [([state.pipeline, f"{window.window_s:.6g}"], window) for window in state.envelope]
    yield from _declared(EnvelopeWindow, ("pipeline", "window_seconds"), windows)
    yield from _declared(StageState, stage, stages)
    yield from _declared(IsolationState, stage, [(key, of.isolation) for key, of in stages if of.isolation is not None])
    yield from _declared(StageCounts, stage, [(key, of.total) for key, of in stages])
    classes = [([state.pipeline, of.topic], of) for of in state.classes]
    yield from _declared(ClassState, ("pipeline", "topic"), classes)
    backgrounds = [([state.pipeline, of.topic], of) for of in state.backgrounds]
    yield from _declared(BackgroundState, ("pipeline", "topic"), backgrounds)
    devices = [([state.pipeline, device.device, device.model], device) for device in state.devices]
    yield from _declared(DeviceState, ("pipeline", "device", "model"), devices)


def _declared(of: type, labels: Sequence[str], rows: Sequence[tuple[list[str], object]]) -> Iterator[Metric]:
    """What a class declares, of each of its instances with the labels that say which one it is.

    A figure of the whole pipeline that was not measured has no family either.
    """
    for read, figure in figures(of):
        family = _FAMILIES[figure.kind](f"inferline_{figure.name}", figure.help, labels=[*labels, *figure.labels])
        for key, one in rows:
            for own, number in figure.samples(read(one)):
                family.add_metric([*key, *own], number)
        if family.samples or len(labels) > 1 or figure.labels:
            yield family


_FAMILIES = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


def _latency(state: PipelineState) -> Metric:
    bounds = [bucket_label(bound) for bound in (*state.latency.bounds_s, float("inf"))]
    family = HistogramMetricFamily(
        "inferline_latency_seconds", "End to end: entry to the sink's acknowledgement.", labels=["pipeline"]
    )
    buckets = list(zip(bounds, map(float, accumulate(state.latency.counts)), strict=True))
    family.add_metric([state.pipeline], buckets, state.latency.sum_s)
    return family
