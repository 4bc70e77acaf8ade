"""A replica and the batches that it has in hand, as its feeder knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.reports import ReplicaStatus


@dataclass(slots=True, eq=False)
class Hand:
    """A batch that a replica has in hand."""

    epoch: int
    batch: int
    events: Sequence[Event]
    """Empty for a probe, and once the events are no longer this replica's: its late result is dropped."""
    alone: bool = False
    """Whether it is a suspect."""
    probe: bool = False
    """Whether it is a sample for the suspects' sake."""
    test: bool = False
    """Whether it is a sample because the replica is doubted."""
    span: Any = None
    """OpenTelemetry's, which only `tracing` imports."""


@dataclass(slots=True, eq=False)
class PoolMember:
    """A replica, its connection, and by number the batches that it has in hand."""

    replica: PooledReplica
    connection: ReplicaConnection
    status: ReplicaStatus
    hands: dict[int, Hand] = field(default_factory=dict)
