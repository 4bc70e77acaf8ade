"""The share of a stage's fallback, and what is wrong with one that is declared."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from inferline_stream import Emulated, OpenInference
from inferline_stream.pipeline.fallback import (
    UsualRest,
    allows,
    count,
    counts_of,
    planned_counts,
    roll,
    window_of,
)
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import Tagged, judge, moderation, only_problem, search


def fast(tagged: list[Tagged]) -> list[float]:
    return [1.0] * len(tagged)


async def waits(tagged: list[Tagged]) -> list[float]:
    return [1.0] * len(tagged)


def posed(tagged: Tagged) -> dict[str, Any]:
    return {"text": tagged.text}


def answered(outputs: Any) -> float:
    return float(outputs["score"])


def served(url: str = "http://127.0.0.1:8000", model: str = "large", **more: Any) -> Any:
    return OpenInference(url, model=model, request=posed, response=answered, **more)


@pytest.mark.parametrize("seed", range(6))
def test_the_fallback_makes_no_more_than_its_share_of_an_hour_by_bins_of_five_minutes(seed: int) -> None:
    random, now_s, share = Random(seed), 1000.0, 0.1
    window, seen = window_of(planned_counts(2.0), now_s), [(math.floor(now_s / 300), 600, 0)]
    for _ in range(3000):
        now_s += random.choice([0.1, 1.0, 20.0, 400.0, random.choice([5.0, 5000.0])])
        events, newest = random.randint(1, 8), math.floor(now_s / 300)
        roll(window, now_s)
        recent = [entry for entry in seen if newest - entry[0] < 12]
        served, degraded = sum(n for _, n, _ in recent), sum(n for _, _, n in recent)
        may = degraded + events <= share * (served + events)
        assert allows(window, share, events) == may
        count(window, events, events if may else 0)
        seen.append((newest, events, events if may else 0))
    assert any(degraded for _, _, degraded in seen)
    again = window_of(counts_of(window), now_s)
    assert again == [*window[:3], 0, *window[4:]]  # how many it ever made is of the process


def test_what_r_usually_is_forgets_what_it_was_minutes_ago() -> None:
    random, usual, seen, now_s = Random(3), UsualRest(), list[tuple[float, float]](), 100.0
    assert usual.longer_s({"a": 0.1}) == {"a": 0.0}
    for _ in range(60):
        now_s += random.choice([0.5, 0.5, 30.0, 400.0])
        rest_s = random.choice([0.05, 0.3])
        usual = usual.then({"a": rest_s, "b": 1.0}, now_s)
        seen.append((now_s, rest_s))
        weights = [math.exp((at_s - now_s) / 300.0) for at_s, _ in seen]
        mean_s = sum(w * own_s for w, (_, own_s) in zip(weights, seen, strict=True)) / sum(weights)
        longer_s = usual.longer_s({"a": rest_s, "b": 2.0})
        assert longer_s == {"a": pytest.approx(max(0.0, mean_s - rest_s), abs=1e-9), "b": 0.0}


SLOW = {"hardware": ["emulated-cpu"], "emulated": Emulated({1: "20ms"}, fallback={1: "5ms"})}


@pytest.mark.parametrize(
    ("of_toxicity", "problem"),
    [
        ({"fallback": search}, "returns list[bool], and the stage list[float]; annotate both with the same type"),
        ({"fallback": fast, "fallback_share": "101%"}, "fallback_share '101%' must be above 0 % and at most 100 %"),
        ({"fallback": fast, "fallback_share": "0%"}, "fallback_share '0%' must be above 0 % and at most 100 %"),
        ({"fallback": fast, "fallback_share": 0.05}, "fallback_share 0.05 is no percentage: write a number and"),
        ({"fallback_share": "5%"}, "fallback_share without a fallback; give the faster version, or leave"),
        ({"fallback": waits}, "its fallback must be declared with `def`, as the stage is"),
        ({"fallback": "no name"}, "fallback: 'no name' does not name code"),
        ({"fallback": 7}, "fallback: 7 is no code; give a function, a class, or its name"),
        ({"fallback": served()}, "is code, and its fallback is a server; both must be of one kind"),
        ({"run": None, "server": served(), "fallback": fast}, "is a server, and its fallback is code; both must"),
        ({"run": None, "server": served(), "fallback": served(model="")}, "fallback: server has no model"),
        (
            {
                "run": None,
                "server": served("http://127.0.0.1:{port}", command="serve {port}"),
                "fallback": served("http://127.0.0.1:9000", "small"),
            },
            "a fallback asks the server that runs already: give it the stage's url, and no command",
        ),
        ({"fallback": fast, **SLOW, "emulated": {1: "20ms"}}, "fallback: no service times for 'emulated-cpu'; give"),
        (SLOW, "emulated times of a fallback, and it has none; give fallback=, or leave them out"),
    ],
)
def test_a_fallback_that_cannot_be_is_refused_with_the_remedy(of_toxicity: dict[str, Any], problem: str) -> None:
    assert problem in only_problem(moderation(toxicity=of_toxicity))


@pytest.mark.parametrize(
    "of_toxicity",
    [
        {"fallback": fast},
        {"fallback": judge, "fallback_share": "2.5 %"},
        {"fallback": "models.small:Small"},
        {"fallback": fast, **SLOW},
        {"run": None, "server": served(), "fallback": served(model="small")},
    ],
)
def test_a_fallback_that_can_be_is_none(of_toxicity: dict[str, Any]) -> None:
    assert problems(moderation(toxicity=of_toxicity)) == ()


def test_in_order_of_entry_there_is_no_fallback() -> None:
    assert "a fallback needs order='deadline'" in only_problem(moderation(order="entry", toxicity={"fallback": fast}))
