"""Our policy, the paper's Tuner and rules of others by family of traffic, on the judging runs of `_judging`.

Everybody starts from the same plan. Rules of others have their defaults, and scale ordinary consumer groups as well as
our pools. `python -m tests.benchmarks.peers_by_family` prints the table of docs/explanation/comparison.md.

``FAMILY_NAME_cost`` is cost over the clairvoyant's, the mean over the family's runs, ``FAMILY_NAME_kept`` the share of
its runs in which the objective held, and ``NAME_beats_ours`` counts the runs of all families in which it did and ours
cost more or did not keep it.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.replay.compare import compare
from tests.benchmarks._families import FAMILIES, case
from tests.benchmarks._judging import OBJECTIVE, RULES
from tests.benchmarks.swing import SYSTEMS as OTHERS

Figures = dict[str, float | int | str | None]

SEEDS, QUICK_SEEDS = range(240), range(8)
SYSTEMS = {**OTHERS, "inferline": "the paper's own Tuner"}


@dataclass(frozen=True, slots=True)
class Ran:
    """One system in one run.

    Args:
        family: of the traffic.
        system: policy, and of a rule of others whether it ran on our pools.
        cost: over the clairvoyant's.
        kept: whether the objective held.
        beats_ours: whether it held, and ours cost more or did not keep it.
    """

    family: str
    system: str
    cost: float
    kept: bool
    beats_ours: bool


def runs(seed: int) -> list[Ran]:
    """Every system in the run of a seed; none where no plan meets the SLO on its sample."""
    drawn = case(seed, judging=True)
    p = drawn.pipeline
    try:
        plan = drawn.plan()
    except Infeasible:
        return []
    found = compare(
        p.shape,
        plan,
        p.measured,
        drawn.sample,
        drawn.trace,
        catalogue=p.catalogue,
        policies=("default", "inferline", "clairvoyant", *RULES),
        tune=False,
        objective=OBJECTIVE,
        kernel=compiled_kernel(),
    )
    ours, best = found.row("default"), found.row("clairvoyant").outcome.cost
    return [
        Ran(
            drawn.family,
            row.label,
            row.outcome.cost / best,
            row.keeps_objective,
            row.keeps_objective and (row.outcome.cost < ours.outcome.cost or not ours.keeps_objective),
        )
        for row in found.rows
        if row.policy != "clairvoyant"
    ]


def measured(seeds: Iterable[int]) -> list[Ran]:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [ran for of_one in pool.map(runs, seeds) for ran in of_one]


def measure(quick: bool) -> Figures:
    """All judging runs; one of each family with ``quick``."""
    ran = measured(QUICK_SEEDS if quick else SEEDS)
    figures: Figures = {}
    for system in dict.fromkeys(r.system for r in ran):
        name = system.replace(" ", "_").replace("-", "_")
        for family in FAMILIES:
            these = [r for r in ran if (r.system, r.family) == (system, family)]
            if these:
                figures[f"{family}_{name}_cost"] = round(statistics.mean(r.cost for r in these), 3)
                figures[f"{family}_{name}_kept"] = round(statistics.mean(r.kept for r in these), 3)
        figures[f"{name}_beats_ours"] = sum(r.beats_ours for r in ran if r.system == system)
    return figures


def table(ran: list[Ran]) -> str:
    """As Markdown: a system a row, a family a column: cost over the clairvoyant's, and how many runs kept the SLO."""
    families = [f for f in FAMILIES if any(r.family == f for r in ran)]
    lines = [
        f"| system | {' | '.join(f.replace('_', '/') for f in families)} | beats ours |",
        "|---" * (len(families) + 2) + "|",
    ]
    for system in dict.fromkeys(r.system for r in ran):
        policy, pool, _ = system.partition(" on our pool")
        cells = []
        for family in families:
            these = [r for r in ran if (r.system, r.family) == (system, family)]
            cells.append(f"{statistics.mean(r.cost for r in these):.2f}, {sum(r.kept for r in these)}")
        beats = sum(r.beats_ours for r in ran if r.system == system)
        name = SYSTEMS[policy] + (", on our pool" if pool else "")
        lines.append(f"| {name} | {' | '.join(cells)} | {beats if policy != 'default' else ''} |")
    counts = [str(sum((r.system, r.family) == ("default", f) for r in ran)) for f in families]
    lines.append(f"| runs | {' | '.join(counts)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(measured(SEEDS)) + "\n")
