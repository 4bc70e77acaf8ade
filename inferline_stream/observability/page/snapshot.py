"""The pipeline's state as the JSON that the page draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import msgspec

from inferline_stream.observability.pipeline_state import PipelineState, StageState, StoredPlan
from inferline_stream.observability.stage_counts import StageCounts

Arrows = Sequence[tuple[str, str, bool]]
"""Edges of the DAG: (parent, child, conditional)."""

DECISIONS_SHOWN = 100
PLANS_SHOWN = 20

_METRICS_ONLY = frozenset((
    "latency", "late_events", "completed_without_output", "decision_counts", "term", "failures", "unreadable", "prices",
    "replica_seconds", "total", "slowdown", "uncommitted_share", "letter_age_share", "start_up_s", "start_ups_s",
    "clock_lead_s", "clock_lag_s", "slots", "join_events", "join_bytes", "cpu_total_s", "core_wait_total_s",
    "partition_rates", "heard_s", "events", "busy_s", "expired", "replica_s", "completed", "duplicates", "backlog",
    "latency_sum_s", "remote_batches", "network_s", "batch_stats", "edges_taken", "latency_buckets",
    "hours", "many",
))  # fmt: skip
"""Fields that the page has no use for."""

_SHOWN = {
    kind: tuple(field.name for field in fields(kind) if field.name not in _METRICS_ONLY)
    for kind in (PipelineState, StageState, StageCounts)
}

_encoder = msgspec.json.Encoder()


def snapshot(state: PipelineState, arrows: Arrows) -> bytes:
    """One update of the page, as JSON in one line."""
    return _encoder.encode(
        _shown(state)
        | {f"p{percent}_s": state.latency.quantile_s(percent / 100) for percent in (50, 95, 99)}
        | {
            "slo_events": state.slo_events,
            "slo_missed": state.slo_missed,
            "envelope": [[w.window_s, w.live, w.planned] for w in state.envelope],
            "arrows": arrows,
            "stages": [_stage(stage) for stage in state.stages],
            "decisions": [decision.line(decision.time_s) for decision in state.decisions[-DECISIONS_SHOWN:]],
            "plans": [_plan(stored) for stored in state.plans[-PLANS_SHOWN:]],
        }
    )


def _stage(stage: StageState) -> dict[str, Any]:
    return {
        **_shown(stage.total),
        **_shown(stage),
        "replicas": [counts[:-1] for counts in stage.replicas],  # without those that stand by
        "nodes": [[node, *of] for node, of in stage.nodes.items()],
        "batch_fill": stage.batch_fill,
        "results_each": stage.results_each,
        "cpu_s": stage.cpu_s,
        "core_wait_s": stage.core_wait_s,
    }


def _plan(stored: StoredPlan) -> dict[str, Any]:
    plan = stored.plan
    return {
        **{name: getattr(stored, name) for name in ("number", "time_s", "reason", "detail")},
        **{name: getattr(plan, name) for name in ("slo_s", "predicted_p99_s", "cost_per_hour", "arrival_rate")},
        "allocations": {
            stage: [(a.hardware, a.max_batch_size, a.replicas, a.hold_s, a.concurrency) for a in held]
            for stage, held in plan.allocations.items()
        },
    }


def _shown(of: PipelineState | StageState | StageCounts) -> dict[str, Any]:
    return {name: getattr(of, name) for name in _SHOWN[type(of)]}
