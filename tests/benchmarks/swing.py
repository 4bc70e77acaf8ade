"""The minimal example's swing, in ten draws: our policy, the rules of others as they come and tuned, and hindsight.

`topologies/minimal` on its declared service times, with replicas that take two seconds to start. Rules are tuned on one
draw of the swing, with their defaults among what is tried, and judged on ten others. `compare` prints one of them.

``NAME_cost`` is dollars per hour, ``NAME_misses`` the share of events above the SLO: means over the draws, with half of
their 95 % interval. ``NAME_kept`` counts the draws in which the objective held, ``NAME_beats_ours`` those in which it
held and ours did not, or cost more.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.provision import provision
from inferline_stream.replay.compare import Comparison, Tuned, compare
from inferline_stream.replay.conditions import Conditions
from tests.benchmarks._draws import Figures, figures_of, on_draws
from tests.support.emulated_runs import declared_profile

EXAMPLE = Path(__file__).parents[2] / "topologies/minimal"
START_UP_S = 2.0
POLICIES = ("default", "keda", "flink", "flink-fast", "ray", "seldon", "cg-peak", "clairvoyant")


def measure(quick: bool) -> Figures:
    """Ten draws; two with ``quick``."""
    pipeline = load_topology(EXAMPLE)
    texts = [json.loads(event)["text"] for event in read_events(EXAMPLE / "questions.jsonl")]
    hard = sum(len(text.split()) > 6 for text in texts) / len(texts)  # as the topology's is_hard has it
    measured = declared_profile(pipeline, {("read", "search"): hard}, START_UP_S)
    sample = read_arrivals(EXAMPLE / "arrivals.csv")
    shape, kinds = shape_of(pipeline), catalogue(pipeline.hardware)
    plan = provision(shape, measured, sample, pipeline.slo_s, kinds, pipeline=pipeline.name)
    generate = _generator()

    def swing(seed: int) -> Trace:
        trace: Trace = generate.swing(np.random.default_rng(seed))
        return trace

    def compared(trace: Trace, tuned: Tuned | None) -> Comparison:
        return compare(
            shape,
            plan,
            measured,
            sample,
            trace,
            catalogue=kinds,
            policies=POLICIES,
            tune_on=swing(generate.TUNING_SEED),
            tuned=tuned,
            conditions=Conditions(START_UP_S),
            kernel=compiled_kernel(),
        )

    contenders, _ = on_draws(compared, [swing(seed) for seed in range(11, 13 if quick else 21)])
    return {"planned_cost": round(plan.cost_per_hour, 4), **figures_of(contenders)}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", EXAMPLE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
