"""Spaces a dispatcher's requests to Kafka where they follow each other fast."""

from __future__ import annotations

import math

PACE_S = 0.002
"""Where requests to Kafka follow each other faster, a few results or records wait for so long after the last one: at a
thousand records a second, requests are most of a dispatcher's work. What comes after a pause does not wait."""

FEW = 64
"""So many results or records are worth a request of their own."""


class Pace:
    """Spaces requests of one kind, see `PACE_S`."""

    def __init__(self) -> None:
        self._last_s = -math.inf
        self._fast = False

    def wait_s(self, count: int, now_s: float) -> float:
        """Return how long to wait before a request for so many records, or after one that brought them."""
        left_s = self._last_s + PACE_S - now_s
        fast, self._fast = self._fast, left_s > 0
        wait_s = left_s if fast and left_s > 0 and count < FEW else 0.0
        self._last_s = now_s + wait_s
        return wait_s
