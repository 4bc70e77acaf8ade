"""An hour to come, as it is shown and kept. Processes that only pass it on import no more than this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class HourAhead:
    """One hour to come.

    Args:
        time_s: its beginning, in seconds since the epoch.
        rate: events per second in its busiest minute, as half of the days like it had; None where none is known.
        replicas: by stage, for that, or for the planned traffic where no rate is known, and for what people have said.
        cost_per_hour: dollars of these replicas.
        words: what people have said of it.
    """

    time_s: float
    rate: float | None
    replicas: Mapping[str, int]
    cost_per_hour: float
    words: str = ""
