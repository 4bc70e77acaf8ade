"""A fake of NVML, and GPUs whose memory a process takes by locking a file."""

from __future__ import annotations

import ctypes
import fcntl
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

UNSUPPORTED, NOT_FOUND, TOO_SMALL, TIMEOUT = 3, 6, 7, 10


def fake_nvml(gpus: Sequence[dict[str, Any]], fail: str = "") -> SimpleNamespace:
    """NVML of so many GPUs as C functions: arguments and results go through pointers, as the library's do.

    A device is addressed by 1, 2, …; slices of the n-th by 100 n + 1, …. One with an ``error`` answers nothing else.
    One with a ``hang`` (`threading.Event`) answers nothing before that is set.
    """
    known = {number: gpu for number, gpu in enumerate(gpus, start=1)}
    known |= {
        100 * n + m: cut for n, gpu in list(known.items()) for m, cut in enumerate(gpu.get("slices", ()), start=1)
    }
    functions: dict[str, Any] = {}
    listening: set[int] = set()

    def offered(*kinds: Any) -> Callable[[Callable[..., int]], None]:
        def register(function: Callable[..., int]) -> None:
            name = function.__name__

            def answer(*arguments: Any) -> int:
                if name == fail:
                    return 999
                at = known.get(arguments[0], {}) if kinds and kinds[0] is c_void_p else {}
                if "hang" in at:
                    at["hang"].wait(60.0)
                return at.get("error", 0) or function(*arguments)

            functions[name] = CFUNCTYPE(c_int, *kinds)(answer)

        return register

    def put(kind: Any, into: int, value: int | None) -> int:
        if value is None:
            return UNSUPPORTED
        kind.from_address(into).value = value
        return 0

    @offered(c_uint)
    def nvmlInitWithFlags(flags: int) -> int:
        return 0

    @offered(c_void_p)
    def nvmlDeviceGetCount_v2(count: int) -> int:
        return put(c_uint, count, len(gpus))

    @offered(c_uint, c_void_p)
    def nvmlDeviceGetHandleByIndex_v2(index: int, handle: int) -> int:
        return gpus[index].get("error", 0) or put(c_void_p, handle, index + 1)

    @offered(c_char_p, c_void_p)
    def nvmlDeviceGetHandleByUUID(uuid: bytes, handle: int) -> int:
        found = [number for number, gpu in known.items() if gpu["uuid"] == uuid.decode()]
        return put(c_void_p, handle, found[0]) if found else NOT_FOUND

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
        memory = pynvml.c_nvmlMemory_t.from_address(into)
        memory.total, memory.used = known[handle].get("total", 0), known[handle].get("used", 0)
        return 0

    @offered(c_void_p, c_void_p, c_void_p)
    def nvmlDeviceGetMigMode(handle: int, current: int, pending: int) -> int:
        return put(c_uint, current, 1) if "slices" in known[handle] else UNSUPPORTED

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetMaxMigDeviceCount(handle: int, most: int) -> int:
        return put(c_uint, most, 7)

    @offered(c_void_p, c_uint, c_void_p)
    def nvmlDeviceGetMigDeviceHandleByIndex(handle: int, at: int, found: int) -> int:
        return put(c_void_p, found, 100 * handle + at + 1) if at < len(known[handle]["slices"]) else NOT_FOUND

    @offered(c_void_p, c_void_p, c_void_p)
    def nvmlDeviceGetComputeRunningProcesses_v3(handle: int, count: int, into: int | None) -> int:
        running, room = known[handle].get("processes", {}), c_uint.from_address(count).value
        put(c_uint, count, len(running))
        if len(running) > room:
            return TOO_SMALL
        for at, (pid, used) in enumerate(running.items()):
            process = (pynvml.c_nvmlProcessInfo_v3_t * room).from_address(into)[at]
            process.pid, process.usedGpuMemory = pid, used
        return 0

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetUtilizationRates(handle: int, into: int) -> int:
        if "utilization" not in known[handle]:
            return UNSUPPORTED
        pynvml.c_nvmlUtilization_t.from_address(into).gpu = known[handle]["utilization"]
        return 0

    @offered(c_void_p, c_uint, c_void_p)
    def nvmlDeviceGetCpuAffinity(handle: int, words: int, into: int) -> int:
        near = known[handle].get("near", ())
        for at in range(words):
            put(c_ulonglong, into + 8 * at, sum(1 << core % 64 for core in near if core // 64 == at))
        return 0

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetMinorNumber(handle: int, into: int) -> int:
        assert handle < 100, "slices have no node of this kind"
        return put(c_uint, into, known[handle].get("minor"))

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetGpuInstanceId(handle: int, into: int) -> int:
        return put(c_uint, into, known[handle].get("instance"))

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetComputeInstanceId(handle: int, into: int) -> int:
        return put(c_uint, into, 0)

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetTemperatureV(handle: int, into: int) -> int:
        reading = pynvml.c_nvmlTemperature_v1_t.from_address(into)
        assert reading.sensorType == pynvml.NVML_TEMPERATURE_GPU
        reading.temperature = known[handle].get("temperature_c", 40)
        return 0

    @offered(c_void_p, c_void_p)
    def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int, into: int) -> int:  # older drivers' name
        return put(c_ulonglong, into, known[handle].get("throttle_reasons"))

    @offered(c_void_p)
    def nvmlEventSetCreate(into: int) -> int:
        return put(c_void_p, into, 4711)

    @offered(c_void_p, c_ulonglong, c_void_p)
    def nvmlDeviceRegisterEvents(handle: int, kinds: int, events: int) -> int:
        assert (kinds, events) == (8, 4711), "the critical ones"
        listening.add(handle)
        return 0

    @offered(c_void_p, c_void_p, c_uint)
    def nvmlEventSetWait_v2(events: int, into: int, wait_ms: int) -> int:
        assert (events, wait_ms) == (4711, 0)
        for handle in sorted(listening):
            if xids := known[handle].get("xids"):
                event = pynvml.c_nvmlEventData_t.from_address(into)
                c_void_p.from_address(into).value, event.eventData = handle, xids.pop(0)
                return 0
        return TIMEOUT

    return SimpleNamespace(**functions)


def install(monkeypatch: pytest.MonkeyPatch, gpus: Sequence[dict[str, Any]] | None, fail: str = "") -> None:
    """Have NVIDIA's binding load the fake where it would load the driver's library; None: there is no driver."""

    def load(name: str) -> SimpleNamespace:
        assert name == "libnvidia-ml.so.1"
        if gpus is None:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return fake_nvml(gpus, fail)

    monkeypatch.setattr(pynvml, "CDLL", load)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


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
