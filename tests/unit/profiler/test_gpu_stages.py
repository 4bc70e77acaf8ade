"""Stages that each take the whole of a GPU, on a machine with fewer GPUs than stages."""

from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.profiler import this_host
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options
from inferline_stream.profiler.topology_check import building_problems
from inferline_stream.settings import Settings
from tests.support.fake_nvml import Locked, install

TOPOLOGY = """
import fcntl, os
from inferline_stream import Pipeline, Stage, Topic

class Model:
    def __init__(self) -> None:
        self.device = open(os.path.join(os.path.dirname(__file__), os.environ["CUDA_VISIBLE_DEVICES"]), "rb")
        try:
            fcntl.flock(self.device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("CUDA out of memory. Tried to allocate 14.00 GiB")

    def __call__(self, numbers: list[int]) -> list[int]:
        return numbers

embed = Stage("embed", Model, hardware=["t4"], max_batch_size=2)
rank = Stage("rank", Model, after=[embed], hardware=["t4"], max_batch_size=2)
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[embed, rank])
"""
TAKEN = 14 << 30
EVENTS = [b"%d" % number for number in range(20)]


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return file


@pytest.mark.parametrize("gpus", [1, 2])
async def test_check_builds_each_stage_on_a_device_of_its_own_one_after_another(
    gpus: int, topology: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, [Locked(topology.parent, f"GPU-{n}", taken=TAKEN) for n in range(gpus)])
    assert (await building_problems(load_topology(topology), topology, Settings(start_timeout_s=30.0)))[0] == []


async def test_check_says_that_others_use_every_device(topology: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_host, "FREED_S", 0.0)
    gpu = {"name": "Tesla T4", "uuid": "GPU-0", "total": 16 << 30, "used": TAKEN}
    install(monkeypatch, [gpu])
    found, _ = await building_problems(load_topology(topology), topology, Settings(start_timeout_s=30.0))
    assert ["no device that is t4 is free: others use them" in problem for problem in found] == [True, True]


async def test_the_sample_and_the_profiles_are_run_by_turns_where_models_do_not_fit_beside_each_other(
    topology: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, [Locked(topology.parent, "GPU-0", taken=TAKEN)])
    machine, options = Machine("Test CPU", 4, ("Tesla T4",)), Options(sample_s=30.0, stage_s=0.1)
    measured = await profile_pipeline(load_topology(topology), topology, EVENTS, options=options, machine=machine)
    assert {key: {e.device_bytes for e in profile.service_times} for key, profile in measured.profiles.items()} == {
        ("embed", "t4"): {TAKEN},
        ("rank", "t4"): {TAKEN},
    }
    assert measured.samples.keys() == {"embed", "rank"}


PRODUCTS = """
import os, time
from inferline_stream import Pipeline, Stage, Topic

def embed(numbers: list[int]) -> list[int]:
    time.sleep({"GPU-40": 0.001, "GPU-80": 0.03}[os.environ["CUDA_VISIBLE_DEVICES"]])
    return numbers

pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"),
                    stages=[Stage("embed", embed, hardware=["a100"], max_batch_size=1)])
"""


async def test_each_product_of_a_machine_that_has_several_of_one_kind_is_measured_and_the_slowest_counts(
    topology: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology.write_text(PRODUCTS)
    models = ("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-80GB")
    install(monkeypatch, [{"name": m, "uuid": f"GPU-{m[-4:-2]}", "total": int(m[-4:-2]) << 30} for m in models])
    machine, options = Machine("Test CPU", 16, models), Options(sample_s=30.0, stage_s=0.1)
    measured = await profile_pipeline(load_topology(topology), topology, EVENTS, options=options, machine=machine)
    profile = measured.profiles["embed", "a100"]
    assert profile.products == models
    assert profile.service_times[0].mean_s >= 0.03
