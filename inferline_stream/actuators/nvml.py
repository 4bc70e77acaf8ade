"""GPUs of this machine, as NVIDIA's management library (NVML) reports them. The only door to that library.

It comes with the driver: a machine without it has no GPU that a stage could use. It stays open from the first call to
the end of the process, since opening it takes seconds for each GPU whose driver does not persist.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from inferline_stream.actuators.devices import Device, visible
from inferline_stream.pipeline.hardware import SLICE
from inferline_stream.settings import gpus_by_bus, visible_gpus

logger = logging.getLogger(__name__)


def devices() -> tuple[Device, ...]:
    """Every device of this machine that a process can be given: whole GPUs, and the slices of those in MIG mode.

    Those that ``CUDA_VISIBLE_DEVICES`` hides from this process are not its own to give. One that does not answer, or
    may not be used, is left out with a warning.
    """
    import pynvml

    try:
        found = [device for index in range(_count()) for device in _at(index)]
        return visible(found, visible_gpus(), by_bus=gpus_by_bus())
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except ValueError as error:
        _warn(f"GPUs are not used: {error}")
    except pynvml.NVMLError as error:
        _warn(f"GPUs are not used: NVML answers: {error}")
    return ()


def used_bytes(uuids: tuple[str, ...]) -> int | None:
    """Memory in use on these devices, by whichever processes; None where NVML does not say."""
    import pynvml

    try:
        _count()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    except pynvml.NVMLError:
        return None


def _count() -> int:
    import pynvml

    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError_Uninitialized:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())


def _at(index: int) -> Iterator[Device]:
    """Yield what can be given of the GPU at an index. What does not answer is left out: it says nothing of others."""
    import pynvml

    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        model = str(pynvml.nvmlDeviceGetName(gpu))
        mode = _maybe(pynvml.nvmlDeviceGetMigMode, gpu)
        if mode is None or not mode[0]:
            yield _device(gpu, model, "", index)
            return
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)
    except pynvml.NVMLError as error:
        _warn(f"GPU {index} is not used: NVML answers: {error}")
        return
    for at in range(most):
        try:
            cut = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, at)
            profile = SLICE.search(str(pynvml.nvmlDeviceGetName(cut)))
            yield _device(cut, model, profile.group() if profile else "", index)
        except pynvml.NVMLError_NotFound:
            continue  # nothing was made at this place
        except pynvml.NVMLError as error:
            _warn(f"slice {at} of GPU {index} is not used: NVML answers: {error}")


def _device(handle: Any, model: str, profile: str, index: int) -> Device:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    running = _maybe(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or ()
    ours = [process.usedGpuMemory or 0 for process in running if _is_ours(process.pid)]
    busy = 0.0
    if running and not ours:  # of what all do together NVML has no shares
        rates = _maybe(pynvml.nvmlDeviceGetUtilizationRates, handle)
        busy = 1.0 if rates is None else rates.gpu / 100
    return Device(
        str(pynvml.nvmlDeviceGetUUID(handle)),
        model,
        int(memory.total),
        profile,
        max(0, int(memory.used) - sum(ours)),
        busy,
        index,
    )


def _is_ours(pid: int) -> bool:
    """Whether a process is this one, or descends from it."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False  # it has ended, or is of another namespace
    return pid == os.getpid()


def _maybe(ask: Callable[[Any], Any], handle: Any) -> Any:
    """Return what NVML says of a device; None where it says nothing of its kind, or not to us."""
    import pynvml

    try:
        return ask(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_FunctionNotFound):
        return None


@cache
def _warn(words: str) -> None:
    """Log once in the life of the process: devices are looked at again and again."""
    logger.warning("%s", words)
