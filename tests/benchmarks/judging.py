"""The default policy on traffic that nobody tuned for, beside the plan alone, hindsight, fixed fleets and other rules.

Everybody starts from the same plan. Rules of others have their defaults, and scale ordinary consumer groups as well as
our pools. `python -m tests.benchmarks.judging --results FILE` runs what FILE does not have yet, adds a line for each
system in each run, and prints the figures, or the table of docs/explanation/comparison.md. Figures:

- ``regret_mean``: cost over hindsight's, in the runs in which hindsight keeps the objective; ``regret_mean_elsewhere``
  without those in which the plan alone keeps it and hindsight saves nothing.
- ``over_plan_alone``: cost over that of the plan without a policy, where that keeps it.
- ``above_1_percent_share``: runs in which ours does not keep it, of those in which hindsight does;
  ``above_1_percent_share_followable`` of those in which replicas start within half of the rise as well.
- ``baselines_cheaper_share``: runs in which a rule of others keeps it for less than ours costs, on ordinary consumer
  groups or on our pools; ``baselines_cheaper_share_as_they_come`` on ordinary consumer groups.
- ``beaten_in_hindsight``: runs in which hindsight does not keep it, and a fixed fleet or a rule of others was both
  cheaper than ours and missed less.
- ``frontier_NAME_cost``, ``_late`` and ``_kept``: cost over hindsight's, the share of all events that were late, and
  the share of the runs that kept the objective, in the runs of ``regret_mean``; fixed fleets are multiples of the plan.
- ``FAMILY_regret_mean`` and ``FAMILY_late``, ``hours_`` and ``days_``: the same of these runs.
- ``stationary_RATE_cv_CV_times_plan``, ``_missed``, ``_missed_no_tuner``: hours of the planned traffic, what they cost
  over the plan's cost, and the share of all draws' events that were late, with our policy and with the plan alone.
- ``DAY_regret``, ``_miss_rate``, ``_reversals``: a day of real traffic, planned on the day before; ``reversals``: the
  most of a day.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Allocations, Plan
from inferline_stream.replay.compare import CLAIRVOYANT, NO_TUNER, compare
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed
from tests.benchmarks._families import (
    DAYS,
    FAMILIES,
    JUDGING,
    TUNING,
    Case,
    case,
    planned_traffic,
    site_day,
)
from tests.benchmarks._figures import Figures
from tests.benchmarks.swing import SYSTEMS as OTHERS

OBJECTIVE = 0.99
REVERSAL_S = 60.0

OURS = "default"
RULES = ("keda", "flink-fast", "ray", "cg-peak")
"""Of others: those that `peers` has live."""

FLEETS = {f"{multiple:g} × the plan": multiple for multiple in (1.25, 1.5, 2.0, 3.0)}
SYSTEMS = {
    **{name: OTHERS[name] for name in (OURS, *RULES, CLAIRVOYANT)},
    NO_TUNER: "the plan alone",
    "inferline": "the paper's own Tuner",
    **{fleet: fleet for fleet in FLEETS},
}
"""What is run, and what people call it."""

ON_OUR_POOL = " on our pool"
INFEASIBLE = "infeasible"
"""In place of a system where no plan meets the SLO on the sample."""

RUNS, QUICK_RUNS, QUICK_EVENTS, QUICK_S = 240, 12, 10_000, 300.0

STATIONARY = tuple((rate, cv) for cv in (1.0, 4.0, 15.0) for rate in (1.0, 10.0, 45.0, 150.0, 1000.0))
"""Rates and CVs of gaps of stationary traffic."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One system in one run.

    Args:
        run: name of the case.
        family: of its traffic.
        hours: how long it takes.
        followable: whether replicas can start while the rate rises.
        system: policy, and of a rule of others whether it ran on our pools.
        cost: in dollars.
        late: events that missed the SLO.
        events: all of them.
        reversals: see `reversals`.
    """

    run: str
    family: str
    hours: float
    followable: bool
    system: str
    cost: float = 0.0
    late: int = 0
    events: int = 0
    reversals: int = 0

    @property
    def miss_rate(self) -> float:
        """Share of the events that were late."""
        return self.late / self.events if self.events else 0.0

    @property
    def kept(self) -> bool:
        """Whether the objective held."""
        return self.late <= (1 - OBJECTIVE) * self.events

    @property
    def on_our_pool(self) -> bool:
        """Whether a rule of others ran on our pools."""
        return self.system.endswith(ON_OUR_POOL)


def judge(drawn: Case, systems: Collection[str]) -> list[Ran]:
    """These systems in one run."""
    p = drawn.pipeline
    ran = partial(Ran, drawn.name, drawn.family, float(drawn.trace.arrivals_s[-1]) / 3600, drawn.followable)
    try:
        plan = drawn.plan()
    except Infeasible:
        return [ran(INFEASIBLE)]
    trace = drawn.trace
    named = [name for name in systems if name not in FLEETS]
    found = {}
    if named:
        compared = compare(
            p.shape,
            plan,
            p.measured,
            drawn.sample,
            trace,
            catalogue=p.catalogue,
            policies=named,
            tune=False,
            objective=OBJECTIVE,
            slo_window_s=float(trace.arrivals_s[-1]),
            kernel=compiled_kernel(),
        )
        found = {row.label: row.outcome for row in compared.rows}
    for name in (fleet for fleet in FLEETS if fleet in systems):
        fleet = times_the_plan(plan, FLEETS[name])
        found[name] = replay(
            p.shape, fleet, p.measured, trace, Fixed(), catalogue=p.catalogue, slo_s=p.slo_s, slots=plan.slots
        )
    return [ran(name, o.cost, o.late, o.known, reversals(o)) for name, o in found.items()]


def times_the_plan(plan: Plan, multiple: float) -> Allocations:
    """So many times the plan's replicas, rounded up."""
    return {
        stage: tuple(replace(a, replicas=math.ceil(multiple * a.replicas)) for a in held)
        for stage, held in plan.allocations.items()
    }


def reversals(outcome: Outcome) -> int:
    """How often a stage's replicas went the other way within a minute."""
    count = 0
    held: dict[str, int] = {}
    moved: dict[str, tuple[bool, float]] = {}
    for step in outcome.steps:
        for stage, kinds in step.replicas.items():
            total = sum(kinds.values())
            if stage in held and total != held[stage]:
                up = total > held[stage]
                before = moved.get(stage)
                count += before is not None and before[0] is not up and step.time_s - before[1] < REVERSAL_S
                moved[stage] = (up, step.time_s)
            held[stage] = total
    return count


def judged(
    cases: Mapping[str, Callable[[], Case]],
    systems: Collection[str],
    *,
    results: Path | None = None,
    processes: int | None = None,
) -> Iterator[Ran]:
    """These systems in these runs.

    Args:
        cases: by a name that stays; a function that can be pickled draws them.
        systems: of `SYSTEMS`.
        results: what is known already, and where everything else is added as soon as it is known.
        processes: at work at once; as many as there are cores unless given.
    """
    known: dict[str, list[Ran]] = {name: [] for name in cases}
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            entry = json.loads(line)
            if (name := entry.pop("case")) in known:
                known[name].append(Ran(**entry))
    missing = {name: m for name, ran in known.items() if (m := _missing(ran, systems))}
    with ProcessPoolExecutor(processes or len(os.sched_getaffinity(0))) as pool:
        new = pool.map(_drawn_and_judged, [cases[name] for name in missing], missing.values())
        for name, ran in known.items():
            if name in missing:
                ran += (fresh := next(new))
                if results is not None:
                    with results.open("a") as file:
                        file.writelines(json.dumps({"case": name, **asdict(r)}) + "\n" for r in fresh)
            yield from (r for r in ran if r.system.removesuffix(ON_OUR_POOL) in (*systems, INFEASIBLE))


def _missing(known: Collection[Ran], systems: Collection[str]) -> tuple[str, ...]:
    have = {ran.system.removesuffix(ON_OUR_POOL) for ran in known}
    return () if INFEASIBLE in have else tuple(name for name in systems if name not in have)


def _drawn_and_judged(draw: Callable[[], Case], systems: Collection[str]) -> list[Ran]:
    return judge(draw(), systems)


def drawn_from(stream: str, runs: int, *most: float) -> dict[str, Callable[[], Case]]:
    """The first so many cases of a stream; ``most`` is of their events and seconds."""
    return {f"{stream} {seed}": partial(case, seed, stream, *most) for seed in range(runs)}


def families(runs: Iterable[Ran]) -> Figures:
    """Figures of these runs, see the module."""
    by_run: dict[str, dict[str, Ran]] = {}
    for ran in runs:
        by_run.setdefault(ran.run, {})[ran.system] = ran
    every = [run for run in by_run.values() if OURS in run]
    counted = [run for run in every if run[CLAIRVOYANT].kept]
    planned = [run for run in every if run[NO_TUNER].kept]
    followable = [run for run in counted if run[OURS].followable]
    figures: Figures = {
        "runs": len(every),
        "runs_infeasible": len(by_run) - len(every),
        "runs_counted": len(counted),
        "runs_plan_alone_keeps": len(planned),
        "regret_mean": _mean(map(_regret, counted), 3),
        "regret_mean_elsewhere": _mean(map(_regret, (run for run in counted if not _nothing_to_win(run))), 3),
        "regret_max": round(max(map(_regret, counted), default=0.0), 3),
        "over_plan_alone": _mean((run[OURS].cost / run[NO_TUNER].cost for run in planned), 3),
        "above_1_percent_share": _mean((not run[OURS].kept for run in counted), 3),
        "above_1_percent_share_followable": _mean((not run[OURS].kept for run in followable), 3),
        "baselines_cheaper_share": _mean((any(_cheaper(run)) for run in every), 3),
        "baselines_cheaper_share_as_they_come": _mean((any(_cheaper(run, our_pools=False)) for run in every), 3),
        "beaten_in_hindsight": sum(_beaten(run) for run in every if not run[CLAIRVOYANT].kept),
        "reversals_of_all_runs": sum(run[OURS].reversals for run in every),
    }
    for system in counted[0] if counted else ():
        name = f"frontier_{system.replace(' × ', '_times_').replace(' ', '_').replace('-', '_')}"
        these = [run[system] for run in counted]
        figures[f"{name}_cost"] = _mean((run[system].cost / run[CLAIRVOYANT].cost for run in counted), 3)
        figures[f"{name}_late"] = round(sum(r.late for r in these) / sum(r.events for r in these), 5)
        figures[f"{name}_kept"] = _mean((r.kept for r in these), 3)
    of_part: dict[str, Callable[[Ran], bool]] = {
        **{family: lambda r, family=family: r.family == family for family in FAMILIES},  # type: ignore[misc]
        "hours": lambda r: 0.5 < r.hours < 2,
        "days": lambda r: r.hours > 2,
    }
    for part, among in of_part.items():
        those = [run for run in counted if among(run[OURS])]
        if those:
            figures[f"{part}_regret_mean"] = _mean(map(_regret, those), 3)
            figures[f"{part}_late"] = _mean((run[OURS].miss_rate for run in those), 5)
    return figures


def _regret(run: dict[str, Ran]) -> float:
    return run[OURS].cost / run[CLAIRVOYANT].cost


def _nothing_to_win(run: dict[str, Ran]) -> bool:
    return run[NO_TUNER].kept and run[CLAIRVOYANT].cost > 0.99 * run[NO_TUNER].cost


def _others(run: dict[str, Ran]) -> list[Ran]:
    return [ran for ran in run.values() if ran.system.removesuffix(ON_OUR_POOL) in RULES]


def _cheaper(run: dict[str, Ran], *, our_pools: bool = True) -> Iterator[bool]:
    """Of each rule of others, whether it keeps the objective for less than ours costs."""
    for ran in _others(run):
        yield ran.kept and ran.cost < run[OURS].cost and (our_pools or not ran.on_our_pool)


def _beaten(run: dict[str, Ran]) -> bool:
    """Whether one of the others was both cheaper and missed less."""
    ours = run[OURS]
    others = [*_others(run), *(run[fleet] for fleet in (NO_TUNER, *FLEETS) if fleet in run)]
    return any(ran.cost < ours.cost and ran.late < ours.late for ran in others)


def _mean(values: Iterable[float], digits: int) -> float | None:
    found = [float(value) for value in values]
    return round(statistics.mean(found), digits) if found else None


def table(runs: Iterable[Ran]) -> str:
    """As Markdown: a system a row, a family a column: cost over hindsight's, and how many runs kept the SLO."""
    every = [ran for ran in runs if ran.system != INFEASIBLE]
    cells = {(ran.run, ran.system): ran for ran in every}
    names = [f for f in FAMILIES if any(ran.family == f for ran in every)]
    lines = [
        f"| system | {' | '.join(f.replace('_', ' ') for f in names)} | beats ours |",
        "|---" * (len(names) + 2) + "|",
    ]
    for system in dict.fromkeys(ran.system for ran in every):
        row = []
        for family in names:
            these = [ran for ran in every if (ran.system, ran.family) == (system, family)]
            over = statistics.mean(ran.cost / cells[ran.run, CLAIRVOYANT].cost for ran in these)
            row.append(f"{over:.2f}, {sum(ran.kept for ran in these)}")
        ours = [(ran, cells[ran.run, OURS]) for ran in every if ran.system == system]
        beats = sum(ran.kept and (ran.cost < own.cost or not own.kept) for ran, own in ours)
        called = SYSTEMS[system.removesuffix(ON_OUR_POOL)]
        called += "," * system.endswith(ON_OUR_POOL) + ON_OUR_POOL * system.endswith(ON_OUR_POOL)
        lines.append(f"| {called} | {' | '.join(row)} | {beats if system != OURS else ''} |")
    counts = [str(sum((ran.system, ran.family) == (OURS, f) for ran in every)) for f in names]
    return "\n".join([*lines, f"| runs | {' | '.join(counts)} | |"])


def stationary(draws: int, most_s: float = math.inf, **how: Any) -> Figures:
    """Figures of hours of the planned traffic, or of so many seconds of it."""
    names = {cell: f"stationary_{cell[0]:g}_cv_{cell[1]:g}" for cell in STATIONARY}
    cases = {
        f"{name} {draw}": partial(planned_traffic, *cell, draw, most_s)
        for cell, name in names.items()
        for draw in range(draws)
    }
    by_cell: dict[str, dict[str, list[Ran]]] = {}
    for ran in judged(cases, (OURS, NO_TUNER), **how):
        by_cell.setdefault(ran.family, {}).setdefault(ran.system, []).append(ran)
    figures: Figures = {}
    over, missed = [], []
    for name, found in by_cell.items():
        ours, alone = found[OURS], found[NO_TUNER]
        multiple = statistics.mean(own.cost / plan.cost for own, plan in zip(ours, alone, strict=True))
        late, late_alone = (sum(r.late for r in of) / sum(r.events for r in of) for of in (ours, alone))
        figures[f"{name}_times_plan"] = round(multiple, 3)
        figures[f"{name}_missed"], figures[f"{name}_missed_no_tuner"] = round(late, 5), round(late_alone, 5)
        over.append(multiple)
        missed.append(late if late_alone <= 1 - OBJECTIVE else late - late_alone)
    return {"stationary_times_plan_max": round(max(over), 3), "stationary_missed_max": round(max(missed), 5), **figures}


def days(**how: Any) -> Figures:
    """Figures of two whole days of the World Cup's site, each planned on the busiest three hours of the day before."""
    found: dict[str, dict[str, Ran]] = {}
    for ran in judged({name: partial(site_day, name) for name in DAYS}, (OURS, CLAIRVOYANT), **how):
        found.setdefault(ran.family, {})[ran.system] = ran
    figures: Figures = {}
    for name, run in found.items():
        figures[f"{name}_regret"] = round(_regret(run), 3)
        figures[f"{name}_miss_rate"] = round(run[OURS].miss_rate, 5)
        figures[f"{name}_miss_rate_clairvoyant"] = round(run[CLAIRVOYANT].miss_rate, 5)
        figures[f"{name}_reversals"] = run[OURS].reversals
    return {"reversals": max(run[OURS].reversals for run in found.values()), **figures}


def measure(quick: bool) -> Figures:
    """Figures of 240 runs that judge, ten draws of stationary traffic and two days.

    With ``quick``, of 12 runs of five minutes and of as much stationary traffic, of which the beginning is a fifth.
    """
    if quick:
        short = judged(drawn_from(JUDGING, QUICK_RUNS, QUICK_EVENTS, QUICK_S), (OURS, *RULES, CLAIRVOYANT, NO_TUNER))
        return {**families(short), **stationary(1, QUICK_S)}
    return {**families(judged(drawn_from(JUDGING, RUNS), tuple(SYSTEMS))), **stationary(10), **days()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.judging", description=measure.__doc__)
    parser.add_argument("--stream", choices=(JUDGING, *TUNING), default=JUDGING, help="of the runs' seeds")
    parser.add_argument("--runs", type=int, default=RUNS, help="how many of the stream")
    parser.add_argument("--draws", type=int, default=0, help="of stationary traffic, in place of the runs")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=tuple(SYSTEMS), help="what runs")
    parser.add_argument("--results", type=Path, help="file of what is known, which all else is added to")
    parser.add_argument("--processes", type=int, help="at work at once; as many as there are cores without it")
    parser.add_argument("--table", action="store_true", help="the table in place of the figures")
    given = parser.parse_args()
    how = {"results": given.results, "processes": given.processes}
    if given.draws:
        found = json.dumps(stationary(given.draws, **how), indent=1)
    else:
        runs = judged(drawn_from(given.stream, given.runs), given.systems, **how)
        found = table(runs) if given.table else json.dumps(families(runs), indent=1)
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main()
