"""What the two kernels of the traffic envelope work on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
"""Arrivals per block: larger ones make a query dearer, smaller ones an arrival."""

Times = NDArray[np.float64]
Counts = NDArray[np.int64]


class EnvelopeState(NamedTuple):
    """What a kernel works on. Positions count arrivals (or blocks) from the start of `times`.

    `marks` holds, in order: arrivals kept, blocks kept.
    """

    windows: Times
    spans: Times
    """By window: how far the past reaches that it is looked for in."""
    times: Times
    """Kept arrivals, ascending; as many as `marks[0]` are valid."""
    marks: Counts
    block_most: Counts
    """Shape (windows, blocks): the largest count ending in each block, the open one included."""
    queue: Counts
    """Shape (windows, blocks): blocks with falling maxima, from `heads` to `tails`."""
    heads: Counts
    tails: Counts
    firsts: Counts
    """By window: the first arrival inside its span."""
    edges: Counts
    """By window: the first arrival whose window lies wholly inside its span."""


class EnvelopeKernel(Protocol):
    """The two loops, once in NumPy and once compiled."""

    def extend(self, state: EnvelopeState, first: int, /) -> None:
        """Take the arrivals from ``first`` to the last kept one into the blocks."""

    def query(self, state: EnvelopeState, now_s: float, counts: Counts, /) -> None:
        """Write the most arrivals in any window inside (now − span, now], by window."""
