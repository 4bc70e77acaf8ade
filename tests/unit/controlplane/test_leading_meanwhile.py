"""A controller that begins goes on leading while it finds what another one has left, and asks for its own."""

from __future__ import annotations

import asyncio

import pytest

from inferline_stream.controlplane import leader_loop
from inferline_stream.controlplane.leader_loop import leading_meanwhile
from inferline_stream.errors import Unreachable


@pytest.mark.parametrize("answers", [True, False])
async def test_heartbeats_are_written_while_the_work_takes_also_where_kafka_does_not_answer_one(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader_loop, "HEARTBEAT_S", 0.01)
    beats = asyncio.Semaphore(0)
    done: list[bool] = []

    async def heartbeat() -> None:
        beats.release()
        if not answers:
            raise Unreachable("Kafka does not answer")

    async def work() -> None:
        for _ in range(3):
            await beats.acquire()
        done.append(True)

    async with asyncio.timeout(20):
        await leading_meanwhile(work(), heartbeat)
    assert done


async def test_what_the_work_raises_and_a_lost_leadership_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_loop, "HEARTBEAT_S", 0.01)

    async def fails() -> None:
        raise RuntimeError("no cluster")

    async def lost() -> None:
        raise RuntimeError("another leads")

    with pytest.raises(RuntimeError, match="no cluster"):
        await leading_meanwhile(fails(), lost)
    with pytest.raises(RuntimeError, match="another leads"):
        await leading_meanwhile(asyncio.sleep(60), lost)
