"""Which batches have ended dispatchers: one that ends two in a row would end every successor.

| how the dispatcher ended while it took the batch in            | is it the batch's doing?                        |
|-----------------------------------------------------------------|-------------------------------------------------|
| a crash: SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE               | yes                                             |
| it failed: an error of Python's, lack of memory among them      | yes                                             |
| the kernel killed in its own control group, for its memory      | yes                                             |
| killed because it was silent, after `HOG_S` of CPU on the batch | yes                                             |
| killed because it was silent, otherwise                         | no: its host was frozen, or had no core for it  |
| SIGKILL by anybody else                                         | no                                              |
"""

from __future__ import annotations

import signal
from collections import defaultdict
from dataclasses import dataclass, field

from inferline_stream.dataplane.process_specs import EXIT_FAILED
from inferline_stream.kafka.batch_mark import BatchId

DEATHS = 2
"""After so many the batch is to blame: one dispatcher may have died of something else while it took the batch in."""

HOG_S = 2.0
"""CPU time on one batch beyond which that makes a dispatcher silent: it reports nothing while it unpacks."""

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)

REMEMBERED = 64
"""Batches of a stage that are skipped; by the time that there are more, the first ones have long been committed."""


def is_batchs_doing(code: int, *, overran: bool, busy_s: float) -> bool:
    """Whether a dispatcher ended because of the batch that it was taking in; see the table above.

    Args:
        code: its exit code; negative for a signal.
        overran: whether the kernel has killed in its own group for its memory.
        busy_s: CPU time that it had spent on the batch when its supervisor killed it; 0 where that did not.
    """
    return code == EXIT_FAILED or -code in _CRASHES or (code == -signal.SIGKILL and (overran or busy_s >= HOG_S))


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
