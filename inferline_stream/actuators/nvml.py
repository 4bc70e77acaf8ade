"""GPUs of this machine, as NVIDIA's management library (NVML) reports them. The only door to that library.

It comes with the driver: a machine without it has no GPU that a stage could use. It stays open from the first call to
the end of the process, since opening it takes seconds for each GPU whose driver does not persist. `DeviceWatch` looks
in a thread of its own: a driver that hangs holds up that thread alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pynvml

from inferline_stream.actuators.devices import Device, visible
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.hardware import SLICE
from inferline_stream.settings import gpus_by_bus, visible_gpus

logger = logging.getLogger(__name__)

_APPLICATION_XIDS = frozenset((13, 31, 43, 45, 68, 109))
"""Errors of programs, after which the device is as good as before: those that NVIDIA's own driver for Kubernetes
ignores."""


_CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
"""Of each slice a file ``access``, with the number of the node that lets a process use it."""

_MOST_CORES = 1024
"""Of a machine: NVML fills a set of so many."""

_MOST_EVENTS = 1000
"""Of one look: a storm of errors must not keep it from its answer."""


@dataclass(frozen=True, slots=True)
class Look:
    """What NVML said at one time.

    Args:
        devices: those that a process can be given.
        states: how they stand, and those that do not answer.
    """

    devices: tuple[Device, ...] = ()
    states: tuple[DeviceState, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU or a slice of one, or why nothing is known of it.

    Args:
        place: which it is, in words.
        device: as far as it is known.
        gpu: NVML's handle of the whole GPU.
        memory_used: share of its memory.
        utilization: as in `DeviceState`.
        lost: NVML's reason.
    """

    place: str
    device: Device
    gpu: Any = None
    memory_used: float | None = None
    utilization: float | None = None
    lost: str = ""


def devices() -> tuple[Device, ...]:
    """Every device of this machine that a process can be given: whole GPUs, and the slices of those in MIG mode.

    Those that ``CUDA_VISIBLE_DEVICES`` hides from this process are not its own to give. One that does not answer, or
    may not be used, is left out with a warning.
    """
    return _given(_found())


def used_bytes(uuids: tuple[str, ...]) -> int | None:
    """Memory in use on these devices, by whichever processes; None where NVML does not say."""
    try:
        _count()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    except pynvml.NVMLError:
        return None


@dataclass(slots=True)
class DeviceReader:
    """Looks at the devices again and again, and remembers what NVML says but once. For one thread."""

    _events: Any = None
    _listens: dict[int, int] = field(default_factory=dict)
    """Of GPUs whose errors are listened for: address of the handle → index."""
    _xids: dict[int, int] = field(default_factory=dict)
    _known: dict[str, Device] = field(default_factory=dict)
    """By place: one that is lost does not even say its name."""

    def look(self) -> Look:
        """Return the devices that may be used here, and how they stand."""
        found = _found()
        self._listen(found)
        self._known |= {each.place: each.device for each in found if not each.lost}
        shown = _visible([self._known.get(each.place, each.device) for each in found])
        return Look(
            _given(found),
            tuple(self._state(each) for each in found if self._known.get(each.place, each.device) in shown),
        )

    def _state(self, found: _Found) -> DeviceState:
        device = self._known.get(found.place, found.device)
        name, xid = device.uuid or found.place, self._xids.get(device.index, 0)
        if found.lost:
            return DeviceState(name, device.model, xid=xid, lost=found.lost)
        heat_c, throttled = _heat(found.gpu)
        return DeviceState(name, device.model, found.memory_used, found.utilization, heat_c, throttled, xid)

    def _listen(self, found: Iterable[_Found]) -> None:
        """Take in the errors that devices have had since the last look."""
        try:
            self._events = self._events or pynvml.nvmlEventSetCreate()
            for each in found:
                if not each.lost and (address := _address(each.gpu)) not in self._listens:
                    self._listens[address] = each.device.index  # once: one that knows no events knows none later
                    _maybe(
                        lambda gpu: pynvml.nvmlDeviceRegisterEvents(
                            gpu, pynvml.nvmlEventTypeXidCriticalError, self._events
                        ),
                        each.gpu,
                    )
            for _ in range(_MOST_EVENTS):
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                index = self._listens.get(_address(event.device))
                if index is not None and event.eventData not in _APPLICATION_XIDS:
                    logger.error("GPU %d reports Xid %d", index, event.eventData)
                    self._xids[index] = int(event.eventData)
        except pynvml.NVMLError:
            pass  # no more, or nothing that could be listened to


def _given(found: Iterable[_Found]) -> tuple[Device, ...]:
    return _visible([each.device for each in found if not each.lost])


def _visible(machine: list[Device]) -> tuple[Device, ...]:
    try:
        return visible(machine, visible_gpus(), by_bus=gpus_by_bus())
    except ValueError as error:
        _warn(f"GPUs are not used: {error}")
        return ()


def _found() -> list[_Found]:
    try:
        found = [each for index in range(_count()) for each in _at(index)]
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        _warn(f"GPUs are not used: NVML answers: {error}")
        return []
    for each in found:
        if each.lost:
            _warn(f"{each.place} is not used: NVML answers: {each.lost}")
    return found


def _count() -> int:
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError_Uninitialized:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())


def _at(index: int) -> Iterator[_Found]:
    """Yield what there is of the GPU at an index. What does not answer says nothing of others."""
    place = f"GPU {index}"
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        model = str(pynvml.nvmlDeviceGetName(gpu))
        mode = _maybe(pynvml.nvmlDeviceGetMigMode, gpu)
        if mode is None or not mode[0]:
            yield _read(gpu, gpu, Device("", model, index=index), place)
            return
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)
    except pynvml.NVMLError as error:
        yield _Found(place, Device("", "", index=index), lost=str(error))
        return
    for at in range(most):
        place = f"slice {at} of GPU {index}"
        try:
            cut = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, at)
            profile = SLICE.search(str(pynvml.nvmlDeviceGetName(cut)))
            yield _read(cut, gpu, Device("", model, slice=profile.group() if profile else "", index=index), place)
        except pynvml.NVMLError_NotFound:
            continue  # nothing was made at this place
        except pynvml.NVMLError as error:
            yield _Found(place, Device("", model, index=index), lost=str(error))


def _read(handle: Any, gpu: Any, named: Device, place: str) -> _Found:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    rates = _maybe(pynvml.nvmlDeviceGetUtilizationRates, handle)
    utilization = None if rates is None else rates.gpu / 100
    running = _maybe(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or ()
    ours = [process.usedGpuMemory or 0 for process in running if _is_ours(process.pid)]
    # Where ours run too, NVML does not say how much of the time is whose.
    busy = 0.0 if ours or not running else 1.0 if utilization is None else utilization
    device = Device(
        str(pynvml.nvmlDeviceGetUUID(handle)),
        named.model,
        int(memory.total),
        named.slice,
        max(0, int(memory.used) - sum(ours)),
        busy,
        named.index,
        _nodes(handle, gpu, slice=bool(named.slice)),
        _near(gpu),
    )
    return _Found(place, device, gpu, memory.used / memory.total if memory.total else None, utilization)


def _nodes(handle: Any, gpu: Any, *, slice: bool) -> tuple[str, ...]:
    """Return the nodes of a device below ``/dev``; none where neither NVML nor the kernel says which."""
    if (minor := _maybe(pynvml.nvmlDeviceGetMinorNumber, gpu)) is None:
        return ()
    if not slice:
        return (f"nvidia{minor}",)
    instance, compute = (
        _maybe(ask, handle) for ask in (pynvml.nvmlDeviceGetGpuInstanceId, pynvml.nvmlDeviceGetComputeInstanceId)
    )
    of_gpu = _CAPABILITIES / f"gpu{minor}" / "mig" / f"gi{instance}"
    try:
        numbers = [
            int(dict(line.split(":") for line in file.read_text().splitlines())["DeviceFileMinor"])
            for file in (of_gpu / "access", of_gpu / f"ci{compute}" / "access")
        ]
    except (OSError, ValueError, KeyError):
        return (f"nvidia{minor}", "nvidia-caps")  # those of all slices
    return (f"nvidia{minor}", *(f"nvidia-caps/nvidia-cap{number}" for number in numbers))


def _near(gpu: Any) -> frozenset[int]:
    """Return the cores on the side of the machine that a GPU is on; none where NVML does not say."""
    words = _maybe(partial(pynvml.nvmlDeviceGetCpuAffinity, cpuSetSize=_MOST_CORES // 64), gpu) or ()
    return frozenset(64 * at + bit for at, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def _heat(gpu: Any) -> tuple[float | None, bool | None]:
    """Return the temperature in °C, and whether clocks are held down for more than a power limit that is set."""
    held = (
        pynvml.nvmlClocksEventReasonHwSlowdown
        | pynvml.nvmlClocksEventReasonSwThermalSlowdown
        | pynvml.nvmlClocksEventReasonHwThermalSlowdown
        | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    heat_c = throttled = None
    try:  # drivers before 570 know the older names only
        for ask in (pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature):
            if heat_c is None:
                heat_c = _maybe(partial(ask, sensor=pynvml.NVML_TEMPERATURE_GPU), gpu)
        for ask in (pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons):
            if throttled is None and (reasons := _maybe(ask, gpu)) is not None:
                throttled = bool(reasons & held)
    except pynvml.NVMLError:
        pass  # lost since; the next look says so
    return heat_c, throttled


def _maybe(ask: Callable[[Any], Any], handle: Any) -> Any:
    """Return what NVML says of a device; None where it says nothing of its kind, or not to us."""
    try:
        return ask(handle)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_InvalidArgument,  # of slices, where the question is for whole GPUs
    ):
        return None


def _is_ours(pid: int) -> bool:
    """Whether a process is this one, or descends from it."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False  # it has ended, or is of another namespace
    return pid == os.getpid()


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


@cache
def _warn(words: str) -> None:
    """Log once in the life of the process: devices are looked at again and again."""
    logger.warning("%s", words)


LIMIT_S = 30.0
"""A driver that has not answered for so long hangs. To open NVML takes seconds for each GPU, unless its driver
persists."""

_EVERY_S = 1.0


class NoDevice(Exception):
    """Every device of the kind is taken, or none is known yet.

    Args:
        words: what a replica waits for.
        again_s: when to look again.
    """

    def __init__(self, words: str, again_s: float = _EVERY_S) -> None:
        super().__init__(words)
        self.again_s = again_s


class DeviceWatch:
    """Looks at the devices again and again, from the first time that somebody asks for them.

    The thread is not waited for: within a driver that hangs, nothing can end it.

    Args:
        look: asks the driver; called in that thread.
    """

    def __init__(self, look: Callable[[], Look] | None = None) -> None:
        self._look = look or DeviceReader().look
        self._thread: Thread | None = None
        self._again = Event()
        self._closed = False
        self._asked_s: float | None = None
        """When the look began that has no answer yet."""
        self._seen: tuple[float, Look] | None = None
        """When the newest answer was asked for, and the answer."""

    def devices(self, since_s: float) -> tuple[Device, ...]:
        """Return the devices, by a look that began after a time of `time.monotonic`.

        Raises:
            NoDevice: there is none yet.
        """
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="devices", daemon=True)
            self._thread.start()
        seen = self._seen
        if silent := self._silent():
            raise NoDevice(f"waits for the GPU driver, which {silent}")
        if seen is None or seen[0] < since_s:
            self._again.set()
            raise NoDevice("waits for the GPU driver to say which devices are free", again_s=0.05)
        return seen[1].devices

    def states(self) -> tuple[DeviceState, ...]:
        """Return how the devices stand; nothing before anybody asked for them."""
        known = self._seen[1].states if self._seen else ()
        if silent := self._silent():
            return tuple(replace(state, lost=f"the driver {silent}") for state in known or (DeviceState("every GPU"),))
        return known

    def _silent(self) -> str:
        """Say for how long the driver has not answered, if that is too long."""
        asked_s = self._asked_s
        silent_s = 0.0 if asked_s is None else time.monotonic() - asked_s
        return f"has not answered for {silent_s:.0f} s" if silent_s > LIMIT_S else ""

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._again.set()

    def _watch(self) -> None:
        while not self._closed:
            self._again.clear()
            self._asked_s = began_s = time.monotonic()
            self._seen = began_s, self._look()
            self._asked_s = None
            self._again.wait(_EVERY_S)
