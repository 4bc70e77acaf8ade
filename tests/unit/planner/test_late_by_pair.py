"""Late events of pairs of changes, against a sum in plain NumPy."""

import math

import numpy as np
import pytest

from inferline_stream.planner.late_by_pair import BLOCK, late_by_pair


@pytest.mark.parametrize("events", [1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("share", [-0.1, 0.0, 0.2, math.inf])
def test_pairs_have_as_many_late_events_as_their_effects_together_make_or_more_than_asked_for(events, share):
    rng = np.random.default_rng(events)
    effects_s, spare_s = rng.normal(size=(6, events)), rng.normal(size=events)
    weights = rng.integers(1, 5, events)
    pairs = np.indices((6, 6)).reshape(2, -1)
    most = share * float(weights.sum())
    found = late_by_pair(effects_s, spare_s, weights, tuple(pairs), most)
    expected = [int(weights[effects_s[one] + effects_s[other] > spare_s].sum()) for one, other in pairs.T]
    assert len(set(expected)) > 1
    for late, true in zip(found, expected, strict=True):
        assert late == true or true > late > most
