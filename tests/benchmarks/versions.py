"""Versions of a stage: what the judge says of versions that are tried out (`canary_verdicts`)."""

from __future__ import annotations

from tests.benchmarks import canary_verdicts


def measure(quick: bool) -> dict[str, float | int | str | None]:
    return {f"canary_{name}": value for name, value in canary_verdicts.measure(quick).items()}
