"""The pipeline's state as the JSON that the page draws."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from inferline_stream.observability.pipeline_state import PipelineState

Arrows = Sequence[tuple[str, str, bool]]
"""Edges of the DAG: (parent, child, conditional)."""

DECISIONS_SHOWN = 100
PLANS_SHOWN = 20

_encoder = msgspec.json.Encoder()


def snapshot(state: PipelineState, arrows: Arrows) -> bytes:
    """One update of the page, as JSON in one line."""
    counted = sum(state.latency.counts)
    lost = sum(stage.dead_lettered + stage.expired for stage in state.stages)
    return _encoder.encode(
        {
            "time_s": state.time_s,
            "pipeline": state.pipeline,
            "slo_s": state.slo_s,
            "objective": state.objective,
            "predicted_p99_s": state.predicted_p99_s,
            "recent_p50_s": state.recent_p50_s,
            "recent_p95_s": state.recent_p95_s,
            "recent_p99_s": state.recent_p99_s,
            "p50_s": state.latency.quantile_s(0.5),
            "p95_s": state.latency.quantile_s(0.95),
            "p99_s": state.latency.quantile_s(0.99),
            "slo_events": counted + lost,
            "slo_missed": state.late_events + lost,
            "arrival_rate": state.arrival_rate,
            "events_in": state.events_in,
            "events_out": state.events_out,
            "cost_per_hour": state.cost_per_hour,
            "cost": state.cost,
            "coarse_peak_per_hour": state.coarse_peak_per_hour,
            "paused": state.paused,
            "plan_feasible": state.plan_feasible,
            "oversubscribed": state.oversubscribed,
            "plan_algorithm": state.plan_algorithm,
            "plan_id": state.plan_id,
            "plan_cost_per_hour": state.plan_cost_per_hour,
            "input_age_s": state.input_age_s,
            "envelope": [[w.window_s, w.live, w.planned] for w in state.envelope],
            "arrows": arrows,
            "devices": state.devices,
            "stages": [
                {
                    "name": stage.name,
                    "replicas": [[c.hardware, c.planned, c.wanted, c.ready, c.pending] for c in stage.replicas],
                    "max_batch_size": stage.max_batch_size,
                    "hold_s": stage.hold_s,
                    "concurrency": stage.concurrency,
                    "mean_batch_size": stage.mean_batch_size,
                    "batch_fill": stage.batch_fill,
                    "queued": stage.queued,
                    "suspects": stage.suspects,
                    "trouble": stage.trouble,
                    "dispatcher_utilization": stage.dispatcher_utilization,
                    "arrival_rate": stage.arrival_rate,
                    "utilization": stage.utilization,
                    "wait_s": stage.wait_s,
                    "service_time_s": stage.service_time_s,
                    "predicted_service_s": stage.predicted_service_s,
                    "cpu_s": stage.cpu_total_s / stage.batches if stage.batches else None,
                    "core_wait_s": stage.core_wait_total_s / stage.batches if stage.batches else None,
                    "lag_s": stage.lag_s,
                    "lags": stage.partition_lags,
                    "stuck": stage.stuck_partitions,
                    "halted": stage.halted,
                    "quarantined": stage.quarantined,
                    "batches_lost": stage.batches_lost,
                    "nodes": [[node, of.dispatchers, of.replicas] for node, of in stage.nodes.items()],
                    "limit": stage.limit,
                    "dead_lettered": stage.dead_lettered,
                    "restarts": stage.restarts,
                    "isolation": stage.isolation,
                }
                for stage in state.stages
            ],
            "decisions": [
                {
                    "time_s": d.time_s,
                    "action": d.action,
                    "reason": d.reason,
                    "detail": d.detail,
                    "replicas": d.by_stage,
                    "applied": d.applied,
                }
                for d in state.decisions[-DECISIONS_SHOWN:]
            ],
            "plans": state.plans[-PLANS_SHOWN:],
        }
    )
