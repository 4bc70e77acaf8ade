"""GPUs of this machine, as NVIDIA's management library (NVML) reports them. The only door to that library.

It comes with the driver: a machine without it has no GPU that a stage could use.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_uint, c_ulonglong, c_void_p
from typing import Any

from inferline_stream.actuators.devices import Device, visible
from inferline_stream.pipeline.hardware import SLICE
from inferline_stream.settings import visible_gpus

logger = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class NvmlError(Exception):
    """A call that NVML answered with an error."""


def devices(library: Any = None) -> tuple[Device, ...]:
    """Every device of this machine that a process can be given: whole GPUs, and the slices of those in MIG mode.

    Those that ``CUDA_VISIBLE_DEVICES`` hides from this process are not its own to give.

    Args:
        library: NVML as `ctypes` loads it; by default the driver's. A test gives its own.
    """
    with _nvml(library) as nvml:
        if nvml is None:
            return ()
        try:
            count = c_uint()
            _call(nvml, "nvmlDeviceGetCount_v2", byref(count))
            found = [device for index in range(count.value) for device in _at(nvml, index)]
            return visible(found, visible_gpus())
        except NvmlError as error:
            logger.warning("GPUs are not used: %s", error)
            return ()


def used_bytes(uuids: tuple[str, ...], library: Any = None) -> int | None:
    """Memory in use on these devices, by whichever processes; None where NVML does not say."""
    with _nvml(library) as nvml:
        if nvml is None:
            return None
        try:
            found = 0
            for uuid in uuids:
                handle = c_void_p()
                _call(nvml, "nvmlDeviceGetHandleByUUID", c_char_p(uuid.encode()), byref(handle))
                found += _memory(nvml, handle).used
            return found
        except NvmlError:
            return None


@contextmanager
def _nvml(library: Any) -> Iterator[Any]:
    try:
        nvml = ctypes.CDLL(LIBRARY) if library is None else library
        _call(nvml, "nvmlInit_v2")
    except (OSError, NvmlError):  # no driver, or none that works
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _call(nvml: Any, name: str, *arguments: Any) -> None:
    if (code := getattr(nvml, name)(*arguments)) != 0:
        raise NvmlError(f"NVML's {name} answers with error {code}")


def _at(nvml: Any, index: int) -> Iterator[Device]:
    handle = c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
    model = _text(nvml, "nvmlDeviceGetName", handle)
    current, pending = c_uint(), c_uint()
    # GPUs that know no MIG answer "not supported".
    if nvml.nvmlDeviceGetMigMode(handle, byref(current), byref(pending)) != 0 or not current.value:
        memory = _memory(nvml, handle)
        yield Device(_text(nvml, "nvmlDeviceGetUUID", handle), model, memory.total, "", memory.used, index)
        return
    most = c_uint()
    _call(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle, byref(most))
    for at in range(most.value):
        slice_ = c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, c_uint(at), byref(slice_)) != 0:
            continue  # nothing was made at this place
        kind = SLICE.search(_text(nvml, "nvmlDeviceGetName", slice_))
        uuid = _text(nvml, "nvmlDeviceGetUUID", slice_)
        memory = _memory(nvml, slice_)
        yield Device(uuid, model, memory.total, kind.group() if kind else "", memory.used, index)


def _text(nvml: Any, name: str, handle: c_void_p) -> str:
    found = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, name, handle, found, c_uint(_TEXT_BYTES))
    return found.value.decode(errors="replace")


def _memory(nvml: Any, handle: c_void_p) -> _Memory:
    found = _Memory()
    _call(nvml, "nvmlDeviceGetMemoryInfo", handle, byref(found))
    return found
