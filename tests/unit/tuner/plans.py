"""A plan of two stages made by hand, with round numbers."""

from dataclasses import replace

from msgspec import structs

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.tuner.observation import Observation, StageObservation, Supply
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.tuner_state import TunerState, initial_state

SHAPE = Shape(("a", "b"), (Arrow(0, 1, conditional=True),))
CATALOGUE = {"x": Hardware("x", 1.0)}
ENVELOPE = ((1.0, 300), (5.0, 600), (60.0, 6000))
"""λ = 100/s, and bursts of three times as much within a second."""


def measured() -> PipelineProfile:
    """One replica does 100/s at `a` (batches of 4) and 50/s at `b`; half of the events visit `b`."""
    profiles = {
        ("a", "x"): Profile("a", "x", (ServiceTime(1, 0.02), ServiceTime(4, 0.04)), start_up_s=2.0),
        ("b", "x"): Profile("b", "x", (ServiceTime(1, 0.02),), start_up_s=2.0),
    }
    return PipelineProfile(profiles, independent_paths(SHAPE, {("a", "b"): 0.5}))


def plan() -> Plan:
    """ρ is 1/2 at `a` (2 replicas) and 1/3 at `b` (3 replicas)."""
    return Plan(
        pipeline="two",
        slo_s=0.5,
        allocations={"a": (Allocation("x", 4, 2),), "b": (Allocation("x", 1, 3),)},
        cost_per_hour=5.0,
        predicted_p99_s=0.4,
        arrival_rate=100.0,
        envelope=ENVELOPE,
        visit_ratios={"a": 1.0, "b": 0.5},
        utilization={"a": 0.5, "b": 1 / 3},
    )


def state(knobs: PolicySettings | None = None, catalogue: dict[str, Hardware] | None = None) -> TunerState:
    return initial_state(plan(), measured(), catalogue or CATALOGUE, knobs=knobs)


def smooth(knobs: PolicySettings | None = None) -> TunerState:
    """The state of a sample whose busiest second has no more than twice the mean rate, as events may wait in it."""
    begun = state(knobs)
    return structs.replace(begun, basis=replace(begun.basis, counts=(240, 600, 6000)))


def seen(
    time_s: float = 0.0,
    envelope: tuple[int, int, int] = (290, 590, 5900),
    peak_rate: float = 100.0,
    ready: tuple[int, int] = (2, 3),
    pending: tuple[int, int] = (0, 0),
    **more: object,
) -> Observation:
    stages = {
        name: StageObservation(
            {"x": Supply(ready[i], pending[i])}, partition_lags=(0,) * 60, partition_idle_s=(0.0,) * 60
        )
        for i, name in enumerate(SHAPE.stages)
    }
    return Observation(time_s, envelope, arrival_rate=peak_rate, peak_rate=peak_rate, stages=stages, **more)  # type: ignore[arg-type]
