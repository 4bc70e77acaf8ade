"""GPUs of this machine, as NVIDIA's management library (NVML) reports them. The only door to that library.

It comes with the driver: a machine without it has no GPU that a stage could use.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_uint, c_ulonglong, c_void_p
from typing import Any

from inferline_stream.actuators.devices import Device

logger = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96
_SLICE = re.compile(r"\d+g\.\d+gb")


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class NvmlError(Exception):
    """A call that NVML answered with an error."""


def devices(library: Any = None) -> tuple[Device, ...]:
    """Every device of this machine that a process can be given: whole GPUs, and the slices of those in MIG mode.

    Args:
        library: NVML as `ctypes` loads it; by default the driver's. A test gives its own.
    """
    with _nvml(library) as nvml:
        if nvml is None:
            return ()
        try:
            count = c_uint()
            _call(nvml, "nvmlDeviceGetCount_v2", byref(count))
            return tuple(device for index in range(count.value) for device in _at(nvml, index))
        except NvmlError as error:
            logger.warning("GPUs are not used: %s", error)
            return ()


def used_bytes(uuids: tuple[str, ...], library: Any = None) -> int:
    """Memory in use on these devices, by whichever processes; 0 where NVML does not tell."""
    with _nvml(library) as nvml:
        if nvml is None:
            return 0
        try:
            found = 0
            for uuid in uuids:
                handle = c_void_p()
                _call(nvml, "nvmlDeviceGetHandleByUUID", c_char_p(uuid.encode()), byref(handle))
                found += _memory(nvml, handle).used
            return found
        except NvmlError:
            return 0


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
        yield Device(_text(nvml, "nvmlDeviceGetUUID", handle), model, _memory(nvml, handle).total)
        return
    most = c_uint()
    _call(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle, byref(most))
    for at in range(most.value):
        slice_ = c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, c_uint(at), byref(slice_)) != 0:
            continue  # nothing was made at this place
        kind = _SLICE.search(_text(nvml, "nvmlDeviceGetName", slice_))
        uuid = _text(nvml, "nvmlDeviceGetUUID", slice_)
        yield Device(uuid, model, _memory(nvml, slice_).total, kind.group() if kind else "")


def _text(nvml: Any, name: str, handle: c_void_p) -> str:
    found = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, name, handle, found, c_uint(_TEXT_BYTES))
    return found.value.decode(errors="replace")


def _memory(nvml: Any, handle: c_void_p) -> _Memory:
    found = _Memory()
    _call(nvml, "nvmlDeviceGetMemoryInfo", handle, byref(found))
    return found
