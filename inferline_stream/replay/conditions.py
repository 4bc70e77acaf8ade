"""How the world answers: what scaling costs in time, and how late it is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conditions:
    """Delays of actuator and statistics, the same for every policy that is compared.

    Args:
        start_up_s: from asking for a replica to its READY; None takes each profile's.
        statistics_delay_s: age of what is seen of the stages; arrivals are seen at once.
        step_s: how often the Tuner decides.

    Raises:
        ValueError: a delay that is negative or not finite, or a step that is not above 0.
    """

    start_up_s: float | None = None
    statistics_delay_s: float = 0.5
    step_s: float = 0.1

    def __post_init__(self) -> None:
        delays = (self.start_up_s or 0.0, self.statistics_delay_s)
        if not all(math.isfinite(delay) and delay >= 0 for delay in delays) or not self.step_s > 0:
            raise ValueError(f"{self}: delays must be 0 or more, the step above 0")
