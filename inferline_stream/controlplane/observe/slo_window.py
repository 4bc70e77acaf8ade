"""The SLO's window of a live pipeline: what was due and what was late since it began, over every controller's term."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import structs

from inferline_stream.controlplane.records.control_records import SloRecord
from inferline_stream.controlplane.records.record_writers import DecisionLog
from inferline_stream.tuner.error_budget import ErrorBudget

WRITTEN_S = 10.0
"""How often it is written down: a controller that crashes forgets the events of so long, of a day or so."""


@dataclass(slots=True)
class SloWindow:
    """Counts events from window to window, and has the counts written down for the next term.

    Args:
        unspent: objective and window.
        book: writes them down.
        found: what the term before wrote; None where there was none.
        settles_s: so long after a term has begun, every dispatcher that lives has reported what it had done before.
    """

    unspent: ErrorBudget
    book: DecisionLog
    found: SloRecord | None
    settles_s: float
    _looked_s: float | None = None
    _first_s: float = 0.0
    _began_s: float = 0.0
    _written_s: float = 0.0
    _before: tuple[int, int] = (0, 0)
    """Events, and late ones of them, that the totals do not have."""
    _inherited: tuple[int, int] = (0, 0)
    """Events, and late ones of them, that the term before has counted in this window."""
    _budget: ErrorBudget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = self.unspent
        if self.found is not None:
            self._inherited = self.found.budget.events, self.found.budget.late

    def look(self, time_s: float, events: int, late: int) -> ErrorBudget:
        """The window now.

        Args:
            time_s: seconds since the epoch.
            events: that were due, in total.
            late: of them, in total.
        """
        if self._looked_s is None:
            self._first_s = self._began_s = self._written_s = time_s
            if self.found is not None:
                self._began_s = time_s - self.found.at(time_s).passed_s
        if self.found is not None and time_s < self._first_s + self.settles_s:
            # What dispatchers report now for the first time, the term before has counted.
            self._before = self._inherited[0] - events, self._inherited[1] - late
        self._looked_s = time_s
        if (passed := (time_s - self._began_s) // self.unspent.window_s) >= 1:
            self._began_s += passed * self.unspent.window_s
            self._inherited, self._before = (0, 0), (-events, -late)
        counts = {"events": max(0, self._before[0] + events), "late": max(0, self._before[1] + late)}
        self._budget = structs.replace(self.unspent, passed_s=max(0.0, time_s - self._began_s), **counts)
        if time_s - self._written_s >= WRITTEN_S:
            self.write()
        return self._budget

    @property
    def record(self) -> SloRecord | None:
        """The window as last looked at; None before."""
        return None if self._looked_s is None else SloRecord(self._looked_s, self._budget)

    def write(self) -> None:
        """Write down how the window stands."""
        if (record := self.record) is not None:
            self._written_s = record.time_s
            self.book.slo(record)
