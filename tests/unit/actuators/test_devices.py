"""Which GPU a replica is given, and what NVML reports of a machine's GPUs, through its real calling convention."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.actuators.devices import Device, carries, devices_for
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.actuators.nvml import devices, used_bytes
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.profiler.machine import Machine, why_not_here

T4 = Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4")
HALF_T4 = Hardware("half-t4", 0.25, gpus=0.5, gpu_model="Tesla T4")
TWO_T4 = Hardware("two-t4", 1.0, gpus=2, gpu_model="Tesla T4")
SLICE = Hardware("a100-1g.10gb", 0.4, gpus=1 / 7, gpu_model="NVIDIA A100")
CPU = Hardware("cpu-1", 0.1)
MACHINE = (
    Device("GPU-0", "Tesla T4"),
    Device("GPU-1", "Tesla T4"),
    Device("MIG-0", "NVIDIA A100-SXM4-80GB", slice="1g.10gb"),
    Device("MIG-1", "NVIDIA A100-SXM4-80GB", slice="1g.10gb"),
    Device("MIG-2", "NVIDIA A100-SXM4-80GB", slice="3g.40gb"),
)
DEADLINE_S = 30.0


def test_each_replica_has_a_gpu_of_its_own_until_there_is_none_left() -> None:
    taken: list[tuple[Hardware, tuple[str, ...]]] = []
    for expected in (("GPU-0",), ("GPU-1",), None):
        found = devices_for(T4, MACHINE, taken)
        assert found == expected
        taken.append((T4, found or ()))


def test_shares_fill_one_gpu_before_they_break_another() -> None:
    taken: list[tuple[Hardware, tuple[str, ...]]] = [(HALF_T4, ("GPU-1",))]
    assert devices_for(HALF_T4, MACHINE, taken) == ("GPU-1",)
    taken.append((HALF_T4, ("GPU-1",)))
    assert devices_for(HALF_T4, MACHINE, taken) == ("GPU-0",)
    assert devices_for(TWO_T4, MACHINE, taken) is None
    assert devices_for(TWO_T4, MACHINE, []) == ("GPU-0", "GPU-1")


def test_a_slice_is_one_of_its_own_size_and_taken_whole() -> None:
    assert devices_for(SLICE, MACHINE, []) == ("MIG-0",)
    assert devices_for(SLICE, MACHINE, [(SLICE, ("MIG-0",))]) == ("MIG-1",)
    assert devices_for(SLICE, MACHINE, [(SLICE, ("MIG-0",)), (SLICE, ("MIG-1",))]) is None
    assert not carries(MACHINE[4], SLICE)
    assert not carries(Device("GPU-9", "NVIDIA A100-SXM4-80GB"), SLICE)


def test_a_kind_without_a_gpu_is_given_none_and_always_has_room() -> None:
    assert devices_for(CPU, (), []) == ()


def test_a_machine_stands_for_a_slice_only_if_it_has_one_of_that_size() -> None:
    whole, cut = Machine("", 8, ("NVIDIA A100-SXM4-80GB",)), Machine("", 8, ("NVIDIA A100-SXM4-80GB 1g.10gb",))
    assert why_not_here(SLICE, cut) is None
    assert why_not_here(SLICE, whole) == (
        "this machine has NVIDIA A100-SXM4-80GB, a100-1g.10gb needs NVIDIA A100 1g.10gb"
    )


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


Handle = POINTER(c_void_p)
Number = POINTER(c_uint)
UNSUPPORTED, NOT_FOUND = 3, 6


def fake_nvml(gpus: list[dict[str, Any]], fail: str = "") -> SimpleNamespace:
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


A100 = {
    "name": "NVIDIA A100-SXM4-80GB",
    "uuid": "GPU-b",
    "slices": [
        {"name": "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "uuid": "MIG-x", "total": 10 << 30},
        {"name": "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "uuid": "MIG-y", "total": 40 << 30, "used": 7},
    ],
}


def test_nvml_reports_whole_gpus_and_the_slices_that_were_made_of_others() -> None:
    nvml = fake_nvml([{"name": "Tesla T4", "uuid": "GPU-a", "total": 16 << 30, "used": 5}, A100])
    assert devices(nvml) == (
        Device("GPU-a", "Tesla T4", 16 << 30),
        Device("MIG-x", "NVIDIA A100-SXM4-80GB", 10 << 30, "1g.10gb"),
        Device("MIG-y", "NVIDIA A100-SXM4-80GB", 40 << 30, "3g.40gb"),
    )
    assert used_bytes(("GPU-a", "MIG-y"), nvml) == 12
    assert used_bytes(("GPU-gone",), nvml) == 0


@pytest.mark.parametrize("broken", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetName"])
def test_a_driver_that_does_not_answer_is_a_machine_without_gpus(broken: str) -> None:
    assert devices(fake_nvml([A100], fail=broken)) == ()


def test_a_machine_without_the_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.nvml.LIBRARY", "libno-such-driver.so.1")
    assert devices() == ()


async def test_replicas_see_their_own_gpu_and_the_next_one_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "contracts"))
    kinds = {("a", "t4"): T4, ("b", "cpu-1"): CPU}

    def sees(pid: int | None) -> str:
        deadline_s, environ = time.monotonic() + 5, ""
        while not environ and time.monotonic() < deadline_s:  # empty while the kernel sets a new program up
            environ = Path(f"/proc/{pid}/environ").read_text()
        return dict(line.split("=", 1) for line in environ.split("\0") if "=" in line)["CUDA_VISIBLE_DEVICES"]

    two = (Device("GPU-a", "Tesla T4"), Device("GPU-b", "Tesla T4"))
    async with LocalActuator(
        tmp_path, drain_timeout_s=0.0, kill_after_s=0.3, replica_module="replica_double", devices=two
    ) as actuator:
        await actuator.know({key: ReplicaSpec("", key[0], "/nowhere/topology.py", kind) for key, kind in kinds.items()})
        await actuator.scale("a", "t4", 3)
        await actuator.scale("b", "cpu-1", 1)
        first, second, third, other = await actuator.observe()
        assert [sees(r.pid) for r in (first, second, other)] == ["GPU-a", "GPU-b", ""]
        assert third.pid is None
        assert third.pending == "waits for a device that is t4: Tesla T4"
        await actuator.scale("a", "t4", 2, [first.replica])
        async with asyncio.timeout(DEADLINE_S):
            while len(found := await actuator.observe()) > 3 or any(r.pending for r in found):
                await asyncio.sleep(0.01)
        assert sees(found[1].pid) == "GPU-a"


async def test_one_that_still_waits_for_a_gpu_leaves_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), LocalActuator(tmp_path, devices=()) as actuator:
        await actuator.know({("a", "t4"): ReplicaSpec("", "a", "/nowhere/topology.py", T4)})
        await actuator.scale("a", "t4", 1)
        await actuator.scale("a", "t4", 0)
        gone = await actuator.next_exit()
        assert (gone.expected, gone.exit_code) == (True, 0)
        assert await actuator.observe() == ()
