"""Weeks that come back: the default policy with a learned calendar and without one, in replay.

Ten weeks of the World Cup's site of 1998, before, in and after the tournament: every one of its data that has two whole
weeks before it, in which it is learned. Each is planned on the busiest hour of the Sunday before it. Requests are
counted per minute: arrivals within minutes are generated, thinned to a mean of eight a second. A batch of eight takes
5.5 s, so that plans have some replicas and not two, whose steps would outweigh every leap. A replica takes ten minutes
to start, as where a machine has to be found first: in three the policy follows these leaps without a calendar, too. It
decides every twenty seconds on both sides, so that a week can be waited for.

A **leap** is five minutes with `LEAP` times the requests of the five that ended as long before as a replica takes to
start, by the site's own counts: more than the room of a plan absorbs. It **recurs** where, in the two weeks before its
day, half of the days of its kind, or both days of its name, leapt as far within ten minutes of its time, up to a tenth.
Late events are those that enter within a leap and the ten minutes after. A week is **unlike** the others where its
spans of five minutes differ from the means of the two before by more than `UNLIKE` times in the median. Figures:

- ``recurring_late_ratio``: late events of recurring leaps with the calendar, over those without one, in all weeks that
  are like the others.
- ``leap_late_ratio``: the same of all leaps, and ``late_ratio``: of all late events.
- ``calendar_cost_ratio``: cost with the calendar over cost without it.
- ``unlike_cost_ratio``, ``unlike_late_ratio``: cost, and all late events, of the weeks unlike the others.
- ``saved_share``: of the events that a calendar which believes everything seems to save (`BeliefTrial`), share that was
  late without one and not with it, in all weeks. `tuner.calendar.SAVED` is what this was.
- ``WEEK_``: what they are made of, by the Monday of each judged week.

And all figures of `spot_and_idle`: what else saves money in hours that are known or quiet.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from unittest.mock import patch

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner import calendar
from inferline_stream.tuner.calendar import ANY_DAY, BIN_S, NOTHING, BeliefTrial, Calendar, PastWeeks, WeekCounter
from inferline_stream.tuner.policy import initial_state, step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing, staffing
from tests.benchmarks import spot_and_idle
from tests.benchmarks._figures import Figures
from tests.benchmarks._workloads import world_cup, world_cup_busiest, world_cup_per_minute

FIRST = datetime(1998, 5, 4, tzinfo=UTC)
"""Monday of the first whole week."""

WEEKS = tuple(f"{FIRST + timedelta(weeks=n):%F}" for n in range(2, 12))
"""Mondays of those that are judged; the last one lacks its last two hours."""

RATE, STEP_S, START_UP_S, SLO_S = 8.0, 20.0, 600.0, 20.0
LEAP, AS_FAR, UNLIKE = 1.1, 1.1, 2.0
BIN, DAY, WEEK = 5, 1440, 7 * 1440
"""Minutes."""

SHAPE = Shape(("model",), ())
CATALOGUE = {"gpu": Hardware("gpu", 1.0, gpus=1)}
TIMES = (ServiceTime(1, 2.0), ServiceTime(2, 2.5), ServiceTime(4, 3.5), ServiceTime(8, 5.5))
MEASURED = PipelineProfile({("model", "gpu"): Profile("model", "gpu", TIMES, START_UP_S)}, independent_paths(SHAPE, {}))


def learned(counts: np.ndarray, began_s: float, rng: np.random.Generator, share: float) -> PastWeeks:
    """What the calendar knows after so many minutes of the site."""
    counter = WeekCounter()
    counter.add(began_s, 0)
    for minute, came in enumerate(rng.poisson(share * counts).tolist(), 1):
        counter.add(began_s + 60.0 * minute, came)
    return counter.weeks


def leaps(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bins of the third week,) twice: whether each lies in a leap or the ten minutes after it, and in a recurring one.

    Args:
        counts: requests by minute of three weeks.
    """
    apart = round(START_UP_S / 60 / BIN)
    rates = counts.reshape(-1, BIN).sum(axis=1)
    times = np.concatenate([np.ones(apart), rates[apart:] / np.maximum(rates[:-apart], 1)])
    near = np.max([np.roll(times, by) for by in range(-2, 3)], axis=0).reshape(21, -1)
    leapt, back = times.reshape(21, -1) >= LEAP, np.zeros(near.shape, bool)
    for day in range(14, 21):
        far = np.maximum(LEAP, times.reshape(21, -1)[day] / AS_FAR)
        kind = [other for other in range(day - 14, day) if max(other % 7, 4) == max(day % 7, 4)]
        name = [day - 14, day - 7]
        back[day] = leapt[day] & ((np.mean(near[kind] >= far, axis=0) >= 0.5) | np.all(near[name] >= far, axis=0))

    def with_after(found: np.ndarray) -> np.ndarray:
        return np.convolve(found[14:].reshape(-1), np.ones(apart + 1))[: 7 * near.shape[1]] > 0

    return with_after(leapt), with_after(back)


def replayed(plan_of: tuple[Plan, Staffing], trace: Trace, calendar: Calendar | None) -> Outcome:
    """The default policy on a week, which is asked so seldom that a step is no jump of the clock."""
    plan, table = plan_of
    state = initial_state(plan, MEASURED, CATALOGUE, staffing=table, knobs=PolicySettings(jump_s=STEP_S))
    scaler = Tuner("default", step, state, SHAPE, period_s=STEP_S, kernel=compiled_kernel(), calendar=calendar)
    return replay(
        SHAPE, plan.allocations, MEASURED, trace, scaler,
        catalogue=CATALOGUE, slo_s=SLO_S, slots=plan.slots, conditions=Conditions(step_s=STEP_S),
    )  # fmt: skip


def seems_saved(weeks: PastWeeks, first: int, days: int) -> float:
    """Events of so many days, from a bin on, that would not have been missed if all was believed that any day had."""
    with patch.object(calendar, "KEPT", 1.0):
        tried = BeliefTrial("UTC", first).up_to(weeks, first + days * DAY // BIN)
    return float(tried.missed[NOTHING] - tried.missed[ANY_DAY]) * BIN_S


def week(monday: str, days: int, side: str) -> Figures:
    """One judged week, or so many days of it.

    Args:
        monday: of the week.
        days: of it.
        side: "with" what is known of the weeks before, "without" it, or "believing" all that any of their days had.
    """
    first = datetime.fromisoformat(monday).replace(tzinfo=UTC)
    rng = np.random.default_rng([0, *monday.encode()])
    counts = world_cup_per_minute(f"{first - timedelta(weeks=2):%F %T}", 3 * WEEK)
    counts = np.concatenate([counts, np.zeros(3 * WEEK - counts.size)])
    share = min(60 * RATE / counts[2 * WEEK :].mean(), 1.0)
    sample = world_cup(world_cup_busiest(f"{first - timedelta(days=1):%F}", 60), 60, rng, share=share)
    plan = provision(Problem(SHAPE, MEASURED, (sample,), SLO_S, CATALOGUE))
    table = staffing(SHAPE, plan, MEASURED, sample, {"gpu": 1.0})
    trace = world_cup(f"{monday} 00:00:00", days * DAY, rng, share=share)
    weeks = learned(counts[: 2 * WEEK], (first - timedelta(weeks=2)).timestamp(), rng, share)
    known = None if side == "without" else Calendar(first.timestamp(), weeks=weeks)
    with patch.object(calendar, "SAVED", 1.0 if side == "believing" else calendar.SAVED):
        outcome = replayed((plan, table), trace, known)
    late = outcome.latency_s > SLO_S
    leapt, back = leaps(counts)
    bins = np.minimum((outcome.entry_s // (60 * BIN)).astype(int), back.size - 1)
    all_weeks = learned(counts, (first - timedelta(weeks=2)).timestamp(), rng, share)
    level = counts.reshape(3, -1, BIN).sum(axis=2)
    apart = np.abs(np.log(np.maximum(level[2], 1) / np.maximum(level[:2].mean(axis=0), 1)))
    return {
        "cost": round(outcome.cost, 3),
        "late": int(late.sum()),
        "leap_late": int((late & leapt[bins]).sum()),
        "recurring_late": int((late & back[bins]).sum()),
        "events": late.size,
        "planned_rate": round(plan.arrival_rate, 2),
        "unlike": round(math.exp(float(np.median(apart))), 2),
        "seems_saved": round(seems_saved(all_weeks, int(first.timestamp()) // BIN_S, days)),
    }


def _ratio(found: list[tuple[Figures, Figures]], name: str) -> float | None:
    known, unknown = (sum(float(each[side][name] or 0) for each in found) for side in (0, 1))
    return round(known / unknown, 4) if unknown else None


def measure(quick: bool) -> Figures:
    """Ten weeks on both sides, two at a time, and `spot_and_idle`; with ``quick`` a day of one."""
    mondays = WEEKS[5:6] if quick else WEEKS
    with ProcessPoolExecutor(2, get_context("spawn")) as cores:
        runs = {
            (monday, side): cores.submit(week, monday, 1 if quick else 7, side)
            for monday in mondays
            for side in ("with", "without", "believing")
        }
        found = {monday: (runs[monday, "with"].result(), runs[monday, "without"].result()) for monday in mondays}
        believing = [runs[monday, "believing"].result() for monday in mondays]
    late = sum(float(each[1]["late"] or 0) for each in found.values()) - sum(float(b["late"] or 0) for b in believing)
    unlike = [each for each in found.values() if float(each[0]["unlike"] or 0) > UNLIKE]
    like = [each for each in found.values() if float(each[0]["unlike"] or 0) <= UNLIKE]
    sides = {
        f"{monday}_{side}_{name}": figures[name]
        for monday, each in found.items()
        for side, figures in zip(("with", "without"), each, strict=True)
        for name in ("cost", "late", "leap_late", "recurring_late")
    }
    return {
        "recurring_late_ratio": _ratio(like, "recurring_late"),
        "recurring_late_ratio_all_weeks": _ratio(list(found.values()), "recurring_late"),
        "leap_late_ratio": _ratio(like, "leap_late"),
        "late_ratio": _ratio(like, "late"),
        "calendar_cost_ratio": _ratio(like, "cost"),
        "unlike_weeks": len(unlike),
        "unlike_cost_ratio": _ratio(unlike, "cost"),
        "unlike_late_ratio": _ratio(unlike, "late"),
        "saved_share": round(late / sum(float(each["seems_saved"] or 0) for each in believing), 3),
        **sides,
        **{f"{m}_{name}": each[0][name] for m, each in found.items() for name in ("events", "planned_rate", "unlike")},
        **spot_and_idle.measure(quick),
    }
