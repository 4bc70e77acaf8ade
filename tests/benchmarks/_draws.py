"""Contenders on several draws of the same traffic, none of which their settings were tuned on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.compare import NAMES, Comparison, Row, Tuned
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._figures import Figures

_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % of Student's t, by degrees of freedom from 1."""

_OURS = (*POLICIES, "no tuner", "clairvoyant", "instant clairvoyant")


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the comparison on every draw.

    Args:
        name: as figures begin.
        rows: by draw.
    """

    name: str
    rows: tuple[Row, ...]

    def figures(self, ours: Sequence[Row]) -> Figures:
        """Means with the half of their 95 % interval, the worst draw, and what it wins against ours."""
        cost, misses = ([pick(row) for row in self.rows] for pick in (_cost, _misses))
        beaten = [
            row.keeps_objective and (not own.keeps_objective or row.outcome.cost < own.outcome.cost)
            for row, own in zip(self.rows, ours, strict=True)
        ]
        return {
            f"{self.name}_setting": self.rows[0].setting,
            f"{self.name}_cost": round(statistics.mean(cost), 4),
            f"{self.name}_cost_interval": round(_half_interval(cost), 4),
            f"{self.name}_misses": round(statistics.mean(misses), 5),
            f"{self.name}_misses_interval": round(_half_interval(misses), 5),
            f"{self.name}_misses_worst": round(max(misses), 5),
            f"{self.name}_kept": sum(row.keeps_objective for row in self.rows),
            f"{self.name}_beats_ours": sum(beaten),
        }


def on_draws(
    compared: Callable[[Trace, Tuned | None], Comparison], draws: Sequence[Trace], tuned: Tuned | None = None
) -> tuple[list[Contender], Comparison]:
    """Compare on each draw, with the settings given or tuned for the first.

    Args:
        compared: the comparison on a trace, with settings found before.
        draws: of the traffic.
        tuned: settings found before.

    Returns:
        By contender, its rows; and the first comparison.
    """
    first = compared(draws[0], tuned)
    found = [first, *(compared(draw, first.tuned) for draw in draws[1:])]
    contenders = [Contender(_name(row), tuple(each.rows[n] for each in found)) for n, row in enumerate(first.rows)]
    return contenders, first


def figures_of(contenders: Collection[Contender]) -> Figures:
    """Figures of all, ours first."""
    (ours,) = (contender.rows for contender in contenders if contender.name == "default")
    figures: Figures = {"draws": len(ours)}
    for contender in contenders:
        figures |= contender.figures(ours)
    return figures


def _name(row: Row) -> str:
    assert row.policy in NAMES
    tuned = "" if row.setting == "default" else "_tuned"
    pool = "_on_our_pool" if row.on_our_pool and row.policy not in _OURS else ""
    return row.policy.replace(" ", "-") + tuned + pool


def _cost(row: Row) -> float:
    return row.outcome.cost_per_hour


def _misses(row: Row) -> float:
    return row.outcome.miss_rate


def _half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean; nothing is known from one value."""
    if len(values) < 2:
        return 0.0
    student = _STUDENT[min(len(values) - 2, len(_STUDENT) - 1)]
    return student * statistics.stdev(values) / math.sqrt(len(values))
