"""The time between two stages, where something else takes the cores while it is measured."""

from __future__ import annotations

from collections.abc import Iterator

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
