"""Topologies of the checks: the model of a device and what a check varies are filled in."""

from __future__ import annotations

from pathlib import Path

_HEAD = """
import ctypes
import os
from inferline_stream import Hardware, Isolation, Pipeline, Sample, Stage, Topic

whole = Hardware("whole", 1.0, gpus=1, gpu_model={model!r})
half = Hardware("half", 0.5, gpus=0.5, gpu_model={model!r})
sample = Sample(arrivals="arrivals.csv", events="events.jsonl")

def pipeline_of(run, kind, most=1, isolation=Isolation("sandbox", scratch=True, on_unsupported="degrade"), **options):
    stage = Stage("work", run, hardware=[kind.name], max_batch_size=most, isolation=isolation, **options)
    return Pipeline("gpu-check", slo="2s", source=Topic("in"), sink=Topic("out"), stages=[stage],
                    sample=sample, hardware=[whole, half])
"""

DRIVER = (
    _HEAD
    + '''
class Work:
    """Starts CUDA by the driver's own library, takes memory, and takes more once it is sealed."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._done("cuInit", self.cuda.cuInit(0))
        self._done("cuDeviceGet", self.cuda.cuDeviceGet(ctypes.byref(device), 0))
        self._done("cuCtxCreate", self.cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))

    def _done(self, call, code):
        if code:
            raise RuntimeError(f"{{call}} answers with error {{code}}")

    def __call__(self, numbers: list[int]) -> list[int]:
        memory = ctypes.c_uint64()
        self._done("cuMemAlloc", self.cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 20)))
        self._done("cuMemFree", self.cuda.cuMemFree_v2(memory))
        return numbers

pipeline = pipeline_of(Work, whole)
'''
)

MATRICES = (
    _HEAD
    + '''
class Work:
    """Some 10 ms of the device's time for a batch. With a file "armed", a 13 is out of bounds on the device."""

    armed = os.path.join(os.path.dirname(__file__), "armed")

    def __init__(self):
        import torch
        self.torch = torch
        self.a = torch.rand(2048, 2048, device="cuda")
        self._busy()

    def _busy(self):
        found = self.a
        for _ in range({rounds}):
            found = found @ self.a
            found = found / found.abs().max()
        self.torch.cuda.synchronize()

    def __call__(self, numbers: list[int]) -> list[int]:
        self._busy()
        if 13 in numbers and os.path.exists(self.armed):
            self.a[self.torch.tensor([4096], device="cuda")].sum().item()
        return numbers

pipeline = pipeline_of(Work, {kind}, isolation=Isolation({isolation!r}))
'''
)

MEMORY = (
    _HEAD
    + '''
class Work:
    """Takes a sixth of the device's memory for each event of a batch."""

    def __init__(self):
        import torch
        self.torch = torch
        self.each = torch.cuda.get_device_properties(0).total_memory // 6
        torch.zeros(1, device="cuda")

    def __call__(self, numbers: list[int]) -> list[int]:
        taken = self.torch.empty(self.each * len(numbers), dtype=self.torch.uint8, device="cuda")
        taken.fill_(1)
        self.torch.cuda.synchronize()
        return numbers

pipeline = pipeline_of(Work, whole, most=16)
'''
)


def write(folder: Path, source: str, *, numbers: list[int], per_s: float, **fields: object) -> Path:
    """Write a topology and its sample: these numbers, at a steady rate; return its path."""
    folder.mkdir(parents=True)
    filled = {"model": "", "kind": "whole", "rounds": 20, "isolation": "none", **fields}
    (folder / "topology.py").write_text(source.format(**filled))
    (folder / "events.jsonl").write_text("".join(f"{number}\n" for number in numbers))
    times = "".join(f"{at / per_s:.4f}\n" for at in range(len(numbers)))
    (folder / "arrivals.csv").write_text(f"arrival_s\n{times}")
    return folder / "topology.py"
