"""Order of the deadline in replay: what stages hear of each other, and what the policy sees of hopeless events."""

import numpy as np
import pytest

from inferline_stream.estimator.station import rests_s, station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Fixed, Wish
from tests.support.event_heap import Reports, simulate_with_heap
from tests.unit.replay.test_loop import KINDS, SLO_S

CASCADE = Shape(("a", "b", "c", "d"), (Arrow(0, 1), Arrow(1, 2, conditional=True), Arrow(1, 3), Arrow(2, 3)))
LIMITS = {"a": 4, "b": 8, "c": 4, "d": 16}
ALONE_S = {"a": 0.02, "b": 0.03, "c": 0.05, "d": 0.01}


def profiled(share: float, fallback_share: float = 0.0) -> PipelineProfile:
    profiles = {
        (name, "x"): Profile(
            name,
            "x",
            tuple(ServiceTime(b, alone_s * (0.6 + 0.4 * b)) for b in (1, 2, 4, 8, 16)),
            fallback=tuple(ServiceTime(b, alone_s * (0.3 + 0.2 * b)) for b in (1, 2, 4, 8, 16) if fallback_share),
            fallback_share=fallback_share,
        )
        for name, alone_s in ALONE_S.items()
    }
    return PipelineProfile(profiles, independent_paths(CASCADE, {("b", "c"): share}), 0.003)


def bursts(seed: int) -> Trace:
    """Twice as much as the stages serve, for a second or two, again and again; and silence now and then."""
    rng = np.random.default_rng(seed)
    gaps = [rng.exponential(1 / rate, int(rate * 1.5)) for rate in rng.choice([40.0, 80.0, 220.0], 12)]
    for quiet in gaps[2 + seed % 2 :: 4]:
        quiet[0] += rng.choice([0.7, 2.1, 2.6, 3.3, 40.0])
    return Trace(np.cumsum(np.concatenate(gaps)) + float(rng.uniform(0, 5)))


class Onlooker(Fixed):
    """A plan without a Tuner, and all that could be seen of it."""

    def __init__(self, period_s: float) -> None:
        super().__init__()
        self.period_s, self.seen = period_s, list[View]()

    def decide(self, view: View) -> Wish | None:
        self.seen.append(view)
        return None


@pytest.mark.parametrize(("seed", "share"), [*((seed, 0.0) for seed in range(3)), (3, 0.3), (4, 0.1), (5, 0.3)])
def test_stages_hear_of_each_other_as_in_the_event_heap(seed: int, share: float) -> None:
    """Stays as they were a period before, R at multiples of half a second, in several slots, however one looks; and
    with fallbacks."""
    measured, trace = profiled(0.4, share), bursts(seed)
    held = {name: (Allocation("x", LIMITS[name], 2),) for name in CASCADE.stages}
    slots = {"b": 2} if seed % 2 else {}
    onlooker = Onlooker((0.3, 1.0, 7.0)[seed % 3])
    outcome = replay(CASCADE, held, measured, trace, onlooker, catalogue=KINDS, slo_s=SLO_S, slots=slots, seed=seed)
    found = outcome.latency_s
    workload = prepare(CASCADE, measured, trace, seed=seed)
    rests = rests_s(CASCADE, measured, "deadline", SLO_S, held)
    stations = [
        station(measured, name, held[name], order_slo_s=SLO_S, rest_s=rests[name], slots=slots.get(name, 1))
        for name in CASCADE.stages
    ]
    reports = Reports(measured.paths, list(ALONE_S.values()), 0.003, SLO_S)
    heap = simulate_with_heap(workload, stations, reports)
    assert found == pytest.approx(heap.latency_s, abs=1e-9, nan_ok=True)
    ends_s = [np.array([h.time_s for h in heap.log if h.what == "ends" and h.stage == s]) for s in range(4)]
    for view in onlooker.seen:
        for glimpse, done_s in zip(view.now, ends_s, strict=True):
            before, after = (np.count_nonzero(done_s < glimpse.time_s + off_s) for off_s in (-1e-9, 1e-9))
            assert before <= glimpse.completed <= after
    silent = [view for view in onlooker.seen if not any(glimpse.lag for glimpse in view.now)]
    assert len({view.now[0].completed for view in silent}) >= 2, "in several silences"
    unheard = simulate_with_heap(workload, stations).latency_s
    assert np.count_nonzero(np.abs(found - unheard) > 1e-6) > 20
    assert (0 if share else 10) < np.count_nonzero(found > SLO_S) < len(trace) // 2
    assert (outcome.degraded_share > 0.01) == (share > 0)
