"""Topologies for tests of pools, and a steady load."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from tests.support.director import Director, event_id

PASSING = Path(__file__).with_name("passing.py")
DIAMOND = Path(__file__).with_name("diamond.py")

MOST_WAITING = 3000


@contextlib.asynccontextmanager
async def under_load(director: Director, value: bytes = b"x", burst: int = 30) -> AsyncIterator[list[str]]:
    """Send a burst of 20 keys every 20 ms; gives the ids of the events sent, all of them once the block has ended.

    Nothing is sent while `MOST_WAITING` events wait: they are to be worked off in time, however slow the machine is.
    """
    sent: list[str] = []
    enough = asyncio.Event()

    async def send() -> None:
        keys: list[bytes | None] = [b"%d" % (number % 20) for number in range(burst)]
        while not enough.is_set():
            if len(sent) - director.total("work", "events") < MOST_WAITING:
                sent.extend(await director.put([value] * burst, keys))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await enough.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        await more(director, "work", 1)
        try:
            yield sent
        finally:
            enough.set()


async def more(director: Director, stage: str, events: int = 100) -> None:
    """Wait until a stage has finished so many more events."""
    await director.until_finished(stage, director.total(stage, "events") + events)


def in_order_of_keys(records: Iterable[Any]) -> bool:
    """Whether the results of each key came in the order of their events, of which each key has one partition."""
    by_key: defaultdict[bytes, list[int]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.partition, record.offset)):
        by_key[record.key].append(int(event_id(record).rpartition("/")[2]))
    return all(offsets == sorted(offsets) for offsets in by_key.values())
