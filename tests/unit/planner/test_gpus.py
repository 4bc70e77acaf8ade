"""Kinds that share the GPUs of one machine: no plan holds more of them than there are."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.actuators.devices import Device
from inferline_stream.cli.plan_steps import with_devices
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.planner.provision import SearchSettings, search
from tests.unit.planner.problems import plain_problem, random_problem

KINDS = [
    Hardware("slow", 9.0),
    Hardware("middle", 0.35, gpus=0.5, gpu_model="Tesla T4"),
    Hardware("fast", 1.0, gpus=1, gpu_model="Tesla T4"),
]


def box(gpus: int, model: str = "Tesla T4") -> dict[str, Hardware]:
    """The kinds on a machine with so many T4s, whole ones under that name."""
    kinds = [replace(kind, gpu_model=model) if kind.gpus == 1 else kind for kind in KINDS]
    stages = [Stage("a", list, hardware=[kind.name for kind in KINDS])]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages, hardware=kinds)
    machine = [Device(f"GPU-{n}", "Tesla T4", 16 << 30) for n in range(gpus)]
    return dict(catalogue(with_devices(pipeline, machine, absent=True).hardware))


def gpus_of(catalogue: dict[str, Hardware], algorithm: str = "default") -> float:
    """GPUs that are planned for three stages, each of which keeps two halves of one busy, or a whole one."""
    times_s = {stage: {"slow": 0.008, "middle": 0.012, "fast": 0.009} for stage in "abc"}
    problem = plain_problem(times_s, np.arange(300) / 100, 0.5, catalogue)
    found = search(problem, SearchSettings(algorithm=algorithm, margin=0.0)).candidate
    return sum(a.replicas * problem.catalogue[a.hardware].gpus for option in found for a in option)


@pytest.mark.parametrize("model", ["Tesla T4", "NVIDIA T4"])
@pytest.mark.parametrize("algorithm", ["default", "inferline", "exact"])
def test_a_box_of_two_gpus_is_never_planned_three_whatever_mixture_of_kinds_would_be_in_stock(
    algorithm: str, model: str
) -> None:
    assert gpus_of(box(2, model), algorithm) <= 2


def test_where_each_kind_is_counted_by_itself_the_same_plan_takes_three() -> None:
    """Four halves and a whole one, each within its own stock."""
    assert gpus_of({name: replace(kind, gpu_stock=None) for name, kind in box(2).items()}) == 3


def test_a_stage_whose_every_device_others_use_is_named() -> None:
    none = {name: replace(kind, stock=0) for name, kind in box(2).items()}
    with pytest.raises(Infeasible, match=r"stage 's0': none of .*fast.* is in stock; free some"):
        random_problem(0, catalogue=none)
