"""Versions of a stage: what the judge says of those that are tried out (`canary_verdicts`), what a fallback gains
(`fallback_gains`)."""

from __future__ import annotations

from tests.benchmarks import canary_verdicts, fallback_gains


def measure(quick: bool) -> dict[str, float | int | str | None]:
    found: dict[str, float | int | str | None] = {}
    found |= {f"canary_{name}": value for name, value in canary_verdicts.measure(quick).items()}
    found |= {f"fallback_{name}": value for name, value in fallback_gains.measure(quick).items()}
    return found
