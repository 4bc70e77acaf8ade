"""Versions of a stage: what a fallback gains (`fallback_gains`), and a live run with a fallback against its replay
(`fallback_live`, not with --quick)."""

from __future__ import annotations

from tests.benchmarks import fallback_gains, fallback_live
from tests.benchmarks._figures import Figures


def measure(quick: bool) -> Figures:
    live = {} if quick else {f"fallback_live_{name}": value for name, value in fallback_live.measure(quick).items()}
    return {**fallback_gains.measure(quick), **live}
