"""How far the HTTP source takes a pipeline to be behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from inferline_stream.connectors.sources.http import _look_behind
from inferline_stream.kafka.offset_metadata import Committed
from tests.support.virtual_time import run


class _Offsets:
    """A source topic whose second partition nobody has committed anything of."""

    async def partitions(self, topic: str) -> int:
        return 2

    async def ends(self, partitions: dict[str, int]) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(partitions, (3000, 4))

    async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        return (Committed(302, ((303, 3000),)), Committed(-1))


def test_one_event_that_cannot_finish_does_not_count_for_those_that_finished_after_it():
    ingest, offsets = SimpleNamespace(behind=0), _Offsets()

    async def look(ingest: Any, offsets: Any) -> None:
        looking = asyncio.create_task(_look_behind(ingest, offsets, "p.first", "posts"))
        await asyncio.sleep(0.01)
        looking.cancel()

    run(look(ingest, offsets))
    assert ingest.behind == 1 + 4
