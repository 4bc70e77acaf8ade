"""Latency buckets: one list for metrics, alert rules and dashboards, with a bucket exactly at the SLO."""

from __future__ import annotations

_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def latency_bounds_s(slo_s: float) -> tuple[float, ...]:
    """Upper bounds in seconds, dense around the SLO, which is one of them exactly."""
    return tuple(slo_s if ratio == 1.0 else float(f"{slo_s * ratio:.6g}") for ratio in _RATIOS)


def bucket_label(bound_s: float) -> str:
    """A bound as the `le` label spells it: a rule that spells it otherwise never matches."""
    return "+Inf" if bound_s == float("inf") else repr(float(bound_s))
