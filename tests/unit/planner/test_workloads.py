"""No benchmark judges a plan by the traffic that it was made for."""

import numpy as np
import pytest

from tests.benchmarks._workloads import big_spike, burst, ramp
from tests.benchmarks.instances.published import published

PAIRS = {
    "ramp": lambda: ramp(30.0, np.random.default_rng(1)),
    "burst": lambda: burst(np.random.default_rng(1)),
    "big spike": lambda: big_spike(np.random.default_rng(1)),
    **{f"held out {n}": lambda n=n: (published()[0].trace(), published()[0].trace(n)) for n in (1, 2, 3)},
}


@pytest.mark.parametrize("name", PAIRS)
def test_traces_to_plan_on_and_to_judge_by_have_no_gaps_in_common(name):
    planned, judged = (np.round(np.diff(trace.arrivals_s), 11) for trace in PAIRS[name]())
    assert min(planned.size, judged.size) > 1000
    assert np.isin(planned[planned > 1e-4], judged).mean() < 0.01
