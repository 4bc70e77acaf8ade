"""Stages on real kinds, for profiles that are measured in a cluster."""

import os
import time

from inferline_stream import Hardware, Pipeline, Stage, Topic

SERVICE_S = 0.01
"""Of a batch, and as much again for each ten of its events."""


def works(values: list[bytes]) -> list[bytes]:
    time.sleep(SERVICE_S * (1 + len(values) / 10))
    return values


def dies(values: list[bytes]) -> list[bytes]:
    """Ends where a batch is large, as the system ends a process that has no memory left."""
    time.sleep(5 * SERVICE_S)  # a busy machine adds less: larger batches pay
    if len(values) > 16:
        os.kill(os.getpid(), 9)
    return values


kinds = [Hardware("core", 0.1, cores=1), Hardware("rare", 0.5, cores=1)]
first = Stage("first", works, hardware=["core", "rare"], max_batch_size=4)
second = Stage("second", dies, hardware=["core"], after=[first], max_batch_size=32)
pipeline = Pipeline(
    "clustered",
    slo="250ms",
    source=Topic("in", codec="raw"),
    sink=Topic("out", codec="raw"),
    stages=[first, second],
    hardware=kinds,
)
