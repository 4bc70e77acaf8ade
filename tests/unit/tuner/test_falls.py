"""A fall counts where it is hardly chance, and for what is left of the busiest seconds."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.tuner.forecast import fallen_to


def test_what_traffic_has_surely_fallen_to_is_read_off_its_busiest_five_seconds():
    peak, low = [100] * 20, [40] * 10
    assert fallen_to(peak + low) == 0.4
    assert fallen_to(peak + [70] * 5 + low) == 0.4, "what lies between counts for neither"
    assert fallen_to(peak + [40] * 5 + [60] * 5) == 0.6, "as busy as its last seconds"
    assert fallen_to([40] * 10 + peak[:10] + low) == 0.4, "a peak that rose before"
    assert fallen_to([100] * 5 + [40] * 25) == 0.4, "a peak in the first seconds that are known"
    assert fallen_to(low + peak) == fallen_to(peak + [100] * 10) == 1.0
    assert fallen_to(peak + [40] * 5) == 1.0, "of ten seconds five are busy: 200 of 1,700 fewer, and chance is 206"


def test_a_fall_by_chance_or_by_less_than_a_plan_leaves_as_room_is_none():
    assert fallen_to([100] * 20 + [85] * 10) == 1.0, "150 fewer, and chance makes 5 · √1850 = 215 of them"
    assert fallen_to([1000] * 20 + [950] * 10) == 1.0, "500 fewer, and chance makes 5 · √19500 = 698 of them"
    assert fallen_to([10_000] * 20 + [9_200] * 10) == 1.0
    assert fallen_to([10_000] * 20 + [9_000] * 10) == 0.9
    assert fallen_to([9] * 20 + [0] * 10) == 1.0, "a handful"
    assert fallen_to([100] * 5 + [0] * 10) == fallen_to([]) == 1.0


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_bursts_about_one_rate_never_fall_surely(cv):
    trace = gamma_trace(150.0, cv, 600.0, np.random.default_rng(2))
    counts = np.bincount(trace.arrivals_s.astype(int)).tolist()
    assert {fallen_to(counts[end - 30 : end]) for end in range(30, len(counts))} == {1.0}
