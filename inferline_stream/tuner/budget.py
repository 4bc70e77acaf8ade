"""The error budget: how many more events may be late before scaling for money's sake has to wait.

Replicas are given back while events are in time. Once as many events were late as the objective allows, no more are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SPAN_S = 3600.0
"""Events count for about this long: the older, the less, by e to the power of age over span."""

LEAST_S = 600.0
"""The budget is never smaller than what this long of the planned traffic would allow, however few have ended yet."""

LOOK_S = 1.0
"""How often the totals are looked at."""


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """Events that ended recently, and those of them that were late.

    Args:
        time_s: of the last look.
        ended: total at the last look.
        late: late ones in all at the last look.
        recent: events, weighed by age.
        recent_late: late ones, weighed by age.
    """

    time_s: float
    ended: int
    late: int
    recent: float = 0.0
    recent_late: float = 0.0

    def after(self, time_s: float, ended: int, late: int) -> ErrorBudget:
        """Once these totals were seen; totals that fell were started again and say nothing for once."""
        kept = math.exp(-max(time_s - self.time_s, 0.0) / SPAN_S)
        new, new_late = ended - self.ended, late - self.late
        if new < 0 or new_late < 0:
            new = new_late = 0
        return ErrorBudget(time_s, ended, late, self.recent * kept + new, self.recent_late * kept + new_late)

    def left(self, objective: float, arrival_rate: float) -> float:
        """Share of the budget that is left, 0 to 1.

        Args:
            objective: share of events that must be in time.
            arrival_rate: planned λ.
        """
        allowed = (1 - objective) * max(self.recent, arrival_rate * LEAST_S)
        return min(max(1 - self.recent_late / allowed, 0.0), 1.0) if allowed > 0 else float(self.recent_late == 0)
