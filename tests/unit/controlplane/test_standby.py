"""How long a standby waits for the leader before it: a topic in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from inferline_stream.controlplane.leadership import (
    AFTER_OUTAGE_S,
    LEADER_KEY,
    LOOK_EVERY_S,
    TAKE_OVER_AFTER_S,
    AssignmentLog,
    is_led,
    until_silent,
)
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.records import Record
from tests.support import virtual_time

LOOK_S = LOOK_EVERY_S + 1e-6
"""A standby may notice so late that its time has come."""


class Topic:
    """What is written to it, and how long it takes to answer, by the time of reading."""

    def __init__(
        self, written: Mapping[float, bytes | None], away: Sequence[float] = (), answer_s: float = 0.0
    ) -> None:
        self._written, self._away, self._answer_s = dict(sorted(written.items())), away, answer_s

    async def read(self, timeout_s: float) -> list[Record]:
        loop = asyncio.get_running_loop()
        if self._away and self._away[0] <= loop.time() < self._away[1]:
            raise Unreachable("no answer")
        next_s = min(self._written, default=float("inf"))
        await asyncio.sleep(max(0.0, min(timeout_s, next_s - loop.time())))
        return [
            Record(LEADER_KEY.encode(), self._written.pop(at_s), timestamp_ms=0, offset=0)
            for at_s in list(self._written)
            if at_s <= loop.time()
        ]

    async def end(self) -> Mapping[int, int]:
        await asyncio.sleep(self._answer_s)
        return {}


def waited_s(topic: Topic, heartbeat_age_s: float) -> tuple[float, int]:
    """Seconds until a standby leads, and how many records it read meanwhile."""
    records: list[Record] = []

    async def wait() -> None:
        log = AssignmentLog((), None, heartbeat_age_s)
        async with asyncio.timeout(600):
            await until_silent(topic, records, log, "p")  # type: ignore[arg-type]
        took.append(asyncio.get_running_loop().time())

    took: list[float] = []
    virtual_time.run(wait())
    return took[0], len(records)


def test_a_pipeline_that_nobody_has_led_is_led_at_once() -> None:
    assert waited_s(Topic({}), float("inf")) == (0.0, 0)


def test_a_leader_that_dies_is_followed_three_seconds_after_its_last_word() -> None:
    took_s, heard = waited_s(Topic({second + 0.6: b"alive" for second in range(20)}), 0.4)
    assert 19.6 + TAKE_OVER_AFTER_S < took_s <= 19.6 + TAKE_OVER_AFTER_S + LOOK_S
    assert heard == 20


@pytest.mark.parametrize("age_s", [TAKE_OVER_AFTER_S, 60.0, -5.0])
def test_however_old_the_last_word_is_another_is_waited_for(age_s: float) -> None:
    took_s, _ = waited_s(Topic({}), age_s)  # by a clock that may be ahead or behind
    assert TAKE_OVER_AFTER_S < took_s <= TAKE_OVER_AFTER_S + LOOK_S


@pytest.mark.parametrize(
    ("age_s", "written", "led"),
    [
        (1.0, {}, True),
        (3600.0, {0.9: b"alive"}, True),
        (-3600.0, {0.9: b"alive"}, True),
        (3600.0, {}, False),
        (-3600.0, {}, False),
        (3600.0, {0.9: None}, False),
        (float("inf"), {}, False),
    ],
)
def test_whether_a_pipeline_is_led_is_heard_where_clocks_do_not_say(
    age_s: float, written: Mapping[float, bytes | None], led: bool
) -> None:
    found: list[bool] = []

    async def look() -> None:
        found.append(await is_led(Topic(written), age_s))  # type: ignore[arg-type]

    virtual_time.run(look())
    assert found == [led]


def test_one_that_leaves_in_order_is_followed_at_once() -> None:
    took_s, _ = waited_s(Topic({0.5: b"alive", 1.5: None}), 0.5)
    assert took_s == pytest.approx(1.5)


def test_while_kafka_is_away_nobody_is_silent_and_then_a_leader_may_settle_first() -> None:
    took_s, _ = waited_s(Topic({}, away=(1.0, 60.0)), 0.5)
    assert 60.0 + AFTER_OUTAGE_S - LOOK_S < took_s <= 60.0 + AFTER_OUTAGE_S + 2 * LOOK_S


def test_a_leader_that_is_heard_after_an_outage_is_waited_for_as_any_other() -> None:
    took_s, _ = waited_s(Topic({62.0: b"alive"}, away=(1.0, 60.0)), 0.5)
    assert 62.0 + TAKE_OVER_AFTER_S < took_s <= 62.0 + TAKE_OVER_AFTER_S + LOOK_S


def test_a_kafka_that_takes_half_a_second_to_answer_is_not_away() -> None:
    took_s, _ = waited_s(Topic({}, answer_s=0.5), 0.5)
    assert took_s <= TAKE_OVER_AFTER_S + 0.5 + LOOK_S


def test_a_kafka_that_does_not_answer_for_seconds_is_as_one_that_was_away() -> None:
    class Stalling(Topic):
        async def end(self) -> Mapping[int, int]:
            self._answer_s = 2.5 if 1.0 < asyncio.get_running_loop().time() < 2.0 else 0.0
            return await super().end()

    took_s, _ = waited_s(Stalling({}), 0.5)
    assert took_s > AFTER_OUTAGE_S + 3.0
