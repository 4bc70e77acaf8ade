"""A fake of NVML, and GPUs whose memory a process takes by locking a file."""

from __future__ import annotations

import ctypes
import fcntl
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.actuators import nvml


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


Handle = POINTER(c_void_p)
Number = POINTER(c_uint)
UNSUPPORTED, NOT_FOUND = 3, 6


def fake_nvml(gpus: Sequence[dict[str, Any]], fail: str = "") -> SimpleNamespace:
    """NVML of so many GPUs as C functions: arguments and results go through pointers, as the library's do.

    A device is addressed by 1, 2, …; slices of the n-th by 100 n + 1, ….
    """
    known = {number: gpu for number, gpu in enumerate(gpus, start=1)}
    known |= {
        100 * n + m: cut for n, gpu in list(known.items()) for m, cut in enumerate(gpu.get("slices", ()), start=1)
    }
    functions: dict[str, Any] = {}

    def offered(*kinds: Any) -> Callable[[Callable[..., int]], None]:
        def register(function: Callable[..., int]) -> None:
            name = function.__name__
            functions[name] = CFUNCTYPE(c_int, *kinds)(lambda *a: 999 if name == fail else function(*a))

        return register

    @offered()
    def nvmlInit_v2() -> int:
        return 0

    @offered()
    def nvmlShutdown() -> int:
        return 0

    @offered(Number)
    def nvmlDeviceGetCount_v2(count: Any) -> int:
        count[0] = len(gpus)
        return 0

    @offered(c_uint, Handle)
    def nvmlDeviceGetHandleByIndex_v2(index: int, handle: Any) -> int:
        handle[0] = index + 1
        return 0

    @offered(c_char_p, Handle)
    def nvmlDeviceGetHandleByUUID(uuid: bytes, handle: Any) -> int:
        found = [number for number, gpu in known.items() if gpu["uuid"] == uuid.decode()]
        handle[0] = found[0] if found else 0
        return 0 if found else NOT_FOUND

    def text(field: str) -> Callable[[int, int, int], int]:
        def write(handle: int, into: int, size: int) -> int:
            data = known[handle][field].encode() + b"\0"
            assert len(data) <= size
            ctypes.memmove(into, data, len(data))
            return 0

        return write

    for name, field in (("nvmlDeviceGetName", "name"), ("nvmlDeviceGetUUID", "uuid")):
        write = text(field)
        write.__name__ = name
        offered(c_void_p, c_void_p, c_uint)(write)

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetMemoryInfo(handle: int, into: int) -> int:
        memory = _Memory.from_address(into)
        memory.total, memory.used = known[handle].get("total", 0), known[handle].get("used", 0)
        return 0

    @offered(c_void_p, Number, Number)
    def nvmlDeviceGetMigMode(handle: int, current: Any, pending: Any) -> int:
        if "slices" not in known[handle]:
            return UNSUPPORTED
        current[0] = pending[0] = 1
        return 0

    @offered(c_void_p, Number)
    def nvmlDeviceGetMaxMigDeviceCount(handle: int, most: Any) -> int:
        most[0] = 7
        return 0

    @offered(c_void_p, c_uint, Handle)
    def nvmlDeviceGetMigDeviceHandleByIndex(handle: int, at: int, found: Any) -> int:
        if at >= len(known[handle]["slices"]):
            return NOT_FOUND
        found[0] = 100 * handle + at + 1
        return 0

    return SimpleNamespace(**functions)


def install(monkeypatch: pytest.MonkeyPatch, gpus: Sequence[dict[str, Any]]) -> None:
    """Have this process load the fake where it would load the driver's library."""
    load, library = ctypes.CDLL, fake_nvml(gpus)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *more, **options: library if name == nvml.LIBRARY else load(name, *more, **options)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class Locked(dict[str, Any]):
    """A GPU of which a process has taken ``taken`` bytes while it holds a lock on a file of the GPU's name."""

    def __init__(self, folder: Path, uuid: str, *, name: str = "Tesla T4", total: int = 16 << 30, taken: int) -> None:
        super().__init__(name=name, uuid=uuid, total=total)
        self.file = folder / uuid
        self.file.touch()
        self.taken = taken

    def get(self, key: str, default: Any = None) -> Any:
        if key != "used":
            return super().get(key, default)
        with self.file.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self.taken
        return 0
