"""How replicas share a GPU: by MPS where this host runs NVIDIA's daemon for it, else by time slices.

With time slices, the driver gives each process the whole device in turn, as much time to each. With MPS, their kernels
run side by side, each on its part of the device, and no process may take more than its part of the memory; but an error
that leaves a context unusable ends all of them. A sealed replica may connect to no socket, for behind the next one may
be any daemon of the host, so it has time slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inferline_stream.actuators.devices import Device
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import mps_folder

_PID_FILE = "nvidia-cuda-mps-control.pid"
_DAEMON = "nvidia-cuda-mps"
"""As the kernel names it: the first 15 characters."""

MPS, TIME_SLICES = "MPS", "time slices"


def daemon() -> Path | None:
    """Return the folder by which MPS's daemon is asked; None where none runs here."""
    folder = Path(mps_folder())
    try:
        name = Path("/proc", str(int((folder / _PID_FILE).read_text())), "comm").read_text()
    except (OSError, ValueError):
        return None
    return folder if name.startswith(_DAEMON) else None


def shared_by(kind: Hardware, isolation: Isolation) -> str:
    """Return how replicas of a kind share a device, in words; empty where they share none.

    This host shares it, unless the kind names nodes of a cluster.
    """
    if not kind.shares_gpu:
        return ""
    if kind.node_labels:
        return MPS if kind.by_mps else TIME_SLICES
    return MPS if not isolation.sandboxed and daemon() is not None else TIME_SLICES


def variables(kind: Hardware, isolation: Isolation, given: Sequence[Device]) -> Mapping[str, str]:
    """Return what a replica's environment says of MPS, as NVIDIA's device plugin for Kubernetes divides a device.

    Args:
        kind: of the replica.
        isolation: of its stage.
        given: the device that it shares.
    """
    if shared_by(kind, isolation) != MPS:
        return {}
    memory_mib = min((device.memory_bytes for device in given), default=0) // kind.parts >> 20
    found = {
        "CUDA_MPS_PIPE_DIRECTORY": mps_folder(),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(100 // kind.parts),
    }
    return found | ({"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={memory_mib}M"} if memory_mib else {})
