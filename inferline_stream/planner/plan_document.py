"""Plans as versioned JSON: what `plan` writes, what `run` and `diff` read."""

from __future__ import annotations

from typing import Any

import msgspec

from inferline_stream.errors import UNREADABLE, InvalidFile
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.topology import ORDERS
from inferline_stream.pipeline.units import format_duration

PLAN_VERSION = 2
"""Raised when a plan's fields change their meaning; a reader refuses versions it does not know."""


_MOST = 1e10
"""Of events per second, seconds, or times the traffic: no pipeline has so many."""


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file: the plan's own fields beside the version of their meaning, and what `plan` may say about it.

    Args:
        version: of their meaning.
        plan: the plan.
        explanation: why it is what it is.
        curve: what other SLOs would cost.
        not_credible: why nobody should believe the predicted P99, in words.
        planned_without: which hardware kinds were not profiled, in words.
    """

    version: int = PLAN_VERSION
    plan: Plan
    explanation: Any = msgspec.UNSET
    curve: Any = msgspec.UNSET
    not_credible: Any = msgspec.UNSET
    planned_without: Any = msgspec.UNSET


class _PlanVersion(msgspec.Struct, frozen=True):
    """Only the version, read first so that a newer file gets a clear answer."""

    version: int


def plan_to_bytes(plan: Plan, **said: Any) -> bytes:
    """The plan as indented JSON, stages in the plan's order; the same plan gives the same bytes.

    Args:
        plan: the plan.
        said: other fields of `PlanDocument`, for people and programs that read along; a reader of plans skips them, and
            empty ones are left out.
    """
    document = PlanDocument(plan=plan, **{name: value for name, value in said.items() if value})
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def plan_from_bytes(data: bytes, where: str = "plan") -> Plan:
    """Read what `plan_to_bytes` wrote.

    Args:
        data: the JSON document.
        where: the file's name, for messages.

    Raises:
        InvalidFile: no such document, an unknown version, or a plan that contradicts itself.
    """
    try:
        version = msgspec.json.decode(data, type=_PlanVersion).version
        if version != PLAN_VERSION:
            raise InvalidFile(
                f"{where}: plan version {version}, this program reads version {PLAN_VERSION}; "
                "run `inferline-stream plan` again"
            )
        plan = msgspec.json.decode(data, type=PlanDocument).plan
    except UNREADABLE as error:
        raise InvalidFile(f"{where}: is no plan ({error}); run `inferline-stream plan` again") from None
    check_plan(plan, where)
    return plan


def check_plan(plan: Plan, where: str) -> None:
    """Refuse a plan whose parts do not fit together.

    Raises:
        InvalidFile: what is wrong with it, each with where it is from.
    """
    problems = [
        f"{where}: stage {stage!r} has no replicas; give it at least one"
        for stage, allocations in plan.allocations.items()
        if not any(a.replicas for a in allocations)
    ]
    problems += [
        f"{where}: stage {stage!r} has the holds {', '.join(map(format_duration, holds))}; give it one hold_s"
        for stage, allocations in plan.allocations.items()
        if len(holds := sorted({a.hold_s for a in allocations if a.replicas})) > 1
    ]
    for field in ("visit_ratios", "utilization"):
        missing = sorted(set(plan.allocations) - set(getattr(plan, field)))
        if missing:
            problems.append(f"{where}: {field} lacks stage {', '.join(missing)}; run `inferline-stream plan` again")
    numbers = {"reserve": plan.reserve, "SLO in seconds": plan.slo_s, "arrival_rate": plan.arrival_rate}
    for what, number in numbers.items():
        if number is not None and not 0 <= number <= _MOST:
            problems.append(f"{where}: {what} {number} must be 0 to {_MOST:g}")
    if plan.order not in ORDERS:
        problems.append(f"{where}: order {plan.order!r} is none; use {' or '.join(map(repr, ORDERS))}")
    if not plan.slo_s > 0:
        problems.append(f"{where}: SLO {plan.slo_s} s must be above 0")
    if [window for window, _ in plan.envelope] != sorted({window for window, _ in plan.envelope}):
        problems.append(f"{where}: the envelope's windows must ascend; run `inferline-stream plan` again")
    if problems:
        raise InvalidFile(*problems)
