"""A rehearsal that is ended early leaves no feed behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from inferline_stream.cli import rehearsal_steps


async def test_the_feed_has_ended_before_the_session_does(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    feeds = asyncio.Event()

    class UnderWay:
        controller = SimpleNamespace(view=SimpleNamespace(core_use=SimpleNamespace(crowded="")))

        async def ready(self) -> None:
            pass

        async def fed(self, stop: asyncio.Event) -> None:
            feeds.set()
            try:
                await stop.wait()
            finally:
                happened.append("the feed ended")

    @asynccontextmanager
    async def session(*of: object) -> AsyncIterator[UnderWay]:
        try:
            yield UnderWay()
        finally:
            happened.append("the session ended")

    monkeypatch.setattr(rehearsal_steps, "open_run", session)
    rehearsing = asyncio.create_task(rehearsal_steps.rehearse(SimpleNamespace()))
    async with asyncio.timeout(10.0):
        await feeds.wait()
        rehearsing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rehearsing
    assert happened == ["the feed ended", "the session ended"]
