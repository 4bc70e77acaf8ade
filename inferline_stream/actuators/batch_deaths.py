"""Which batches have ended dispatchers: one that ends two in a row would end every successor."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from inferline_stream.kafka.batch_mark import BatchId

DEATHS = 2
"""After so many the batch is to blame: one dispatcher may have been killed while it happened to take the batch in."""

REMEMBERED = 64
"""Batches of a stage that are skipped; by the time that there are more, the first ones have long been committed."""


@dataclass(slots=True)
class _StageDeaths:
    last: dict[int, tuple[BatchId, int]] = field(default_factory=dict)
    """By partition, the batch that was being taken in at its last death, and how often in a row it was."""
    deadly: list[BatchId] = field(default_factory=list)


class BatchDeaths:
    """Counts the deaths of dispatchers at a batch. Deaths elsewhere, and at other partitions, say nothing of it."""

    def __init__(self) -> None:
        self._stages: defaultdict[str, _StageDeaths] = defaultdict(_StageDeaths)

    def died_at(self, stage: str, batch: BatchId) -> bool:
        """Take note that a stage's dispatcher died at a batch; return whether the batch is skipped from now on."""
        of = self._stages[stage]
        before, times = of.last.get(batch.partition, (batch, 0))
        times = times + 1 if before == batch else 1
        of.last[batch.partition] = batch, times
        if times < DEATHS or batch in of.deadly:
            return False
        of.deadly = [*of.deadly[1 - REMEMBERED :], batch]
        return True

    def deadly(self, stage: str) -> tuple[BatchId, ...]:
        """Return the batches that a stage's next dispatcher must not unpack."""
        return tuple(self._stages[stage].deadly)
