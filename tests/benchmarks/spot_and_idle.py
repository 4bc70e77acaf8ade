"""Spot capacity in the runs of `judging`, and an office day of a pipeline that sleeps.

`calendar` prints these figures, too:

- ``spot_cost_ratio``: cost over that of the same policy on demand alone, the mean of the runs in which hindsight keeps
  the objective on demand. Spot costs a third. Kinds go once an hour in the mean, ten times as often as the default of
  `Spot`, so that a quarter of an hour has some; for 10 min in the mean, with a notice of 0 s, 30 s or 2 min.
- ``spot_late``, ``on_demand_late``: share of all their events that were late. ``spot_kept_share``: runs that kept the
  objective, of those that did on demand.
- ``spot_losses``: how often a kind went while the runs had any of it.
- ``zero_cost_ratio``: cost of a day with ``idle="15m"`` over that of the same policy without. Events come from 8 to 18,
  fewer at noon, and now and then in the night: generated, on the reference pipeline.
- ``zero_late_over_predicted``: events late beyond those that are late without, over those predicted of the day.
- ``zero_wakes``, ``zero_late``, ``always_on_late``: how often it woke, and shares of the day's events.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.spot import Spot, is_spot, spot_name
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.replay.compare import CLAIRVOYANT
from inferline_stream.replay.idle_costs import idle_costs, sleepers
from inferline_stream.replay.loop import Conditions, Loss, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Tuner
from inferline_stream.replay.spot_mix import spot_mix
from inferline_stream.tuner.policy import initial_state, step
from inferline_stream.tuner.staffing_table import staffing
from tests.benchmarks import _reference
from tests.benchmarks._families import JUDGING, Case, Pipeline, case
from tests.benchmarks._figures import Figures
from tests.benchmarks.judging import OBJECTIVE, OURS, Ran, judge

RUNS, QUICK_RUNS, QUICK_EVENTS, QUICK_S = 32, 4, 10_000, 300.0
PRICE, LOSSES_PER_HOUR, AWAY_S, NOTICES = 1 / 3, 1.0, 600.0, ("0s", "30s", "2m")

DAY_S, MORNING_S, IDLE_S, DAYS = 86_400.0, (7 * 3600.0, 8.5 * 3600), 900.0, 2
OFFICE = ((8.0, 9.0, 1.0), (9.0, 12.0, 2.0), (12.0, 13.0, 0.7), (13.0, 17.0, 2.0), (17.0, 18.0, 0.7))
"""(from, to) in hours, and events per second."""

AT_NIGHT = 0.2
"""Events per hour outside of these."""


def measure(quick: bool) -> Figures:
    """All figures; with ``quick`` on fewer and shorter runs, and one morning."""
    return {**_spot(quick), **(_zero(1, MORNING_S) if quick else _zero(DAYS))}


@dataclass(frozen=True, slots=True)
class _OnSpot:
    """A run with spot, beside the same on demand and in hindsight."""

    outcome: Outcome
    ours: Ran
    hindsight: Ran
    losses: int


def _spot(quick: bool) -> Figures:
    most = (QUICK_EVENTS, QUICK_S) if quick else ()
    drawn = (case(seed, JUDGING, *most) for seed in range(QUICK_RUNS if quick else RUNS))
    ran = [found for each in drawn if (found := _with_spot(each)) is not None and found.hindsight.kept]
    if not ran:
        return {"spot_cost_ratio": None, "spot_cost_ratio_reason": "hindsight keeps the objective in no run"}
    events = sum(each.outcome.known for each in ran)
    kept = [each for each in ran if each.ours.kept]
    return {
        "spot_runs": len(ran),
        "spot_losses": sum(each.losses for each in ran),
        "spot_cost_ratio": statistics.fmean(each.outcome.cost / each.ours.cost for each in ran),
        "spot_late": sum(each.outcome.late for each in ran) / events,
        "on_demand_late": sum(each.ours.late for each in ran) / events,
        "spot_kept_share": sum(each.outcome.miss_rate <= 1 - OBJECTIVE for each in kept) / len(kept) if kept else None,
    }


def _with_spot(drawn: Case) -> _OnSpot | None:
    """The run; None where no plan meets the SLO, or where replicas cost nothing."""
    found = {ran.system: ran for ran in judge(drawn, (OURS, CLAIRVOYANT))}
    if OURS not in found or not found[OURS].cost:
        return None
    p, rng = drawn.pipeline, np.random.default_rng([*drawn.name.encode()])
    notice = NOTICES[int(rng.integers(len(NOTICES)))]
    lent = {
        name: replace(kind, spot=Spot(kind.price_per_hour * PRICE, notice, LOSSES_PER_HOUR))
        for name, kind in p.catalogue.items()
    }
    kinds = catalogue(lent.values())
    measured = p.measured.with_spot(
        {stage: [spot_name(kind) for kind in p.measured.hardware_of(stage)] for stage in p.shape.stages}
    )
    plan = drawn.plan()
    held = {
        stage: tuple(replace(a, hardware=spot_name(a.hardware)) for a in allocations)
        for stage, allocations in plan.allocations.items()
    }
    mix = spot_mix(replace(plan, allocations=held), p.shape, measured, kinds, trace=drawn.sample, objective=OBJECTIVE)
    assert mix is not None, "it has spot kinds"
    through = replace(p, measured=measured, catalogue=kinds)
    ends_s = float(drawn.trace.arrivals_s[-1])
    used = sorted({a.hardware for each in mix.plan.allocations.values() for a in each if is_spot(a.hardware)})
    losses = [loss for kind in used for loss in _losses(kind, kinds[kind].spot, ends_s, rng)]
    outcome = _run(through, mix.plan, drawn.sample, drawn.trace, losses=losses)
    return _OnSpot(outcome, found[OURS], found[CLAIRVOYANT], len(losses) if mix.losses else 0)


def _losses(kind: str, spot: Spot | None, ends_s: float, rng: np.random.Generator) -> list[Loss]:
    """Of a kind: it cannot go again while it is away."""
    assert spot is not None
    found, now_s = [], float(rng.exponential(3600 / spot.losses_per_hour))
    while now_s < ends_s:
        away_s = float(rng.exponential(AWAY_S))
        found.append(Loss(now_s, kind, spot.notice_s, away_s))
        now_s += spot.notice_s + away_s + float(rng.exponential(3600 / spot.losses_per_hour))
    return found


def _zero(days: int, span_s: tuple[float, float] = (0.0, DAY_S)) -> Figures:
    p = Pipeline(
        "reference", _reference.SHAPE, _reference.profile(), _reference.SLO_S, catalogue(_reference.CATALOGUE.values())
    )
    figures: dict[str, float] = dict.fromkeys(
        ("cost", "always", "late", "always_late", "predicted", "wakes", "events"), 0
    )
    for day in range(days):
        rng = np.random.default_rng([day, *b"office"])
        sample = office_day(np.random.default_rng([day, *b"the day before"])).window(10 * 3600.0, 10.5 * 3600.0)
        trace = office_day(rng, *span_s)
        try:
            plan = provision(Problem(p.shape, p.measured, (sample,), p.slo_s, p.catalogue))
        except Infeasible:
            continue
        asleep = replace(plan, idle=dict.fromkeys(p.shape.stages, Idle(IDLE_S)))
        basis = initial_state(asleep, p.measured, p.catalogue).basis
        (said,) = idle_costs(p.shape, asleep.idle, sleepers(basis, asleep, p.measured), trace, p.slo_s)
        ran, always = (_run(p, each, sample, trace, period_s=1.0) for each in (asleep, plan))
        found = (
            ran.cost, always.cost, ran.late, always.late,
            said.late, sum(each.reason == "woken" for each in ran.steps), ran.known,
        )  # fmt: skip
        figures = {name: before + new for (name, before), new in zip(figures.items(), found, strict=True)}
    return {
        "zero_cost_ratio": figures["cost"] / figures["always"],
        "zero_late_over_predicted": (figures["late"] - figures["always_late"]) / figures["predicted"],
        "zero_wakes": int(figures["wakes"]),
        "zero_late": figures["late"] / figures["events"],
        "always_on_late": figures["always_late"] / figures["events"],
    }


def office_day(rng: np.random.Generator, since_s: float = 0.0, until_s: float = DAY_S) -> Trace:
    """Poisson arrivals of a day, or of a span of it, with one at either end."""
    pieces = [rng.uniform(0, DAY_S, rng.poisson(AT_NIGHT * 24))]
    for begins_h, ends_h, rate in OFFICE:
        span_s = (ends_h - begins_h) * 3600
        pieces.append(begins_h * 3600 + rng.uniform(0, span_s, rng.poisson(rate * span_s)))
    arrivals_s = np.sort(np.concatenate([*pieces, [since_s, until_s]]))
    return Trace(arrivals_s[(arrivals_s >= since_s) & (arrivals_s <= until_s)] - since_s)


def _run(
    p: Pipeline,
    plan: Plan,
    sample: Trace,
    trace: Trace,
    *,
    losses: Sequence[Loss] = (),
    period_s: float = 0.1,
) -> Outcome:
    prices = {name: kind.price_per_hour for name, kind in p.catalogue.items()}
    table = staffing(p.shape, plan, p.measured, sample, prices, objective=OBJECTIVE, seed=0)
    state = initial_state(plan, p.measured, p.catalogue, objective=OBJECTIVE, staffing=table)
    tuner = Tuner(
        OURS, step, state, p.shape,
        period_s=period_s, slo_window_s=float(trace.arrivals_s[-1]), kernel=compiled_kernel(),
    )  # fmt: skip
    return replay(
        p.shape, plan.allocations, p.measured, trace, tuner, catalogue=p.catalogue, slo_s=plan.slo_s,
        slots=plan.slots, order=plan.order, planned_rate=plan.arrival_rate,
        conditions=Conditions(step_s=period_s), losses=losses,
    )  # fmt: skip
