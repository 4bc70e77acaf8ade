"""The judge's own figures, worked out by hand, and what it judges by."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks._families import FAMILIES, JUDGING, TUNING, case, drawn
from tests.benchmarks.judging import FLEETS, RULES, Ran, families, judged, table


def one(name: str, *, kept_by_hindsight: bool = True, **costs: float) -> list[Ran]:
    """A run of a thousand events in which each system costs so much; a negative cost misses the objective."""
    given = {"default": 1.5, "no tuner": 1.25, "clairvoyant": 1.0, **dict.fromkeys((*RULES, *FLEETS), 9.0)}
    given |= {key.replace("_", " "): cost for key, cost in costs.items()}
    late = {"clairvoyant": 0 if kept_by_hindsight else 100}
    return [
        Ran(name, "steady", 0.25, True, system, abs(cost), late.get(system, 2 if cost > 0 else 50), 1000)
        for system, cost in given.items()
    ]


def test_figures_are_of_the_runs_in_which_hindsight_and_the_plan_keep_the_objective():
    runs = [
        *one("a"),
        *one("b", default=2.0, no_tuner=-0.5, keda=1.75),
        *one("c", default=-1.2, keda_on_our_pool=1.1),
        *one("d", default=-8.0, keda=-7.0, kept_by_hindsight=False),
        *one("f", default=1.3, no_tuner=1.0),
        Ran("e", "steady", 0.25, True, "infeasible"),
    ]
    found = families(runs)
    expected = {
        "runs": 5,
        "runs_infeasible": 1,
        "runs_counted": 4,
        "runs_plan_alone_keeps": 4,
        "regret_mean": (1.5 + 2.0 + 1.2 + 1.3) / 4,
        "regret_mean_elsewhere": round((1.5 + 2.0 + 1.2) / 3, 3),
        "regret_max": 2.0,
        "over_plan_alone": round(((1.5 + 1.2 + 8.0) / 1.25 + 1.3) / 4, 3),
        "above_1_percent_share": 0.25,
        "baselines_cheaper_share": 0.4,
        "baselines_cheaper_share_as_they_come": 0.2,
        "beaten_in_hindsight": 1,
        "frontier_default_late": round((2 + 2 + 50 + 2) / 4000, 5),
        "frontier_no_tuner_kept": 0.75,
    }
    assert {name: found[name] for name in expected} == expected


def test_the_table_counts_the_runs_in_which_a_rule_beats_ours():
    rows = {row.split(" | ")[0]: row.split(" | ") for row in table([*one("a"), *one("b", keda=1.2)]).splitlines()}
    assert rows["| **inferline-stream**"][1] == "1.50, 2"
    assert rows["| KEDA's Kafka scaler, with the HPA"][1:] == ["5.10, 2", "1 |"]


def test_a_run_is_judged_once(tmp_path: Path):
    results = tmp_path / "results.jsonl"
    known = one("a")
    results.write_text("".join(json.dumps({"case": "first", **asdict(ran)}) + "\n" for ran in known))
    again = judged({"first": partial(pytest.fail, "judged again")}, ["default", "clairvoyant"], results=results)
    assert [*again] == [ran for ran in known if ran.system in ("default", "clairvoyant")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_drawn_by_its_seed_and_judged_by_other_arrivals_than_planned_on(family: str):
    draws = [drawn(family, 5.0, 240.0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    (_, sample, trace), (_, again, _), (_, other, _) = draws
    assert np.array_equal(sample.arrivals_s, again.arrivals_s)
    assert not np.array_equal(sample.arrivals_s, other.arrivals_s)
    assert trace.arrivals_s[0] >= 0
    assert trace.arrivals_s[-1] <= 240.0
    planned, judged_by = (np.round(np.diff(t.arrivals_s), 9) for t in (sample, trace))
    assert np.isin(planned[planned > 1e-4], judged_by).mean() < 0.05


def test_no_case_is_both_for_tuning_and_for_judging():
    drawn_by = {stream: case(0, stream).trace.arrivals_s.tobytes() for stream in (*TUNING, JUDGING)}
    assert len(set(drawn_by.values())) == len(drawn_by)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_day_of_each_family_has_traffic_to_plan_on_and_traffic_to_be_judged_on(family: str) -> None:
    _, sample, trace = drawn(family, 0.1, 24 * 3600.0, np.random.default_rng(1))
    assert min(len(sample), len(trace)) > 100
