"""Who is connected to an HTTP server, and who has to go: connections that ask for nothing take no place for long."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Connections:
    """Connections by when each has to have done something. Times are seconds on a clock that never goes back.

    Args:
        most_busy: requests at once; one more is answered with 503.
        most: connections at once; above it the one that has been idle longest makes room.
        idle_s: longest from connecting, or from the last answer, to the end of the next request's headers.
        request_s: longest from there to the end of the answer.
    """

    most_busy: int
    most: int
    idle_s: float
    request_s: float
    _idle: dict[Hashable, float] = field(default_factory=dict)
    """Since when, longest first."""
    _busy: dict[Hashable, float] = field(default_factory=dict)

    def opened(self, connection: Hashable, now_s: float) -> None:
        """It has come."""
        self._idle[connection] = now_s

    def began(self, connection: Hashable, now_s: float) -> bool:
        """Its request is there; return whether there is room for it."""
        self._idle.pop(connection, None)
        self._busy[connection] = now_s
        return len(self._busy) <= self.most_busy

    def ended(self, connection: Hashable, now_s: float) -> None:
        """Its request is answered."""
        if self._busy.pop(connection, None) is not None:
            self._idle[connection] = now_s

    def keep(self, living: Collection[Hashable]) -> None:
        """Forget all but these."""
        for known in (self._idle, self._busy):
            for gone in known.keys() - living:
                del known[gone]

    def in_excess(self) -> list[Hashable]:
        """Forget and return those that have to make room, idle longest first."""
        count = max(0, len(self._idle) + len(self._busy) - self.most)
        found = list(self._idle)[:count]
        for connection in found:
            del self._idle[connection]
        return found

    def overdue(self, now_s: float) -> list[Hashable]:
        """Forget and return those that have taken too long."""
        found = []
        for known, longest_s in ((self._idle, self.idle_s), (self._busy, self.request_s)):
            late = [connection for connection, since_s in known.items() if now_s - since_s > longest_s]
            for connection in late:
                del known[connection]
            found += late
        return found
