"""What a live pipeline learns of its weeks, and the hours ahead, over every controller's term."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferline_stream.controlplane.records.control_records import CalendarRecord
from inferline_stream.controlplane.records.record_writers import DecisionLog
from inferline_stream.pipeline.schedule import TrafficSchedule
from inferline_stream.tuner.calendar import BIN_S, Calendar, PastWeeks, WeekCounter
from inferline_stream.tuner.hour_ahead import HourAhead
from inferline_stream.tuner.outlook import outlook
from inferline_stream.tuner.plan_basis import Basis


@dataclass(slots=True)
class TimeAhead:
    """Counts arrivals into weeks, and has them and the hours ahead written down for the next term.

    Args:
        book: writes them down.
        found: what the term before wrote; None where there was none.
        schedule: what people have said.
    """

    book: DecisionLog
    found: CalendarRecord | None
    schedule: TrafficSchedule
    hours: tuple[HourAhead, ...] = ()
    _counter: WeekCounter = field(init=False)
    _total: int | None = None
    _foreseen: tuple[int, TrafficSchedule, Basis] | None = None

    def __post_init__(self) -> None:
        self._counter = WeekCounter(None if self.found is None else self.found.weeks)

    def count(self, time_s: float, total: int) -> None:
        """So many arrivals are known in total, at a time in seconds since the epoch."""
        before, self._total = self._total, total
        self._counter.add(time_s, 0 if before is None else max(0, total - before))

    def calendar(self, time_s: float, basis: Basis) -> Calendar:
        """What the policy sees of it, by this plan."""
        return self._counter.calendar(time_s, self.schedule, basis.start_up_s, basis.objective)

    def look(self, time_s: float, basis: Basis) -> None:
        """Foresee the hours ahead by this plan, once in each bin and whenever people or a plan change them."""
        now = int(time_s // BIN_S), self.schedule, basis
        if now != self._foreseen:
            self._foreseen = now
            self.hours = outlook(basis, self.calendar(time_s, basis))
            self.book.calendar(self.record(self._counter.weeks, time_s))

    def record(self, weeks: PastWeeks, time_s: float) -> CalendarRecord:
        """These weeks, and the hours ahead, as they are written down."""
        return CalendarRecord(time_s, weeks.first, weeks.to_bytes(), self.hours)
