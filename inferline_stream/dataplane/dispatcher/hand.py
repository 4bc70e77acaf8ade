"""A batch that a replica has in hand, as its feeder knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferline_stream.dataplane.dispatcher.event import Event


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
