"""What a pool knows of one replica, and of each batch that it has in hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Handed:
    """A batch that a replica has in hand."""

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


@dataclass(slots=True, eq=False)
class PooledReplica:
    """One attached replica."""

    replica: str
    hardware: str
    number: int
    ready_s: float = math.inf
    """When it said that it is ready."""
    hands: dict[int, Handed] = field(default_factory=dict)
    """By number, the batches that it has in hand."""
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
