"""Which replicas have fallen silent, on a clock that stands still while Kafka gives no answer."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_STEP_S = 0.5

_DEAF_S = 1.5
"""Replicas report twice a second each: when none of several has for so long, it is rather us who hear nothing."""

DEAF_AT_MOST_S = 15.0
"""Longest that everybody's silence is taken for our own deafness."""


class Liveness:
    """Silence of replicas, told from our own blindness.

    A replica's report cannot arrive while Kafka is away or while this process is stopped. The clock on
    which silence is measured therefore advances only in steps in which Kafka answered us, never by more than half a
    second at once, and for a while not at all when every replica has fallen silent together. That errs on the late
    side, which never makes two owners.

    Args:
        dead_after_s: silence after which a replica is dead for good.
    """

    def __init__(self, dead_after_s: float) -> None:
        self._dead_after_s = dead_after_s
        self._clock_s = 0.0
        self._time_s: float | None = None
        self._heard_s: dict[str, float] = {}
        self._anybody_s: float | None = None
        self.silent: set[str] = set()

    def advance(self, time_s: float, *, answered: bool) -> None:
        """Let time pass up to ``time_s``; ``answered`` tells whether Kafka answered since the last call."""
        if self._anybody_s is None:
            self._anybody_s = time_s
        silence_s = time_s - self._anybody_s
        deaf = len(self._heard_s.keys() - self.silent) > 1 and _DEAF_S < silence_s < DEAF_AT_MOST_S
        if self._time_s is not None and answered and not deaf:
            self._clock_s += min(max(0.0, time_s - self._time_s), _LONGEST_STEP_S)
        self._time_s = time_s

    def heard(self, replica: str) -> None:
        """A report of it has arrived just now."""
        self._heard_s[replica] = self._clock_s
        self._anybody_s = None  # just now

    def expect(self, replicas: Iterable[str]) -> None:
        """These may be at work; of one that was never heard, silence counts from now on."""
        for replica in replicas:
            self._heard_s.setdefault(replica, self._clock_s)

    def forget(self, replica: str) -> None:
        """Its process has ended."""
        self._heard_s.pop(replica, None)
        self.silent.discard(replica)

    def fell_silent(self) -> set[str]:
        """Replicas that have just become dead by silence; each is told once and stays dead."""
        new = {r for r, at in self._heard_s.items() if self._clock_s - at > self._dead_after_s} - self.silent
        self.silent |= new
        return new
