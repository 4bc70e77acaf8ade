"""Families of traffic that no policy was made for: rates, bursts, start-up times and pipelines drawn by seed.

Seeds for tuning and for judging are drawn from different streams. Nothing may be tuned on a judging seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from tests.benchmarks import _reference
from tests.benchmarks._workloads import Seeded, warped
from tests.benchmarks.instances.published import SHAPES, Instance, prices

START_UPS_S = (1.0, 5.0, 5.0, 15.0, 30.0, 90.0)
SHARE_PLANNED_ON = 0.25
"""Of the traffic: the plan is made for it, the rest is judged by."""

MOST_EVENTS = 250_000
MOST_REPLICAS = 60
"""Of a plan, about: rates are drawn below what so many carry. Traffic may rise to ten times as much."""

Points = list[tuple[float, float]]
"""(seconds, multiple of the base rate), joined by straight lines."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A rate over time.

    Args:
        points: see `Points`.
        cv: σ²/µ² of the gaps.
        rise_s: within how long the rate rises where it rises fastest; infinite where it does not.
    """

    points: Points
    cv: float
    rise_s: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the traffic goes through."""

    name: str
    shape: Shape
    measured: PipelineProfile
    slo_s: float
    catalogue: Catalogue


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a plan made on the sample, another stretch of the same traffic to judge by.

    Args:
        name: family, number and what was drawn.
        family: name in `FAMILIES`.
        pipeline: with the start-up time in its profiles.
        sample: what was planned for.
        trace: what is judged by.
        start_up_s: of every replica.
        rise_s: see `Traffic`.
    """

    name: str
    family: str
    pipeline: Pipeline
    sample: Trace
    trace: Trace
    start_up_s: float
    rise_s: float

    @property
    def followable(self) -> bool:
        """Whether replicas can start while the rate rises."""
        return self.start_up_s <= self.rise_s / 2

    def plan(self) -> Plan:
        """Raises Infeasible where no plan meets the SLO on the sample."""
        p = self.pipeline
        return provision(Problem(p.shape, p.measured, (self.sample,), p.slo_s, p.catalogue))


def steady(length_s: float, rng: Seeded) -> Traffic:
    return Traffic([(0.0, 1.0), (length_s, 1.0)], float(rng.choice([1.0, 1.0, 4.0])), np.inf)


def drift(length_s: float, rng: Seeded) -> Traffic:
    """A walk of the rate's logarithm in steps of a minute."""
    steps = np.clip(np.cumsum(rng.normal(0.0, 0.15, int(length_s / 60) + 2)), -1.0, 1.0)
    return Traffic([(60.0 * i, float(np.exp(x))) for i, x in enumerate(steps)], 1.0, 60.0)


def levels(length_s: float, rng: Seeded) -> Traffic:
    """Levels of one to three minutes, down to a fifth."""
    points, t = [(0.0, 1.0)], 0.0
    over_s = float(rng.choice([2.0, 10.0, 30.0, 60.0]))
    while t < length_s:
        points.append((t := t + float(rng.uniform(60.0, 180.0)), points[-1][1]))
        points.append((t := t + over_s, float(rng.choice([0.2, 0.35, 0.6, 1.0]))))
    return Traffic(points, 1.0, over_s)


def ramps(length_s: float, rng: Seeded) -> Traffic:
    """From 1 to 1.5–3 and back, again and again."""
    top, over_s = float(rng.uniform(1.5, 3.0)), float(rng.choice([10.0, 30.0, 60.0, 120.0]))
    points, t = [(0.0, 1.0)], 0.0
    while t < length_s:
        for multiple, hold_s in ((top, rng.uniform(30, 120)), (1.0, rng.uniform(60, 180))):
            points += [(t := t + hold_s, points[-1][1]), (t := t + over_s, multiple)]
    return Traffic(points, 1.0, over_s)


def spikes(length_s: float, rng: Seeded) -> Traffic:
    """Now and then 2–10 times the rate, for seconds to minutes."""
    rise_s = float(rng.choice([1.0, 5.0, 15.0, 30.0, 60.0]))
    points, t = [(0.0, 1.0)], float(rng.uniform(20, 90))
    while t < length_s:
        top, hold_s = float(rng.uniform(2, 10)), float(np.exp(rng.uniform(np.log(5), np.log(240))))
        points += [(t, 1.0), (t + rise_s, top), (t + rise_s + hold_s, top), (t + 2 * rise_s + hold_s, 1.0)]
        t += 2 * rise_s + hold_s + float(rng.uniform(60, 300))
    points.append((max(t, length_s) + 1.0, 1.0))
    return Traffic(points, 1.0, rise_s)


def on_off(length_s: float, rng: Seeded) -> Traffic:
    """Gaps of CV up to 15, or bursts of seconds between silence."""
    if rng.random() < 0.5:
        return Traffic([(0.0, 1.0), (length_s, 1.0)], float(rng.choice([6.0, 10.0, 15.0])), 0.5)
    points: Points = []
    t = 0.0
    while t < length_s:
        on_s, off_s = float(rng.exponential(8.0)) + 1.0, float(rng.exponential(30.0)) + 2.0
        points += [(t, 0.1), (t + off_s, 0.1), (t + off_s + 0.5, 4.0), (t + off_s + on_s, 4.0)]
        t += off_s + on_s + 0.5
    return Traffic(points, 1.0, 0.5)


def day(length_s: float, rng: Seeded) -> Traffic:
    """A wave with two peaks: a day in fast motion."""
    t = np.arange(0.0, length_s + 10, 10.0)
    period_s, low = float(rng.uniform(300, 900)), float(rng.uniform(0.15, 0.5))
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * t / period_s) + 0.3 * np.sin(4 * np.pi * t / period_s + rng.uniform(0, 6))
    wave = low + (1 - low) * np.clip(wave, 0, None)
    return Traffic(list(zip(t.tolist(), wave.tolist(), strict=True)), 1.0, period_s / 4)


def mixture(length_s: float, rng: Seeded) -> Traffic:
    """Spikes on top of a day."""
    slow, fast = day(length_s, rng), spikes(length_s, rng)
    t = np.arange(0.0, length_s + 1, 1.0)
    both = [_at(slow.points, t), (_at(fast.points, t) - 1) * 0.3]
    return Traffic(list(zip(t.tolist(), np.sum(both, axis=0).tolist(), strict=True)), 1.0, fast.rise_s)


def _at(points: Points, t: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.interp(t, [at_s for at_s, _ in points], [level for _, level in points])
    return levels


FAMILIES: dict[str, Callable[[float, Seeded], Traffic]] = {
    f.__name__: f for f in (steady, drift, levels, ramps, spikes, on_off, day, mixture)
}

_MODELS = ("bert-dist6l-ort", "tft-pytorch", "bert-dist4l-pytorch", "bert-large-trt", "resnet50-ort-trt", "tft-trt")
_SHAPES = ("cascade", "chain3", "fork", "chain4", "social", "wide6")


@functools.cache
def pipeline(number: int) -> Pipeline:
    """The reference pipeline, or one of really measured models on a T4."""
    if number % 3 == 0:
        return Pipeline("reference", _reference.SHAPE, _reference.profile(), _reference.SLO_S, _reference.CATALOGUE)
    name = _SHAPES[number % len(_SHAPES)]
    count = 1 + max(child for _, child, _ in SHAPES[name])
    models = tuple(_MODELS[(number + i) % len(_MODELS)] for i in range(count))
    made = Instance(name, models, SHAPES[name], 1.0, 1.0, 1.0, 1.0, 0)
    single_s = {
        s: min(p.service_time_s(1) for (n, _), p in made.measured.profiles.items() if n == s) for s in made.stages
    }
    slo_s = (2.0, 3.0, 5.0)[number % 3] * made.shape.longest_path_s(single_s)
    kinds = {"t4", "a30"} if number % 2 else {"t4"}
    profiles = {key: p for key, p in made.measured.profiles.items() if key[1] in kinds}
    return Pipeline(name, made.shape, replace(made.measured, profiles=profiles), slo_s, prices())


def highest_rate(p: Pipeline) -> float:
    """Events per second that a plan of about `MOST_REPLICAS` carries."""
    ratios = visit_ratios(p.shape, p.measured.paths)
    best = dict.fromkeys(p.shape.stages, 0.0)
    for (stage, _), profile in p.measured.profiles.items():
        best[stage] = max(best[stage], *(profile.throughput(b) for b in profile.batch_sizes[:4]))
    work_s = sum(ratios[stage] / rate for stage, rate in best.items())
    return 0.5 * MOST_REPLICAS / work_s


def drawn(family: str, rate: float, judged_s: float, rng: Seeded) -> tuple[Traffic, Trace, Trace]:
    """Traffic of a family at a base rate, a sample of it to plan on, and the rest of so many seconds."""
    whole_s = judged_s / (1 - SHARE_PLANNED_ON)
    traffic = FAMILIES[family](whole_s, rng)
    times, multiples = (np.array(x) for x in zip(*traffic.points, strict=True))
    whole = warped(lambda t: rate * np.interp(t, times, multiples), traffic.cv, whole_s, rng)
    sample_s = SHARE_PLANNED_ON * whole_s
    return traffic, whole.window(0.0, sample_s), whole.window(sample_s, whole_s)


def case(seed: int, *, judging: bool) -> Case:
    """The run of a seed: its family goes by the seed, everything else is drawn."""
    rng = np.random.default_rng([seed, *(b"judging" if judging else b"tuning")])
    family = list(FAMILIES)[seed % len(FAMILIES)]
    through = pipeline(int(rng.integers(12)))
    start_up_s = float(rng.choice(START_UPS_S))
    rate = float(
        np.exp(rng.uniform(np.log(max(1.0, highest_rate(through) / 100)), np.log(min(2000.0, highest_rate(through)))))
    )
    length_s = float(np.clip(MOST_EVENTS / rate, 300.0, 900.0))
    traffic, sample, trace = drawn(family, rate, length_s, rng)
    profiles = {key: replace(p, start_up_s=start_up_s) for key, p in through.measured.profiles.items()}
    how = f"{rate:.0f}/s start-up {start_up_s:g} s rise {traffic.rise_s:g} s CV {traffic.cv:g}"
    return Case(
        f"{family}-{seed} {through.name} {how}",
        family,
        replace(through, measured=replace(through.measured, profiles=profiles)),
        sample,
        trace,
        start_up_s,
        traffic.rise_s,
    )
