"""A topology of one stage that gives back what it is given: what runs around replicas is measured with it."""

from __future__ import annotations

from inferline_stream import Pipeline, Stage, Topic


def give_back(values: list[str]) -> list[str]:
    """Return the values."""
    return values


only = Stage("pass", give_back, hardware=["cpu-1"], max_batch_size=8)
pipeline = Pipeline("inferline-overheads", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[only])
