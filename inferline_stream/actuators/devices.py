"""Which cores and which GPU a replica is given, in the profile as in a run: one of `cpu-1` really has one core. Pure.

A GPU is a whole one, a share of one, or a slice that was cut out of one (MIG).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from inferline_stream.pipeline.hardware import Hardware, is_model

_IDLE_BYTES, _IDLE_SHARE = 1 << 30, 0.02
"""Memory that may be in use on a device that nobody uses: drivers and desktops hold some hundred MB, up to 2 %. A slice
has no desktop, and its 5 GB may be full of a small model."""

_IDLE_BUSY = 0.05
"""Share of the time in which a device that nobody uses may be busy."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device as CUDA names it.

    Args:
        uuid: ``GPU-…``, or ``MIG-…`` for a slice.
        model: of the GPU, as it reports itself, e.g. ``NVIDIA A100-SXM4-40GB``.
        memory_bytes: of its own.
        slice: profile of a slice, e.g. ``1g.10gb``; empty for a whole GPU.
        used_bytes: memory in use by processes that are not ours.
        busy: share of the time in which it ran kernels of such processes; 1 where they run and NVML does not say.
        index: of the GPU among those of the machine, as the driver counts them.
        nodes: what is its own below ``/dev``: a GPU's ``nvidiaN``, and of a slice those of its capabilities, too; none
            where that is not known.
        near: cores whose memory is on the GPU's side of the machine; empty where that is not known.
    """

    uuid: str
    model: str
    memory_bytes: int = 0
    slice: str = ""
    used_bytes: int = 0
    busy: float = 0.0
    index: int = 0
    nodes: tuple[str, ...] = ()
    near: frozenset[int] = frozenset()

    @property
    def occupied(self) -> float:
        """Share that others have, of its memory or of its time, whichever is more."""
        idle_bytes = max(0 if self.slice else _IDLE_BYTES, _IDLE_SHARE * self.memory_bytes)
        held = self.used_bytes / self.memory_bytes if self.used_bytes > idle_bytes and self.memory_bytes else 0.0
        return max(held, self.busy if self.busy > _IDLE_BUSY else 0.0)


def visible(machine: Sequence[Device], named: str | None, *, by_bus: bool) -> tuple[Device, ...]:
    """Return the devices that this process may use.

    Args:
        machine: every device.
        named: value of ``CUDA_VISIBLE_DEVICES``: indexes and UUIDs, or beginnings of them. CUDA stops at the first
            that names nothing. None if it is not set.
        by_bus: whether CUDA counts as the driver does, ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, and not the fastest first.
            Among GPUs of one model a number does no harm.

    Raises:
        ValueError: an index that CUDA takes for another GPU than the driver does.
    """
    if named is None:
        return tuple(machine)
    found: list[Device] = []
    models = sorted({each.model for each in machine if each.model})
    for name in map(str.strip, named.split(",")):
        if name.isdigit() and not by_bus and len(models) > 1:
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES={named} counts GPUs as CUDA does, the fastest first, and this machine has "
                f"{' and '.join(models)}: write UUIDs (`nvidia-smi -L` lists them), or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )
        of = [each for each in machine if name and (str(each.index) == name or each.uuid.startswith(name))]
        if not of:
            break
        found += [each for each in of if each not in found]
    return tuple(found)


def carries(device: Device, hardware: Hardware) -> bool:
    """Whether a device is of the kind: of its model, if it names one, and the slice asked for, if any."""
    model = hardware.gpu_model
    return (model is None or is_model(device.model, model)) and device.slice == hardware.slice


def used_by_others(before: Device, now: Device) -> Device:
    """Return a device that ours have: what others used of it before, or what is used now where that is less."""
    return replace(now, used_bytes=min(before.used_bytes, now.used_bytes), busy=min(before.busy, now.busy))


def devices_for(
    hardware: Hardware, machine: Sequence[Device], taken: Iterable[tuple[Hardware, Sequence[str]]]
) -> tuple[str, ...] | None:
    """UUIDs of the devices to run on, none for kinds without a GPU; None where there is no room.

    A kind with a share of a GPU is put on the fullest device that still has room: whole ones stay whole. Beside it are
    replicas with the same share alone: a device gives all that use it as much of its time.

    Args:
        hardware: the kind.
        machine: every device, with what others use of it.
        taken: for each running replica its kind and the devices that it was given.
    """
    if not hardware.gpus:
        return ()
    load = {device.uuid: device.occupied for device in machine}
    others = set[str]()
    for kind, given in taken:
        for uuid in given:
            load[uuid] = load.get(uuid, 0.0) + _share(kind)
            others |= {uuid} if kind.parts != hardware.parts else set()
    fitting = [device.uuid for device in machine if carries(device, hardware) and device.uuid not in others]
    free = [uuid for uuid in fitting if load[uuid] + _share(hardware) <= 1 + 1e-9]
    needed = 1 if hardware.slice else math.ceil(hardware.gpus)
    chosen = sorted(free, key=lambda uuid: -load[uuid])[:needed]  # stable: by the machine's own order among equals
    return tuple(chosen) if len(chosen) == needed else None


def with_stock_of(hardware: Hardware, machine: Sequence[Device]) -> Hardware:
    """Return a kind of which there is no more than a machine's devices have room for."""
    if not hardware.gpus:
        return hardware
    taken: list[tuple[Hardware, Sequence[str]]] = []
    while (given := devices_for(hardware, machine, taken)) is not None:
        taken.append((hardware, given))
    places = len(taken) if hardware.stock is None else min(len(taken), hardware.stock)
    free = None if hardware.slice else sum(1 - device.occupied for device in machine if carries(device, hardware))
    return replace(hardware, stock=places, gpu_stock=free)


def _share(hardware: Hardware) -> float:
    """Of one device: a slice is taken whole, and so are GPUs of which a kind has several."""
    return 1.0 if hardware.slice else min(hardware.gpus, 1.0)


def cores_for(
    wanted: float,
    machine: Collection[int],
    taken: Iterable[tuple[float, Collection[int]]],
    near: Collection[int] = (),
) -> frozenset[int]:
    """Cores to run on; empty where nothing will be fixed.

    A replica gets whole cores of its own; those below one core share a core while their sum fits. One that
    does not fit any more may run anywhere: the machine is oversubscribed, and only the scheduler can be fair.

    Args:
        wanted: cores of the hardware kind; 0 uses none.
        machine: cores of this machine.
        taken: for each running replica the cores wanted and those it was given.
        near: those to take first, if they are free.
    """
    if wanted <= 0:
        return frozenset()
    load = _load(machine, taken)
    share = min(wanted, 1.0)
    free = [core for core in load if load[core] + share <= 1 + 1e-9]
    free.sort(key=lambda core: (core not in near, -load[core], -core))
    needed = math.ceil(wanted)
    return frozenset(free[:needed]) if len(free) >= needed else frozenset()


def _load(machine: Collection[int], taken: Iterable[tuple[float, Collection[int]]]) -> Mapping[int, float]:
    load = dict.fromkeys(sorted(machine), 0.0)
    for cores, given in taken:
        for core in given:
            load[core] = load.get(core, 0.0) + min(cores, 1.0)
    return load
