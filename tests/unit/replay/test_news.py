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
from inferline_stream.replay.scalers import Fixed
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
    """Twice as much as the stages serve, for a second or two, again and again."""
    rng = np.random.default_rng(seed)
    gaps = [rng.exponential(1 / rate, int(rate * 1.5)) for rate in rng.choice([40.0, 80.0, 220.0], 12)]
    return Trace(np.cumsum(np.concatenate(gaps)) + float(rng.uniform(0, 5)))


@pytest.mark.parametrize(("seed", "share"), [*((seed, 0.0) for seed in range(6)), (0, 0.3), (1, 0.1), (2, 0.3)])
def test_stages_hear_of_each_other_as_in_the_event_heap(seed: int, share: float) -> None:
    """Stays as they were a period before, R at multiples of half a second, in several slots; with fallbacks as well."""
    measured, trace = profiled(0.4, share), bursts(seed)
    held = {name: (Allocation("x", LIMITS[name], 2),) for name in CASCADE.stages}
    slots = {"b": 2} if seed % 2 else {}
    outcome = replay(CASCADE, held, measured, trace, Fixed(), catalogue=KINDS, slo_s=SLO_S, slots=slots, seed=seed)
    found = outcome.latency_s
    workload = prepare(CASCADE, measured, trace, seed=seed)
    rests = rests_s(CASCADE, measured, "deadline", SLO_S, held)
    stations = [
        station(measured, name, held[name], order_slo_s=SLO_S, rest_s=rests[name], slots=slots.get(name, 1))
        for name in CASCADE.stages
    ]
    reports = Reports(measured.paths, list(ALONE_S.values()), 0.003, SLO_S)
    assert found == pytest.approx(simulate_with_heap(workload, stations, reports).latency_s, abs=1e-9, nan_ok=True)
    unheard = simulate_with_heap(workload, stations).latency_s
    assert np.count_nonzero(np.abs(found - unheard) > 1e-6) > 20
    assert (0 if share else 10) < np.count_nonzero(found > SLO_S) < len(trace) // 2
    assert (outcome.degraded_share > 0.01) == (share > 0)
