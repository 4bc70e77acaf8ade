"""Stages for benches on every engine."""

import os
import time

from inferline_stream import Hardware, Pipeline, Stage, Topic

SERVICE_S = 0.01


def works(values: list[bytes]) -> list[bytes]:
    """Raises on seven, and ends where a batch is large, as the system ends a process that has no memory left."""
    time.sleep(SERVICE_S)
    if b"7" in values:
        raise ValueError("seven")
    if len(values) > 4:
        os.kill(os.getpid(), 9)
    return values


class NeedsModel:
    def __init__(self) -> None:
        import a_model_that_nobody_has  # noqa: F401

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return values


kinds = [Hardware("core", 0.1, cores=1), Hardware("rare", 0.5, cores=99)]
work = Stage("work", works, hardware=["core"], max_batch_size=8, cost=float)
broken = Stage("broken", NeedsModel, hardware=["core"], after=[work])
large = Stage("large", works, hardware=["rare"], after=[broken])
pipeline = Pipeline(
    "benched",
    slo="250ms",
    source=Topic("in", codec="raw"),
    sink=Topic("out", codec="raw"),
    stages=[work, broken, large],
    hardware=kinds,
)
