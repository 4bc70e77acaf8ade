"""What is left of the events that may be late within the SLO's window, and so what one more of them is worth.

`docs/explanation/reserve.md` derives the price.
"""

from __future__ import annotations

from msgspec import Struct

DAY_S = 86_400.0

FAST_BURN = 14.4
"""Times the objective's share at which late events page somebody: the fast burn-rate alert of the SRE workbook."""

LARGEST_RATIO = 0.9
"""A share of misses that can be reached: an alert at or above 1 would never fire."""


def most_risked(objective: float) -> float:
    """Return the largest share of events that may be late on purpose.

    It is half of what the fast burn-rate alert fires at: what is risked deliberately never pages anybody.

    Args:
        objective: share of events that must meet the SLO.
    """
    return min(FAST_BURN * (1 - objective), LARGEST_RATIO) / 2


class ErrorBudget(Struct, frozen=True):
    """Events of the SLO's window so far.

    Args:
        objective: share of events that must meet the SLO.
        window_s: for which the objective holds.
        passed_s: since the window began.
        events: that were due since then.
        late: of them.
    """

    objective: float
    window_s: float
    passed_s: float = 0.0
    events: int = 0
    late: int = 0

    @property
    def left(self) -> float:
        """Share of the late events allowed so far that were not: 1 where none was late, below 0 where too many were."""
        allowed = (1 - self.objective) * self.events
        return 1 - self.late / allowed if allowed else 1.0

    def share(self, rate: float) -> float:
        """Share of the events to come that may be late, so that the objective holds for the whole window.

        One event at least may be: what is spent cannot be bought back at any price. And no more than `most_risked`.

        Args:
            rate: at which they come, events per second.
        """
        to_come = max(rate * (self.window_s - self.passed_s), 1.0)
        allowed = (1 - self.objective) * (self.events + to_come) - self.late
        return min(max(allowed, 1.0) / to_come, most_risked(self.objective))


def left_in_words(left: float) -> str:
    """Say what is left of the late events allowed so far, or how many times as many there were."""
    of = "the late events allowed so far"
    return f"{1 - left:.3g} times {of}" if left < 0 else f"{left:.0%} of {of} are left"
