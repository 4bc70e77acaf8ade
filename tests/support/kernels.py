"""Compiles every kernel into the cache beside its source: `python -m tests.support.kernels`.

Processes of tests that begin together would each compile what they find missing.
"""

from __future__ import annotations

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.estimator.warmup import compile_kernels
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.provision import SearchSettings, provision
from inferline_stream.replay.compare import compare
from inferline_stream.replay.loop import Conditions
from tests.unit.planner.problems import random_problem
from tests.unit.tuner import plans


def main() -> None:
    """Simulate with each kind of queue, plan, and replay the plan under two policies."""
    compile_kernels()
    sample = gamma_trace(60.0, 1.0, 10.0, np.random.default_rng(1))
    problem = random_problem(0, slack=3.0)
    provision(problem, SearchSettings(algorithm="exact"))
    compare(
        plans.SHAPE, plans.plan(), plans.measured(), sample, sample, catalogue=plans.CATALOGUE,
        policies=("default", "keda"), tune=False, conditions=Conditions(), kernel=compiled_kernel(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
