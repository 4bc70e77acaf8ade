"""What is shown of each class of events, and what background ones need of replicas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from inferline_stream.controlplane.observe.event_class import EventClass
from inferline_stream.controlplane.observe.log_growth import OffsetHistory
from inferline_stream.controlplane.observe.pool_reports import Latencies, PoolReports
from inferline_stream.observability.pipeline_state import BackgroundState, ClassState
from inferline_stream.pipeline.units import count_of

FEWEST_SERVED = 100
"""Background events from which on what they take is known: of smaller batches, they take longer than live ones."""


def class_state(topic: str, latencies: Latencies, offsets: Mapping[str, OffsetHistory], now_s: float) -> ClassState:
    """Return how one of several live classes fares.

    Args:
        topic: its name.
        latencies: of its events.
        offsets: by stage.
        now_s: now.
    """
    recent = latencies.recent(now_s)
    events = sum(recent.counts)
    return ClassState(
        topic,
        slo_s=latencies.slo_s,
        events=sum(latencies.histogram().counts),
        late_events=latencies.late(),
        recent_p99_s=recent.quantile_s(0.99),
        recent_late_share=recent.above(latencies.slo_s) / events if events else None,
        lags={stage: sum(history.lags()) for stage, history in offsets.items()},
    )


def background_state(
    topic: str, of_class: EventClass, reports: PoolReports, time_s: float, finals: Collection[str]
) -> BackgroundState:
    """Return how far a class of background events has come at a time, in seconds since the epoch.

    Args:
        topic: its name.
        of_class: what is known of it.
        reports: of the dispatchers.
        time_s: the time.
        finals: stages that feed a sink.
    """
    counts = {stage: reports.background(stage, topic) for stage in of_class.offsets}
    return BackgroundState(
        topic,
        left=of_class.left,
        rate=of_class.rate,
        needed_rate=of_class.needed_rate(time_s),
        done_in_s=of_class.done_in_s,
        results=max(counts[final].events - counts[final].dead_lettered for final in finals),
        dead_lettered=sum(each.dead_lettered for each in counts.values()),
        busy_s=sum(each.busy_s for each in counts.values()),
        lags={stage: sum(history.lags()) for stage, history in of_class.offsets.items()},
    )


def background_words(backgrounds: Mapping[str, EventClass], time_s: float) -> str:
    """Say what background events need, and why; empty where nothing."""
    found = []
    for topic, of_class in backgrounds.items():
        if rate := of_class.needed_rate(time_s):
            why = f"{count_of(of_class.left, 'record')} of {topic} left"
            if of_class.finish_s is not None:
                why += f", to finish by {datetime.fromtimestamp(of_class.finish_s, UTC):%Y-%m-%d %H:%M} UTC"
            found.append(f"{rate:.1f}/s for {why}")
    return "; ".join(found)


def background_busy(
    stage: str, backgrounds: Mapping[str, EventClass], reports: PoolReports, alone_s: float, time_s: float
) -> float:
    """Return how many replicas background events keep busy, each of which visits the stage, by rates and due times.

    Args:
        stage: whose replicas.
        backgrounds: by topic.
        reports: what such events have taken there.
        alone_s: what one is taken to take before that is known.
        time_s: now, in seconds since the epoch.
    """
    rate = sum(of_class.needed_rate(time_s) for of_class in backgrounds.values())
    if not rate:
        return 0.0
    counts = [reports.background(stage, topic) for topic in backgrounds]
    served, busy_s = sum(each.served for each in counts), sum(each.busy_s for each in counts)
    return rate * (busy_s / served if served >= FEWEST_SERVED else alone_s)
