"""Which GPU a replica is given: a whole one, a share of one, or a slice that was cut out of one (MIG). Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.hardware import Hardware

_SLICE = re.compile(r"\d+g\.\d+gb")


@dataclass(frozen=True, slots=True)
class Device:
    """One device as CUDA names it.

    Args:
        uuid: ``GPU-…``, or ``MIG-…`` for a slice.
        model: of the GPU, as it reports itself, e.g. ``NVIDIA A100-SXM4-40GB``.
        memory_bytes: of its own.
        slice: profile of a slice, e.g. ``1g.10gb``; empty for a whole GPU.
    """

    uuid: str
    model: str
    memory_bytes: int = 0
    slice: str = ""


def slice_of(hardware: Hardware) -> str:
    """The MIG profile that a kind's name asks for, e.g. ``1g.10gb``; empty for whole GPUs and shares of them."""
    found = _SLICE.search(hardware.name)
    return found.group() if found and hardware.gpus else ""


def carries(device: Device, hardware: Hardware) -> bool:
    """Whether a device is of the kind: its model begins as the kind's does, and it is the slice asked for, if any."""
    model = (hardware.gpu_model or "").lower()
    return device.model.lower().startswith(model) and device.slice == slice_of(hardware)


def devices_for(
    hardware: Hardware, machine: Sequence[Device], taken: Iterable[tuple[Hardware, Sequence[str]]]
) -> tuple[str, ...] | None:
    """UUIDs of the devices to run on, none for kinds without a GPU; None where there is no room.

    A kind with a share of a GPU is put on the fullest device that still has room: whole ones stay whole.

    Args:
        hardware: the kind.
        machine: every device.
        taken: for each running replica its kind and the devices that it was given.
    """
    if not hardware.gpus:
        return ()
    load = dict.fromkeys((device.uuid for device in machine), 0.0)
    for kind, given in taken:
        for uuid in given:
            load[uuid] = load.get(uuid, 0.0) + _share(kind)
    fitting = [device.uuid for device in machine if carries(device, hardware)]
    free = [uuid for uuid in fitting if load[uuid] + _share(hardware) <= 1 + 1e-9]
    needed = 1 if slice_of(hardware) else math.ceil(hardware.gpus)
    chosen = sorted(free, key=lambda uuid: -load[uuid])[:needed]  # stable: by the machine's own order among equals
    return tuple(chosen) if len(chosen) == needed else None


def _share(hardware: Hardware) -> float:
    """Of one device: a slice is taken whole, and so are GPUs of which a kind has several."""
    return 1.0 if slice_of(hardware) else min(hardware.gpus, 1.0)
