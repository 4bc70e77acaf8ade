"""Follows a pipeline's resource in its cluster: a changed specification becomes overrides, the state its status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from inferline_stream.actuators.kubernetes.conditions import Condition, conditions
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.errors import InferlineError
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.plan import in_words
from inferline_stream.pipeline.schedule import Every, check_amounts
from inferline_stream.pipeline.units import duration_s, format_duration

if TYPE_CHECKING:
    from inferline_stream.actuators.kubernetes.inference_pipeline import PipelineResource, SeenResource

logger = logging.getLogger(__name__)

EVERY_S = 5.0
WHO = "the InferencePipeline"


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of a schedule, as `Every` or `On` has it."""

    when: str
    reserve: float | None = None
    traffic: float | None = None


class PipelineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What people want in place of what the topology and the command line say; what is left out is as those say.

    Args:
        slo: such as ``"200ms"``; planned for at once.
        stock: most replicas of each hardware kind.
        schedule: windows beside the topology's, in its zone.
        paused: hold decisions.
        image: an operator's, as the four that follow: see `actuators.kubernetes.operator`.
    """

    slo: str | None = None
    stock: dict[str, int] = {}
    schedule: tuple[Window, ...] = ()
    paused: bool = False
    image: str = ""
    topology: dict[str, str] = {}
    kafka: dict[str, str] = {}
    prefix: str = ""
    delivery: str = ""


def overrides_of(
    spec: Mapping[str, Any], kinds: Collection[str], followed: Iterable[str] = ()
) -> list[tuple[str, Override | None]]:
    """Return records of the control topic that bring a specification about; None takes an override back.

    Args:
        spec: as the API server has it.
        kinds: hardware that the pipeline's stages may run on.
        followed: windows of the specification before.

    Raises:
        ValueError: it asks for what cannot be, in words.
    """
    wanted = msgspec.convert(dict(spec), PipelineSpec)
    if unknown := sorted(wanted.stock.keys() - set(kinds)):
        raise ValueError(f"stock of {unknown[0]!r}: the pipeline's stages run on {', '.join(sorted(kinds))}")
    slo = None if wanted.slo is None else Override("slo", value=duration_s(wanted.slo), who=WHO)
    stock = {kind: Override("stock", kind, most, who=WHO) for kind, most in wanted.stock.items()}
    windows: dict[str, Override | None] = {
        f"{kind}/{when}": None for when in followed for kind in ("reserve", "traffic")
    }
    for entry in wanted.schedule:
        check_amounts(Every(entry.when, entry.reserve, entry.traffic))
        if entry.reserve is not None:
            windows[f"reserve/{entry.when}"] = Override("reserve", entry.when, entry.reserve, who=WHO)
        if entry.traffic is not None:
            windows[f"traffic/{entry.when}"] = Override("traffic", entry.when, entry.traffic, who=WHO)
    return [
        ("slo", slo),
        ("pause", Override("pause", who=WHO) if wanted.paused else None),
        *((f"stock/{kind}", stock.get(kind)) for kind in sorted(kinds)),
        *windows.items(),
    ]


def status_of(state: PipelineState, found: SeenResource, problem: str, now: datetime | None = None) -> dict[str, Any]:
    """Return the resource's status.

    Args:
        state: of the pipeline.
        found: the resource, whose conditions keep the time at which they last changed.
        problem: with its specification, in words; empty for none.
        now: by default, now.
    """
    counts = [count for stage in state.stages for count in stage.replicas]
    ready, wanted = sum(count.ready for count in counts), sum(count.wanted for count in counts)
    late = state.recent_late_share
    met = "Unknown" if late is None else _truth(late <= 1 - state.objective)
    share = state.slo_missed / state.slo_events if state.slo_events else 0.0
    said = [
        Condition("Accepted", _truth(not problem), "InvalidSpec" if problem else "Followed", problem),
        Condition("Ready", _truth(ready >= wanted), "Replicas", f"{ready} of {wanted} replicas are ready"),
        Condition("Feasible", _truth(state.plan_feasible), "Plan", "" if state.plan_feasible else "none meets the SLO"),
        Condition("SLOMet", met, "Recent", "no event came" if late is None else f"{late:.2%} of the last 10 s late"),
        Condition("Paused", _truth(state.paused), "People", "decisions are held" if state.paused else ""),
    ]
    plan = state.plans[-1].plan.allocations if state.plans else {}
    return {
        "observedGeneration": found.generation,
        "conditions": conditions(found.conditions, said, now),
        "schedule": list(found.schedule) if problem else [entry["when"] for entry in found.spec.get("schedule", ())],
        "slo": format_duration(state.slo_s),
        "p99": None if state.recent_p99_s is None else format_duration(state.recent_p99_s),
        "replicas": f"{ready}/{wanted}",
        "cost": f"${state.cost_per_hour:.3f}/h",
        "late": f"{share:.2%}",
        "lateEvents": state.slo_missed,
        "events": state.slo_events,
        "plan": [{"stage": stage, "holds": in_words(held)} for stage, held in plan.items()],
        "planCost": f"${state.plan_cost_per_hour:.3f}/h",
        "predictedP99": format_duration(state.predicted_p99_s),
    }


def _truth(holds: bool) -> str:
    return "True" if holds else "False"


async def follow(
    resource: PipelineResource,
    state: Callable[[], PipelineState | None],
    write: Callable[[Iterable[tuple[str, Override | None]]], Awaitable[None]],
    kinds: Collection[str],
) -> None:
    """Follow it for as long as this controller leads; where the API server is away, go on once it is back.

    Each generation of a specification is written once: what people set later by `scale` counts until it changes again.

    Args:
        resource: of the pipeline.
        state: returns the newest state; None while another controller leads.
        write: brings overrides about.
        kinds: hardware that the pipeline's stages may run on.
    """
    why = ""
    while True:
        now = state()
        try:
            if now is not None and (found := await resource.read()) is not None:
                records, problem = [], ""
                try:
                    records = overrides_of(found.spec, kinds, found.schedule)
                except ValueError as error:
                    problem = str(error)
                if found.generation != found.observed:
                    await write(records)
                    logger.info("generation %d of the InferencePipeline: %s", found.generation, problem or "followed")
                await resource.report(status_of(now, found, problem))
            why = ""
        except InferlineError as error:
            if str(error) != why:  # once, as where rights are missing for good
                logger.warning("the InferencePipeline is not followed: %s", error)
            why = str(error)
        await asyncio.sleep(EVERY_S)
