"""The time between two stages, where something else takes the cores while it is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import pytest

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.records import Record
from inferline_stream.profiler import hop_latency
from inferline_stream.profiler.hop_latency import steadiest

WARMING = [1.0] * 60


def round_of(typical_s: float, tail_s: float) -> list[float]:
    """What is measured where 5 % of 400 records are in the tail."""
    return [*WARMING, *[tail_s] * 20, *[typical_s] * 380]


async def taken(*rounds: list[float]) -> tuple[list[float], int]:
    """The times that count, and after how many rounds."""
    left: Iterator[list[float]] = iter(rounds)
    used = 0

    async def measured() -> list[float]:
        nonlocal used
        used += 1
        return next(left)

    return await steadiest(measured), used


async def test_a_steady_round_is_enough_and_its_first_records_do_not_count() -> None:
    assert await taken(round_of(0.002, 0.009)) == (sorted(round_of(0.002, 0.009)[60:]), 1)


async def test_after_a_disturbed_round_the_next_one_counts() -> None:
    assert await taken(round_of(0.002, 0.2), round_of(0.003, 0.01)) == (sorted(round_of(0.003, 0.01)[60:]), 2)


async def test_of_five_disturbed_rounds_the_one_with_the_least_tail_counts() -> None:
    rounds = (round_of(0.002, 0.3), round_of(0.004, 0.1), *[round_of(0.001, 0.2)] * 3)
    assert await taken(*rounds) == (sorted(round_of(0.004, 0.1)[60:]), 5)


class Fetched(NamedTuple):
    records: Mapping[str, list[Record]]


class CrowdedMachine:
    """Sender and reader at once: anyone who sends keeps the core for a while, and what is sent is there."""

    def __init__(self, *, loses: int = 0) -> None:
        self.loses = loses
        self.sent: asyncio.Queue[Record] = asyncio.Queue()

    async def send(self, outgoing: Mapping[tuple[str, int], list[Record]]) -> None:
        time.sleep(0.02)  # noqa: ASYNC251  it is the core that is taken
        for record in (record for records in outgoing.values() for record in records):
            if self.loses:
                self.loses -= 1
            else:
                self.sent.put_nowait(record)

    async def fetch(self, _: object, wait_s: float) -> Fetched:
        return Fetched({"a": [await self.sent.get()]})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hop_latency, "_RECORDS", 60)
    monkeypatch.setattr(hop_latency, "_LOST_AFTER_S", 0.2)


@pytest.mark.usefixtures("few")
async def test_records_that_take_long_on_a_crowded_machine_are_not_lost() -> None:
    """They had as long as their gaps and `_LOST_AFTER_S` together; sending alone takes longer here."""
    crowded = cast("Any", CrowdedMachine())
    began_s = time.monotonic()
    assert len(await hop_latency._hops_s(crowded, crowded, "hop")) == 60
    assert time.monotonic() - began_s > 60 * hop_latency._GAP_S + 0.2


@pytest.mark.usefixtures("few")
async def test_one_that_never_comes_back_is_lost_and_said_to_be() -> None:
    crowded = cast("Any", CrowdedMachine(loses=1))
    with pytest.raises(Unreachable, match=r"gave none back, in 0\.2 s"):
        await hop_latency._hops_s(crowded, crowded, "hop")
