"""The machine that profiles are measured on, and which hardware kinds it can stand for."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec

from inferline_stream.actuators.devices import Device, carries
from inferline_stream.actuators.nvml import devices
from inferline_stream.isolation import limits
from inferline_stream.pipeline.hardware import SLICE, Hardware
from inferline_stream.pipeline.units import count_of


class Machine(msgspec.Struct, frozen=True):
    """What makes service times comparable: processor, number of cores, and GPUs.

    Args:
        cpu: the processor's model name.
        cores: cores that this process may use.
        gpus: model names, as the devices report themselves.
        shares: whether a replica can be held to a share of a core.
    """

    cpu: str
    cores: int
    gpus: tuple[str, ...] = ()
    shares: bool = True

    @property
    def folder(self) -> str:
        """A short name for files."""
        words = " ".join((self.cpu, f"{self.cores} cores", *sorted(set(self.gpus))))
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:120]


@cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    gpus = tuple(f"{device.model} {device.slice}".rstrip() for device in devices())
    return Machine(_cpu_model(), len(os.sched_getaffinity(0)), gpus, limits.shares_held())


def why_not_here(hardware: Hardware, machine: Machine) -> str | None:
    """Why a kind cannot be measured on a machine, in words; None if it can."""
    if hardware.emulated:
        return None
    if 0 < hardware.cores < 1 and not machine.shares:
        return (
            f"no control group for cores can be made here, so that nothing holds a replica to the {hardware.cores:g} "
            f"cores of {hardware.name}: run as root, give the user's session the controller (systemd: Delegate=cpu), "
            "or let replicas take what they get with --oversubscribe"
        )
    needed = 1 if hardware.slice else math.ceil(hardware.gpus)
    if sum(carries(_device(gpu), hardware) for gpu in machine.gpus) < needed:
        if not machine.gpus:
            return "this machine has no GPU"
        needs = f"{hardware.gpu_model or 'a GPU'} {hardware.slice}".rstrip() + (f" × {needed}" if needed > 1 else "")
        return f"this machine has {', '.join(machine.gpus)}, and {needs} is needed"
    if hardware.cores > machine.cores:
        return f"this machine has {count_of(machine.cores, 'core')}, {hardware.name} needs {hardware.cores:g}"
    return None


def models_of(hardware: Hardware, machine: Machine) -> tuple[str, ...]:
    """Return the models of a kind of which a machine has enough devices for a replica; none without a GPU."""
    found = Counter(device.model for gpu in machine.gpus if carries(device := _device(gpu), hardware))
    return tuple(sorted(model for model in found if found[model] >= hardware.gpus)) if hardware.gpus else ()


def _device(gpu: str) -> Device:
    """What `Machine.gpus` says of a device: the model, and the MIG profile of a slice."""
    model, _, last = gpu.rpartition(" ")
    return Device("", model, slice=last) if SLICE.fullmatch(last) else Device("", gpu)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine
