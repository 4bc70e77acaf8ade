"""Whether replicas have the cores that they were planned with: what they ran, what they waited, what others took."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.actuators.actuator import ObservedReplica

KEPT_S = 10.0

LOOK_S, CALM_S = 2.0, 4.0
"""For how long cores must be missing before that is said, and there again before it is taken back."""

SLACK_CORES = 0.15
"""Cores that may be missing: less is noise, and half of a tick on each core."""

FULL = 0.9
"""Share of the machine's time that is taken where somebody lacks a core: below it nobody has to wait for long."""


@dataclass(frozen=True, slots=True)
class Use:
    """Seconds since some time."""

    ran_s: float = 0.0
    waited_s: float = 0.0


@dataclass(slots=True)
class _Sample:
    time_s: float
    use: Mapping[tuple[str, str], Use]
    taken_s: float
    reserved: float


@dataclass(slots=True)
class CoreUse:
    """What replicas did with cores over the last seconds, and what is left of a machine beside them.

    Args:
        cores: of the machine; 0 where nothing is known of it.
        taken_s: reads for how long its cores were taken so far.
    """

    cores: float = 0.0
    taken_s: Callable[[], float] = lambda: 0.0
    _totals: dict[tuple[str, str], Use] = field(default_factory=dict)
    """Since the start, by stage and hardware kind, replicas that have ended included."""
    _seen: dict[str, Use] = field(default_factory=dict)
    _samples: deque[_Sample] = field(default_factory=deque)
    _since_s: float | None = None
    """Since when cores have been missing without a break; while `crowded`, since when they have not."""
    crowded: str = ""
    """Why replicas do not have the cores that they were planned with, in words; empty while they have."""

    def add(self, now_s: float, replicas: Sequence[ObservedReplica], reserved: float) -> None:
        """Take in what there is.

        Args:
            now_s: now.
            replicas: with what each has done so far.
            reserved: cores that they were planned with, all together.
        """
        for r in replicas:
            before, now = self._seen.get(r.replica, Use()), Use(r.ran_s, r.waited_s)
            total = self._totals.get((r.stage, r.hardware), Use())
            self._totals[r.stage, r.hardware] = Use(
                total.ran_s + max(0.0, now.ran_s - before.ran_s),
                total.waited_s + max(0.0, now.waited_s - before.waited_s),
            )
            self._seen[r.replica] = now
        there = {r.replica for r in replicas}
        self._seen = {name: use for name, use in self._seen.items() if name in there}
        self._samples.append(_Sample(now_s, dict(self._totals), self.taken_s() if self.cores else 0.0, reserved))
        while self._samples[0].time_s < now_s - KEPT_S:
            self._samples.popleft()
        self._judge(now_s)

    def recent(self, stage: str, hardware: str) -> Use:
        """What replicas of a stage on one kind did over the last seconds."""
        if not self._samples:
            return Use()
        key = stage, hardware
        first, last = self._samples[0].use.get(key, Use()), self._samples[-1].use.get(key, Use())
        return Use(last.ran_s - first.ran_s, last.waited_s - first.waited_s)

    def total(self, stage: str) -> Use:
        """The same of a stage since the start."""
        own = [use for (name, _), use in self._totals.items() if name == stage]
        return Use(sum(use.ran_s for use in own), sum(use.waited_s for use in own))

    def _judge(self, now_s: float) -> None:
        """Others have taken cores of replicas if less is left than those were planned with, and hardly any is idle."""
        if not self.cores:
            return
        last = self._samples[-1]
        first = next((s for s in self._samples if s.time_s >= now_s - LOOK_S), last)
        if last.time_s - first.time_s < LOOK_S / 2:
            return
        ran_s = sum(use.ran_s - first.use.get(key, Use()).ran_s for key, use in last.use.items())
        taken = (last.taken_s - first.taken_s) / (last.time_s - first.time_s)
        others = taken - ran_s / (last.time_s - first.time_s)
        missing = last.reserved > 0 and others + last.reserved > self.cores + SLACK_CORES and taken > FULL * self.cores
        if missing == bool(self.crowded):
            self._since_s = None
            if missing:
                self.crowded = self._words(others, last.reserved)
            return
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s >= (LOOK_S if missing else CALM_S) / 2:
            self._since_s = None
            self.crowded = self._words(others, last.reserved) if missing else ""

    def _words(self, others: float, reserved: float) -> str:
        return (
            f"everything but replicas takes {others:.2f} of {self.cores:g} cores, and replicas were planned with "
            f"{reserved:.2f}: more of them would only share what is left"
        )
