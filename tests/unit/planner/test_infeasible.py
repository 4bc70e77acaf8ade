"""The smallest SLO that can be met, against every candidate of small problems."""

import re
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.infeasible import lowest_latency
from inferline_stream.planner.problem import in_stock
from inferline_stream.planner.provision import SearchSettings, provision
from tests.unit.planner.problems import candidates, p99_s, plain_problem, prices, random_problem


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("partitions", "stock"), [(3, 4), (4, 2), (0, 2)])
def test_the_least_latency_is_that_of_the_best_of_all_candidates(seed, partitions, stock):
    catalogue = prices(slow=stock, middle=stock, fast=stock - 1)
    problem = random_problem(seed, stages=1, rate=60, duration_s=3, partitions=partitions, catalogue=catalogue)
    found, latency_s = lowest_latency(problem, Evaluator(problem))
    assert latency_s == p99_s(problem, found)
    assert latency_s == pytest.approx(min(p99_s(problem, c) for c in candidates(problem, most=4)))


@pytest.mark.parametrize(("stock", "least_s"), [(2, 0.03), (1, None)])
def test_what_the_stock_of_all_stages_together_does_not_allow_is_not_the_quickest(stock, least_s):
    catalogue = {"fast": Hardware("fast", 1.0, stock=stock), "middle": Hardware("middle", 1.0, stock=8 * (stock - 1))}
    times_s = {"a": {"fast": 0.01}, "b": {"fast": 0.01, "middle": 0.02}}
    problem = plain_problem(times_s, np.arange(5.0), 1.0, catalogue)
    found, latency_s = lowest_latency(problem, Evaluator(problem))
    assert latency_s == (least_s and pytest.approx(least_s))
    assert in_stock(problem, found) == (least_s is not None)


def test_a_stage_whose_every_event_may_be_late_is_not_what_cannot_keep_up():
    """Ten events a second at a stage that serves four; one of a hundred goes on, and one of ten may be late."""
    arrows, paths = (Arrow(0, 1, True),), {0: 0.99, 1: 0.01}
    catalogue = {"x": Hardware("x", 1.0, stock=2)}
    times_s = {"a": {"x": 0.5}, "b": {"x": 0.01}}
    problem = plain_problem(times_s, np.arange(100) / 10, 0.6, catalogue, arrows=arrows, paths=paths, objective=0.9)
    problem = replace(problem, shape=replace(problem.shape, beside=(0,)))
    assert Evaluator(problem).bounds.required_rate[1] == 0.0
    with pytest.raises(Infeasible, match="stage 'a' cannot keep up"):
        provision(problem, pipeline="p")


@pytest.mark.parametrize("service_s", [0.0123456, 12.34567, 1234.567])
def test_the_smallest_slo_is_named_with_four_digits_and_rounded_up(service_s):
    problem = plain_problem({"a": {"x": service_s}}, np.zeros(1), service_s / 2, {"x": Hardware("x", 1.0)})
    with pytest.raises(Infeasible) as caught:
        provision(problem, pipeline="p")
    named = re.search(r"ask for an SLO of ([\d.]+) s or more", str(caught.value))
    assert named is not None
    assert service_s < float(named[1]) < service_s * 1.001
    assert len(named[1].replace(".", "").lstrip("0")) == 4


def test_where_only_the_papers_greedy_finds_no_plan_the_message_says_so():
    problem = random_problem(5, rate=120, duration_s=2.0, cv=1.0, partitions=1, slack=2.8)
    assert provision(problem, SearchSettings(), pipeline="p").predicted_p99_s <= problem.target_s
    with pytest.raises(Infeasible, match="and there is one; leave --algorithm out") as caught:
        provision(problem, SearchSettings("inferline"), pipeline="p")
    assert caught.value.smallest_slo_s is None
