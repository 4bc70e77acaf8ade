"""The last minutes of a pipeline, so that who opens the page late sees how it came to this."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Event

from inferline_stream.observability.pipeline_state import PipelineState

KEPT_S = 600
EVERY_S = 1.0

Sample = tuple[float, float, float | None, float | None, float | None, float, float, int, int]
"""Time, arrival rate, P50, P95, P99, dollars per hour held, of the plan, replicas wanted, ready."""


def sample_of(state: PipelineState) -> Sample:
    """What the page's time lines show of one state."""
    counts = [c for stage in state.stages for c in stage.replicas]
    return (
        round(state.time_s, 3),
        round(state.arrival_rate, 3),
        state.recent_p50_s,
        state.recent_p95_s,
        state.recent_p99_s,
        state.cost_per_hour,
        state.plan_cost_per_hour,
        sum(c.wanted for c in counts),
        sum(c.ready for c in counts),
    )


def keep(state: Callable[[], PipelineState | None], samples: deque[Sample], closing: Event) -> None:
    """Add a sample every second until closed; for a thread of its own."""
    while not closing.wait(EVERY_S):
        newest = state()
        if newest is not None and (not samples or newest.time_s > samples[-1][0]):
            samples.append(sample_of(newest))
