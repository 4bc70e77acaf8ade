"""A controller that begins goes on leading while it finds what another one has left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from inferline_stream.runs import lifecycle


async def test_heartbeats_are_written_while_the_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEARTBEAT_S", 0.01)
    beats = asyncio.Semaphore(0)
    done: list[bool] = []

    async def heartbeat() -> None:
        beats.release()

    async def work() -> None:
        for _ in range(3):
            await beats.acquire()
        done.append(True)

    async with asyncio.timeout(20):
        await lifecycle._led(SimpleNamespace(heartbeat=heartbeat), work())  # type: ignore[arg-type]
    assert done


async def test_what_the_work_raises_and_a_lost_leadership_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEARTBEAT_S", 0.01)

    async def fails() -> None:
        raise RuntimeError("no cluster")

    async def lost() -> None:
        raise RuntimeError("another leads")

    with pytest.raises(RuntimeError, match="no cluster"):
        await lifecycle._led(SimpleNamespace(heartbeat=lost), fails())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="another leads"):
        await lifecycle._led(SimpleNamespace(heartbeat=lost), asyncio.sleep(60))  # type: ignore[arg-type]
