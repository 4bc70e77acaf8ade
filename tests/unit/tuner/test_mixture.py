"""The plan's mixture of hardware kinds: against every other way to share out as many replicas."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.tuner.mixture import following, leaving, mixture
from tests.support.hypothesis_profiles import examples

PLANS = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda counts: dict(zip("abc", counts, strict=False)))


def distance(planned: dict[str, int], held: dict[str, int], replicas: int) -> float:
    """How far from the plan's shares: Σ (held − share)²/share, which Webster's method makes smallest."""
    shares = {kind: replicas * count / sum(planned.values()) for kind, count in planned.items()}
    return sum((held[kind] - share) ** 2 / share for kind, share in shares.items())


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(PLANS, st.integers(1, 12))
def test_no_other_mixture_of_as_many_replicas_is_nearer_to_the_plans_shares(planned, replicas):
    found = mixture(planned, replicas)
    assert sum(found.values()) == replicas
    others = (
        dict(zip(planned, counts, strict=True))
        for counts in itertools.product(range(replicas + 1), repeat=len(planned))
        if sum(counts) == replicas
    )
    nearest = min(distance(planned, other, replicas) for other in others)
    assert distance(planned, found, replicas) == pytest.approx(nearest)


@given(PLANS, st.integers(0, 30))
def test_one_after_another_replicas_come_to_the_same_mixture_and_leave_as_they_came(planned, replicas):
    held = mixture(planned, replicas)
    kind = following(planned, held, planned)
    larger = {**held, kind: held[kind] + 1}
    assert larger == mixture(planned, replicas + 1)
    assert leaving(planned, larger, [kind for kind, count in larger.items() if count]) == kind


@given(PLANS, st.integers(0, 4))
def test_whole_plans_are_mixed_as_the_plan_is(planned, times):
    whole = mixture(planned, times * sum(planned.values()))
    assert whole == {kind: times * count for kind, count in planned.items()}
