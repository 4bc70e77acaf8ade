"""How far a further class of events has come, and when a background one is likely to be done."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping

from inferline_stream.controlplane.observe.log_growth import OffsetHistory
from inferline_stream.controlplane.observe.settled_parts import SettledParts
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.pipeline.event_classes import BACKGROUND_MARGIN
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.topology import Topic
from inferline_stream.pipeline.units import moment_s

_RATE_OVER_S = 300.0
"""A forecast takes the rate of so long: what live events leave idle comes and goes with them."""

_LOOKS_APART_S, _SHORTEST_S = 1.0, 2.0

SHORTEST_S = 60.0
"""What should have been done by now, or soon, is planned to be done in so long."""

MOST_AHEAD = 5000
"""Records that one first stage may be ahead of another: joins would wait with the parts that it makes."""


class EventClass:
    """The topics of one class of events: where they end, and what is finished of them.

    Args:
        shape: of the pipeline.
        partitions: of each stage's input topic.
        number: of the class, see `pipeline.event_classes`.
        topic: as declared.
        entries: stages at which its events enter; all first ones by default.
    """

    def __init__(
        self,
        shape: Shape,
        partitions: Mapping[str, int],
        number: int,
        topic: Topic,
        entries: Iterable[str] | None = None,
    ) -> None:
        self.number, self.background = number, topic.background
        self.rate_guaranteed = topic.rate
        self.finish_s = None if topic.finish_by is None else moment_s(topic.finish_by)
        """When it should be done, seconds since the epoch."""
        self.partitions = dict(partitions)
        self.offsets = {stage: OffsetHistory(n) for stage, n in partitions.items()}
        joins = [shape.stages[at] for at in shape.joins()]
        self.settling = {join: SettledParts(join, shape.upstream([join])[:-1]) for join in joins}
        self._entries = [shape.stages[at] for at in shape.entries()] if entries is None else sorted(entries)
        self._looks: deque[tuple[float, int]] = deque()
        """When how many records of the source were finished by every first stage."""

    def grow(self, stage: str, partitions: int) -> None:
        """The input topic of a stage has so many partitions."""
        if partitions > self.partitions[stage]:
            self.partitions[stage] = partitions
            self.offsets[stage].grow(partitions)

    def needed_rate(self, time_s: float) -> float:
        """Return how many of its events per second have to be served, by its rate and by when it should be done.

        Args:
            time_s: now, in seconds since the epoch.
        """
        if not self.background or not self.left:
            return 0.0
        due = 0.0 if self.finish_s is None else BACKGROUND_MARGIN * self.left / max(SHORTEST_S, self.finish_s - time_s)
        return max(self.rate_guaranteed, due)

    def look(self, now_s: float) -> None:
        """Note how much is finished now, once that is known: what was finished before is no progress."""
        if not all(self.offsets[stage].known for stage in self._entries):
            return
        if len(self._looks) > 1 and now_s - self._looks[-2][0] < _LOOKS_APART_S:
            self._looks.pop()
        self._looks.append((now_s, min(map(self._finished, self._entries))))
        while self._looks[0][0] < now_s - _RATE_OVER_S:
            self._looks.popleft()

    def _finished(self, stage: str) -> int:
        history = self.offsets[stage]
        return sum(history.ends) - sum(history.lags())

    def is_ahead(self, stage: str) -> bool:
        """Whether a first stage has come so much further than another one that it should wait for that."""
        if stage not in self._entries:
            return False
        return self._finished(stage) - min(map(self._finished, self._entries)) > MOST_AHEAD

    def finished(self) -> list[int]:
        """One past the last record of the source topic that any first stage has finished, by partition."""
        each = (self.offsets[stage].finished() for stage in self._entries)
        return list(map(max, itertools.zip_longest(*each, fillvalue=0)))  # one may have heard first of a partition

    @property
    def left(self) -> int:
        """Records of the source topic that are not finished by every first stage."""
        return max(sum(self.offsets[stage].lags()) for stage in self._entries)

    @property
    def rate(self) -> float | None:
        """Records of the source topic finished per second, over the last minutes; None where it is not known yet."""
        if not self._looks:
            return None
        (since_s, first), (until_s, last) = self._looks[0], self._looks[-1]
        return (last - first) / (until_s - since_s) if until_s - since_s >= _SHORTEST_S else None

    @property
    def done_in_s(self) -> float | None:
        """Time until nothing is left at the present rate; None where nobody can tell."""
        if not self.left:
            return 0.0
        return self.left / rate if (rate := self.rate) and rate > 0 else None


def further_classes(context: PipelineContext, partitions: Mapping[str, Mapping[str, int]]) -> dict[str, EventClass]:
    """Return the classes of a pipeline beside the first one, given the partitions of every class."""
    return {
        topic.name: EventClass(context.shape, partitions[topic.name], number, topic, context.entries_of(topic.name))
        for number, topic in enumerate(context.pipeline.others, start=1)
    }
