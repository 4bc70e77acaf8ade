"""What a stage on a GPU needs of this machine, what of it there is, and what to do about the rest."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inferline_stream.actuators.devices import Device
from inferline_stream.actuators.mps import daemon
from inferline_stream.actuators.nvml import devices as machine_devices

_CUDA_S = 60.0
"""Longest that importing frameworks may take."""

_ASK_FRAMEWORKS = """
import importlib.util, sys
for name in ("torch", "onnxruntime"):
    if importlib.util.find_spec(name) is not None:
        __import__(name)
from inferline_stream.dataplane.replica.cuda_use import cuda_lack
known = [name for name in ("torch", "onnxruntime") if name in sys.modules]
print("lacks:" + (cuda_lack(sys.modules, ()) if known else "neither PyTorch nor onnxruntime is installed"))
"""


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """One thing that is needed.

    Args:
        name: of it.
        found: what there is, in words.
        remedy: what to do where it is missing; empty where it is there.
        optional: whether only some stages need it.
    """

    name: str
    found: str
    remedy: str = ""
    optional: bool = False

    def in_words(self, width: int) -> str:
        """Return how it stands, what there is, and the remedy below; names are as wide as the longest."""
        stands = "there" if not self.remedy else "optional" if self.optional else "missing"
        remedy = f"\n{'':<{width + 10}}  → {self.remedy}" if self.remedy else ""
        return f"{stands:<8}  {self.name:<{width}}  {self.found}{remedy}"


def gpu_needs(
    root: Path = Path("/"),
    *,
    devices: Callable[[], tuple[Device, ...]] = machine_devices,
    which: Callable[[str], str | None] = shutil.which,
    cuda_version: Callable[[], int] | None = None,
    framework_lack: Callable[[], str] | None = None,
    mps_daemon: Callable[[], Path | None] = daemon,
) -> tuple[GpuNeed, ...]:
    """Look at everything, in the order in which each needs the one before.

    Args:
        root: of the file system.
        devices: of NVML.
        which: finds programs.
        cuda_version: of the driver's CUDA library, 1000 · major + 10 · minor; 0 where there is none.
        framework_lack: why no framework that is installed can use a GPU, in words; empty if one can.
        mps_daemon: see `mps.daemon`.
    """
    return (
        _driver(root),
        _nodes(root),
        _unified_memory(root, which),
        _listed(devices()),
        _cuda((cuda_version or _cuda_version)()),
        _framework((framework_lack or _framework_lack)()),
        _sharing(mps_daemon()),
    )


def _driver(root: Path) -> GpuNeed:
    try:
        said = (root / "proc/driver/nvidia/version").read_text("utf-8", "replace").splitlines()[0]
    except (OSError, IndexError):
        return GpuNeed(
            "driver",
            "not loaded",
            "install NVIDIA's driver, 580 or newer for CUDA 13, and run `modprobe nvidia`; in a container, start that "
            "with its GPUs: `docker run --gpus all`, `podman run --device nvidia.com/gpu=all`",
        )
    return GpuNeed("driver", said.partition(":")[2].strip() or said)


def _nodes(root: Path) -> GpuNeed:
    found = [root / "dev/nvidiactl", *sorted((root / "dev").glob("nvidia[0-9]*"))]
    there = [node for node in found if node.exists()]
    closed = [f"/{node.relative_to(root)}" for node in there if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        return GpuNeed(
            "device nodes",
            f"{', '.join(closed)} may not be opened",
            "let this user read and write them: by a group of theirs (commonly video), or NVreg_DeviceFileMode=0666",
        )
    if len(there) < 2:
        missing = "/dev/nvidiactl or /dev/nvidia0 is missing"
        return GpuNeed("device nodes", missing, "run `nvidia-modprobe -c=0` as root")
    return GpuNeed("device nodes", ", ".join(f"/{node.relative_to(root)}" for node in there))


def _unified_memory(root: Path, which: Callable[[str], str | None]) -> GpuNeed:
    if (root / "dev/nvidia-uvm").exists():
        return GpuNeed("unified memory", "/dev/nvidia-uvm")
    if (program := which("nvidia-modprobe")) is not None:
        remedy = f"run `{program} -u -c=0`, as after each start of the machine"
    else:
        remedy = "install nvidia-modprobe, and run `nvidia-modprobe -u -c=0` as root after each start of the machine"
    return GpuNeed("unified memory", "/dev/nvidia-uvm is missing, and no sandboxed process can have it made", remedy)


def _listed(found: tuple[Device, ...]) -> GpuNeed:
    if not found:
        return GpuNeed(
            "NVML",
            "lists no device",
            "its library, libnvidia-ml.so.1, comes with the driver and has to be of the same version; "
            "CUDA_VISIBLE_DEVICES may hide devices from this process",
        )
    return GpuNeed("NVML", ", ".join(f"{device.model} {device.slice}".rstrip() for device in found))


def _cuda(version: int) -> GpuNeed:
    if not version:
        remedy = "libcuda.so.1 comes with the driver (Debian: libcuda1); where it lies elsewhere, set LD_LIBRARY_PATH"
        return GpuNeed("CUDA", "libcuda.so.1 cannot be loaded", remedy)
    return GpuNeed("CUDA", f"{version // 1000}.{version % 1000 // 10}")


def _framework(lack: str) -> GpuNeed:
    if lack:
        return GpuNeed(
            "the stage's framework",
            lack,
            "install what is built for the driver's CUDA into this environment: `pip install onnxruntime-gpu` in the "
            "place of onnxruntime, or PyTorch from the index for that CUDA; and CUDA's and cuDNN's libraries for "
            "onnxruntime. Another framework is not looked at",
        )
    return GpuNeed("the stage's framework", "can use CUDA")


def _sharing(folder: Path | None) -> GpuNeed:
    """Only kinds such as ``t4-1of2`` share a device."""
    if folder is not None:
        return GpuNeed("sharing", "by MPS, of stages that have isolation 'none'; of others by time slices")
    remedy = "run `nvidia-cuda-mps-control -d` as this user, for stages that have isolation 'none'"
    return GpuNeed("sharing", "by time slices, since no daemon of MPS runs", remedy, optional=True)


def _cuda_version() -> int:
    """Ask the driver's CUDA library, which needs no device for that."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else version.value


def _framework_lack() -> str:
    """Ask in a process of its own: what frameworks take of a device goes with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_FRAMEWORKS], capture_output=True, text=True, timeout=_CUDA_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"PyTorch and onnxruntime were not imported within {_CUDA_S:g} s"
    said = [line for line in done.stdout.splitlines() if line.startswith("lacks:")]
    if not said:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return said[-1].removeprefix("lacks:")
