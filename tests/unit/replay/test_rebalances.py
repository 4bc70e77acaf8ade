"""What changes of a consumer group's members cost by protocol, and that a policy does not take that for demand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from inferline_stream import ConsumerGroup, Pipeline
from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.pipeline.group_model import group_model
from inferline_stream.pipeline.group_profile import Learned, Rebalance, Sharing
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace, levels_trace
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.scalers import Scheduled, Tuner
from inferline_stream.tuner.group_plan import plan_groups
from inferline_stream.tuner.group_policy import group_state, group_step
from inferline_stream.tuner.policy import Policy, step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.tuner_state import TunerState
from tests.support.group_profiles import learned_group
from tests.unit.replay.test_loop import one_stage, run

RATE, SERVICE_S, SLO_S = 100.0, 0.01, 0.5
EAGER = Rebalance("eager", Learned(3.0, 0.1, 10), 3.0)
COOPERATIVE = Rebalance("cooperative", Learned(3.0, 0.1, 10), 3.0)
KIP848 = Rebalance("kip848", Learned(2.5, 0.1, 10), 5.0)


def late_events(rebalance: Rebalance | None, seed: int = 0) -> tuple[int, float]:
    """Late events of one change from 2 members to 3, and the longest latency."""
    trace = Trace(np.arange(4000) / RATE)
    found = run(
        one_stage(SERVICE_S, start_up_s=1.0),
        {"a": (Allocation("x", 1, 2),)},
        trace,
        Scheduled("by the clock", [(20.0, {"a": {"x": 3}})]),
        slo_s=SLO_S,
        conditions=Conditions(statistics_delay_s=0.0),
        sharing={"a": Sharing(24, rebalance)},
        seed=seed,
    )
    return found.late, float(found.latency_s.max())


def fluid(share: float, hole_s: float) -> float:
    """λ · share that moves · (hole − slack) / (1 − ρ), of a fluid that is served by three members."""
    return RATE * share * (hole_s - (SLO_S - SERVICE_S)) / (1 - RATE * SERVICE_S / 3)


def test_an_eager_group_stops_as_a_whole() -> None:
    assert late_events(EAGER)[0] == pytest.approx(fluid(1.0, 3.0), rel=0.1)


def test_in_a_cooperative_group_the_third_that_moves_stops() -> None:
    assert late_events(COOPERATIVE)[0] == pytest.approx(fluid(1 / 3, 3.0), rel=0.1)


def test_by_kip848_what_moves_waits_for_a_heartbeat_within_the_longest() -> None:
    holes_s = []
    for seed in range(8):
        late, longest_s = late_events(KIP848, seed)
        hole_s = longest_s - SERVICE_S
        assert late == pytest.approx(max(fluid(1 / 3, hole_s), 0.0), rel=0.15, abs=15)
        holes_s.append(hole_s)
    assert max(holes_s) < 5.2
    assert np.std(holes_s) > 0.8  # of a uniform one it is 1.44 s


def test_without_a_rebalance_nobody_is_late() -> None:
    assert late_events(None)[0] == 0


@pytest.mark.parametrize(("sharing", "of"), [(Sharing(24, EAGER), 1.0), (Sharing(24, KIP848), 1 / 3)])
def test_the_share_that_moves_is_that_of_the_protocol(sharing: Sharing, of: float) -> None:
    assert sharing.moved_share(2, 3) == sharing.moved_share(3, 2) == pytest.approx(of)


def test_useful_numbers_of_members_are_those_whose_fullest_has_fewer_partitions() -> None:
    for partitions in range(1, 65):
        fullest = [-(-partitions // members) for members in range(1, partitions + 1)]
        useful = [m for m in range(1, partitions + 1) if m == 1 or fullest[m - 1] < fullest[m - 2]]
        for members in range(1, 80):
            expected = next((u for u in useful if u >= members), partitions)
            assert Sharing(partitions).useful(members) == expected
        assert partitions != 24 or useful == [1, 2, 3, 4, 5, 6, 8, 12, 24]


def test_the_backlog_of_a_hole_is_no_demand() -> None:
    """Eager groups on a swing: the default policy asks for members for what its own changes leave, and goes on so."""
    read = ConsumerGroup("read", group="r", topic="in")
    rank = ConsumerGroup("rank", group="k", topic="read", after=[read])
    learned = [learned_group("read", 0.03, EAGER), learned_group("rank", 0.02, EAGER)]
    model = group_model(Pipeline("line", slo="5s", stages=[read, rank]), learned)
    rng = np.random.default_rng(3)
    sample = levels_trace([(30.0, 300.0)], 1.0, rng)
    plan = plan_groups(model, sample)
    state = group_state(model, plan, sample)
    swing = levels_trace([(30.0, 60.0), (75.0, 180.0), (20.0, 120.0)], 1.0, rng)

    def swung(policy: Policy, begun: TunerState) -> tuple[int, float]:
        scaler = Tuner("p", policy, begun, model.shape, period_s=0.5, kernel=compiled_kernel())
        found = replay(
            model.shape,
            plan.allocations,
            model.measured,
            swing,
            scaler,
            catalogue=model.catalogue,
            slo_s=model.slo_s,
            slots={},
            sharing=model.sharing,
            conditions=Conditions(step_s=0.5),
        )
        return found.changes, found.miss_rate

    naive, late_by_it = swung(step, _naive(state))
    ours, late = swung(group_step, state)
    assert naive > 100
    assert late_by_it > 0.3
    assert ours < 30
    assert late < 0.02


def _naive(state: TunerState) -> TunerState:
    """The state of the default policy, which knows of no groups."""
    return structs.replace(state, basis=replace(state.basis, knobs=PolicySettings(), groups=None), groups=None)
