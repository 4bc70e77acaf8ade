"""A stage that a GPU is paid for, and whether its frameworks can use one."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from inferline_stream.dataplane.replica.cuda_use import cuda_lack
from inferline_stream.dataplane.replica.replica import EXIT_CANNOT_LOAD
from inferline_stream.pipeline.hardware import Hardware
from tests.unit.dataplane.replica.replica_process import replica
from tests.unit.dataplane.replica.test_replica import TOPOLOGY

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Session:
    """A session of onnxruntime, as far as it says where it runs."""

    def __init__(self, *providers: str) -> None:
        self._providers = list(providers)

    def get_providers(self) -> list[str]:
        """Those that it uses."""
        return self._providers


def module(name: str, **members: Any) -> dict[str, ModuleType]:
    made = ModuleType(name)
    vars(made).update(members)
    return {name: made}


def ort(*available: str) -> dict[str, ModuleType]:
    return module("onnxruntime", InferenceSession=Session, get_available_providers=lambda: list(available))


def torch(available: bool) -> dict[str, ModuleType]:
    return module("torch", cuda=SimpleNamespace(is_available=lambda: available))


@pytest.mark.parametrize(
    ("modules", "sessions", "said"),
    [
        ({}, [], ""),
        (torch(True), [], ""),
        (torch(False), [], "torch.cuda.is_available() is false"),
        (ort(CPU), [], "onnxruntime has no CUDAExecutionProvider"),
        (ort(CUDA, CPU), [], ""),
        (ort(CUDA, CPU), [Session(CUDA, CPU)], ""),
        (ort(CUDA, CPU), [Session(CPU)], "onnxruntime's sessions run on CPUExecutionProvider alone"),
        (ort(CUDA, CPU), [Session(CPU), Session(CUDA)], ""),
        (torch(False) | ort(CUDA), [Session(CUDA)], ""),
        (torch(True) | ort(CPU), [Session(CPU)], ""),
        (module("cupy") | torch(False), [], ""),
        (torch(False) | ort(CPU), [], "torch.cuda.is_available() is false; onnxruntime has no CUDAExecutionProvider"),
    ],
)
def test_cuda_is_lacking_where_every_framework_that_is_loaded_has_none(
    modules: dict[str, ModuleType], sessions: list[Session], said: str
) -> None:
    assert cuda_lack(modules, sessions) == said


def test_the_runtime_that_is_installed_is_asked_as_it_answers() -> None:
    has = CUDA in onnxruntime.get_available_providers()
    assert bool(cuda_lack({"onnxruntime": onnxruntime}, [])) is not has


def test_a_stage_on_a_gpu_whose_framework_has_no_cuda_is_never_ready_and_says_why(tmp_path: Path) -> None:
    fake = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); cuda = types.ModuleType('cuda'); "
    fake += "cuda.is_available = lambda: False; sys.modules['torch'].cuda = cuda"
    kind = Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")
    with replica(tmp_path, TOPOLOGY.replace("{init}", fake), hardware=kind) as running:
        code, said = running.wait()
    assert code == EXIT_CANNOT_LOAD
    assert said.splitlines()[-1].startswith("hardware 't4' has a GPU, and the stage cannot use it: torch.cuda.is_av")
