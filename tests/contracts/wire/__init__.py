"""What releases say to each other through Kafka: one filled record of each kind, and the schema that it is read by.

``python -m tests.contracts.wire`` writes both down for the version in pyproject.toml, until that version is released.
What earlier releases have written down is never changed: it is what is still out there.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from inferline_stream.controlplane.records import ArrivalTicks, Override, StoredDecision, StoredPlan
from inferline_stream.dataplane.protocol import (
    Assignment,
    BatchStats,
    Lags,
    LeaderHeartbeat,
    ReplicaReport,
    ReplicaSpec,
)
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.version import Structure

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
CURRENT: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

FILLED: tuple[Any, ...] = (
    ReplicaSpec(
        "a-cpu-1-0", "a", "/srv/topology.py", "team.", "kafka:9092", Hardware("cpu-1", 0.1, 1.0, 0.0, None, 4), 8,
        0.01, "exactly_once", "confluent", {1: 0.02}, {"lease_s": 3.0}, Isolation("sandbox", scratch=True), 7,
    ),
    LeaderHeartbeat(3, "p-0"),
    Assignment("a-cpu-1-0", "a", 3, 9, (0, 2), 8, 0.01, True, {2: (3, 8)}),
    Lags(3, 1_700_000_000_000, {"a": [1, 0]}),
    ReplicaReport(
        "a-cpu-1-0", "a", "cpu-1", "ready", 5, 9, {0: 12}, 1.5, 40, 2.0, 0.5, {4: BatchStats(10, 2.0)}, {"b": 30}, 10,
        1, 2, 3, 4, 5, [1, 2, 3], 0.5, 0.1, 2, 0.05, "why", Enforced("sandbox"),
    ),
    ArrivalTicks([1.5], [[4, 5]], [1, 2], 0.5),
    StoredPlan(
        "p-0", 3, 1.0, "initial", "why", msgspec.Raw(b"{}"), 2, Structure(("in", ""), ("out", ""), {"a": ""}, {"a": {}})
    ),
    StoredDecision(
        4, "p-0", 3, 1.0, "scale_up", "load", "why", {"a": {"cpu-1": 2}}, True, 9.5, [1, 2], {"a": 3}, {"a": 1}
    ),
    Override("limits", "a", 2.0, 1, 4, 9.0, "somebody"),
)  # fmt: skip


def written(record: Any) -> dict[str, Any]:
    """A record as it stands in a topic."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(record))
    return found


def document() -> dict[str, Any]:
    """What is written down of this release, by kind. By its schema, a reader passes over fields it does not know."""
    return {
        type(record).__name__: {"record": written(record), "schema": msgspec.json.schema(type(record))}
        for record in FILLED
    }
