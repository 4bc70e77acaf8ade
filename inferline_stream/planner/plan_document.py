"""Plans as versioned JSON: what `plan` writes, what `run` and `diff` read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from inferline_stream.errors import UNREADABLE, InvalidFile
from inferline_stream.pipeline.plan import Plan, in_words
from inferline_stream.pipeline.topology import ORDERS
from inferline_stream.pipeline.units import format_duration

if TYPE_CHECKING:
    from inferline_stream.pipeline.hardware import Catalogue
    from inferline_stream.pipeline.profile import PipelineProfile

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
    from inferline_stream.calculus.envelope import LONGEST_WINDOW_S  # loads NumPy, and most only pass plans on

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
    numbers = {"reserve": plan.reserve, "arrival_rate": plan.arrival_rate}
    for what, number in numbers.items():
        if number is not None and not 0 <= number <= _MOST:
            problems.append(f"{where}: {what} {number} must be 0 to {_MOST:g}")
    if plan.order not in ORDERS:
        problems.append(f"{where}: order {plan.order!r} is none; use {' or '.join(map(repr, ORDERS))}")
    if not 0 < plan.slo_s <= _MOST:
        problems.append(f"{where}: SLO {plan.slo_s} s must be above 0, and {_MOST:g} at most")
    windows = [window for window, _ in plan.envelope]
    if windows != sorted({*windows}) or not all(0 < window <= LONGEST_WINDOW_S for window in windows):
        problems.append(
            f"{where}: the envelope's windows must ascend, above 0 s and up to {LONGEST_WINDOW_S:g} s; run "
            "`inferline-stream plan` again"
        )
    if not all(0 <= count <= _MOST for _, count in plan.envelope):
        problems.append(f"{where}: the envelope's counts must be 0 to {_MOST:g}; run `inferline-stream plan` again")
    if problems:
        raise InvalidFile(*problems)


def misfit(plan: Plan, stages: Sequence[str], measured: PipelineProfile, kinds: Catalogue) -> str:
    """Return why a plan is none of a pipeline with these stages, profiles and hardware, in words; empty if it is."""
    for stage in (*stages, *plan.allocations):
        if stage not in plan.allocations or stage not in stages:
            has = "knows no" if stage in stages else "has another"
            return f"{has} stage {stage!r}; it is a plan of {plan.pipeline!r}"
        for a in plan.allocations[stage]:
            profile = measured.profiles.get((stage, a.hardware))
            most = None if profile is None else (profile.batch_sizes[-1], profile.concurrencies[-1])
            if most is None or a.max_batch_size > most[0] or a.concurrency > most[1]:
                return f"{in_words((a,))} of stage {stage!r} was not profiled; run `inferline-stream plan` again"
            if a.hardware not in kinds:
                return f"hardware {a.hardware!r} of stage {stage!r} has no price; run `inferline-stream plan` again"
    return ""
