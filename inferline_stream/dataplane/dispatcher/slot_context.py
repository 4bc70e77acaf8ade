"""What the parts of a slot share: whose it is, what time it is, and what they ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.dispatcher.report_counts import counts_of_classes
from inferline_stream.dataplane.dispatcher.slot_events import Action
from inferline_stream.dataplane.dispatcher.tracing import BatchSpans
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.routes import Routes
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.settings import Settings


@dataclass(slots=True)
class SlotContext:
    """What the parts of a slot share.

    Args:
        routes: of the stage.
        settings: bounds of joins, how often offsets are checked.
        report: counts are kept there.
        emitter: makes records of outcomes.
        lease: without it nothing is sent or committed. Reports renew it, from outside.
        owner: name under which offsets are committed.
        transactional: whether results are exactly once.
        live_since_us: events that entered before are a backlog.
        spans: one for each batch, where they are wanted.
    """

    routes: Routes
    settings: Settings
    report: PoolReport
    emitter: Emitter
    lease: Lease
    owner: str
    transactional: bool = False
    live_since_us: float = 0.0
    spans: BatchSpans | None = None
    now_s: float = 0.0
    wake_s: float = math.inf
    """When time matters next, as far as this was found out since the last event."""
    actions: list[Action] = field(default_factory=list)
    counts: Sequence[StageCounts] = field(init=False)
    """Of the report, by the number of the class."""

    def __post_init__(self) -> None:
        self.counts = counts_of_classes(self.report, self.routes)

    def ask(self, action: Action) -> None:
        """Ask for something."""
        self.actions.append(action)

    def wake_at(self, at_s: float) -> None:
        """Ask for `Time` at the latest then."""
        if at_s < self.wake_s:  # noqa: PLR1730  a call of min takes longer
            self.wake_s = at_s
