"""How long replicas took to start, as learned live, and what the next one is likely to take."""

from __future__ import annotations

from collections import deque

from inferline_stream.actuators.actuator import Way

_KEPT = 8


class StartUpTimes:
    """The recent start-up times of each stage and hardware kind, by how the replica came to run."""

    def __init__(self) -> None:
        self._recent: dict[tuple[str, str], dict[Way, deque[float]]] = {}

    def started(self, stage: str, hardware: str, start_up_s: float, way: Way = "") -> None:
        """A replica became ready so long after it was asked for, by that way."""
        ways = self._recent.setdefault((stage, hardware), {})
        times = ways.pop(way, None) or deque(maxlen=_KEPT)
        times.append(start_up_s)
        ways[way] = times  # the newest way comes last

    def by_way(self, stage: str, hardware: str) -> dict[Way, float]:
        """Mean of the recent ones, by way; that of the newest start comes last."""
        return {way: sum(t) / len(t) for way, t in self._recent.get((stage, hardware), {}).items()}

    def next_s(self, stage: str, hardware: str) -> float | None:
        """What the next replica is likely to take, None before the first: the recent ones that came as the newest did.

        A mean over all ways would fit none: where a node had to be made, the next one is likely to need one, too.
        """
        ways = self.by_way(stage, hardware)
        if ways.keys() == {"alone"}:
            return None  # it has brought the parent that forks those to come, as they were profiled
        return next(reversed(ways.values()), None)

    def by_stage(self) -> dict[str, dict[str, float]]:
        """The same by stage and hardware kind, where there is any."""
        found: dict[str, dict[str, float]] = {}
        for stage, hardware in self._recent:
            if (start_up_s := self.next_s(stage, hardware)) is not None:
                found.setdefault(stage, {})[hardware] = start_up_s
        return found
