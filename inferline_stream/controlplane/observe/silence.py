"""Which dispatchers have fallen silent, on a clock that stands still while Kafka gives no answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

_LONGEST_STEP_S = 0.5

_DEAF_S = 1.5
"""Dispatchers report twice a second each: if none of several has for so long, we are likely deaf."""

DEAF_AT_MOST_S = 15.0
"""Longest that the silence of all of them counts as our own deafness."""


@dataclass(slots=True)
class Silence:
    """Distinguishes the silence of dispatchers from our own blindness.

    A report cannot arrive while Kafka is away or while this process is stopped. The clock that measures silence
    therefore advances only in steps in which Kafka answered us, never by more than half a second at once, and for a
    while not at all when all of several dispatchers are silent. That errs on the late side, which is safe.

    Args:
        dead_after_s: silence after which a dispatcher serves no more, longer than its lease.
    """

    dead_after_s: float
    clock_s: float = 0.0
    silent: set[str] = field(default_factory=set)
    _time_s: float | None = None
    _heard_s: dict[str, float] = field(default_factory=dict)
    _anybody_s: float | None = None

    def advance(self, time_s: float, *, answered: bool) -> None:
        """Let time pass up to ``time_s``; ``answered``: Kafka has answered since the last call."""
        if self._anybody_s is None:
            self._anybody_s = time_s
        deaf = len(self._heard_s.keys() - self.silent) > 1 and _DEAF_S < time_s - self._anybody_s < DEAF_AT_MOST_S
        if self._time_s is not None and answered and not deaf:
            self.clock_s += min(max(0.0, time_s - self._time_s), _LONGEST_STEP_S)
        self._time_s = time_s

    def heard(self, dispatcher: str) -> None:
        """One of its reports has arrived just now."""
        self._heard_s[dispatcher] = self.clock_s
        self._anybody_s = None
        self.silent.discard(dispatcher)

    def expect(self, dispatchers: Iterable[str]) -> None:
        """These may serve; the silence of one that was never heard counts from now on."""
        for dispatcher in dispatchers:
            self._heard_s.setdefault(dispatcher, self.clock_s)

    def forget(self, dispatcher: str) -> None:
        """Its process has ended."""
        self._heard_s.pop(dispatcher, None)
        self.silent.discard(dispatcher)

    def fell_silent(self) -> set[str]:
        """Return the dispatchers that have become silent since the last call."""
        new = {d for d, at in self._heard_s.items() if self.clock_s - at > self.dead_after_s} - self.silent
        self.silent |= new
        return new
