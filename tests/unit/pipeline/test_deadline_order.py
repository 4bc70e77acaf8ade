"""What the rule "hopeless last" takes for the rest of an event's way, and which batches it leaves room for."""

import itertools
import math

import numpy as np
import pytest

from inferline_stream.pipeline.deadline_order import NEWS_EVERY_S, NEWS_LASTS_S, REST_SHARE, Stay, batch_cap, rest_s
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths, visited

CHAIN = Shape(("a", "b", "c"), (Arrow(0, 1), Arrow(1, 2)))
FORK = Shape(("a", "b", "c", "d"), (Arrow(0, 1, conditional=True), Arrow(0, 2), Arrow(1, 3), Arrow(2, 3)))
ALONE = {"a": 0.01, "b": 0.02, "c": 0.04, "d": 0.08}


@pytest.mark.parametrize(
    ("rest", "cap"), [(0.0, 4), (0.19, 4), (0.21, 3), (0.36, 2), (0.41, 1), (0.9, 1)], ids=lambda x: str(x)
)
def test_a_batch_leaves_a_tenth_of_the_slo_beside_the_rest_of_its_way(rest: float, cap: int) -> None:
    assert batch_cap([0.45, 0.5, 0.6, 0.7], rest, 1.0) == cap


def test_a_batch_that_is_faster_than_a_smaller_one_is_not_left_out() -> None:
    assert batch_cap([0.1, 0.95, 0.8], 0.0, 1.0) == 3


def test_the_rest_of_a_way_is_its_stays_and_hops() -> None:
    found = rest_s(CHAIN, Paths((3,), (1.0,)), {"a": 0.3, "b": 0.5, "c": 0.7}, ALONE, hop_s=0.01, slo_s=2.0)
    assert found == pytest.approx({"a": 0.5 + 0.7 + 0.03, "b": 0.7 + 0.02, "c": 0.01})


def test_a_stay_that_is_not_known_is_that_of_one_event_on_the_fastest_hardware() -> None:
    found = rest_s(CHAIN, Paths((3,), (1.0,)), {"b": None, "c": 0.7}, ALONE, hop_s=0.01, slo_s=2.0)
    assert found["a"] == pytest.approx(0.02 + 0.7 + 0.03)


def test_no_stay_counts_as_longer_than_the_slo() -> None:
    found = rest_s(CHAIN, Paths((3,), (1.0,)), {"c": 9.0}, {**ALONE, "b": 8.0}, hop_s=0.0, slo_s=0.5)
    assert found["a"] == 1.0


@pytest.mark.parametrize(("share", "of_b_s"), [(0.05, 0.1), (0.1, 0.1), (0.15, 0.5), (0.7, 0.5)])
def test_a_way_that_more_than_a_tenth_take_counts_and_without_news_the_shortest_one(
    share: float, of_b_s: float
) -> None:
    paths = independent_paths(FORK, {("a", "b"): share})
    stays = {"b": 0.5, "c": 0.1, "d": 0.2}
    found = rest_s(FORK, paths, stays, ALONE, hop_s=0.01, slo_s=1.0)
    assert found["a"] == pytest.approx(of_b_s + 0.2 + 0.03)
    assert rest_s(FORK, paths, {}, ALONE, hop_s=0.01, slo_s=1.0)["a"] == pytest.approx(0.04 + 0.08 + 0.03)


@pytest.mark.parametrize("seed", range(20))
def test_the_rest_agrees_with_a_walk_along_every_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple("abcde")
    pairs = [(i, j) for i, j in itertools.combinations(range(5), 2) if rng.random() < 0.6]
    arrows = tuple(Arrow(i, j, bool(rng.random() < 0.5)) for j, i in sorted((j, i) for i, j in pairs))
    shape = Shape(names, arrows)
    paths = independent_paths(shape, {(names[w.parent], names[w.child]): 0.6 for w in arrows if w.conditional})
    stays = {name: float(rng.random()) for name in names}

    def walked(s: int, mask: int) -> float:
        ends = [
            0.1 + stays[names[w.child]] + walked(w.child, mask)
            for a, w in enumerate(arrows)
            if w.parent == s and mask >> a & 1
        ]
        return max(ends, default=0.1)

    found = rest_s(shape, paths, stays, dict.fromkeys(names, 1.0), hop_s=0.1, slo_s=2.0)
    for s, name in enumerate(names):
        seen = [(w, walked(s, m)) for m, w in zip(paths.masks, paths.weights, strict=True) if visited(shape, m)[s]]
        shorter = sum(w for w, rest in seen if rest < found[name] - 1e-9) / sum(w for w, _ in seen)
        as_short = sum(w for w, rest in seen if rest < found[name] + 1e-9) / sum(w for w, _ in seen)
        assert shorter < REST_SHARE <= as_short + 1e-9, seen


def test_a_stay_is_forgotten_exponentially_and_two_slots_count_by_their_events() -> None:
    stay = Stay().add(0.2, 3, 10.0).add(0.5, 1, 10.0 + NEWS_EVERY_S)
    kept = 3 * math.exp(-1)
    assert stay.at(11.0) == pytest.approx((0.2 * kept + 0.5) / (kept + 1))
    other = Stay().add(0.9, 2, 10.0)
    for both in (stay.merged(other), other.merged(stay)):
        assert both.at(11.0) == pytest.approx(
            (0.2 * kept + 0.5 + 0.9 * 2 * math.exp(-1)) / (kept + 1 + 2 * math.exp(-1))
        )
    assert stay.merged(Stay()) == Stay().merged(stay) == stay


def test_old_news_is_none() -> None:
    stay = Stay().add(0.2, 3, 10.0)
    assert stay.at(10.0 + NEWS_LASTS_S) == pytest.approx(0.2)
    assert stay.at(10.1 + NEWS_LASTS_S) is None
    assert Stay().at(0.0) is None
    assert Stay().merged(Stay()).at(0.0) is None
