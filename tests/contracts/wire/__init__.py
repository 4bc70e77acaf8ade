"""What releases write for each other: one filled record of each kind, the schema that it is read by, and frames.

``python -m tests.contracts.wire`` writes both down for the next release, until it is released.
What earlier releases have written down is never changed: it is still in use.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from packaging.version import Version

import inferline_stream
from inferline_stream.controlplane.records.control_records import ArrivalTicks, Override, SloRecord
from inferline_stream.dataplane.frames import (
    Batch,
    Broken,
    Call,
    Done,
    Failed,
    Leave,
    Ready,
    Results,
    Returned,
    ToDispatcher,
    ToReplica,
    encode_frame,
)
from inferline_stream.dataplane.host_postings import Posting
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.dataplane.routes import ClassTopic, Routes
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, LeaderHeartbeat, StagePlan
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire, Serving, Stop
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.observability.pipeline_state import DecisionRecord, DeviceState, StoredPlan
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.version import Structure
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.tuner.error_budget import ErrorBudget

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CURRENT = Version(PROJECT["tool"]["setuptools_scm"]["fallback_version"]).base_version
"""The next release."""

ROUTES = Routes(
    pipeline="p",
    prefix="team.",
    stage="a",
    source="in",
    sink="out",
    stages=("a", "b"),
    arrows=((0, 1, True),),
    ordered=("b",),
    keys_in_order=True,
    slo_s=0.25,
    on_expired="dlq",
    version=b"1.5a",
    entry_time_header="sent",
    source_max_bytes=4000,
    sink_max_bytes=5000,
    deadline_order=False,
    others=(ClassTopic("premium", 0.2), ClassTopic("archive", None, 2.0, 5.0, "sent", 6000, header=("a", "b"))),
)

PLAN = PlanDocument(
    plan=Plan(
        "p", 0.25, {"a": (Allocation("cpu-1", 2, 1, 0.01, 1),)}, 0.0665, 0.2, 40.0, ((0.1, 9),), {"a": 1.0}, {"a": 0.5}
    )
)

FILLED: tuple[Any, ...] = (
    ReplicaSpec(
        replica="a-cpu-1-0",
        stage="a",
        topology="/srv/topology.py",
        hardware=Hardware("cpu-1", 0.1, 1.0, 0.0, None, 4),
        emulated_s={1: 0.02},
        isolation=Isolation("sandbox", scratch=True),
        purpose="profile",
        fallback_s={1: 0.01},
    ),
    DispatcherSpec(
        dispatcher="a-0-5f",
        slot=0,
        routes=ROUTES,
        bootstrap_servers="kafka:9092",
        delivery="exactly_once",
        tracing="otlp_proto_http",
        settings={"lease_s": 3.0},
        live_since_s=1.5,
        incarnation=2,
        node="n-1",
        deadly_batches=(BatchId(1, 40, 7),),
    ),
    LeaderHeartbeat(
        term=3,
        controller="p-0",
        devices=(DeviceState("GPU-a", "Tesla T4", 0.25, 0.7, 88, True, 79, "GPU is lost"),),
        rest_s={"a": 0.04},
        longer_s={"a": 0.01},
        served={"a": [[(90, 4)]]},
    ),
    Grant(
        stage="a",
        slot=0,
        slots=1,
        dispatcher="a-0-5f",
        term=3,
        number=9,
        begins=False,
        plan=StagePlan(
            {"cpu-1": HardwarePlan(8, {1: 0.02}, 2, {2: {1: 1.5}}, {1: 0.01})},
            0.01,
            b"an event",
            0.03,
            0.05,
        ),
        settled={0: (10, 12)},
        background_waits=True,
    ),
    PoolReport(
        dispatcher="a-0-5f",
        incarnation=2,
        stage="a",
        slot=0,
        phase="serving",
        report=5,
        term=3,
        number=9,
        held={0: 12},
        halted={1: "why"},
        replicas=[ReplicaStatus("a-cpu-1-0", "cpu-1", "ready", 1.5, Enforced("sandbox"), True, "n-2")],
        latencies={"premium": [1, 2]},
        counts=StageCounts(
            events=40,
            busy_s=2.0,
            replica_s=3.0,
            wait_s=0.5,
            cpu_s=0.2,
            batch_stats={"cpu-1": {4: BatchStats(10, 2.0, 0.25)}},
            edges_taken={"b": 30},
            completed=10,
            dead_lettered=1,
            expired=2,
            duplicates=3,
            latency_buckets=[1, 2, 3],
            latency_sum_s=0.5,
            backlog=6,
            remote_batches=9,
            copies=12,
            network_s=0.5,
            batches_lost=2,
            records=50,
        ),
        background={"archive": StageCounts(events=5)},
        clock_lead_s=6.0,
        clock_lag_s=8.0,
        queued=7,
        hopeless={0: 3},
        hidden={0: 2},
        waited_for=[0],
        oldest_wait_s=9.0,
        stay=(0.5, 4.0, -0.25),
        served=[(90, 4), (80, 0)],
        background_queued=8,
        background_enough=True,
        join_events=4,
        join_bytes=5,
        join_overdue=True,
        suspects=1,
        reason="why",
        node="n-1",
    ),
    Posting("p-a-dispatcher-5f", DispatcherSpec("a-0-5f", 0, ROUTES, "kafka:9092"), 2),
    Attach("a-cpu-1-0", "cpu-1", 1, "n-2", True, True),
    Retire("a-cpu-1-0", moves=True),
    ReplicaLost("a-cpu-1-0"),
    Stop(),
    Serving(),
    Replace("a-cpu-1-0", "why"),
    ArrivalTicks([1.5], [[4, 5]], [1, 2], 0.5, [1.25], [(1.25, "a visit_ratio", 0.5)], [(0.75, 1.25)]),
    StoredPlan(
        "p-0", 3, 1.0, "initial", "why", PLAN, 2, Structure(("in", ""), {"a": ("out", "")}, {"a": ""}, {"a": {}}),
        "/srv/topology.py",
    ),
    DecisionRecord(
        4, "p-0", 3, 1.0, "scale_up", "load", "why", {"a": {"cpu-1": 2}}, True, 9.5, [1, 2], {"a": 3}, {"a": 1}
    ),
    Override("limits", "a", 2.0, 1, 4, 9.0, "somebody"),
    SloRecord(7.5, ErrorBudget(0.99, 86_400.0, 60.0, 5, 1)),
)  # fmt: skip


FRAMES: tuple[ToReplica | ToDispatcher, ...] = (
    Batch(7, 3, [b"an event", {"left": b"1", "right": b"2"}], version=1),
    Leave(),
    Ready("a-cpu-1-0", 1.5, Enforced("sandbox")),
    Results(
        7,
        3,
        [Done(b"a result", 5), Failed("ValueError", "what was wrong", "Traceback", "score.py:3 in score")],
        [Call(2, 0.02)],
        0.03,
    ),
    Broken(7, 3, "why", memory=True),
    Returned(7, 3, "why", 0.5, True),
)


def written(record: Any) -> dict[str, Any]:
    """A record as it stands in a topic or on a channel."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(record))
    return found


def document() -> dict[str, Any]:
    """What is written down of this release, by kind. By its schema, a reader passes over fields it does not know."""
    return {
        type(record).__name__: {"record": written(record), "schema": msgspec.json.schema(type(record))}
        for record in FILLED
    }


def frames() -> dict[str, str]:
    """Frames of this format, by kind, as hexadecimal bytes."""
    return {type(frame).__name__: encode_frame(frame).hex() for frame in FRAMES}


def this_release(folder: Path) -> Path:
    """Copy this package into a folder, with what is compiled; returns the folder.

    Two controllers that begin together would compile the kernels for a quarter of a minute each.
    """
    ignored = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")  # other processes write these now, and rename them
    shutil.copytree(Path(inferline_stream.__file__).parent, folder / "inferline_stream", ignore=ignored)
    return folder


def next_release(folder: Path) -> Path:
    """Copy this package as a release whose reports have another field, whose grants must, and whose replicas say so."""
    package = this_release(folder) / "inferline_stream"
    for module, kind in (("slot_grants", "class Grant("), ("reports", "class PoolReport(")):
        file = package / f"dataplane/{module}.py"
        text = file.read_text()
        head = text.index("    version: int = WIRE_VERSION", text.index(kind))
        file.write_text(text[:head] + '    added: str = "by the next release"\n' + text[head:])
    file = package / "dataplane/replica/replica.py"
    file.write_text(file.read_text().replace(" is ready after ", " of the next release is ready after "))
    return folder
