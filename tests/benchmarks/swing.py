"""The minimal example's swing, in ten draws: our policy, the rules of others as they come and tuned, and hindsight.

`topologies/minimal` on its declared service times, with replicas that take two seconds to start. Rules are tuned on one
draw of the swing, with their defaults among what is tried, and judged on ten others. Replay is deterministic: every
machine finds the same. `python -m tests.benchmarks.swing` prints the table of docs/explanation/comparison.md, and what
the first draw alone has: tests find that again, all but hindsight, which searches for longer than the others take.

``NAME_cost`` is dollars per hour, ``NAME_misses`` the share of events above the SLO: means over the draws, with half of
their 95 % interval. ``NAME_kept`` counts the draws in which the objective held, ``NAME_beats_ours`` those in which it
held and ours did not, or cost more.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.compare import Comparison, Tuned, compare
from inferline_stream.replay.loop import Conditions
from tests.benchmarks._draws import figures_of, on_draws
from tests.benchmarks._figures import Figures
from tests.support.emulated_runs import declared_profile, provisioned

EXAMPLE = Path(__file__).parents[2] / "topologies/minimal"
START_UP_S = 2.0
SYSTEMS = {
    "default": "**inferline-stream**",
    "keda": "KEDA's Kafka scaler, with the HPA",
    "flink": "Flink's autoscaler",
    "flink-fast": "Flink's rule, deciding every few seconds",
    "ray": "Ray Serve",
    "seldon": "Seldon Core 2",
    "cg-peak": "the whole pipeline replicated for its peak",
    "clairvoyant": "hindsight: knows all arrivals beforehand",
}
"""Policies that are compared, and what people call them."""

FIRST_DRAW = "<!-- The first draw alone, without hindsight, which tests find again:"
"""Begins the comment below the table."""

_SETTING = re.compile(r"^\| ([^|]+) \| tuned: ([^|]+?)(, on our pool)? \|", re.MULTILINE)


def measure(quick: bool) -> Figures:
    """Ten draws; two with ``quick``."""
    return figures(2 if quick else 10)


def figures(draws: int, tuned: Tuned | None = None, *, hindsight: bool = True) -> Figures:
    """The first draws' figures. Rules are tuned unless their settings are given."""
    pipeline = load_topology(EXAMPLE)
    texts = [json.loads(event)["text"] for event in read_events(EXAMPLE / "questions.jsonl")]
    hard = sum(len(text.split()) > 6 for text in texts) / len(texts)  # as the topology's is_hard has it
    measured = declared_profile(pipeline, {("read", "search"): hard}, START_UP_S)
    sample = read_arrivals(EXAMPLE / "arrivals.csv")
    shape, kinds = shape_of(pipeline), catalogue(pipeline.hardware)
    plan = provisioned(pipeline, measured, sample)
    generate = _generator()

    def swing(seed: int) -> Trace:
        trace: Trace = generate.swing(np.random.default_rng(seed))
        return trace

    def compared(trace: Trace, settings: Tuned | None) -> Comparison:
        return compare(
            shape,
            plan,
            measured,
            sample,
            trace,
            catalogue=kinds,
            policies=[name for name in SYSTEMS if hindsight or name != "clairvoyant"],
            tune_on=swing(generate.TUNING_SEED),
            tuned=settings,
            conditions=Conditions(START_UP_S),
            kernel=compiled_kernel(),
        )

    contenders, _ = on_draws(compared, [swing(seed) for seed in range(11, 11 + draws)], tuned)
    return {"planned_cost": round(plan.cost_per_hour, 4), **figures_of(contenders)}


def table_rows(figures: Figures) -> list[str]:
    """Rows in Markdown: system, setting, cost, misses, the worst draw's, draws that keep the SLO, that beat ours."""
    rows = []
    for name in (figure.removesuffix("_setting") for figure in figures if figure.endswith("_setting")):
        setting, on_our_pool = str(figures[f"{name}_setting"]), name.endswith("_on_our_pool")
        policy = name.removesuffix("_on_our_pool").removesuffix("_tuned")
        if on_our_pool and setting == "default":
            continue
        cost, spread, misses, around, worst = (
            float(figures[f"{name}_{of}"] or 0)
            for of in ("cost", "cost_interval", "misses", "misses_interval", "misses_worst")
        )
        cells = (
            SYSTEMS[policy],
            _shown(policy, setting, on_our_pool=on_our_pool),
            f"${cost:.3f}/h ± {spread:.3f}",
            f"{misses:.2%} ± {around:.2%}".replace("%", " %"),
            f"{worst:.2%}".replace("%", " %"),
            str(figures[f"{name}_kept"]),
            "" if policy == "default" else str(figures[f"{name}_beats_ours"]),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _shown(policy: str, setting: str, *, on_our_pool: bool) -> str:
    if policy in ("default", "clairvoyant"):
        return "none to choose"
    return ("default" if setting == "default" else f"tuned: {setting}") + (", on our pool" if on_our_pool else "")


def settings_in(table: str) -> Tuned:
    """The settings that rows of such a table name."""
    policies = {system: policy for policy, system in SYSTEMS.items()}
    pairs = ((policies[system], bool(pool), setting) for system, setting, pool in _SETTING.findall(table))
    return {
        (policy, pool): {n: float(v) for n, v in re.findall(r"(\w+)=([\d.]+)", text)} for policy, pool, text in pairs
    }


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", EXAMPLE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    table = "\n".join(table_rows(measure(quick=False)))
    first = "\n".join(table_rows(figures(1, settings_in(table), hindsight=False)))
    sys.stdout.write(f"{table}\n\n{FIRST_DRAW}\n{first}\n-->\n")
