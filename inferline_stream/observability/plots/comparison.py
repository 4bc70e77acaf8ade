"""Policies side by side: what each cost, and how many events it let miss the SLO."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from inferline_stream.observability.plots.canvas import (
    BLUE,
    GREEN,
    INK,
    LINE,
    ORANGE,
    QUIET,
    VERMILION,
    Target,
    drawing,
    plain_log,
)
from inferline_stream.replay.compare import CLAIRVOYANT, INSTANT, NO_TUNER, Comparison, Row
from inferline_stream.tuner.policy import POLICIES

_APART = 0.15
"""Costs this close, as a ratio, share a number."""

_KINDS = {
    "ours": (BLUE, "o"),
    "others, default": (VERMILION, "s"),
    "others, tuned": (ORANGE, "D"),
    "in hindsight": (GREEN, "*"),
    "no tuner": (QUIET, "X"),
}


def draw_comparison(file: Target, comparison: Comparison, *, objective: float = 0.99, title: str = "") -> None:
    """Cost against miss rate of every policy, numbered, with the rows that no other beats in both joined.

    Args:
        file: where the picture goes.
        comparison: of the policies on one trace.
        objective: share of events that must meet the SLO.
        title: above the picture.

    Raises:
        UsageError: see `canvas.check_file`.
    """
    rows = comparison.shown
    with drawing(file, [max(4.0, 0.185 * len(rows) + 0.6)], columns=2, title=title) as [[axes, names]]:
        floor = 100 * min([1 - objective, *(row.outcome.miss_rate for row in rows if row.outcome.miss_rate > 0)]) / 3
        axes.axhspan(floor / 2, 100 * (1 - objective), color=LINE, alpha=0.6, linewidth=0)
        axes.axvline(comparison.work_bound, color=QUIET, linestyle=":", label="no policy below")
        front = _front(rows)
        axes.step(
            [row.outcome.cost for row in front],
            [max(floor, 100 * row.outcome.miss_rate) for row in front],
            where="post",
            color=QUIET,
            linewidth=0.9,
            zorder=1,
        )
        for kind, (colour, mark) in _KINDS.items():
            own = [(n, row) for n, row in enumerate(rows, start=1) if _kind(row) == kind]
            if own:
                axes.scatter(
                    [row.outcome.cost for _, row in own],
                    [max(floor, 100 * row.outcome.miss_rate) for _, row in own],
                    color=colour, marker=mark, s=34, label=kind, zorder=3,
                )  # fmt: skip
        for (cost, miss_rate), numbers in _places(rows).items():
            axes.annotate(_ranges(numbers), (cost, max(floor, 100 * miss_rate)), xytext=(4, 4),
                          textcoords="offset points", fontsize=7.5)  # fmt: skip
        axes.set_ylim(floor / 2, 150)
        costs = [comparison.work_bound, *(row.outcome.cost for row in rows)]
        axes.set_xlim(min(costs) * 0.8, max(costs) * 1.5)  # room for the numbers
        if any(row.outcome.miss_rate <= 0 for row in rows):  # drawn where a log axis has room for it
            axes.text(-0.02, floor, "none", ha="right", va="center", fontsize=8, transform=axes.get_yaxis_transform())
        plain_log(axes, "x")
        plain_log(axes, "y")
        axes.set_xlabel("cost of the trace [$]")
        axes.set_ylabel("events above the SLO [%]")
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=3, fontsize=7.5, columnspacing=1.0, handletextpad=0.3
        )
        _list(names, rows, objective)


def _list(axes: object, rows: Sequence[Row], objective: float) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.axis("off")
    step = 1 / (len(rows) + 2)
    for column, (x, align) in {"": (0.0, "left"), "$": (0.72, "right"), "misses": (0.95, "right")}.items():
        axes.text(x, 1 - step / 2, column, ha=align, va="center", transform=axes.transAxes, color=QUIET, fontsize=8)
    for n, row in enumerate(rows, start=1):
        weight = "bold" if row.policy in POLICIES else "normal"
        colour = INK if row.outcome.miss_rate <= 1 - objective else QUIET
        name = f"{n}  {row.label}" + ("" if row.setting == "default" else ", tuned")
        y = 1 - (n + 0.5) * step
        for x, align, text in ((0.0, "left", name), (0.72, "right", f"{row.outcome.cost:.3g}"),
                               (0.95, "right", f"{row.outcome.miss_rate:.2%}")):  # fmt: skip
            axes.text(x, y, text, ha=align, va="center", transform=axes.transAxes, fontsize=7.5, color=colour,
                      fontweight=weight)  # fmt: skip


def _places(rows: Sequence[Row]) -> dict[tuple[float, float], list[int]]:
    """Numbers of the rows at each (cost, miss rate), as far as there is room for numbers of their own."""
    places: dict[tuple[float, float], list[int]] = {}
    for n, row in enumerate(rows, start=1):
        here = (row.outcome.cost, row.outcome.miss_rate)
        near = next((place for place in places if _near(place, here)), here)
        places.setdefault(near, []).append(n)
    return places


def _near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    costs, misses = math.log((one[0] + 1e-9) / (other[0] + 1e-9)), math.log((one[1] + 1e-4) / (other[1] + 1e-4))
    return abs(costs) < _APART and abs(misses) < 2 * _APART


def _ranges(numbers: Sequence[int]) -> str:
    """2, 3, 4 and 7 as ``2–4, 7``."""
    groups: list[list[int]] = []
    for n in numbers:
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(f"{group[0]}" if len(group) == 1 else f"{group[0]}–{group[-1]}" for group in groups)


def _front(rows: Sequence[Row]) -> list[Row]:
    """Rows by ascending cost that miss fewer events than every cheaper one; hindsight is left out."""
    front: list[Row] = []
    best = np.inf
    for row in rows:
        if _kind(row) != "in hindsight" and row.outcome.miss_rate < best:
            best = row.outcome.miss_rate
            front.append(row)
    return front


def _kind(row: Row) -> str:
    if row.policy in POLICIES:
        return "ours"
    if row.policy == NO_TUNER:
        return "no tuner"
    if row.policy in (CLAIRVOYANT, INSTANT):
        return "in hindsight"
    return "others, default" if row.setting == "default" else "others, tuned"
