"""What a stage sends, or what enters the pipeline, as it comes to be sent where the time between stages differs."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Tokens
from inferline_stream.estimator.workload import Workload


class Delay:
    """Takes tokens in order, gives them in the order in which they count as sent, up to a horizon that moves on.

    Args:
        workload: the times, and the keys of the draws.
        purpose: of the draws.
        stage: position in the shape.
        code: the kernels.
    """

    def __init__(self, workload: Workload, purpose: str, stage: int, code: Any) -> None:
        self._delay = code.delay
        self._key = workload.key(purpose, stage)
        self._extra_s = workload.hop_extra_s
        self._late = _room(0)
        self._first, self._held = 0, 0

    def take(self, gone: Tokens, horizon_s: float) -> Tokens:
        """Tokens that count as sent before the horizon and were not given yet; all up to there were taken.

        The arrays are reused by the next call.
        """
        left, needed = self._held - self._first, self._held - self._first + gone.times.size
        before, late = self._late, self._late if self._late.times.size >= needed else _room(needed * 3 // 2)
        late.times[:left] = before.times[self._first : self._held].copy()
        late.events[:left] = before.events[self._first : self._held].copy()
        # A trace is read-only, which would be another type to the compiled kernels, and another compilation.
        times = gone.times if gone.times.flags.writeable else gone.times.copy()
        ready, held = self._delay(Tokens(times, gone.events), self._key, self._extra_s, late, (left, horizon_s))
        self._late, self._first, self._held = late, int(ready), int(held)
        return Tokens(late.times[:ready], late.events[:ready])


def _room(size: int) -> Tokens:
    return Tokens(np.empty(size), np.empty(size, dtype=np.int32))
