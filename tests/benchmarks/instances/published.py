"""The published planning instances: pipelines of really measured models, real prices, generated traffic.

`published.json` lists every instance in full; `python -m tests.benchmarks.instances.published` writes it again.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from inferline_stream.pipeline.hardware import Catalogue, Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths, visit_ratios
from inferline_stream.pipeline.trace import Trace, gamma_trace

HERE = Path(__file__).parent

PRICES = {"cpu-1": 0.0665, "t4": 0.526, "a30": 1.006, "a100": 2.74, "v100": 3.06, "cpu-2xe5": 4.08}
"""Dollars per replica and hour; see NOTICE.md for where each comes from."""

PREPROCESS = {1: 27.2, 2: 28.9, 4: 28.3, 8: 29.2}
"""Events per second of InferLine's image preprocessing on one CPU core, by batch size."""


def prices() -> Catalogue:
    """The kinds of hardware of the published instances."""
    return {name: Hardware(name, price) for name, price in PRICES.items()}


@cache
def throughputs() -> Mapping[tuple[str, str], Mapping[int, float]]:
    """Events per second by (model, hardware) and batch size, as NVIDIA's tables give them."""
    tables: dict[tuple[str, str], dict[int, float]] = {("preprocess", "cpu-1"): dict(PREPROCESS)}
    with (HERE / "triton_profiles.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            table = tables.setdefault((row["model"], row["hardware"]), {})
            table[int(row["batch_size"])] = float(row["events_per_s"])
    return tables


def profile(stage: str, model: str, hardware: str, largest: int = 64) -> Profile:
    """A stage's profile from the tables: S(b) = b over throughput, batch sizes to ``largest``."""
    table = throughputs()[model, hardware]
    times = tuple(ServiceTime(size, size / rate) for size, rate in sorted(table.items()) if size <= largest)
    return Profile(stage, hardware, times)


@dataclass(frozen=True, slots=True)
class Instance:
    """One published instance.

    Args:
        name: says its shape and number.
        models: the model of each stage, in topological order; stages are named after model and position.
        arrows: (parent, child, probability of being taken).
        slo_s: SLO on the P99.
        arrival_rate: λ of the gamma arrivals.
        cv: σ²/µ² of their gaps.
        duration_s: length of the trace.
        seed: of the trace.
    """

    name: str
    models: tuple[str, ...]
    arrows: tuple[tuple[int, int, float], ...]
    slo_s: float
    arrival_rate: float
    cv: float
    duration_s: float
    seed: int

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names."""
        return tuple(f"{model}-{i}" for i, model in enumerate(self.models))

    @property
    def shape(self) -> Shape:
        """The DAG."""
        return Shape(self.stages, tuple(Arrow(a, b, p < 1) for a, b, p in self.arrows))

    @property
    def measured(self) -> PipelineProfile:
        """Profiles of the stages, and paths with independent branches."""
        kinds = [(m, h) for m, h in throughputs()]
        profiles = {
            (stage, hardware): profile(stage, model, hardware)
            for stage, model in zip(self.stages, self.models, strict=True)
            for listed, hardware in kinds
            if listed == model
        }
        taken = {(self.stages[a], self.stages[b]): p for a, b, p in self.arrows}
        return PipelineProfile(profiles, independent_paths(self.shape, taken))

    def trace(self, held_out: int = 0) -> Trace:
        """The trace to plan on, or another one of the same traffic."""
        rng = np.random.default_rng([self.seed, held_out])
        return gamma_trace(self.arrival_rate, self.cv, self.duration_s, rng)


def published() -> list[Instance]:
    """Every published instance."""
    rows = json.loads((HERE / "published.json").read_text())
    return [
        Instance(**{**row, "models": tuple(row["models"]), "arrows": tuple(tuple(arrow) for arrow in row["arrows"])})
        for row in rows
    ]


# How `published.json` was made. Everything below runs only when the set is written again.

# Only models that were measured on three kinds of hardware or more: with fewer there is little to choose.
_CHEAP = ("tft-trt", "bert-dist4l-trt", "bert-dist6l-trt", "resnet50-ort-trt")
_HEAVY = (
    "bert-dist4l-ort",
    "bert-dist4l-pytorch",
    "bert-dist6l-ort",
    "bert-dist6l-pytorch",
    "bert-large-trt",
    "bert-large-ort",
    "bert-large-pytorch",
    "convnet-tf-trt",
    "fastpitch",
    "tft-pytorch",
)
SHAPES: dict[str, tuple[tuple[int, int, float], ...]] = {
    "cascade": ((0, 1, 0.4),),
    "chain2": ((0, 1, 1.0),),
    "chain3": ((0, 1, 1.0), (1, 2, 1.0)),
    "fork": ((0, 1, 1.0), (0, 2, 0.4), (1, 3, 1.0), (2, 3, 1.0)),
    "diamond": ((0, 1, 1.0), (0, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0)),
    "chain4": ((0, 1, 1.0), (1, 2, 0.6), (2, 3, 1.0)),
    "social": ((0, 1, 1.0), (0, 2, 1.0), (1, 3, 0.3), (2, 3, 1.0), (3, 4, 1.0)),
    "wide6": ((0, 1, 1.0), (0, 2, 0.6), (0, 3, 0.4), (1, 4, 1.0), (2, 4, 1.0), (3, 4, 1.0), (4, 5, 1.0)),
    "deep8": (
        (0, 1, 1.0),
        (1, 2, 1.0),
        (1, 3, 0.5),
        (2, 4, 1.0),
        (3, 4, 1.0),
        (4, 5, 0.7),
        (4, 6, 1.0),
        (5, 7, 1.0),
        (6, 7, 1.0),
    ),
}


def _instance(number: int, shape: str, rng: np.random.Generator) -> Instance:
    """A random instance whose busiest stage needs a handful of replicas of a middling kind."""
    arrows = SHAPES[shape]
    count = 1 + max((b for _, b, _ in arrows), default=0)
    models = [str(rng.choice(_HEAVY if rng.random() < 0.6 else _CHEAP)) for _ in range(count)]
    slack, cv = float(rng.choice([1.5, 2.0, 3.0, 5.0])), float(rng.choice([1.0, 4.0]))
    draft = Instance(f"{shape}-{number:02}", tuple(models), arrows, 1.0, 1.0, cv, 120.0, number)
    ratios = visit_ratios(draft.shape, draft.measured.paths)
    fastest = {
        s: min(p.service_time_s(1) for (name, _), p in draft.measured.profiles.items() if name == s)
        for s in draft.stages
    }
    rate = float(rng.choice([2.0, 4.0, 8.0])) * min(1 / (fastest[s] * ratios[s]) for s in draft.stages)
    rng.choice([0, 60])  # what an instance had once: without this draw all others would be different
    return Instance(
        draft.name,
        draft.models,
        arrows,
        slo_s=float(f"{slack * draft.shape.longest_path_s(fastest):.2g}"),
        arrival_rate=float(f"{min(rate, 2000.0):.2g}"),
        cv=cv,
        duration_s=120.0,
        seed=number,
    )


def _write() -> None:
    rng = np.random.default_rng(20201019)
    shapes = itertools.islice(itertools.cycle(SHAPES), 45)
    rows = [asdict(_instance(number, shape, rng)) for number, shape in enumerate(shapes)]
    (HERE / "published.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    _write()
