"""Records between controller and replicas, and what a replica is started with. JSON, each with a version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.names import WIRE_VERSION

KafkaClient = Literal["aiokafka", "confluent"]
ReplicaPhase = Literal["starting", "ready", "draining", "gone", "failed"]


class ReplicaSpec(msgspec.Struct, frozen=True):
    """Everything a replica process is told at its start, over standard input: never argv, which others can read."""

    replica: str
    """Unique per process, never used again: ``<stage>-<hardware>-<random>``."""
    stage: str
    topology: str
    """Absolute path of the topology file."""
    prefix: str
    bootstrap_servers: str
    hardware: Hardware
    max_batch_size: int
    max_wait_s: float = 0.0
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    kafka_client: KafkaClient = "aiokafka"
    tracing: str = ""
    """OpenTelemetry exporter of a span per batch, e.g. ``otlp_proto_http``; empty for none."""
    emulated_s: dict[int, float] | None = None
    """On emulated hardware: service time in seconds by batch size."""
    settings: dict[str, float] = {}
    """Fields of `Settings` that differ from their defaults."""
    isolation: Isolation = Isolation("none")
    live_since_s: float = 0.0
    """Seconds since the epoch: events that entered before are a backlog, and their latency says nothing."""
    ready_fd: int | None = None
    """Inherited descriptor that is written to once the replica is ready."""
    version: int = WIRE_VERSION


class LeaderHeartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The leading controller lives. Key ``leader`` of the assignments topic."""

    term: int
    controller: str
    version: int = WIRE_VERSION


class Assignment(msgspec.Struct, frozen=True, tag="assignment"):
    """Partitions that a replica is to hold from now on; replaces the one before. Key: the replica.

    A partition missing here that the replica holds is released: it stops fetching it, finishes and
    commits the batch in flight, and reports. A partition is granted once its last owner has reported its
    release or is known to be dead; or together with the assignment that takes it from its owner, who
    then tells the new one when to begin.
    """

    replica: str
    stage: str
    term: int
    sequence: int
    """Grows with every assignment of a term; the replica reports the last one it has applied."""
    partitions: tuple[int, ...]
    max_batch_size: int
    max_wait_s: float = 0.0
    drain: bool = False
    """Release everything, report ``gone`` and exit."""
    awaits: dict[int, tuple[int, int]] = {}
    """Partition → term and sequence of the assignment that takes it from its owner of now: it is to be taken up once
    that one, or its commit, says that it was let go for that one. Every other partition may be taken up at once."""
    heirs: dict[int, str] = {}
    """Partition that this takes away → replica that takes it up: the last commit names it as owner, so that it need not
    say so itself before its first batch."""
    lapsed: bool = False
    """Its lease had run out when this was written, so that it begins nothing any more: no later term waits for it."""
    version: int = WIRE_VERSION


class Lags(msgspec.Struct, frozen=True, tag="lags"):
    """Records not yet committed, by stage and partition of its input topic. Key ``lags``; at most one a second.

    A record without a key goes to the less lagged of two random partitions, by these and by what its producer has
    sent since.
    """

    term: int
    time_ms: int
    lags: dict[str, list[int]]
    version: int = WIRE_VERSION


class ReadAhead(msgspec.Struct, frozen=True, tag="read_ahead"):
    """Partitions that a replica has begun to read ahead: their owners may let them go. Key: the replica."""

    stage: str
    awaits: dict[int, tuple[int, int]]
    """As in its assignment."""
    version: int = WIRE_VERSION


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Partitions that a replica has let go to the one that an assignment names as their next owner, who may begin: the
    results of everything before have been acknowledged. The commit follows, and takes longer. Key: the replica.
    """

    stage: str
    offsets: dict[int, tuple[int, str]]
    """Partition → offset and metadata of that commit."""
    version: int = WIRE_VERSION


ControlRecord = LeaderHeartbeat | Assignment | Lags


class BatchStats(msgspec.Struct):
    """Sums since the replica's start for one batch size."""

    batches: int = 0
    service_s: float = 0.0


class ReplicaReport(msgspec.Struct):
    """What a replica tells: at once on a change of phase or partitions, else each heartbeat. Key: the replica.

    Counters grow from the replica's start, so that a lost or repeated report does no harm.
    """

    replica: str
    stage: str
    hardware: str
    phase: ReplicaPhase
    report: int
    """Number of this report, from 1."""
    sequence: int = 0
    """Last assignment applied, 0 for none."""
    held: dict[int, int] = {}
    """Partition → next offset to commit, for every partition not yet released."""
    start_up_s: float = 0.0
    events: int = 0
    """Events that left the stage (result produced, skipped, or dead-lettered)."""
    busy_s: float = 0.0
    wait_s: float = 0.0
    """Sum over events of the time from entering the stage's topic to the start of their batch."""
    batch_stats: dict[int, BatchStats] = {}
    """By batch size."""
    arrows_taken: dict[str, int] = {}
    """Results that took the edge to each child stage."""
    completed: int = 0
    """Events that ended here without a sink record."""
    dead_lettered: int = 0
    expired: int = 0
    duplicates: int = 0
    """Records dropped because their event had been seen."""
    join_events: int = 0
    """Events whose parts wait for the rest now."""
    join_bytes: int = 0
    """Size of those parts."""
    latency_buckets: list[int] = []
    """Final stage only: events per bucket of end-to-end latency (not cumulative), the last one unbounded."""
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    backlog: int = 0
    """Final stage only: results of events that are no live traffic; they are in no bucket."""
    handovers: int = 0
    handover_stall_s: float = 0.0
    reason: str = ""
    """Why the replica failed or left, in words."""
    isolation: Enforced | None = None
    """What keeps it in, as it found by trial; None until it is ready."""
    version: int = WIRE_VERSION


def encode(record: ControlRecord | ReadAhead | Release | ReplicaReport | ReplicaSpec) -> bytes:
    """One record as JSON."""
    return msgspec.json.encode(record)


decode_control = msgspec.json.Decoder(ControlRecord).decode
decode_handover: Callable[[bytes], ReadAhead | Release] = msgspec.json.Decoder(ReadAhead | Release).decode
decode_report = msgspec.json.Decoder(ReplicaReport).decode
decode_spec = msgspec.json.Decoder(ReplicaSpec).decode
