"""Whether a replica is any good: the one place that decides it, however the replica may fail.

A batch without a success does not say whose fault that is: the stage raised on every event, or the replica's server did
not take it. What the replica says of it is kept until the same replica has a success, or has run a sample: an event
that the stage is known to process.

| standing        | what happens                  | then     | what is done                                            |
|-----------------|-------------------------------|----------|---------------------------------------------------------|
| STARTING        | it says that it is ready      | TRUSTED  |                                                         |
| STARTING        | its time limit passes         | gone     | REPLACE                                                 |
| TRUSTED         | a success                     | TRUSTED  |                                                         |
| TRUSTED         | a batch without a success     | DOUBTED  | what it says is kept                                    |
| DOUBTED, TESTED | a batch without a success     | the same | what it says is kept, too                               |
| DOUBTED, TESTED | a success                     | TRUSTED  | BELIEVE: events, and not the replica, are at fault      |
| DOUBTED         | the sample is handed out      | TESTED   |                                                         |
| DOUBTED         | no sample is known            | TRUSTED  | GUESS: nobody can find out                              |
| TESTED          | the server takes no sample    | DOUBTED  | SPARE: the server is away, and no event is at fault     |
| any             | the sample fails              | gone     | BLAME: what is kept is lost with the replica; REPLACE   |
| any             | its connection ends, or it    | ENDING   |                                                         |
|                 | says that it ends             |          |                                                         |
| ENDING          | its time limit passes         | gone     | REPLACE: its process lives on                           |
| any             | it is attached again          | STARTING |                                                         |
| any             | others see to its end         | gone     |                                                         |

Replicas that fail on samples, or end before they have finished anything, put all fresh ones under `Suspicion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

END_S = 5.0
"""Longest that a process may live after its connection has ended: it may have much memory to give back."""

MIN_BACK_OFF_S, MAX_BACK_OFF_S = 0.1, 30.0
"""First and longest time for which a replica that has passed nothing runs no suspect, while replicas are suspected."""


class ReplicaStanding(Enum):
    """What is thought of a replica."""

    STARTING = auto()
    TRUSTED = auto()
    DOUBTED = auto()
    TESTED = auto()
    """It runs a sample."""
    ENDING = auto()


class Happening(Enum):
    """What a replica does, or what happens to it."""

    READY = auto()
    SUCCESS = auto()
    NO_SUCCESS = auto()
    SAMPLE_HANDED = auto()
    NO_SAMPLE = auto()
    SAMPLE_NOT_TAKEN = auto()
    ENDED = auto()


class TrustAction(Enum):
    """What is done with what a replica said of batches without a success."""

    BELIEVE = auto()
    GUESS = auto()
    SPARE = auto()


_STEPS: Mapping[tuple[ReplicaStanding, Happening], tuple[ReplicaStanding, TrustAction | None]] = {
    (ReplicaStanding.STARTING, Happening.READY): (ReplicaStanding.TRUSTED, None),
    (ReplicaStanding.TRUSTED, Happening.NO_SUCCESS): (ReplicaStanding.DOUBTED, None),
    (ReplicaStanding.DOUBTED, Happening.SUCCESS): (ReplicaStanding.TRUSTED, TrustAction.BELIEVE),
    (ReplicaStanding.TESTED, Happening.SUCCESS): (ReplicaStanding.TRUSTED, TrustAction.BELIEVE),
    (ReplicaStanding.DOUBTED, Happening.SAMPLE_HANDED): (ReplicaStanding.TESTED, None),
    (ReplicaStanding.DOUBTED, Happening.NO_SAMPLE): (ReplicaStanding.TRUSTED, TrustAction.GUESS),
    (ReplicaStanding.TESTED, Happening.SAMPLE_NOT_TAKEN): (ReplicaStanding.DOUBTED, TrustAction.SPARE),
    **{(standing, Happening.ENDED): (ReplicaStanding.ENDING, None) for standing in ReplicaStanding},
}
"""What is not here changes nothing."""


@dataclass(slots=True)
class _Expectation:
    standing: ReplicaStanding
    until_s: float = math.inf
    """When it is replaced."""
    why: str = ""
    """The reason then."""


class ReplicaTrust:
    """The standing of each replica of a pool. Every time is of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._known: dict[str, _Expectation] = {}
        self.next_s: float | None = None
        """When to call `overdue` at the latest; None for never."""

    def attached(self, replica: str, limit_s: float, now_s: float) -> None:
        """Expect a replica to be ready within a time limit."""
        self._expect(replica, ReplicaStanding.STARTING, now_s + limit_s, f"it was not ready within {limit_s:g} s")

    def happens(self, replica: str, what: Happening, now_s: float = 0.0, why: str = "") -> TrustAction | None:
        """Take note of what happens to a replica; return what to do.

        Args:
            replica: its name.
            what: happens.
            now_s: the present; only the end of a replica needs it.
            why: it ends.
        """
        known = self._known.get(replica)
        step = _STEPS.get((known.standing, what)) if known is not None else None
        if step is None:
            return None
        if step[0] is ReplicaStanding.ENDING:
            self._expect(replica, step[0], now_s + END_S, f"{why}, and its process lived on for {END_S:g} s")
        else:
            self._known[replica] = _Expectation(step[0])
        return step[1]

    def forget(self, replica: str) -> None:
        """Expect nothing more of a replica: others see to its end."""
        self._known.pop(replica, None)

    def standing(self, replica: str) -> ReplicaStanding | None:
        """Return what is thought of a replica; None where it is gone."""
        known = self._known.get(replica)
        return known.standing if known is not None else None

    def overdue(self, now_s: float) -> list[tuple[str, str]]:
        """Return the replicas whose time limit has passed, with the reason to replace them, each once."""
        if self.next_s is None or now_s < self.next_s:
            return []
        found = [(name, known.why) for name, known in self._known.items() if known.until_s <= now_s]
        for name, _ in found:
            del self._known[name]
        left_s = min((known.until_s for known in self._known.values()), default=math.inf)
        self.next_s = left_s if left_s < math.inf else None
        return found

    def _expect(self, replica: str, standing: ReplicaStanding, until_s: float, why: str) -> None:
        self._known[replica] = _Expectation(standing, until_s, why)
        self.next_s = until_s if self.next_s is None else min(self.next_s, until_s)


class Suspicion:
    """Whether replicas that have passed nothing are suspected, and until when they get nothing then."""

    def __init__(self) -> None:
        self.blocked_until_s = 0.0
        """Until then a replica that has passed nothing gets no batch, so that a broken device ends few of them."""
        self.reason = ""
        """Why replicas are under suspicion; empty where they are not."""
        self.level = 0
        """Back-offs in a row."""

    def holds(self, now_s: float) -> bool:
        """Return whether replicas are under suspicion; not for ever, since the queue's events may pass meanwhile."""
        if self.level and now_s > self.blocked_until_s + 2 * MAX_BACK_OFF_S:
            self.lift()
        return self.level > 0

    def lift(self) -> None:
        """Suspect replicas no longer: a fresh one has passed something."""
        self.level, self.blocked_until_s, self.reason = 0, 0.0, ""

    def back_off(self, now_s: float, why: str) -> None:
        """Let fresh replicas wait, twice as long as the last time."""
        wait_s = min(MAX_BACK_OFF_S, MIN_BACK_OFF_S * 2**self.level)
        self.level = min(self.level + 1, 16)
        self.blocked_until_s = now_s + wait_s
        self.reason = f"{why}: the replica, its device or its host may be at fault; next attempt in {wait_s:g} s"
