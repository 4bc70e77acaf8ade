"""A plan in words: why each stage has what it has, how sure its P99 is, and the curve of cost over SLO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inferline_stream.pipeline.plan import Plan, replicas_of
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.plan_explanation import CurvePoint, Explanation
from inferline_stream.replay.idle_costs import IdleCosts
from inferline_stream.replay.reserve_costs import Reserve, RiskPoint
from inferline_stream.replay.spot_mix import SpotMix

if TYPE_CHECKING:
    from rich.console import Console

CURVE_FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""SLOs of the curve, in multiples of the one planned for."""

_BAR = 40


def show_why(people: Console, plan: Plan, why: Explanation, reserve: Reserve) -> None:
    """Why each stage has what it has, what its next-cheaper choice would break, the slack, and the reserve."""
    interval = f"{format_duration(why.p99.low_s)} to {format_duration(why.p99.high_s)}"
    people.print(f"Held by {why.binding}.")
    people.print(
        f"Slack {format_duration(max(why.slack_s, 0.0))}; on traffic like this the P99 lies within {interval} "
        f"({why.p99.confidence:.0%} confidence)."
    )
    for stage in why.stages:
        for reason in stage.reasons:
            people.print(f"  {stage.stage}: {reason}")
        for other in stage.next_cheaper:
            saved = f", ${-other.cost_change_per_hour:.4g}/h less" if other.p99_s is not None else ""
            people.print(f"  {stage.stage}: {other.reason}{saved}")
    people.print(_in_reserve(plan, reserve))
    if plan.lower_bound_per_hour > 0:
        people.print(_proof(plan))


def _in_reserve(plan: Plan, reserve: Reserve) -> str:
    planned = {stage: replicas_of(allocations) for stage, allocations in plan.allocations.items()}
    if reserve.always:
        held = ", ".join(f"{count} of {stage}" for stage, count in reserve.replicas.items())
        return (
            f"Reserve: for {plan.reserve:g} times the planned traffic about {held} are always held: "
            f"${reserve.cost_per_hour:.4f}/h."
        )
    more = {stage: count - planned[stage] for stage, count in reserve.replicas.items() if count > planned[stage]}
    beyond = ", with " + ", ".join(f"{count} more of {stage}" for stage, count in more.items()) if more else ""
    return (
        f"Reserve: at first, and after new traffic beyond the sample, the plan's replicas stay{beyond}: "
        f"${reserve.cost_per_hour:.4f}/h. "
        + (
            f"At most they carry {_times(reserve.multiple)} times the planned rate. "
            if reserve.multiple < math.inf
            else ""
        )
        + "Another one: --reserve."
        + (f" Fallbacks save ${reserve.saved_per_hour:.4f}/h of it." if reserve.saved_per_hour > 0 else "")
    )


def _times(multiple: float) -> str:
    return f"{multiple:.2g}" if multiple < 99.5 else f"{multiple:,.0f}"  # else with an exponent


def show_risk(people: Console, points: Sequence[RiskPoint], objective: float) -> None:
    """What reserve costs, and what comes beyond it; the price that the policy decides by is marked."""
    from rich.table import Table

    if not points:
        people.print("The sample is too short to say what reserve buys: a replica takes longer to start.")
        return
    table = Table(title="What reserve buys on traffic like the sample")
    for column in ("held", "$/h", "beyond it"):
        table.add_column(column, justify="right")
    for point in points:
        held = (
            f"--reserve {point.reserve:g}" if point.share is None else f"by odds, as if {point.share:.1%} might be late"
        )
        chosen = point.share is not None and abs(point.share - (1 - objective)) < 1e-9
        table.add_row(held, f"{point.cost_per_hour:.4f}", f"{point.late:.3%}", style="bold" if chosen else "")
    people.print(table)


def _proof(plan: Plan) -> str:
    gap = plan.cost_per_hour / plan.lower_bound_per_hour - 1
    if gap < 1e-6:
        return "Proven: no plan with one hardware kind per stage and no holds that keeps the margin free costs less."
    return (
        "No plan with one hardware kind per stage and no holds that keeps the margin free costs less than "
        f"${plan.lower_bound_per_hour:.4f}/h: gap {gap:.1%}."
    )


def show_curve(people: Console, points: Sequence[CurvePoint], chosen: Plan) -> None:
    """Cost by SLO as a table whose bars are the plot."""
    from rich.table import Table

    dearest = max((p.plan.cost_per_hour for p in points if p.plan is not None), default=1.0) or 1.0
    table = Table(title="What an SLO costs")
    table.add_column("SLO", justify="right")
    table.add_column("$/h", justify="right")
    table.add_column("", min_width=_BAR)
    for point in points:
        here = "bold" if abs(point.slo_s - chosen.slo_s) < 1e-12 else ""
        if point.plan is None:
            table.add_row(format_duration(point.slo_s), "–", "no plan meets it", style="dim")
        else:
            cost = point.plan.cost_per_hour
            table.add_row(format_duration(point.slo_s), f"{cost:.4f}", "█" * round(_BAR * cost / dearest), style=here)
    people.print(table)


def explanation_document(
    why: Explanation,
    reserve: Reserve,
    risk: Sequence[RiskPoint],
    idle: Sequence[IdleCosts] = (),
    spot: SpotMix | None = None,
) -> dict[str, Any]:
    """The explanation for JSON."""
    return {
        "reserve": reserve,
        **({"idle": idle} if idle else {}),
        **({} if spot is None else {"spot": spot.document()}),
        **({"risk": risk} if risk else {}),
        "binding": why.binding,
        "slack_s": why.slack_s,
        "p99_low_s": why.p99.low_s,
        "p99_high_s": why.p99.high_s,
        "confidence": why.p99.confidence,
        "stages": [
            {
                "stage": stage.stage,
                "cost_per_hour": stage.cost_per_hour,
                "reasons": list(stage.reasons),
                "next_cheaper": stage.next_cheaper,
            }
            for stage in why.stages
        ],
    }


def curve_document(points: Sequence[CurvePoint]) -> list[dict[str, Any]]:
    """The curve for JSON: cost by ascending SLO, null where no plan meets it."""
    return [
        {
            "slo_s": point.slo_s,
            "cost_per_hour": None if point.plan is None else point.plan.cost_per_hour,
            "allocations": None if point.plan is None else point.plan.allocations,
        }
        for point in points
    ]
