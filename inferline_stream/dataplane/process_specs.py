"""What the processes of a pool are started with: JSON over a private channel, never argv, which others can read."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferline_stream.dataplane.routes import Routes
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.names import WIRE_VERSION

REPLICA_MODULE = "inferline_stream.dataplane.replica"
DISPATCHER_MODULE = "inferline_stream.dataplane.dispatcher"
"""What the processes run as ``__main__``, unless something takes their place, such as the profiler's bench."""

EXIT_FAILED = 70
"""Of a dispatcher that failed: the supervisor starts it again."""

EXIT_FENCED = 75
"""Of a dispatcher whose slot is another's: it is not started again without the leading controller's word."""

Delivery = Literal["at_least_once", "exactly_once"]


class ReplicaSpec(msgspec.Struct, frozen=True):
    """Everything that a replica process is given."""

    replica: str
    """Unique per process, never used again: ``<stage>-<hardware>-<random>``."""
    stage: str
    topology: str
    """Absolute path of the topology file."""
    hardware: Hardware
    emulated_s: dict[int, float] | None = None
    """On emulated hardware: service time in seconds by batch size."""
    isolation: Isolation = Isolation("none")
    purpose: Literal["run", "profile", "check"] = "run"
    """To be profiled it loads what says what events cost, too. To be checked it is only built, and the pipeline around
    the stage need not be valid."""
    fallback_s: dict[int, float] | None = None
    """As `emulated_s`, of the stage's fallback."""
    version: int = WIRE_VERSION


class DispatcherSpec(msgspec.Struct, frozen=True):
    """Everything that a dispatcher process is given."""

    dispatcher: str
    """``<stage>-<slot>-<random>``; one that is started again after its death keeps its name."""
    slot: int
    routes: Routes
    bootstrap_servers: str
    delivery: Delivery = "at_least_once"
    tracing: str = ""
    """OpenTelemetry exporter of a span per batch, e.g. ``otlp_proto_http``; empty for none."""
    settings: dict[str, float] = {}
    """Fields of `Settings` that differ from their defaults."""
    live_since_s: float = 0.0
    """Seconds since the epoch: events that entered before are a backlog, and their latency says nothing."""
    incarnation: int = 1
    """How often a dispatcher of this name was started; set by the supervisor."""
    node: str = ""
    """That it is on, in a cluster; set by its host."""
    deadly_batches: tuple[BatchId, ...] = ()
    """Batches that ended dispatchers before, and are skipped; set by the supervisor."""
    version: int = WIRE_VERSION


decode_replica_spec = msgspec.json.Decoder(ReplicaSpec).decode
decode_dispatcher_spec = msgspec.json.Decoder(DispatcherSpec).decode


def encode_spec(spec: ReplicaSpec | DispatcherSpec) -> bytes:
    """A spec as one line of JSON, its end included."""
    return msgspec.json.encode(spec) + b"\n"
