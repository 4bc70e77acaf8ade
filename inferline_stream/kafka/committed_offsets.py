"""What a group has committed, where Kafka's first answer may be wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")

UNSURE_S = 2.0
"""For so long a partition without an offset is asked for again."""

_AGAIN_S = 0.05


async def surely_committed(
    ask: Callable[[Iterable[int]], Awaitable[Mapping[int, Entry]]],
    partitions: Collection[int],
    unsure_s: float | None = None,
) -> Mapping[int, Entry]:
    """What a group has committed of these partitions; asked again for a while where it seems to have committed nothing.

    A coordinator that has just loaded a group, after a broker's crash, may say for some milliseconds, and without an
    error, that it knows none of its offsets: Apache Kafka 4.1 does. A reader that believed it would halt a partition.

    Args:
        ask: of partitions, what is committed; those without are missing.
        partitions: that are known to have offsets, or may have.
        unsure_s: for how long; `UNSURE_S` by default. Less where the group may be new: that is the time it takes then.
    """
    give_up_s = time.monotonic() + (UNSURE_S if unsure_s is None else unsure_s)
    while True:
        committed = await ask(partitions)
        if committed.keys() >= set(partitions) or time.monotonic() >= give_up_s:
            return committed
        await asyncio.sleep(_AGAIN_S)
