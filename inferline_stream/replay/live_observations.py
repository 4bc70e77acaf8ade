"""What a live policy observed: when it was asked, and what it had measured that no queue of a replay decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats, Ints
from inferline_stream.tuner.observation import Observation

LATE_SHARE = "late_share"
"""Name of the one figure that is of no stage."""

_MOST_ARRIVALS = 2**31 - 1
"""That are simulated."""

Figures = Mapping[str, float | None]
"""Measured figures by what they are of, as `figures_of` names them; None where too little was seen."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveObservations:
    """A live policy's observations. Times are seconds on the trace's clock.

    Args:
        asked_s: float64 (steps,), ascending: when it was asked.
        ticks_s: float64 (ticks,), ascending: when the source's log was sampled; empty where arrivals are known at once.
        known_s: float64 (ticks,), ascending: when the policy knew each: later where they were read from the records.
        grown: int64 (ticks,): its length in records then, from any origin.
        figures_s: float64 (figures,), ascending: when a figure became known, each as it changes.
        figures_key: int64 (figures,): place of its name in `keys`.
        figures: float64 (figures,): the figure; NaN for None.
        keys: str (names,).
        watched_s: how long arrivals had been watched when it was first asked.
        staffed_s: since when it decided by the simulated table of its plan; NaN if it never did.

    Raises:
        ValueError: arrays that do not fit together, or are in no order.
    """

    asked_s: Floats
    ticks_s: Floats
    known_s: Floats
    grown: Ints
    figures_s: Floats
    figures_key: Ints
    figures: Floats
    keys: NDArray[np.str_]
    watched_s: float = 0.0
    staffed_s: float = float("nan")

    def __post_init__(self) -> None:
        ticks, figures = (self.ticks_s, self.known_s, self.grown), (self.figures_s, self.figures_key, self.figures)
        if not self.asked_s.size or any(len({each.size for each in of}) > 1 for of in (ticks, figures)):
            raise ValueError("times and what was observed then are not as many")
        for times in (self.asked_s, self.ticks_s, self.known_s, self.figures_s, self.grown):
            if not np.isfinite(times).all() or (np.diff(times) < 0).any():
                raise ValueError("what was observed is in no order")
        if self.grown.size and int(self.grown[-1]) - int(self.grown[0]) > _MOST_ARRIVALS:
            raise ValueError(f"more than {_MOST_ARRIVALS:,} arrivals")
        if self.figures_key.size and not 0 <= self.figures_key.min() <= self.figures_key.max() < self.keys.size:
            raise ValueError("figures without a name")

    def arrivals(self) -> tuple[Floats, Floats]:
        """Times of the arrivals, spread evenly between samples as in the control plane; and when each became known."""
        came = np.diff(self.grown)
        tick = np.repeat(np.arange(came.size), came)
        place = np.arange(tick.size) - np.repeat(np.cumsum(came) - came, came)
        before_s, after_s = self.ticks_s[tick], self.ticks_s[tick + 1]
        return before_s + (after_s - before_s) * place / came[tick], self.known_s[tick + 1]

    def figures_between(self, since_s: float, until_s: float) -> dict[str, float | None]:
        """The newest of each figure that became known after ``since_s`` and not after ``until_s``."""
        first, end = np.searchsorted(self.figures_s, (since_s, until_s), side="right")
        return {
            str(self.keys[key]): None if np.isnan(value) else float(value)
            for key, value in zip(self.figures_key[first:end], self.figures[first:end], strict=True)
        }


def figures_of(seen: Observation) -> dict[str, float | None]:
    """The measured figures of an observation."""
    found = {LATE_SHARE: seen.late_share}
    for name, stage in seen.stages.items():
        found[f"{name} visit_ratio"] = stage.visit_ratio
        for hardware, supply in stage.supply.items():
            found[f"{name} {hardware} throughput"] = supply.throughput
            found[f"{name} {hardware} start_up_s"] = supply.start_up_s
    return found


def with_figures(seen: Observation, figures: Figures) -> Observation:
    """The observation with these figures in place of its own."""
    if not figures:
        return seen
    stages = {}
    for name, stage in seen.stages.items():
        supply = {
            hardware: replace(
                own,
                throughput=figures.get(f"{name} {hardware} throughput", own.throughput),
                start_up_s=figures.get(f"{name} {hardware} start_up_s", own.start_up_s),
            )
            for hardware, own in stage.supply.items()
        }
        visits = figures.get(f"{name} visit_ratio", stage.visit_ratio)
        stages[name] = replace(stage, supply=supply, visit_ratio=visits)
    return replace(seen, stages=stages, late_share=figures.get(LATE_SHARE, seen.late_share))
