"""Offsets that Kafka seems to have forgotten."""

import pytest

from inferline_stream.kafka import offsets
from inferline_stream.kafka.offsets import surely_committed


def _answers(*answers):
    """Kafka's answers, the last one for ever; and what it was asked."""
    asked = []

    async def ask(partitions):
        asked.append(tuple(partitions))
        return answers[min(len(asked), len(answers)) - 1]

    return ask, asked


async def test_a_coordinator_that_knows_nothing_yet_is_asked_again():
    ask, asked = _answers({}, {0: (5, "")}, {0: (6, ""), 1: (7, "")})
    assert await surely_committed(ask, (0, 1)) == {0: (6, ""), 1: (7, "")}
    assert asked == [(0, 1)] * 3


@pytest.mark.parametrize("known", [{}, {0: (5, "")}])
async def test_an_offset_that_stays_away_is_missing(known, monkeypatch):
    monkeypatch.setattr(offsets, "UNSURE_S", 0.12)
    ask, asked = _answers(known)
    assert await surely_committed(ask, (0, 1)) == known
    assert len(asked) > 1


async def test_a_group_that_has_offsets_is_asked_once():
    ask, asked = _answers({0: (5, "")})
    await surely_committed(ask, (0,))
    assert await surely_committed(ask, ()) == {0: (5, "")}
    assert asked == [(0,), ()]
