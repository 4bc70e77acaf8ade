"""What a pool knows of one replica, and the one place where each batch in hand is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.frames import Answer, Returned
from inferline_stream.dataplane.reports import ReplicaStatus
from inferline_stream.pipeline.fallback import MAIN


@dataclass(slots=True, eq=False)
class Hand:
    """A batch that a replica has in hand."""

    batch: int
    """Its number, unique in the dispatcher's process."""
    batch_size: int
    beside: int
    """Batches that the replica had in hand when it began, itself included."""
    began_s: float
    due_s: float
    """When it should be finished."""
    allowed_s: float
    """From handing it over to the first deadline."""
    deadline_s: float
    """When `Pool.overdue` names it next."""
    late: bool = False
    """Whether it has passed the first deadline."""
    epoch: int = 0
    """Of the session whose events it holds."""
    class_number: int = 0
    """Of its events, see `event_classes`."""
    events: Sequence[Event] = ()
    """Empty for a sample, and once the events are no longer this replica's: its late result is dropped."""
    version: int = MAIN
    """Of the stage that runs it."""
    hopeful: int = 0
    """How many of them, the first ones, could be on time when it was formed."""
    alone: bool = False
    """Whether it is a suspect."""
    probe: bool = False
    """Whether it is a sample for the suspects' sake."""
    test: bool = False
    """Whether it is a sample because the replica is doubted."""
    span: Any = None
    """OpenTelemetry's, which only `tracing` imports."""


@dataclass(frozen=True, slots=True, eq=False)
class DoubtfulBatch:
    """A batch without a success that is no longer in hand, and what its replica said of it."""

    hand: Hand
    said: Sequence[Answer] | Returned


@dataclass(slots=True, eq=False)
class PooledReplica:
    """One attached replica."""

    replica: str
    hardware: str
    number: int
    status: ReplicaStatus
    """As it is reported."""
    ready_s: float = math.inf
    """When it said that it is ready."""
    hands: dict[int, Hand] = field(default_factory=dict)
    """By number, the batches that it has in hand."""
    doubtful: list[DoubtfulBatch] = field(default_factory=list)
    held_until_s: float = -math.inf
    """Until then it gets no batch, since the server that it asks takes none."""
    gave_back: int = 0
    """How often in a row it has given batches back. It gets one at a time until it finishes one."""
    passed: bool = False
    """Whether it has finished a batch with a success since it was attached."""
    doubted: bool = False
    """Whether it gets nothing but samples; see `replica_trust`. Set by `Pool.doubt`."""
    quarantined: bool = False
    """Whether it runs suspects only. May be set from outside."""
    leaving: bool = False
    moves: bool = False
    """Whether it leaves for another dispatcher."""
    has_fallback: bool = False
    """Whether its version of the stage has one: the profile may be that of a version which has."""
    slowdown: float = 1.0
    """Moving average of measured over expected service time."""
    pace: float = 1.0
    """The slowdown that choices use: it changes only by steps."""
    last_ratio: float = 1.0
    """Measured over expected service time of the last batch."""
    finished_s: float = 0.0
    batches: int = 0
    slow_since_s: float = math.inf
    reported: bool = False

    @property
    def ready(self) -> bool:
        """Whether it has said that it is ready."""
        return self.ready_s < math.inf

    @property
    def late(self) -> bool:
        """Whether a batch in hand has passed its first deadline: it may be stuck."""
        return any(hand.late for hand in self.hands.values())
