"""What releases say to each other through Kafka: one filled record of each kind, and the schema that it is read by.

``python -m tests.contracts.wire`` writes both down for the version in pyproject.toml, until that version is released.
What earlier releases have written down is never changed: it is what is still out there.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec

import inferline_stream
from inferline_stream.controlplane.records import ArrivalTicks, Override, StoredDecision, StoredPlan
from inferline_stream.dataplane.protocol import (
    Assignment,
    BatchStats,
    Lags,
    LeaderHeartbeat,
    ReadAhead,
    Release,
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
        replica="a-cpu-1-0",
        stage="a",
        topology="/srv/topology.py",
        prefix="team.",
        bootstrap_servers="kafka:9092",
        hardware=Hardware("cpu-1", 0.1, 1.0, 0.0, None, 4),
        max_batch_size=8,
        max_wait_s=0.01,
        delivery="exactly_once",
        kafka_client="confluent",
        tracing="http://collector:4318",
        emulated_s={1: 0.02},
        settings={"lease_s": 3.0},
        isolation=Isolation("sandbox", scratch=True),
        live_since_s=1.5,
        ready_fd=7,
    ),
    LeaderHeartbeat(3, "p-0"),
    Assignment("a-cpu-1-0", "a", 3, 9, (0, 2), 8, 0.01, True, {2: (3, 8)}, {1: "a-cpu-1-1"}, True),
    Lags(3, 1_700_000_000_000, {"a": [1, 0]}),
    ReadAhead("a", {2: (3, 8)}),
    Release("a", {2: (12, "i1;o=6f2d;f=3,9")}),
    ReplicaReport(
        replica="a-cpu-1-0",
        stage="a",
        hardware="cpu-1",
        phase="ready",
        report=5,
        sequence=9,
        held={0: 12},
        start_up_s=1.5,
        events=40,
        busy_s=2.0,
        wait_s=0.5,
        batch_stats={4: BatchStats(10, 2.0)},
        arrows_taken={"b": 30},
        completed=10,
        dead_lettered=1,
        expired=2,
        duplicates=3,
        join_events=4,
        join_bytes=5,
        latency_buckets=[1, 2, 3],
        latency_sum_s=0.5,
        latency_max_s=0.1,
        backlog=6,
        handovers=2,
        handover_stall_s=0.05,
        reason="why",
        isolation=Enforced("sandbox"),
    ),
    ArrivalTicks([1.5], [[4, 5]], [1, 2], 0.5, [1.25], [(1.25, "a visit_ratio", 0.5)]),
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


def next_release(folder: Path) -> Path:
    """This package as a release that adds a field to every report and expects one more in every assignment."""
    source = Path(inferline_stream.__file__).parent
    shutil.copytree(source, folder / "inferline_stream", symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
    protocol = folder / "inferline_stream/dataplane/protocol.py"
    text = protocol.read_text()
    for kind in ("class Assignment(", "class ReplicaReport("):
        head = text.index("    version: int = WIRE_VERSION", text.index(kind))
        text = text[:head] + '    added: str = "by the next release"\n' + text[head:]
    protocol.write_text(text)
    return folder
