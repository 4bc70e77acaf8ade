"""What is left of a stage while it sleeps: replicas that stand by, ready, or with their model server asleep."""

from __future__ import annotations

from dataclasses import dataclass

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile


@dataclass(frozen=True, slots=True)
class StandsBy:
    """What is left of a stage that sleeps.

    Args:
        hardware: kind that it is on.
        replicas: how many.
        ready_s: from the event that wakes them to their work: what servers take to wake, 0 without any that sleeps.
        price_per_hour: dollars per replica and hour until then.
    """

    hardware: str
    replicas: int
    ready_s: float
    price_per_hour: float


def standing_by(plan: Plan, measured: PipelineProfile, catalogue: Catalogue) -> dict[str, StandsBy]:
    """Return what stays of each stage while it sleeps, as profiled; stages that keep none are left out."""
    found = {}
    for stage, idle in plan.idle.items():
        if not idle.standby:
            continue
        held = [a for a in plan.allocations[stage] if a.replicas] or plan.allocations[stage]
        fastest = max(
            held, key=lambda a: measured.profiles[stage, a.hardware].throughput(a.max_batch_size, a.concurrency)
        )
        kind, wake_s = catalogue[fastest.hardware], measured.profiles[stage, fastest.hardware].wake_s
        asleep = kind.price_per_hour if wake_s is None or kind.asleep_per_hour is None else kind.asleep_per_hour
        found[stage] = StandsBy(fastest.hardware, idle.standby, wake_s or 0.0, asleep)
    return found
