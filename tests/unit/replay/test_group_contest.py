"""Ways to choose the members of consumer groups, on the same arrivals."""

import numpy as np
import pytest

from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.group_model import group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned, Rebalance
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace, levels_trace
from inferline_stream.replay.group_contest import STRETCH_S, contest, stretches
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Fixed

PARTITIONS, PRICE = 6, 0.0475


def _model(slo="2s", pause_s=1.0):
    group = ConsumerGroup("rank", group="rank-v1", topic="posts")
    pause = Rebalance("eager", Learned(pause_s, 0.1, 3), pause_s)
    throughput = Learned(4 / 0.2, 0.02, 500)
    profile = GroupProfile("rank", PARTITIONS, 3, 4, 0.1, 0.025, 0.3, throughput, "commits", rebalance=pause)
    return group_model(Pipeline("p", slo=slo, stages=[group]), [profile])


def _trace(seed=1):
    return levels_trace([(20, 60), (45, 60), (20, 60)], 1.0, np.random.default_rng(seed))


def test_the_fixed_number_is_the_smallest_that_keeps_the_objective_of_all_there_are():
    model, trace = _model(), _trace()

    found = contest(model, trace, {"rank": 1})

    keeping = []
    for members in range(1, PARTITIONS + 1):
        (one,) = model.measured.profiles.values()
        allocations = {"rank": (_allocation(one, members),)}
        outcome = replay(
            model.shape, allocations, model.measured, trace, Fixed(), catalogue=model.catalogue, slo_s=2.0, slots={},
            sharing=model.sharing,
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


def _allocation(profile, members):
    from inferline_stream.pipeline.plan import Allocation

    return Allocation(profile.hardware, profile.batch_sizes[-1], members)


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

    found = stretches(trace)

    windows = int(trace.arrivals_s[-1] // STRETCH_S)
    judged = [int((each.trace.arrivals_s >= each.judged_from_s).sum()) for each in found]
    assert sum(each.stands_for_s for each in found) == windows * STRETCH_S
    assert judged == sorted(judged)
    assert (judged[-1], found[-1].stands_for_s) == (max(counts[:windows]), STRETCH_S)
    estimated = sum(count * each.stands_for_s / STRETCH_S for count, each in zip(judged, found, strict=True))
    assert estimated == pytest.approx(len(trace), rel=0.03)


def test_an_hour_is_judged_as_a_whole():
    trace = Trace(np.arange(0.0, 3600.0, 1.0))

    (found,) = stretches(trace)

    assert (found.trace, found.judged_from_s, found.stands_for_s) == (trace, 0.0, 3599.0)
