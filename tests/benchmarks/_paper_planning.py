"""The paper's planning figures: dollars per hour against SLO, rate and burstiness, beside coarse-grained serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inferline_stream.baselines.coarse import mean_rate, peak_rate, unit, units_for
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import SearchSettings, provision
from tests.benchmarks import _published_profiles as published
from tests.benchmarks import _reference as reference
from tests.benchmarks._reference import CATALOGUE, FREE, GPU

ALEXNET_RATE = 180.0
"""Inferred: the paper's plans serve 150 a second on one GPU within 150 ms, which takes about this much."""

PAPER_IMAGE: dict[float, float] = {100: 1.03, 150: 1.23, 200: 1.93, 250: 2.07, 300: 2.20}
"""Image Processing, SLO 150 ms, CV 1: dollars per hour by rate, read off the paper's figures."""

CASCADE_SHARE = 0.3
"""Assumed: the share of events of which TF Cascade's first model is unsure. The paper does not say."""

CASCADE_SLO_S = 0.5
"""Assumed, too: five times the first model's time for a single event."""

SYSTEMS = ("inferline", "default", "cg-mean", "cg-peak")


@dataclass(frozen=True, slots=True)
class Subject:
    """A pipeline to plan for."""

    name: str
    shape: Shape
    measured: PipelineProfile


def image(*, as_published: bool = False) -> Subject:
    """Preprocess on CPUs, then AlexNet on GPUs: as fast as the paper's plans need it, or as the published profile."""
    profiles = {key: profile for key, profile in reference.profile().profiles.items() if key[0] == "preprocess"}
    inferred = Profile("alexnet", GPU, (ServiceTime(1, 1 / ALEXNET_RATE),), reference.START_UP_S)
    measured = published.profile("alexnet", "alexnet", GPU, reference.START_UP_S)
    profiles["alexnet", GPU] = measured if as_published else inferred
    shape = Shape(("preprocess", "alexnet"), (Arrow(0, 1),))
    return Subject("Image Processing", shape, PipelineProfile(profiles, Paths((1,), (1.0,))))


def tf_cascade() -> Subject:
    """TensorFlow's ResNet for all events, Inception-v3 for those that it is unsure of (an assumed share)."""
    shape = Shape(("resnet", "inception", "reply"), (Arrow(0, 1, conditional=True), Arrow(0, 2), Arrow(1, 2)))
    models = {"resnet": "tf-resnet", "inception": "tf-inception"}
    profiles = {
        (stage, GPU): published.profile(stage, model, GPU, reference.START_UP_S) for stage, model in models.items()
    }
    profiles["reply", FREE] = reference.profile().profiles["reply", FREE]
    paths = independent_paths(shape, {("resnet", "inception"): CASCADE_SHARE})
    return Subject("TF Cascade", shape, PipelineProfile(profiles, paths))


def off_published() -> float:
    """By how much the throughputs read off the paper's figure differ from the published ones, at most: ResNet-152."""
    drawn = reference.profile().profiles["resnet152", GPU]
    return max(abs(drawn.throughput(b) / rate - 1) for b, rate in published.THROUGHPUTS["resnet152"].items())


def reference_pipeline() -> Subject:
    """Preprocess, ResNet-152, NMT for 40 %."""
    return Subject("reference pipeline", reference.SHAPE, reference.profile())


def costs(subject: Subject, sample: Trace, slo_s: float, known: Sequence[Plan] = ()) -> dict[str, float | None]:
    """Dollars per hour of each system, None where it has no plan. Earlier plans of ours stay candidates."""
    found: dict[str, float | None] = {}
    for name in ("inferline", "default"):
        earlier = tuple(known) if name == "default" else ()
        try:
            problem = Problem(subject.shape, subject.measured, (sample,), slo_s, CATALOGUE)
            plan = provision(problem, SearchSettings(name, margin=0.0), known=earlier)
        except Infeasible:
            found[name] = None
        else:
            found[name] = plan.cost_per_hour
            if name == "default" and isinstance(known, list):
                known.append(plan)
    hardware = {stage: subject.measured.hardware_of(stage)[0] for stage in subject.shape.stages}
    price = sum(CATALOGUE[kind].price_per_hour for kind in hardware.values())
    one = unit(subject.shape, subject.measured, hardware, slo_s)
    if one.service_time_s > slo_s:
        return found | {"cg-mean": None, "cg-peak": None}
    rates = {"cg-mean": mean_rate(sample), "cg-peak": peak_rate(sample, slo_s)}
    return found | {name: units_for(rate, one.throughput) * price for name, rate in rates.items()}


Rows = Mapping[float, Mapping[str, float | None]]
"""Costs of each system by the quantity that varies."""


def by_slo(subject: Subject, cv: float, slos_s: Sequence[float], duration_s: float) -> Rows:
    sample = gamma_trace(150.0, cv, duration_s, np.random.default_rng(21))
    known: list[Plan] = []
    return {slo_s * 1e3: costs(subject, sample, slo_s, known) for slo_s in slos_s}


def by_rate(subject: Subject, cv: float, rates: Sequence[float], slo_s: float, duration_s: float) -> Rows:
    rng = np.random.default_rng(22)
    return {rate: costs(subject, gamma_trace(rate, cv, duration_s, rng), slo_s) for rate in rates}


def by_cv(subject: Subject, cvs: Sequence[float], slo_s: float, duration_s: float) -> Rows:
    rng = np.random.default_rng(23)
    return {cv: costs(subject, gamma_trace(150.0, cv, duration_s, rng), slo_s) for cv in cvs}


def ratio(rows: Rows, to: str, ours: str = "inferline") -> list[float]:
    """How many times as much as ours another system costs, wherever both have a plan."""
    pairs = [(row[to], row[ours]) for row in rows.values()]
    return [other / own for other, own in pairs if other is not None and own is not None]
