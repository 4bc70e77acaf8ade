"""Writes down what the control plane saw and decided, beside the control loop: deciding never waits for it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from inferline_stream.controlplane.records.control_records import (
    CALENDAR_KEY,
    DECISIONS_KEPT,
    PLAN_KEY,
    PLANS_KEPT,
    SLO_KEY,
    WANTED_KEY,
    ArrivalTicks,
    CalendarRecord,
    Override,
    SloRecord,
    decision_key,
    encode,
    plan_key,
)
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.names import Names
from inferline_stream.replay.live_observations import Figures

_IDLE_MS = 1000.0
"""A log that does not grow is reported once a second, so that a reader sees that somebody watched."""

_BACK_MS = 1000.0
"""A clock that goes back by less is corrected as usual, and has caught up soon."""

_MOVES = 1e-3
"""A figure that has moved by a smaller share is not kept again."""


async def write_overrides(
    bootstrap_servers: str, names: Names, overrides: Iterable[tuple[str, Override | None]]
) -> None:
    """Write overrides of people to the control topic, by key; None takes one back.

    Raises:
        Unreachable: see `write_once`.
    """
    for key, override in overrides:
        value = None if override is None else encode(override)
        await write_once(bootstrap_servers, Record.keyed(names.control, key, value))


class ArrivalLog:
    """Collects samples of end offsets into records of the arrivals topic.

    Its times only go forward: where this host's clock is set back, they go on from the last one. Readers take later
    ticks for later growth.

    Args:
        names: of the pipeline.
        source: full name of the source topic.
    """

    def __init__(self, names: Names, source: str) -> None:
        self._topic, self._source = names.arrivals, source
        self._written: tuple[float, list[int]] | None = None
        self._last: tuple[float, list[int]] = (0.0, [])
        self._set_back_ms = 0.0
        """By how much this host's clock has been set back."""
        self._waiting: list[tuple[float, list[int]]] = []
        self._asked: list[float] = []
        self._gaps: list[tuple[float, float]] = []
        self._figures: dict[str, float | None] = {}
        self._new: list[tuple[float, str, float | None]] = []

    def asked(self, time_s: float, figures: Figures) -> None:
        """The policy is asked, seconds since the epoch, with these figures. They are kept with the next tick."""
        time_ms = time_s * 1e3 + self._set_back_ms
        self._asked.append(time_ms)
        for key, figure in figures.items():
            if key not in self._figures or not _close(figure, self._figures[key]):
                self._figures[key] = figure
                self._new.append((time_ms, key, figure))

    def sampled(self, time_ms: float, ends: Sequence[int]) -> None:
        """End offsets at that time, milliseconds since the epoch."""
        time_ms += self._set_back_ms
        now = (time_ms, list(ends))
        if self._written is None:
            self._written = self._last = now
            return
        newest = self._waiting[-1] if self._waiting else self._written
        if time_ms <= self._last[0]:
            if self._last[0] - time_ms > _BACK_MS:
                self._set_back_ms += self._last[0] - time_ms
            return
        if now[1] != newest[1]:
            if self._last[0] > newest[0]:  # what came, came after the last look, not after the last record
                self._waiting.append(self._last)
            self._waiting.append(now)
        elif time_ms - newest[0] >= _IDLE_MS:
            self._waiting.append(now)
        self._last = now

    def came(
        self,
        arrivals: Iterable[tuple[float, int]],
        ends: Sequence[int],
        *,
        since_s: float,
        until_s: float,
        sample_s: float,
        known_s: float | None = None,
    ) -> None:
        """Arrivals that are known one by one, as the samples that would have shown them.

        Args:
            arrivals: when each came, in seconds since the epoch, ascending, and its partition.
            ends: end offsets before them.
            since_s: time of the sample before them.
            until_s: time of the next one.
            sample_s: time between samples.
            known_s: when they were all known; None where each was when it came.
        """
        if known_s is not None:
            self._gaps.append((since_s * 1e3 + self._set_back_ms, known_s * 1e3 + self._set_back_ms))
        grown, sampled_s = list(ends), since_s
        for time_s, partition in arrivals:
            if time_s >= sampled_s + sample_s:
                self.sampled((sampled_s + sample_s) * 1e3, grown)
                self.sampled(time_s * 1e3, grown)
                sampled_s = time_s
            grown[partition] += 1
        self.sampled(min(sampled_s + sample_s, until_s) * 1e3, grown)

    def take(self) -> Record | None:
        """What has been collected, as one record; None if no sample has."""
        record = self.rest() if self._waiting else None
        return None if record is None else Record.keyed(self._topic, self._source, encode(record))

    def rest(self) -> ArrivalTicks | None:
        """What has been collected, steps of the policy since the last sample among it; None before the first sample."""
        if self._written is None:
            return None
        ticks, self._waiting = self._waiting, []
        asked, self._asked = self._asked, []
        new, self._new = self._new, []
        gaps, self._gaps = self._gaps, []
        record = ArrivalTicks(
            [t for t, _ in ticks], [e for _, e in ticks], self._written[1], self._written[0], asked, new, gaps
        )
        if ticks:
            self._written = ticks[-1]
        return record


def _close(figure: float | None, before: float | None) -> bool:
    """Whether nobody would decide otherwise: decisions turn on tenths, and a measured figure never rests."""
    if figure is None or before is None:
        return figure is before
    return math.isclose(figure, before, rel_tol=_MOVES)


@dataclass(slots=True)
class DecisionLog:
    """Plans and decisions that wait to be written to the decisions topic.

    Args:
        topic: the decisions topic.
        number: of the newest decision, in any term.
    """

    topic: str
    number: int = 0
    _waiting: deque[Record] = field(default_factory=deque)

    def plan(self, plan: StoredPlan) -> None:
        """A plan came into force. The oldest kept makes room for it."""
        record = encode(plan)
        self._waiting += (
            Record.keyed(self.topic, PLAN_KEY, record),
            Record.keyed(self.topic, plan_key(plan.number), record),
        )
        if plan.number > PLANS_KEPT:
            self._waiting.append(Record.keyed(self.topic, plan_key(plan.number - PLANS_KEPT), None))

    def decision(self, decision: DecisionRecord) -> None:
        """A decision was made. The oldest kept makes room for it."""
        record = encode(decision)
        self._waiting.append(Record.keyed(self.topic, decision_key(decision.number), record))
        if decision.applied:
            self.wanted(decision)
        if decision.number > DECISIONS_KEPT:
            self._waiting.append(Record.keyed(self.topic, decision_key(decision.number - DECISIONS_KEPT), None))

    def wanted(self, decision: DecisionRecord) -> None:
        """These replicas are wanted from now on: a controller that follows one that fell silent goes on with them."""
        self._waiting.append(Record.keyed(self.topic, WANTED_KEY, encode(decision)))

    def slo(self, record: SloRecord) -> None:
        """How the SLO's window stands."""
        self._waiting.append(Record.keyed(self.topic, SLO_KEY, encode(record)))

    def calendar(self, record: CalendarRecord) -> None:
        """What was learned of weeks, and the hours ahead."""
        self._waiting.append(Record.keyed(self.topic, CALENDAR_KEY, encode(record)))

    def close(self) -> None:
        """The run ends in order: no successor goes on from here."""
        self._waiting.append(Record.keyed(self.topic, WANTED_KEY, None))

    def waiting(self) -> list[Record]:
        """What has to be written now, in one transaction; call `written` once it has been."""
        return list(self._waiting)

    def written(self, count: int) -> None:
        """The first so many have been written."""
        for _ in range(count):
            self._waiting.popleft()
