"""Numbers of members with the delays of a HorizontalPodAutoscaler."""

import numpy as np
import pytest

from inferline_stream.replay.hpa_follower import AT_ONCE, UNSET, HpaFollower
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Scheduled


def _members(behavior, asked, until_s, *, begun=1, tolerance=0.1):
    """(time, members) of each change, where the policy asks by the clock; ``b`` is scaled by somebody else."""
    policy = Scheduled("ours", [(time_s, {"a": {"cpu": n}, "b": {"cpu": n}}) for time_s, n in asked])
    follower = HpaFollower(policy, {"a": begun, "b": begun}, {"a": "cpu", "b": "cpu"}, {"a": tolerance}, behavior)
    found = {"a": [], "b": []}
    for time_s in np.arange(1.0, until_s, 1.0):
        wish = follower.decide(View(time_s, np.empty(0), (), (), time_s, {}, 0, 0))
        for name, kinds in {} if wish is None else wish.replicas.items():
            found[name].append((time_s, kinds["cpu"]))
    assert found["b"] == [(time_s, n) for time_s, n in asked]
    return found["a"]


def test_it_follows_at_its_next_look_and_what_is_within_its_tolerance_is_asked_for_beyond_it():
    asked = [(1, 10), (20, 11), (40, 12), (61, 5)]
    # 11 of 10 would be left alone: 12 are there instead, and still when 12 are wanted.
    assert _members(AT_ONCE, asked, 100) == [(15, 10), (30, 12), (75, 5)]


@pytest.mark.parametrize(("tolerance", "lowered"), [(0.1, []), (0.0, [(30, 19)])])
def test_within_its_tolerance_nothing_is_lowered(tolerance, lowered):
    assert _members(AT_ONCE, [(1, 20), (20, 19)], 100, tolerance=tolerance) == [(15, 20), *lowered]


def test_without_a_behavior_it_doubles_or_adds_four_and_lowers_after_five_minutes():
    assert _members(UNSET, [(1, 24), (61, 3)], 400) == [(15, 5), (30, 10), (45, 20), (60, 24), (360, 3)]
