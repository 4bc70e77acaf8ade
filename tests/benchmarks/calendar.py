"""Weeks that come back: the default policy with a learned calendar and without one, in replay.

The World Cup's site of 1998, thinned to a fiftieth: each judged week is learned on the two before it and planned on
the busiest hour of the day before it. Requests are counted per minute: arrivals within minutes are generated. A batch
of eight takes 5.5 s, so that the plans have some ten replicas and not two, whose steps would outweigh every leap. A
replica takes ten minutes to start, as where a machine has to be found first: in three the policy follows these leaps
without a calendar, too. It decides every five seconds, so that weeks can be replayed; on both sides.

A **leap** is a span of five minutes with `LEAP` times the requests of ten minutes before, by the site's own counts:
more than the room of a plan absorbs. It is **recurring** where at least half of the days of its kind in the two weeks
before had one within ten minutes of that time. Late events are those that enter within a recurring leap and the ten
minutes after. A week is **unlike** the others where its spans of five minutes differ from the means of the two before
by more than `UNLIKE` times in the median. Figures:

- ``recurring_late_ratio``: late events of recurring leaps with the calendar, over those without one, all judged weeks.
- ``calendar_cost_ratio``: cost with the calendar over cost without it, all judged weeks that are like the others.
- ``unlike_cost_ratio``, ``unlike_late_ratio``: cost, and all late events, of the weeks unlike the others.
- ``late_ratio``: all late events of all judged weeks.
- ``WEEK_``: what they are made of, by the Monday of each judged week.

And all figures of `spot_and_idle`: what else saves money in hours that are known or quiet.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context

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
from inferline_stream.tuner.calendar import Calendar, PastWeeks, WeekCounter
from inferline_stream.tuner.policy import initial_state, step
from inferline_stream.tuner.staffing_table import Staffing, staffing
from tests.benchmarks import spot_and_idle
from tests.benchmarks._workloads import world_cup, world_cup_busiest, world_cup_per_minute

Figures = dict[str, float | int | str | None]

WEEKS = ("1998-06-08", "1998-06-15", "1998-06-22", "1998-06-29", "1998-07-06")
"""Mondays: the five weeks of the tournament, which began on a Wednesday and brought many times the requests."""

SHARE, STEP_S, START_UP_S, SLO_S = 0.02, 5.0, 600.0, 20.0
LEAP, UNLIKE = 1.1, 2.0
BIN, DAY, WEEK = 5, 1440, 7 * 1440
"""Minutes."""

SHAPE = Shape(("model",), ())
CATALOGUE = {"gpu": Hardware("gpu", 1.0, gpus=1)}
TIMES = (ServiceTime(1, 2.0), ServiceTime(2, 2.5), ServiceTime(4, 3.5), ServiceTime(8, 5.5))
MEASURED = PipelineProfile({("model", "gpu"): Profile("model", "gpu", TIMES, START_UP_S)}, independent_paths(SHAPE, {}))


def learned(counts: np.ndarray, began_s: float, rng: np.random.Generator) -> PastWeeks:
    """What the calendar knows after so many minutes of the site."""
    counter = WeekCounter()
    counter.add(began_s, 0)
    for minute, came in enumerate(rng.poisson(SHARE * counts).tolist(), 1):
        counter.add(began_s + 60.0 * minute, came)
    return counter.weeks


def recurring(counts: np.ndarray) -> np.ndarray:
    """(bins of the third week,): whether each lies in a recurring leap or the ten minutes after it.

    Args:
        counts: requests by minute of three weeks.
    """
    rates = counts.reshape(-1, BIN).sum(axis=1)
    leaps = np.concatenate([[False] * 2, rates[2:] >= LEAP * np.maximum(rates[:-2], 1)])
    near = np.convolve(leaps, np.ones(5), "same") > 0
    days = near.reshape(21, -1)
    kinds = np.array([max(day % 7, 4) for day in range(21)])
    back = np.stack([days[:14][kinds[:14] == kinds[day]].mean(axis=0) >= 0.5 for day in range(14, 21)]).reshape(-1)
    found = leaps[-back.size :] & back
    return np.convolve(found, [1, 1, 1])[: back.size] > 0


def replayed(plan_of: tuple[Plan, Staffing], trace: Trace, calendar: Calendar | None) -> Outcome:
    """The default policy on a week."""
    plan, table = plan_of
    state = initial_state(plan, MEASURED, CATALOGUE, staffing=table)
    scaler = Tuner("default", step, state, SHAPE, period_s=STEP_S, kernel=compiled_kernel(), calendar=calendar)
    return replay(
        SHAPE, plan.allocations, MEASURED, trace, scaler,
        catalogue=CATALOGUE, slo_s=SLO_S, slots=plan.slots, conditions=Conditions(step_s=STEP_S),
    )  # fmt: skip


def week(monday: str, days: int) -> Figures:
    """One judged week, or so many days of it, with the calendar and without."""
    first = datetime.fromisoformat(monday).replace(tzinfo=UTC)
    rng = np.random.default_rng([0, *monday.encode()])
    counts = world_cup_per_minute(f"{first - timedelta(weeks=2):%F %T}", 3 * WEEK)
    sunday = f"{first - timedelta(days=1):%F}"
    sample = world_cup(world_cup_busiest(sunday, 60), 60, rng, share=SHARE)
    plan = provision(Problem(SHAPE, MEASURED, (sample,), SLO_S, CATALOGUE))
    table = staffing(SHAPE, plan, MEASURED, sample, {"gpu": 1.0})
    trace = world_cup(f"{monday} 00:00:00", days * DAY, rng, share=SHARE)
    weeks = learned(counts[: 2 * WEEK], (first - timedelta(weeks=2)).timestamp(), rng)
    level = counts.reshape(3, -1, BIN).sum(axis=2)
    apart = np.abs(np.log(np.maximum(level[2], 1) / np.maximum(level[:2].mean(axis=0), 1)))
    back = recurring(counts)
    figures: Figures = {
        "planned_rate": round(plan.arrival_rate, 2),
        "unlike": round(math.exp(float(np.median(apart))), 2),
        "recurring_bins": int(back[: days * DAY // BIN].sum()),
    }
    for name, calendar in (("with", Calendar(first.timestamp(), weeks=weeks)), ("without", None)):
        outcome = replayed((plan, table), trace, calendar)
        late = outcome.latency_s > SLO_S
        bins = np.minimum((outcome.entry_s // (60 * BIN)).astype(int), back.size - 1)
        figures |= {
            f"{name}_cost": round(outcome.cost, 3),
            f"{name}_late": int(late.sum()),
            f"{name}_recurring_late": int((late & back[bins]).sum()),
        }
        figures["events"] = outcome.entry_s.size
    return figures


def _ratio(found: list[Figures], name: str) -> float | None:
    with_, without = (sum(float(each[f"{side}_{name}"] or 0) for each in found) for side in ("with", "without"))
    return round(with_ / without, 4) if without else None


def measure(quick: bool) -> Figures:
    """Five weeks, some four minutes of a core each, two at a time, and `spot_and_idle`; with ``quick`` a day of one."""
    mondays = WEEKS[2:3] if quick else WEEKS
    with ProcessPoolExecutor(2, get_context("spawn")) as cores:
        found = dict(zip(mondays, cores.map(week, mondays, [1 if quick else 7] * len(mondays)), strict=True))
    unlike = [each for each in found.values() if float(each["unlike"] or 0) > UNLIKE]
    like = [each for each in found.values() if float(each["unlike"] or 0) <= UNLIKE]
    every = list(found.values())
    return {
        "recurring_late_ratio": _ratio(every, "recurring_late"),
        "calendar_cost_ratio": _ratio(like, "cost"),
        "late_ratio": _ratio(every, "late"),
        "unlike_weeks": len(unlike),
        "unlike_cost_ratio": _ratio(unlike, "cost"),
        "unlike_late_ratio": _ratio(unlike, "late"),
        **{f"{monday}_{name}": value for monday, each in found.items() for name, value in each.items()},
        **spot_and_idle.measure(quick),
    }
