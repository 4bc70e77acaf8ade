"""How far the times of records lie ahead of this host's clock: a producer's clock is wrong, or this one is."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

SAID_AGAIN_S = 60.0
"""How long the largest lead is remembered, and how often it is logged."""

NOTEWORTHY_S = 5.0
"""A smaller lead is what clocks that are kept in step may differ by: it is measured and not warned of."""


class ClockLead:
    """The largest lead of the last minute.

    Args:
        topic: whose records they are, for the log.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._lead_s = 0.0
        self._seen_s = 0.0
        self._said_s = float("-inf")

    def note(self, partition: int, lead_s: float, now_s: float) -> None:
        """Note a record whose time lies so far ahead of this host's clock.

        Args:
            partition: of the record.
            lead_s: positive.
            now_s: this host's clock, seconds since the epoch.
        """
        if lead_s >= self.seconds(now_s):
            self._lead_s, self._seen_s = lead_s, now_s
        if lead_s >= NOTEWORTHY_S and not 0 <= now_s - self._said_s < SAID_AGAIN_S:
            self._said_s = now_s
            logger.warning(
                "%s/%d: a record's time lies %.1f s ahead of this host's clock. Such records count from when they are "
                "read. Correct the clock of their producer, or this host's",
                self._topic,
                partition,
                lead_s,
            )

    def seconds(self, now_s: float) -> float:
        """Return the largest lead of the last minute; 0 where no record was ahead."""
        return self._lead_s if 0 <= now_s - self._seen_s < SAID_AGAIN_S else 0.0
