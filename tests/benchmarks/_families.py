"""Families of traffic that no policy was made for: rates, bursts, start-up times and pipelines drawn by seed.

Most are generated; three are windows of what others recorded. Runs take a quarter of an hour, some an hour, a few a
day. Seeds for tuning and for judging are drawn from different streams. Nothing may be tuned on a judging seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from tests.benchmarks import _reference
from tests.benchmarks._variation import varying as lognormal
from tests.benchmarks._workloads import (
    BIG_SPIKE_LEVEL_S,
    SAMPLE_S,
    Seeded,
    azure,
    big_spike_rates,
    warped,
    world_cup,
    world_cup_busiest,
    world_cup_minutes,
    world_cup_requests,
)
from tests.benchmarks.instances.published import SHAPES, Instance, prices

TUNING = (
    "tuning",
    "judging",
    "judging the odds",
    "judging odds and order",
    "judging the budget",
    "held out of odds",
    "judging what pays",
    "judging by other days",
)
"""Streams whose runs anybody may look at. The others judged earlier policies."""

JUDGING = "judging what is known"
"""The stream that judges. Anyone who looks at its runs one by one moves it to `TUNING`, and names another here."""

START_UPS_S = (1.0, 5.0, 5.0, 15.0, 30.0, 90.0)
SHARE_PLANNED_ON = 0.25
"""Of the traffic: the plan is made for it, the rest is judged by."""

LENGTHS_S = {900.0: 0.82, 3600.0: 0.16, 86_400.0: 0.02}
"""What is judged by takes so long in that share of the runs."""

HOURS_S = 20_000.0
"""Traffic from so many seconds on has days that take a day."""

MOST_EVENTS, SHORTEST_S = 150_000, 300.0
"""Of what is judged by, about, before the rate rises: high rates last for less than a quarter of an hour."""

MOST_REPLICAS = 60
"""Of a plan, about: rates are drawn below what so many carry. Traffic may rise to ten times as much."""

Points = list[tuple[float, float]]
"""(seconds, multiple of the base rate), joined by straight lines."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals of a family.

    Args:
        trace: from 0 on.
        rise_s: within how long the rate rises where it rises fastest; infinite where it does not.
        cv: σ²/µ² of the gaps where the rate does not change; None where no such number says it.
    """

    trace: Trace
    rise_s: float
    cv: float | None = 1.0


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
        name: stream, family, number and what was drawn.
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


def steady(rate: float, length_s: float, rng: Seeded) -> Traffic:
    cv = float(rng.choice([1.0, 1.0, 4.0]))
    return Traffic(gamma_trace(rate, cv, length_s, rng), np.inf, cv)


def drift(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """A walk of the rate's logarithm in steps of a minute."""
    steps = np.clip(np.cumsum(rng.normal(0.0, 0.15, int(length_s / 60) + 2)), -1.0, 1.0)
    return _along([(60.0 * i, float(np.exp(x))) for i, x in enumerate(steps)], 60.0, rate, length_s, rng)


def levels(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Levels of one to three minutes, down to a fifth."""
    points, t = [(0.0, 1.0)], 0.0
    over_s = float(rng.choice([2.0, 10.0, 30.0, 60.0]))
    while t < length_s:
        points.append((t := t + float(rng.uniform(60.0, 180.0)), points[-1][1]))
        points.append((t := t + over_s, float(rng.choice([0.2, 0.35, 0.6, 1.0]))))
    return _along(points, over_s, rate, length_s, rng)


def ramps(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """From 1 to 1.5–3 and back, again and again."""
    top, over_s = float(rng.uniform(1.5, 3.0)), float(rng.choice([10.0, 30.0, 60.0, 120.0]))
    points, t = [(0.0, 1.0)], 0.0
    while t < length_s:
        for multiple, hold_s in ((top, rng.uniform(30, 120)), (1.0, rng.uniform(60, 180))):
            points += [(t := t + hold_s, points[-1][1]), (t := t + over_s, multiple)]
    return _along(points, over_s, rate, length_s, rng)


def spikes(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Now and then 2–10 times the rate, for seconds to minutes."""
    points, rise_s = _spikes(length_s, rng)
    return _along(points, rise_s, rate, length_s, rng)


def on_off(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Gaps of CV up to 15, or bursts of seconds between silence."""
    if rng.random() < 0.5:
        cv = float(rng.choice([6.0, 10.0, 15.0]))
        return Traffic(gamma_trace(rate, cv, length_s, rng), 0.5, cv)
    points: Points = []
    t = 0.0
    while t < length_s:
        on_s, off_s = float(rng.exponential(8.0)) + 1.0, float(rng.exponential(30.0)) + 2.0
        points += [(t, 0.1), (t + off_s, 0.1), (t + off_s + 0.5, 4.0), (t + off_s + on_s, 4.0)]
        t += off_s + on_s + 0.5
    return _along(points, 0.5, rate, length_s, rng)


def day(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """A wave with two peaks: a day, or a day in fast motion."""
    points, rise_s = _wave(length_s, rng)
    return _along(points, rise_s, rate, length_s, rng)


def mixture(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Spikes on top of a day."""
    (slow, _), (fast, rise_s) = _wave(length_s, rng), _spikes(length_s, rng)
    t = np.arange(0.0, length_s + 1, 1.0)
    both = _at(slow, t) + (_at(fast, t) - 1) * 0.3
    return _along(list(zip(t.tolist(), both.tolist(), strict=True)), rise_s, rate, length_s, rng)


def noisy_day(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """A day whose rate wavers around the wave: its logarithm is an autoregressive process, forgotten in a minute."""
    slow, _ = _wave(length_s, rng)
    step_s, share = float(rng.choice([5.0, 15.0])), float(rng.uniform(0.1, 0.4))
    t = np.arange(0.0, length_s + step_s, step_s)
    kept, noise = np.exp(-step_s / 60.0), np.zeros(t.size)
    for i, x in enumerate(rng.normal(0.0, share * np.sqrt(1 - kept**2), t.size - 1)):
        noise[i + 1] = kept * noise[i] + x
    wavering = _at(slow, t) * np.exp(noise - share**2 / 2)
    return _along(list(zip(t.tolist(), wavering.tolist(), strict=True)), step_s, rate, length_s, rng)


def batches(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Uploads: each brings a geometric number of events within a fraction of a second."""
    size, within_s = float(rng.choice([5.0, 20.0, 60.0])), float(rng.choice([0.0, 0.1, 1.0]))
    first_s = gamma_trace(rate / size, 1.0, length_s, rng).arrivals_s
    times = np.repeat(first_s, rng.geometric(1 / size, first_s.size))
    times = times + rng.uniform(0.0, within_s, times.size)
    return Traffic(Trace(np.sort(times[times < length_s])), 0.5, None)


def jumps(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Jumps of 1–5 times the rate within a second that decay over seconds to minutes: news that goes round."""
    t = np.arange(0.0, length_s + 1, 1.0)
    level, decay_s = np.ones(t.size), float(np.exp(rng.uniform(np.log(15), np.log(240))))
    at_s = float(rng.exponential(120.0))
    while at_s < length_s:
        since_s = np.maximum(t - at_s, 0.0)
        level += np.where(t >= at_s, float(rng.uniform(1.0, 5.0)) * np.exp(-since_s / decay_s), 0.0)
        at_s += float(rng.exponential(240.0)) + 30.0
    return _along(list(zip(t.tolist(), level.tolist(), strict=True)), 1.0, rate, length_s, rng)


def modulated(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """A Markov-modulated Poisson process of two to four states, which it stays in for seconds to minutes."""
    states = np.exp(rng.uniform(np.log(0.3), np.log(3.0), int(rng.integers(2, 5))))
    stays_s = np.exp(rng.uniform(np.log(5.0), np.log(120.0), states.size))
    points, t, state = [(0.0, float(states[0]))], 0.0, 0
    while t < length_s:
        points.append((t := t + float(rng.exponential(stays_s[state])), float(states[state])))
        state = (state + int(rng.integers(1, states.size))) % states.size
        points.append((t := t + 0.01, float(states[state])))
    return _along(points, 0.5, rate, length_s, rng)


def varying(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Ramps, a day or modulated traffic, through stages whose service times are lognormal."""
    other = (ramps, day, modulated, steady)[int(rng.integers(4))]
    return other(rate, length_s, rng)


def world_cup_window(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """The 1998 World Cup's site from any minute on, thinned to the rate; its minutes are counted, gaps are drawn."""
    minutes = math.ceil(length_s / 60)
    first = int(rng.integers(world_cup_minutes() - minutes))
    share = min(1.0, rate * length_s / max(world_cup_requests(first, minutes), 1.0))
    return Traffic(world_cup(first, minutes, rng, share=share), 60.0)


def azure_window(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Azure's conversation service as it came, from anywhere on, again and again if need be."""
    times = azure().arrivals_s
    hours = math.ceil(length_s / times[-1])
    times = (times + times[-1] * np.arange(hours)[:, None]).ravel()
    first_s = float(rng.uniform(0.0, max(times[-1] - length_s, 1e-9)))
    times = times[(times >= first_s) & (times < first_s + length_s)] - first_s
    return Traffic(Trace(times[rng.random(times.size) < rate * times[-1] / times.size]), 60.0, None)


def big_spike_levels(rate: float, length_s: float, rng: Seeded) -> Traffic:
    """The levels of InferLine's Big Spike at another rate, from anywhere on, again and again if need be."""
    found = big_spike_rates()
    found = np.roll(found, -int(rng.integers(found.size)))
    found = np.resize(found, math.ceil(length_s / BIG_SPIKE_LEVEL_S)) * rate / found.mean()
    return Traffic(levels_trace([(level, BIG_SPIKE_LEVEL_S) for level in found.tolist()], 1.0, rng), 0.5)


def _along(points: Points, rise_s: float, rate: float, length_s: float, rng: Seeded) -> Traffic:
    """Poisson arrivals at a rate over time."""
    times, multiples = (np.array(x) for x in zip(*points, strict=True))
    return Traffic(warped(lambda t: rate * np.interp(t, times, multiples), 1.0, length_s, rng), rise_s)


def _wave(length_s: float, rng: Seeded) -> tuple[Points, float]:
    t = np.arange(0.0, length_s + 10, 10.0)
    period_s = float(rng.uniform(300, 900)) if length_s < HOURS_S else 86_400.0
    low = float(rng.uniform(0.15, 0.5))
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * t / period_s) + 0.3 * np.sin(4 * np.pi * t / period_s + rng.uniform(0, 6))
    wave = low + (1 - low) * np.clip(wave, 0, None)
    return list(zip(t.tolist(), wave.tolist(), strict=True)), period_s / 4


def _spikes(length_s: float, rng: Seeded) -> tuple[Points, float]:
    rise_s = float(rng.choice([1.0, 5.0, 15.0, 30.0, 60.0]))
    points, t = [(0.0, 1.0)], float(rng.uniform(20, 90))
    while t < length_s:
        top, hold_s = float(rng.uniform(2, 10)), float(np.exp(rng.uniform(np.log(5), np.log(240))))
        points += [(t, 1.0), (t + rise_s, top), (t + rise_s + hold_s, top), (t + 2 * rise_s + hold_s, 1.0)]
        t += 2 * rise_s + hold_s + float(rng.uniform(60, 300))
    points.append((max(t, length_s) + 1.0, 1.0))
    return points, rise_s


def _at(points: Points, t: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.interp(t, [at_s for at_s, _ in points], [level for _, level in points])
    return levels


FAMILIES: dict[str, Callable[[float, float, Seeded], Traffic]] = {
    f.__name__: f
    for f in (
        *(steady, drift, levels, ramps, spikes, on_off, day, mixture),
        *(noisy_day, batches, jumps, modulated, varying, world_cup_window, azure_window, big_spike_levels),
    )
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
    traffic = FAMILIES[family](rate, whole_s, rng)
    sample_s = SHARE_PLANNED_ON * whole_s
    return traffic, traffic.trace.window(0.0, sample_s), traffic.trace.window(sample_s, whole_s)


def case(seed: int, stream: str, most_events: float = MOST_EVENTS, most_s: float = np.inf) -> Case:
    """The run of a seed: its family goes by the seed, everything else is drawn. It takes no longer than ``most_s``."""
    rng = np.random.default_rng([seed, *stream.encode()])
    family = list(FAMILIES)[seed % len(FAMILIES)]
    through = pipeline(int(rng.integers(12)))
    if family == "varying":
        through = replace(through, measured=lognormal(through.measured, classes=False), slo_s=2 * through.slo_s)
    start_up_s = float(rng.choice(START_UPS_S))
    length_s = min(most_s, float(rng.choice(list(LENGTHS_S), p=list(LENGTHS_S.values()))))
    highest = min(highest_rate(through), most_events / SHORTEST_S)
    rate = float(np.exp(rng.uniform(np.log(max(1.0, highest / 100)), np.log(highest))))
    if length_s > min(LENGTHS_S):
        rate = min(rate, most_events / length_s)
    length_s = min(length_s, max(most_events / rate, SHORTEST_S))
    traffic, sample, trace = drawn(family, rate, length_s, rng)
    profiles = {key: replace(p, start_up_s=start_up_s) for key, p in through.measured.profiles.items()}
    how = f"{rate:.0f}/s start-up {start_up_s:g} s rise {traffic.rise_s:g} s"
    return Case(
        f"{stream} {family}-{seed} {through.name} {length_s:.0f} s {how}",
        family,
        replace(through, measured=replace(through.measured, profiles=profiles)),
        sample,
        trace,
        start_up_s,
        traffic.rise_s,
    )


def planned_traffic(rate: float, cv: float, draw: int, most_s: float = np.inf) -> Case:
    """Hours of the traffic that was planned for, on the reference pipeline: gaps of that CV, at that rate.

    Where they differ most, ten draws have a million events together, unless ``most_s`` cuts them short.
    """
    name = f"stationary_{rate:g}_cv_{cv:g}"
    rng = np.random.default_rng([draw, *b"stationary"])
    length_s = min(most_s, 3600.0 if cv < 15 else max(3600.0, 1e5 / rate))
    sample, trace = gamma_trace(rate, cv, SAMPLE_S, rng), gamma_trace(rate, cv, length_s, rng)
    return Case(f"{name}-{draw}", name, pipeline(0), sample, trace, _reference.START_UP_S, np.inf)


DAYS = {"day": ("1998-06-04", "1998-06-05"), "match_day": ("1998-06-09", "1998-06-10")}
"""A calm day before the World Cup and its first day with matches, each with the day before."""

SAMPLE_MINUTES, DAY_MINUTES = 180, 24 * 60


def site_day(name: str) -> Case:
    """One of `DAYS` of the World Cup's site on the reference pipeline, planned on the busiest hours of the day before.

    The match day has six times the requests. It and the day before it are thinned to as many as the calm day has.
    """
    before, judged = DAYS[name]
    whole = {day: world_cup_requests(f"{day} 00:00:00", DAY_MINUTES) for day in (DAYS["day"][1], judged)}
    share = whole[DAYS["day"][1]] / whole[judged]
    rng = np.random.default_rng([0, *name.encode()])
    sample = world_cup(world_cup_busiest(before, SAMPLE_MINUTES), SAMPLE_MINUTES, rng, share=share)
    trace = world_cup(f"{judged} 00:00:00", DAY_MINUTES, rng, share=share)
    return Case(name, name, pipeline(0), sample, trace, _reference.START_UP_S, np.inf)
