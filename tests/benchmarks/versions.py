"""Versions of a stage: what the judge says of those that are tried out (`canary_verdicts`), what a fallback gains
(`fallback_gains`), and a live run with one against its replay (`fallback_live`, not with --quick)."""

from __future__ import annotations

from tests.benchmarks import canary_verdicts, fallback_gains, fallback_live
from tests.benchmarks._figures import Figures


def measure(quick: bool) -> Figures:
    parts = {"canary": canary_verdicts, "fallback": fallback_gains}
    if not quick:
        parts["fallback_live"] = fallback_live
    return {f"{part}_{name}": value for part, of in parts.items() for name, value in of.measure(quick).items()}
