"""Draws belong to an event and a purpose; among events and between purposes they look independent."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.kernels import draw
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.trace import Trace
from tests.unit.estimator.small import CHAIN, measured

EVENTS = 1_000_000
PROFILE = measured(CHAIN, {"a": {1: 1.0}, "b": {1: 1.0}})


def workload(seed: int) -> Workload:
    return prepare(CHAIN, PROFILE, Trace(np.arange(float(EVENTS))), seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 123_456_789_012])
def test_draws_are_uniform_and_do_not_depend_on_those_before(seed: int) -> None:
    bins = 1000
    drawn = workload(seed).partition_of(0, bins).astype(float)
    counts = np.bincount(drawn.astype(int), minlength=bins)
    chi_square = ((counts - EVENTS / bins) ** 2 / (EVENTS / bins)).sum()
    assert abs(chi_square - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))
    for lag in (1, 2, 3, 4, 7, 8, 16, 64, 1024):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 5 / np.sqrt(EVENTS)
    means = drawn.reshape(-1, 1000).mean(axis=1)
    assert means.var() * 1000 / drawn.var() == pytest.approx(1, abs=5 * np.sqrt(2 / means.size))


def test_other_seeds_and_other_purposes_draw_something_else() -> None:
    one, other = workload(1), workload(2)
    keys = {w.key(purpose, stage) for w in (one, other) for purpose in ("path", "service") for stage in (0, 1)}
    assert len(keys) == 8
    events = range(20_000)
    first, second = ([draw(event, key) for event in events] for key in (one.key("service", 0), one.key("service", 1)))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)


def test_a_draw_has_32_bits_and_every_one_of_them_varies() -> None:
    drawn = np.array([draw(event, 77) for event in range(20_000)])
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    for bit in range(32):
        assert np.mean(drawn >> bit & 1) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(20_000))
