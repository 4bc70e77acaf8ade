"""Versions of a stage: what a fallback gains (`fallback_gains`), what the judge says of versions that are tried out
(`canary_verdicts`), and a live run with a fallback against its replay (`fallback_live`, not with --quick)."""

from __future__ import annotations

from tests.benchmarks import canary_verdicts, fallback_gains, fallback_live
from tests.benchmarks._figures import Figures


def measure(quick: bool) -> Figures:
    parts = {"canary": canary_verdicts}
    if not quick:
        parts["fallback_live"] = fallback_live
    others = {f"{part}_{name}": value for part, of in parts.items() for name, value in of.measure(quick).items()}
    return {**fallback_gains.measure(quick), **others}
