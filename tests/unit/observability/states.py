"""A pipeline state with something in every field."""

from typing import Any

from inferline_stream.observability.latency_histogram import LatencyHistogram, latency_bounds_s
from inferline_stream.observability.pipeline_state import (
    BackgroundState,
    ClassState,
    DecisionRecord,
    DeviceState,
    EnvelopeWindow,
    IsolationState,
    PipelineState,
    ReplicaCounts,
    StageState,
    StoredPlan,
)
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.planner.plan_document import PlanDocument

SLO_S = 0.25
BOUNDS_S = latency_bounds_s(SLO_S)


def a_state(*, partitions: int = 4) -> PipelineState:
    counts = [0] * (len(BOUNDS_S) + 1)
    counts[BOUNDS_S.index(SLO_S)] = 970
    counts[-1] = 30
    return PipelineState(
        time_s=1_000.0,
        pipeline="moderation",
        slo_s=SLO_S,
        objective=0.99,
        predicted_p99_s=0.2,
        arrival_rate=55.5,
        envelope=(EnvelopeWindow(0.1, 12, 8), EnvelopeWindow(60.0, 3000, 6000)),
        latency=LatencyHistogram(BOUNDS_S, tuple(counts), 123.0),
        recent_p50_s=0.05,
        recent_p99_s=0.3,
        recent_late_share=0.03,
        classes=(ClassState("posts", 0.5, 90, 2, 0.3, 0.01, {"language": 3}),),
        backgrounds=(BackgroundState("archive", 10, 5.0, 4.0, 2.0, 100, 1, 3.0, {"language": 10}),),
        stages=(
            StageState(
                name="language",
                replicas=(ReplicaCounts("cpu-1", planned=2, wanted=3, ready=2, pending=1),),
                max_batch_size=8,
                hold_s=0.012,
                arrival_rate=55.0,
                utilization=0.7,
                wait_s=0.004,
                service_time_s=0.02,
                predicted_service_s=0.02,
                mean_batch_size=2.0,
                lags=tuple(range(partitions)),
                lag_s=0.5,
                uncommitted_share=0.25,
                letter_age_share=0.5,
                start_up_s=1.5,
                start_ups_s={("cpu-1", way): 1.5 for way in ("fork", "alone")},
                partition_rates=tuple(10.0 + p for p in range(partitions)),
                total=StageCounts(
                    events=1000,
                    duplicates=1,
                    busy_s=10.0,
                    wait_s=4.0,
                    batches_lost=2,
                    batch_stats={"cpu-1": {2: BatchStats(500, 10.0)}},
                ),
                clock_lead_s=0.25,
                clock_lag_s=3600.0,
                queued=3,
                hopeless=2,
                oldest_wait_s=3600.5,
                suspects=1,
                quarantined=1,
                dispatcher_utilization=0.2,
                trouble="replicas fail on every batch",
                halted={1: "its offset is lost"},
                isolation=IsolationState("sandbox", 2, 2, 7, (9092,), 76, {"files": 1024}),
            ),
        ),
        decisions=(
            DecisionRecord(
                7, "c-1", 1, 999.0, "scale_up", "envelope", "0.1 s window", {"language": {"t4": 3}}, applied=True
            ),
        ),
        late_events=30,
        cost_per_hour=0.1995,
        cost=0.05,
        events_in=1010,
        events_out=1000,
        completed_without_output=4,
        unreadable=dict.fromkeys(("arrivals", "assignments", "control", "decisions", "stage-stats"), 2),
        input_age_s={"arrivals": 0.02, "offsets": 0.1, "reports/language": 0.3},
        decision_counts={("scale_up", "envelope"): 1},
        plan_algorithm="default",
        plan_id="0123abcd",
        plan_cost_per_hour=0.133,
        replica_seconds={("language", "cpu-1"): 2700.0},
        prices={"cpu-1": 0.0665},
        term=1,
        coarse_peak_per_hour=0.5,
        recent_p95_s=0.12,
        devices=(DeviceState("GPU-a", "Tesla T4", 0.25, 0.7, 88, True),),
        plans=(
            _stored(
                1,
                "initial",
                "",
                predicted_p99_s=0.21,
                cost_per_hour=0.0665,
                arrival_rate=40.0,
                allocations={"language": (Allocation("cpu-1", 8, 1),)},
            ),
            _stored(
                2,
                "plan_saves",
                "more came",
                predicted_p99_s=0.2,
                cost_per_hour=0.133,
                arrival_rate=55.0,
                allocations={"language": (Allocation("cpu-1", 8, 2, 0.012),)},
            ),
        ),
    )


def _stored(number: int, reason: str, detail: str, **plan: Any) -> StoredPlan:
    made = Plan(pipeline="moderation", slo_s=SLO_S, envelope=(), visit_ratios={}, utilization={}, **plan)
    return StoredPlan("c", 1, 850.0 + 50 * number, reason, detail, PlanDocument(plan=made), number)
