"""Ways to choose the members of consumer groups, on the same arrivals."""

import numpy as np
import pytest

from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.group_model import group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned, Rebalance
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace, levels_trace
from inferline_stream.replay.group_contest import LEAST_S, STRETCH_S, contest, cut
from inferline_stream.replay.group_tuner import GroupTuner
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Fixed
from inferline_stream.tuner.group_replan import planned

PARTITIONS, PRICE = 6, 0.0475


def _model(slo="2s", pause_s=1.0, partitions=PARTITIONS, start_up=None):
    group = ConsumerGroup("rank", group="rank-v1", topic="posts")
    pause = Rebalance("eager", Learned(pause_s, 0.1, 3), pause_s)
    throughput = Learned(4 / 0.2, 0.02, 500)
    profile = GroupProfile(
        "rank", partitions, 3, 4, 0.1, 0.025, 0.3, throughput, "commits", start_up_s=start_up, rebalance=pause
    )
    return group_model(Pipeline("p", slo=slo, stages=[group]), [profile])


def _trace(seed=1):
    return levels_trace([(20, 60), (45, 60), (20, 60)], 1.0, np.random.default_rng(seed))


def test_the_fixed_number_is_the_smallest_that_keeps_the_objective_of_all_there_are():
    model, trace = _model(), _trace()

    found = contest(model, trace, {"rank": 1})

    keeping = []
    for members in range(1, PARTITIONS + 1):
        outcome = replay(
            model.shape, _held(model, members), model.measured, trace, Fixed(), catalogue=model.catalogue, slo_s=2.0,
            slots={}, sharing=model.sharing,
        )  # fmt: skip
        if outcome.miss_rate <= 0.01:
            keeping.append(members)
    fixed, now = found.row("fixed"), found.row("now")
    assert fixed.members == {"rank": min(keeping)}
    price = model.catalogue["cpu-1"].price_per_hour
    assert fixed.cost_per_hour == pytest.approx(price * min(keeping))
    assert (now.members, now.cost_per_hour, now.keeps_objective) == ({"rank": 1}, pytest.approx(price), False)
    assert {row.way for row in found.rows} == {"now", "fixed", "ours", "hindsight", "keda", "hpa"}
    assert found.row("hindsight").keeps_objective
    assert found.row("ours").keeps_objective
    assert found.too_few is None


def test_where_no_number_of_members_keeps_the_slo_it_says_so_and_judges_the_others():
    found = contest(_model(slo="100ms"), _trace(), {"rank": 3})

    assert "add partitions" in found.too_few
    assert {row.way for row in found.rows} == {"now", "keda", "hpa"}


def test_a_week_is_judged_by_its_busiest_stretch_and_by_one_for_each_part_of_the_others():
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.5, 3.0, 7 * 144)
    counts = rng.poisson(rates * STRETCH_S)
    times = [rng.uniform(k * STRETCH_S, (k + 1) * STRETCH_S, n) for k, n in enumerate(counts)]
    trace = Trace(np.sort(np.concatenate(times)))

    found = cut(trace)

    windows = 7 * 144
    judged = [int((each.trace.arrivals_s >= each.judged_from_s).sum()) for each in found]
    assert sum(each.stands_for_s for each in found) == (windows - 1) * STRETCH_S
    assert judged == sorted(judged)
    assert (judged[-1], found[-1].stands_for_s) == (max(counts[1:windows]), STRETCH_S)
    estimated = sum(n * each.stands_for_s / STRETCH_S for n, each in zip(judged, found, strict=True))
    assert estimated == pytest.approx(len(trace), rel=0.03)


@pytest.mark.parametrize(
    ("length_s", "known_s", "judged"),
    [(2 * LEAST_S - 1, None, 1), (2 * LEAST_S, LEAST_S, 1), (1199, 599.5, 1), (1790, 597, 2), (3600, 600, 5)],
)
def test_what_is_planned_for_comes_before_all_that_is_judged_and_nothing_is_left_out(length_s, known_s, judged):
    trace = Trace(np.arange(0.0, length_s + 0.5, 0.5))

    found = cut(trace)

    assert len(found) == judged
    if known_s is None:
        assert (found[0].before, found[0].trace, found[0].judged_from_s) == (None, trace, 0.0)
    else:
        first = min(found, key=lambda each: each.before.duration_s)
        assert first.before.arrivals_s[-1] == pytest.approx(known_s, abs=0.5)
    assert sum(each.stands_for_s for each in found) == pytest.approx(length_s - (known_s or 0.0), abs=1.0)


def test_ours_is_planned_for_the_hour_before_each_stretch():
    trace = Trace(np.arange(0.0, 4 * 3600.0, 0.5))

    for each in cut(trace):
        begin_s = trace.arrivals_s[-1] if each.before is None else each.before.duration_s
        assert begin_s <= 3600.0
        # What it was planned for goes on in what is judged: here, an arrival each half second.
        assert each.before.arrivals_s[-1] % 0.5 == 0.0
        assert np.diff(each.before.arrivals_s).max() == 0.5


def test_a_plan_waits_for_a_minute_of_traffic_as_run_does():
    trace = Trace(np.concatenate([[0.0], np.arange(1000.0, 3601.0)]))

    found = cut(trace)

    assert min(each.before.arrivals_s[-1] for each in found) == pytest.approx(1199.0)
    assert [each.stands_for_s for each in found] == [600.0] * 4


LEAP_S = 8.0


def test_ours_knows_nothing_of_what_it_is_judged_on_and_hindsight_does():
    """A leap at the end changes nothing that was held before it, and no member starts in time for it."""
    rng = np.random.default_rng(1)
    model = _model(pause_s=0.3, partitions=8, start_up=Learned(LEAP_S + 2.0, 0.1, 5))
    calm = levels_trace([(20, 240)], 1.0, rng).arrivals_s
    leap = 242.0 + levels_trace([(120, LEAP_S)], 1.0, rng).arrivals_s

    without = contest(model, Trace(np.append(calm, leap[-1])), {"rank": 3})
    leaping = contest(model, Trace(np.concatenate([calm, leap])), {"rank": 3})

    assert leaping.planned_from_s == pytest.approx(125.0, abs=1.0)
    assert leaping.row("fixed").keeps_objective
    assert leaping.row("hindsight").keeps_objective
    assert not leaping.row("ours").keeps_objective
    most = 8 * model.catalogue["cpu-1"].price_per_hour * LEAP_S / leaping.judged_s
    assert 0 <= leaping.row("ours").cost_per_hour - without.row("ours").cost_per_hour <= most


def test_members_that_are_held_from_the_beginning_are_paid_for():
    leaps = [(20.0, 30.0), (90.0, LEAP_S), (20.0, 30.0), (90.0, LEAP_S), (20.0, 44.0)]
    model = _model(slo="1s", pause_s=3.0, partitions=8, start_up=Learned(10.0, 0.1, 5))

    found = contest(model, levels_trace(leaps, 1.0, np.random.default_rng(1)), {"rank": 3})

    assert found.holds
    ours, fixed = found.row("ours"), found.row("fixed")
    assert ours.changes_per_hour == 0
    assert ours.miss_rate == fixed.miss_rate <= 0.01
    assert ours.cost_per_hour == pytest.approx(model.catalogue["cpu-1"].price_per_hour * fixed.members["rank"])


def test_the_error_over_stretches_is_that_of_a_ratio_where_they_stand_for_as_much_each():
    trace = levels_trace([(20, 600), (10, 600), (30, 600), (60, 600)], 1.0, np.random.default_rng(1))
    model = _model(partitions=2)  # too few: only what runs now and others' rules are judged

    found = contest(model, trace, {"rank": 2})

    late = []
    for each in cut(trace):
        outcome = replay(
            model.shape, _held(model, 2), model.measured, each.trace, Fixed(), catalogue=model.catalogue, slo_s=2.0,
            slots={}, sharing=model.sharing,
        )  # fmt: skip
        late.append((outcome.judged_s > 2.0)[each.trace.arrivals_s >= each.judged_from_s])
    assert len(late) == 3
    events, rate = sum(each.size for each in late), np.concatenate(late).mean()
    residuals = [each.sum() - rate * each.size for each in late]
    now, hpa = found.row("now"), found.row("hpa")
    assert 0.2 < now.miss_rate == pytest.approx(rate, rel=1e-3)
    assert now.miss_error == pytest.approx(np.sqrt(len(late)) * np.std(residuals, ddof=1) / events, rel=1e-3)
    assert (now.cost_error, hpa.cost_error > 0) == (pytest.approx(0.0, abs=1e-9), True)


def test_where_no_plan_could_be_made_beforehand_ours_is_not_judged_and_it_says_why():
    trace = levels_trace([(60, 200), (10, 1000)], 1.0, np.random.default_rng(1))

    found = contest(_model(partitions=2), trace, {"rank": 2})

    assert "so it was before a stretch that is judged" in found.too_few
    assert {row.way for row in found.rows} == {"now", "fixed", "hindsight", "keda", "hpa"}


def _held(model, members):
    (one,) = model.measured.profiles.values()
    return {"rank": (Allocation(one.hardware, one.batch_sizes[-1], members),)}


def test_through_an_autoscaler_that_looks_each_15_s_more_is_late_and_its_rows_stand_apart():
    trace = levels_trace([(20, 120), (20, 60), (80, 120)], 1.0, np.random.default_rng(1))

    found = contest(_model(partitions=12), trace, {"rank": 2}, tolerances={"rank": 0.1})

    ours, keda, unset = (found.row(way) for way in ("ours", "ours_keda", "ours_hpa"))
    assert ours.miss_rate < keda.miss_rate < unset.miss_rate
    # 60 more a second for 15 s at most until it looks, of 10,800 events, and while that is worked off.
    assert keda.miss_rate - ours.miss_rate < 2 * 15 * 80 / 10_800


def test_members_follow_a_rise_after_the_plan_was_made_again():
    """With the envelope's windows of the first plan, whichever are left out."""
    rng, model = np.random.default_rng(5), _model()
    found = planned(model, levels_trace([(20, 61)], 1.0, rng), shortest_window_s=0.5)
    assert len(found.state.windows_s) < len(planned(model, found.sample).state.windows_s)
    trace = levels_trace([(20, 100), (45, 60)], 1.0, rng)
    tuner = GroupTuner(found, {"rank": 2}, period_s=0.5, made_s=0.0)
    outcome = replay(
        model.shape, _held(model, 2), model.measured, trace, tuner, catalogue=model.catalogue, slo_s=2.0, slots={},
        sharing=model.sharing,
    )  # fmt: skip
    raised = [step.time_s for step in outcome.steps if step.action == "scale_up"]
    assert any(100 < time_s < 110 for time_s in raised)
