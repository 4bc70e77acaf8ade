"""The default search and the proof, against brute force and against the paper's algorithm."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import Infeasible, InvalidInput
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace, busiest, gamma_trace, levels_trace
from inferline_stream.planner import default_search as coarse_to_fine
from inferline_stream.planner import provision as provisioning
from inferline_stream.planner.branch_and_bound import prove
from inferline_stream.planner.default_search import levels, refine
from inferline_stream.planner.evaluator import Evaluator, Stopped
from inferline_stream.planner.local_search import with_largest_limits
from inferline_stream.planner.pareto_search import ParetoSearch
from inferline_stream.planner.problem import Problem, cost_of, in_stock
from inferline_stream.planner.provision import MARGIN, SearchSettings, _dearer, _Journal, _papers, provision, search
from inferline_stream.planner.stage_options import stage_options
from tests.unit.planner.problems import SIZES, least_cost, meets, p99_s, plain_problem, prices, random_problem

FEASIBLE_SEEDS = (0, 1, 2, 4, 5, 6, 8)


def _plan(problem, *, known=(), **how):
    return provision(problem, SearchSettings(**how), known=known)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5])
def test_wherever_a_proof_is_cut_short_the_optimum_lies_between_its_bound_and_its_best(seed):
    problem = random_problem(seed, stages=1 + seed % 2, rate=50, duration_s=6, slack=3.0, partitions=(0, 6)[seed // 3])
    optimum = least_cost(problem, most=6)
    evaluator, bounds = Evaluator(problem), [0.0]
    while not (proof := prove(_interrupted_after(problem, len(bounds), evaluator.workloads), None)).proven:
        cost = math.inf if proof.best is None else cost_of(problem, proof.best)
        assert bounds[-1] <= proof.lower_bound <= optimum + 1e-9
        assert optimum <= cost + 1e-9
        bounds.append(proof.lower_bound)
    assert optimum / 2 < bounds[-1]
    assert proof.lower_bound == pytest.approx(optimum)


def _interrupted_after(problem, simulations, workloads):
    left = iter(range(simulations))
    return Evaluator(problem, lambda: next(left, None) is None, workloads)


def test_a_proof_ends_with_its_effort():
    problem = random_problem(8, stages=3, rate=200, slack=3.0)
    evaluator = Evaluator(problem)
    short = prove(evaluator, None, effort=20_000)
    assert not short.proven
    assert 0 < evaluator.simulated_events < 20_000 + len(problem.traces[0])


@pytest.mark.parametrize(
    ("seed", "partitions"), [(0, 0), (2, 12), (6, 0), (8, 12)]
)  # two and three stages, and three with a bypass, on pools and on partitions
def test_the_default_plan_meets_the_slo_on_the_whole_trace_and_costs_no_more_than_the_paper_s(seed, partitions):
    problem = random_problem(seed, partitions=partitions, slack=4.0)
    paper, plan = _plan(problem, algorithm="inferline"), _plan(problem)
    candidate = tuple(plan.allocations.values())
    assert meets(problem, candidate)
    assert plan.predicted_p99_s == p99_s(problem, candidate)
    assert plan.cost_per_hour == pytest.approx(cost_of(problem, candidate))
    assert plan.cost_per_hour <= paper.cost_per_hour + 1e-9


def test_the_margin_is_kept_free_where_it_can_be():
    problem = replace(random_problem(6, slack=3.0), order="entry")
    plan = _plan(problem, margin=0.2)
    assert plan.predicted_p99_s <= 0.8 * plan.slo_s < 0.9 * plan.slo_s < _plan(problem, margin=0.0).predicted_p99_s
    assert plan.cost_per_hour < _plan(problem, algorithm="inferline").cost_per_hour
    assert 0 < MARGIN < 0.2


def test_a_margin_that_would_cost_more_than_the_paper_s_plan_is_given_up():
    problem = random_problem(9, slack=3.0)
    cost = _plan(problem, margin=0.1).cost_per_hour
    assert cost == pytest.approx(_plan(problem, margin=0.0).cost_per_hour)
    assert cost <= _plan(problem, algorithm="inferline").cost_per_hour + 1e-9


def test_a_margin_that_takes_a_replica_more_than_the_paper_s_plan_is_given_up():
    """Of eight events at once a replica serves the last after 1 s, the SLO, and two after 0.5 s."""
    problem = plain_problem({"a": {"x": 0.125}}, np.zeros(8), 1.0, {"x": Hardware("x", 1.0)})
    found = search(problem, SearchSettings(margin=0.5))
    assert (found.candidate, found.p99_s) == (((Allocation("x", 1, 1),),), 1.0)


@pytest.mark.parametrize(("apart_s", "met"), [(0.5, True), (0.25, False)])
def test_on_long_traces_the_paper_s_plan_for_the_busiest_piece_counts_if_it_meets_the_slo_on_the_whole(
    monkeypatch, apart_s, met
):
    """A replica serves four events at once in 0.5 s, all of the SLO; four more wait for them if they come sooner."""
    monkeypatch.setattr(provisioning, "PAPER_WORK", 0)
    monkeypatch.setattr(provisioning, "PAPER_EVENTS", 4)
    arrivals_s = np.repeat([0.0, apart_s], 4)
    problem = plain_problem({"a": {"x": 0.125}}, arrivals_s, 0.5, {"x": Hardware("x", 1.0)})
    journal, one = _Journal(problem, None), ((Allocation("x", 1, 1),),)
    assert _papers(Evaluator(problem), journal, SearchSettings()) == [one] * met
    assert journal.best == (one if met else None)


@pytest.mark.parametrize(("work", "paper"), [(16, 2), (15, None)])
def test_a_trace_is_long_for_the_paper_s_plan_by_its_events_times_the_stages(monkeypatch, work, paper):
    """Of eight events at two stages; one replica suffices for the busiest four of them, and two for all."""
    monkeypatch.setattr(provisioning, "PAPER_WORK", work)
    monkeypatch.setattr(provisioning, "PAPER_EVENTS", 4)
    times_s = {"a": {"x": 0.125}, "b": {"x": 0.0625}}
    problem = plain_problem(times_s, np.repeat([0.0, 0.25], 4), 0.5625, {"x": Hardware("x", 1.0)})
    found = _papers(Evaluator(problem), _Journal(problem, None), SearchSettings())
    assert [candidate[0][0].replicas for candidate in found] == [paper] * (paper is not None)


def test_an_earlier_plan_that_meets_the_slo_is_taken_whatever_its_margin():
    problem = random_problem(6, slack=3.0)
    earlier = _plan(problem, margin=0.0)
    assert _plan(problem, margin=0.1).cost_per_hour > earlier.cost_per_hour
    plan = _plan(problem, margin=0.1, known=[earlier])
    assert plan.cost_per_hour == earlier.cost_per_hour >= plan.lower_bound_per_hour > 0


@pytest.mark.parametrize("algorithm", ["default", "inferline", "exact"])
def test_an_earlier_plan_wins_if_it_is_cheaper_and_never_where_it_misses_the_slo_or_overdraws_the_stock(algorithm):
    times_s = {"a": {"slow": 0.03, "middle": 0.01}, "b": {"slow": 0.02}}
    problem = plain_problem(times_s, np.repeat(np.arange(20.0), 2), 0.06, prices())
    late, best = (((Allocation("slow", 1, n),),) * 2 for n in (1, 2))
    assert not meets(problem, late)
    assert cost_of(problem, best) == pytest.approx(least_cost(problem, most=3))
    assert search(problem, SearchSettings(algorithm=algorithm, margin=0.0), known=[late, best]).candidate == best
    for asked, known in ((problem, late), (replace(problem, catalogue=prices(slow=1)), best)):
        found = search(asked, SearchSettings(algorithm=algorithm, margin=0.0), known=[known]).candidate
        assert cost_of(asked, found) > cost_of(asked, known)
        assert in_stock(asked, found)
        assert meets(asked, found)


def test_stock_that_does_not_suffice_of_one_kind_is_mixed_with_another():
    problem = random_problem(1, stages=1, rate=900, slack=6.0, catalogue=prices(fast=1, middle=1, slow=40))
    plan = _plan(problem)
    held = plan.allocations["s0"]
    assert in_stock(problem, (held,))
    assert meets(problem, (held,))
    alone = [(Allocation(kind, size, problem.catalogue[kind].stock),) for kind in ("fast", "middle") for size in SIZES]
    assert not any(meets(problem, (option,)) for option in alone)


def _held(candidate):
    return sum((Counter({a.hardware: a.replicas}) for option in candidate for a in option), Counter())


@pytest.mark.parametrize("seed", [0, 5])
def test_stock_one_short_of_what_the_cheapest_plan_takes_is_not_overdrawn_and_the_next_cheapest_is_found(seed):
    problem = random_problem(seed, stages=2, rate=50, duration_s=6, slack=3.0)
    kind, wanted = _held(prove(Evaluator(problem), None).best).most_common(1)[0]
    short = replace(problem, catalogue=prices(**{kind: wanted - 1}))
    found = {a: search(short, SearchSettings(algorithm=a, margin=0.0)).candidate for a in ("default", "exact")}
    assert all(_held(candidate)[kind] < wanted and meets(short, candidate) for candidate in found.values())
    assert cost_of(short, found["exact"]) == pytest.approx(least_cost(short, most=6))


@pytest.mark.parametrize("algorithm", ["default", "exact"])
def test_a_scarce_kind_that_every_stage_would_take_goes_to_those_that_have_no_other(algorithm):
    catalogue = {"scarce": Hardware("scarce", 1.0, stock=2), "dear": Hardware("dear", 2.0)}
    times_s = {"a": {"scarce": 0.01, "dear": 0.01}, "b": {"scarce": 0.01}, "c": {"scarce": 0.01}}
    problem = plain_problem(times_s, np.arange(20.0), 0.1, catalogue)
    found = search(problem, SearchSettings(algorithm=algorithm))
    assert cost_of(problem, found.candidate) == found.lower_bound_per_hour == least_cost(problem, most=2) == 4.0
    with pytest.raises(Infeasible):
        search(
            replace(problem, catalogue=catalogue | {"scarce": Hardware("scarce", 1.0, stock=1)}),
            SearchSettings(algorithm=algorithm),
        )


@pytest.mark.parametrize("algorithm", ["default", "exact"])
def test_a_search_that_is_stopped_before_it_has_found_anything_does_not_call_the_problem_infeasible(algorithm):
    catalogue = {"scarce": Hardware("scarce", 1.0, stock=2), "dear": Hardware("dear", 2.0)}
    times_s = {"a": {"scarce": 0.01, "dear": 0.01}, "b": {"scarce": 0.01}, "c": {"scarce": 0.01}}
    problem = plain_problem(times_s, np.arange(20.0), 0.1, catalogue)
    for patience in itertools.count(1):
        left = iter(range(patience))
        try:
            found = search(
                problem,
                SearchSettings(algorithm=algorithm, margin=0.0, stop=lambda left=left: next(left, None) is None),
            )
        except Stopped:
            continue
        assert cost_of(problem, found.candidate) >= 4.0
        break
    assert patience > 3


def test_stock_is_that_of_all_stages_together_and_partitions_that_of_each():
    problem = random_problem(1, stages=2, catalogue=prices(fast=3), partitions=4)
    for first, second, kept in ((1, 2, True), (2, 2, False), (3, 1, False), (4, 0, False)):
        held = [(Allocation("fast", 1, n),) if n else (Allocation("slow", 1, 4),) for n in (first, second)]
        assert in_stock(problem, tuple(held)) == kept
    assert not in_stock(problem, ((Allocation("slow", 1, 4),), (Allocation("slow", 1, 5),)))


def test_a_menu_reaches_to_the_last_partition_and_to_the_whole_stock():
    problem = random_problem(1, stages=1, rate=5, slack=20.0, catalogue=prices(fast=3), partitions=6)
    options = stage_options(Evaluator(problem).bounds, 0, math.inf)
    most = {kind: max(a.replicas for (a,) in options if a.hardware == kind) for kind in problem.catalogue}
    assert most == {"slow": 6, "middle": 6, "fast": 3}


def test_several_traces_are_met_one_by_one():
    problem = random_problem(2, stages=2, slack=4.0)
    rng = np.random.default_rng(7)
    calm, stormy = gamma_trace(40, 1, 20, rng), gamma_trace(120, 4, 20, rng)
    both = _plan(replace(problem, traces=(calm, stormy)))
    candidate = tuple(both.allocations.values())
    assert max(p99_s(problem, candidate, t) for t in (calm, stormy)) == both.predicted_p99_s <= problem.target_s
    alone = _plan(replace(problem, traces=(calm,)))
    assert both.cost_per_hour >= alone.cost_per_hour


def test_an_interrupted_search_gives_the_best_plan_so_far():
    problem = random_problem(5, stages=3, rate=150, slack=6.0)
    seen = []
    plan = _plan(problem, progress=seen.append, stop=lambda: any(p.cost_per_hour is not None for p in seen))
    assert meets(problem, tuple(plan.allocations.values()))
    costs = [p.cost_per_hour for p in seen if p.cost_per_hour is not None]
    assert costs == sorted(costs, reverse=True)
    assert plan.cost_per_hour == pytest.approx(costs[-1])


def test_ctrl_c_gives_the_best_plan_so_far():
    problem = random_problem(5, stages=3, rate=150, slack=6.0)

    def interrupt(progress):
        if progress.cost_per_hour is not None:
            raise KeyboardInterrupt

    assert meets(problem, tuple(_plan(problem, progress=interrupt).allocations.values()))


def test_an_slo_below_the_longest_path_is_infeasible_and_the_smallest_named_is_met():
    problem = random_problem(3, stages=2, slack=0.5)
    with pytest.raises(Infeasible, match="when nothing waits") as caught:
        _plan(problem)
    smallest = caught.value.smallest_slo_s
    assert smallest > problem.target_s
    assert _plan(replace(problem, target_s=smallest * (1 + 1e-9))).predicted_p99_s <= smallest * (1 + 1e-9)


@pytest.mark.parametrize("algorithm", ["default", "inferline", "exact"])
def test_the_same_input_gives_the_same_plan(algorithm):
    problem = random_problem(6, rate=40, duration_s=10.0, slack=3.0)
    assert _plan(problem, algorithm=algorithm) == _plan(problem, algorithm=algorithm)


def test_the_plan_carries_the_sample_s_envelope_rates_and_utilization():
    problem = random_problem(2, stages=2, slack=4.0)
    plan = _plan(problem)
    window, count = plan.envelope[-1]
    assert (window, count) == (60.0, len(problem.traces[0]))
    assert plan.envelope[0][0] == pytest.approx(
        sum(min(problem.measured.profiles[s, k].service_time_s(1) for k in problem.catalogue) for s in ("s0", "s1"))
    )
    (held,) = plan.allocations["s0"]
    throughput = held.replicas * problem.measured.profiles["s0", held.hardware].throughput(held.max_batch_size)
    assert plan.utilization["s0"] == pytest.approx(plan.arrival_rate / throughput)


def test_one_event_is_trace_enough_and_an_empty_trace_is_refused():
    problem = random_problem(1, stages=2)
    one = _plan(replace(problem, traces=(Trace(np.array([0.0])),), target_s=1.0))
    assert one.cost_per_hour == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least one arrival"):
        replace(problem, traces=(Trace(np.empty(0)),))


@pytest.mark.parametrize(
    ("field", "value", "message"), [("target_s", math.nan, "SLO nan"), ("objective", 1.5, "objective")]
)
def test_numbers_that_cannot_be_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(random_problem(1, stages=1), **{field: value})
    with pytest.raises(ValueError, match=r"margin 1\.0"):
        SearchSettings(margin=1.0)


def test_a_stage_without_priced_hardware_is_refused_by_name():
    problem = random_problem(1, stages=1)
    with pytest.raises(InvalidInput, match="'s0' was profiled on none"):
        replace(problem, catalogue={})


def test_levels_grow_from_the_busiest_piece_to_the_whole_trace():
    rng = np.random.default_rng(1)
    trace = levels_trace([(100, 1500), (400, 200), (100, 1500)], 1, rng)
    problem = random_problem(1, stages=1)
    problem = Problem(problem.shape, problem.measured, (trace,), 1.0, problem.catalogue)
    sizes = [len(level.traces[0]) for level in levels(problem)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(trace)
    assert busiest(trace, sizes[0]).arrival_rate == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize(("effort", "descents"), [(10_000, 8), (0, 1)])
def test_once_the_effort_is_used_up_only_the_cheapest_candidate_has_been_taken_down_in_cost(
    monkeypatch, effort, descents
):
    """Forty events at once: 1 to 8 replicas are all in time, and a descent reports a step at least."""
    monkeypatch.setattr(coarse_to_fine, "EFFORT", effort)
    problem = plain_problem({"a": {"x": 0.125}}, np.zeros(40), 5.0, {"x": Hardware("x", 1.0)})
    phases = []
    found = refine(Evaluator(problem), (), stop=lambda: False, report=lambda phase, _: phases.append(phase))
    assert list(found) == [((Allocation("x", 1, 1),),)]
    assert set(phases) == {"searching", "descending"}
    assert phases.count("descending") >= descents
    assert (phases.count("descending") == 1) == (effort == 0)


@pytest.mark.parametrize("stages", [1, 2])
def test_the_effort_is_counted_in_events_for_each_square_of_the_number_of_stages(monkeypatch, stages):
    times_s = {name: {"x": 0.125} for name in "ab"[:stages]}
    problem = plain_problem(times_s, np.zeros(40), 6.0, {"x": Hardware("x", 1.0)})

    def simulated(effort):
        monkeypatch.setattr(coarse_to_fine, "EFFORT", effort)
        evaluator = Evaluator(problem)
        assert list(refine(evaluator, (), stop=lambda: False, report=lambda *_: None))
        return evaluator.simulated_events

    whole = simulated(math.inf)
    assert simulated(whole / stages**2) == whole > simulated(whole / 2 / stages**2)


def test_candidates_are_looked_for_on_the_shortest_piece(monkeypatch):
    monkeypatch.setattr(coarse_to_fine, "COARSE_EVENTS", 4)
    problem = plain_problem({"a": {"x": 0.125}}, np.arange(400.0), 5.0, {"x": Hardware("x", 1.0)})
    looked_at = set()

    def watched(evaluator, bounds):
        looked_at.add(len(evaluator.problem.traces[0]))
        return ParetoSearch(evaluator, bounds)

    monkeypatch.setattr(coarse_to_fine, "ParetoSearch", watched)
    assert list(refine(Evaluator(problem), (), stop=lambda: False, report=lambda *_: None))
    assert looked_at == {4}


def test_each_longer_piece_begins_with_what_was_found_on_the_one_before_the_cheapest_first(monkeypatch):
    monkeypatch.setattr(coarse_to_fine, "COARSE_EVENTS", 4)
    problem = plain_problem({"a": {"x": 0.125}}, np.arange(400.0), 5.0, {"x": Hardware("x", 1.0)})
    coarse, *found = (((Allocation("x", 1, count),),) for count in (1, 5, 4, 3))
    for on_middle, given in ((found, found[:0:-1]), ([], [coarse])):
        asked = {}

        def deeper(here, _fronts, candidates, on_middle=on_middle, asked=asked, **_):
            asked[len(here.problem.traces[0])] = list(candidates)
            return iter(on_middle if len(asked) == 1 else [coarse])

        monkeypatch.setattr(coarse_to_fine, "_deeper", deeper)
        refined = refine(Evaluator(problem), (), stop=lambda: False, report=lambda *_: None)
        assert list(refined) == [coarse]
        assert asked == {40: [coarse], 400: given}


def test_where_nothing_found_on_a_piece_meets_the_whole_the_cheapest_that_does_is_looked_for_there(monkeypatch):
    monkeypatch.setattr(coarse_to_fine, "COARSE_EVENTS", 4)
    monkeypatch.setattr(coarse_to_fine, "EFFORT", 0)
    monkeypatch.setattr(coarse_to_fine, "_deeper", lambda *_, **__: iter(()))
    problem = plain_problem({"a": {"x": 0.125}}, np.arange(400.0), 5.0, {"x": Hardware("x", 1.0)})
    phases = []
    known = [((Allocation("x", 1, count),),) for count in (1, 3)]
    found = list(refine(Evaluator(problem), known, stop=lambda: False, report=lambda phase, _: phases.append(phase)))
    assert found == known[:1]
    assert "starting over on the whole trace" in phases


def test_a_long_trace_is_planned_coarse_to_fine_and_verified_on_all_of_it(monkeypatch):
    monkeypatch.setattr(coarse_to_fine, "COARSE_EVENTS", 1200)
    problem = random_problem(2, stages=2, rate=400, duration_s=60, slack=4.0)
    outcome = search(problem)
    assert len(levels(problem)) > 1
    assert meets(problem, outcome.candidate)
    assert outcome.p99_s == p99_s(problem, outcome.candidate)


def test_where_the_busiest_piece_is_not_the_hardest_the_plan_meets_the_slo_on_the_whole_all_the_same(
    monkeypatch,
):
    monkeypatch.setattr(coarse_to_fine, "COARSE_EVENTS", 1200)
    problem = random_problem(2, stages=2, slack=4.0)
    even_s, clumps_s = np.arange(5_000) / 400, np.repeat(np.arange(150) / 9, 40)
    trace = Trace(np.concatenate((even_s, even_s[-1] + 1 + clumps_s)))
    problem = replace(problem, traces=(trace,))
    coarse = levels(problem)[0]
    assert coarse.traces[0].arrival_rate == pytest.approx(400, rel=0.01)
    assert cost_of(problem, search(coarse).candidate) < cost_of(problem, (found := search(problem)).candidate)
    assert meets(problem, found.candidate)


@pytest.mark.parametrize("seed", [3, 4])
def test_of_equal_cost_the_largest_batch_limits_that_keep_the_margin_are_planned(seed):
    problem = random_problem(seed, rate=80, slack=6.0, duration_s=10.0)
    plan = _plan(problem)
    kept_s = (1 - MARGIN) * problem.target_s
    assert plan.predicted_p99_s <= kept_s
    candidate = tuple(plan.allocations.values())
    assert any(part.max_batch_size < max(SIZES) for (part,) in candidate)
    for stage, (part,) in enumerate(candidate):
        for size in (s for s in SIZES if s > part.max_batch_size):
            larger = (*candidate[:stage], (replace(part, max_batch_size=size),), *candidate[stage + 1 :])
            assert p99_s(problem, larger) > kept_s


@pytest.mark.parametrize("seed", FEASIBLE_SEEDS)
def test_limits_are_raised_as_far_as_the_target_allows_and_no_further(seed):
    problem = random_problem(seed, stages=1, rate=150, slack=4.0)
    evaluator = Evaluator(problem)
    meeting = ((Allocation("fast", 1, n),) for n in range(1, 64) if meets(problem, ((Allocation("fast", 1, n),),)))
    (small,) = option = next(meeting)
    largest = max(size for size in SIZES if meets(problem, ((replace(small, max_batch_size=size),),)))
    assert with_largest_limits(evaluator, (option,)) == ((replace(small, max_batch_size=largest),),)


def test_of_every_stage_and_kind_the_limit_is_raised_and_no_replica_is_lost():
    problem = random_problem(1, stages=2, rate=20, duration_s=5, slack=20.0)
    mixed = (Allocation("slow", 1, 3), Allocation("middle", 2, 2), Allocation("fast", SIZES[-1], 1))
    candidate = (mixed, (Allocation("slow", 4, 3),))
    largest = tuple(tuple(replace(part, max_batch_size=SIZES[-1]) for part in option) for option in candidate)
    assert meets(problem, largest)
    assert with_largest_limits(Evaluator(problem), candidate) == largest


def test_hardware_of_which_the_first_counts_are_far_too_few_is_searched_all_the_same():
    problem = random_problem(0, stages=1, rate=2000, cv=4.0, slack=1.5)
    evaluator = Evaluator(problem)
    optimum = cost_of(problem, prove(evaluator, None).best)
    begun = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert cost_of(problem, begun[0]) <= 1.1 * optimum


@pytest.mark.parametrize("algorithm", ["default", "exact", "inferline"])
def test_replicas_never_take_more_cores_than_there_are_and_what_does_not_fit_is_said_so(algorithm):
    catalogue = {"small": Hardware("small", 0.1, cores=0.5), "large": Hardware("large", 1.0, cores=1.0)}
    times_s = {"a": {"small": 0.1, "large": 0.02}, "b": {"small": 0.01, "large": 0.01}}
    problem = plain_problem(times_s, np.arange(0, 20, 1 / 40), 0.4, catalogue)
    roomy = search(problem, SearchSettings(algorithm=algorithm)).candidate
    assert sum(a.replicas * catalogue[a.hardware].cores for option in roomy for a in option) > 2
    found = search(replace(problem, cores=2.0), SearchSettings(algorithm=algorithm)).candidate
    assert sum(a.replicas * catalogue[a.hardware].cores for option in found for a in option) <= 2
    with pytest.raises(Infeasible, match=r"fits on this machine.* replicas may have 0.90 cores, and the cheapest"):
        search(replace(problem, cores=0.9), SearchSettings(algorithm=algorithm))


def test_of_plans_of_equal_cost_the_first_that_was_found_is_kept():
    problem = plain_problem(
        {"a": {"slow": 0.01, "alike": 0.01}},
        np.arange(5.0),
        0.1,
        {
            "slow": Hardware("slow", 0.1),
            "alike": Hardware("alike", 0.3),
        },
    )
    journal = _Journal(problem, None)
    first, alike, cheaper = (
        ((Allocation(kind, 1, count),),) for kind, count in (("slow", 3), ("alike", 1), ("slow", 2))
    )
    kept = []
    for candidate in (first, alike, cheaper, alike):
        journal.take(candidate)
        kept.append(journal.best)
    assert kept == [first, first, cheaper, cheaper]
    assert not _dearer(problem, first, [alike])
    assert _dearer(problem, first, [alike, cheaper])
