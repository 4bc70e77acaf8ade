"""Hardware that is emulated: a stage's function runs, and its batch ends once the declared service time has passed."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from random import Random
from typing import Any

from inferline_stream.pipeline.emulation import Emulated


class EmulatedHardware:
    """Says how long a batch takes.

    Args:
        emulated_s: service time in seconds by batch size.
        varies: how these vary, if they do.
    """

    def __init__(self, emulated_s: Mapping[int, float], varies: Emulated | None = None) -> None:
        self._emulated_s = dict(sorted(emulated_s.items()))
        self._varies = varies or Emulated({})
        self._random = Random()  # noqa: S311  no secret depends on it

    def service_s(self, values: list[Any]) -> float:
        """Return the service time of a batch, in seconds."""
        service_s = emulated_service_s(self._emulated_s, len(values)) * self._varies.factor(self._random)
        if self._varies.weight is not None:
            service_s *= sum(map(self._varies.weight, values)) / len(values)
        return service_s


def emulated_service_s(service_s: Mapping[int, float], batch_size: int) -> float:
    """Return S(b): linear between the batch sizes given, of constant throughput beyond the largest.

    Args:
        service_s: seconds by batch size, ascending, starting at 1.
        batch_size: b.
    """
    sizes = list(service_s)
    at = bisect.bisect_left(sizes, batch_size)
    if at == len(sizes):
        return service_s[sizes[-1]] * batch_size / sizes[-1]
    if sizes[at] == batch_size or at == 0:
        return service_s[sizes[at]]
    share = (batch_size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
    return service_s[sizes[at - 1]] + share * (service_s[sizes[at]] - service_s[sizes[at - 1]])
