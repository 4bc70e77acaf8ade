"""Which GPU a replica is given, and what NVML reports of a machine's GPUs, through NVIDIA's binding of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators import nvml
from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.devices import Device, carries, cores_for, devices_for, visible, with_stock_of
from inferline_stream.actuators.nvml import DeviceReader, devices, used_bytes
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.profiler.machine import Machine, why_not_here
from tests.support.fake_nvml import install

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
    third = Hardware("t4-third", 0.2, gpus=1 / 3, gpu_model="Tesla T4")
    assert devices_for(third, MACHINE, taken) == ("GPU-0",), "three contexts would get a third of the time each"
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


@pytest.mark.parametrize(
    "profile", ["1g.10gb", "1g.10gb+me", "1g.24gb+me.all", "1g.24gb-me", "1g.24gb+gfx", "1c.3g.40gb", "3g.40gb"]
)
def test_a_slice_is_of_the_whole_profile_that_a_kind_names(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = ["1g.10gb", "1g.10gb+me", "1g.24gb+me.all", "1g.24gb-me", "1g.24gb+gfx", "1c.3g.40gb", "3g.40gb"]
    install(monkeypatch, [{**A100, "slices": [{"name": f"NVIDIA A100 MIG {cut}", "uuid": cut} for cut in cuts]}])
    kind = Hardware(f"a100-{profile}-spot", 0.4, gpus=1 / 7, gpu_model="NVIDIA A100")
    assert [device.uuid for device in devices() if carries(device, kind)] == [profile]


def test_a_device_is_of_the_model_that_a_kind_names_and_of_no_longer_one() -> None:
    def of_kind(reported: str, kind: str) -> bool:
        return carries(Device("GPU-0", reported), catalogue()[kind])

    assert of_kind("NVIDIA L4", "l4")
    assert not of_kind("NVIDIA L40S", "l4")
    assert not of_kind("NVIDIA A10", "a10g")
    for reported in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"):
        assert of_kind(reported, "h100")
    for reported in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"):
        assert of_kind(reported, "a100")
    assert of_kind("NVIDIA Tesla T4", "t4")
    large = Hardware("a100-80", 3.4, gpus=1, gpu_model="NVIDIA A100-SXM4-80GB")
    assert carries(Device("", "NVIDIA A100-SXM4-80GB"), large)
    assert not carries(Device("", "NVIDIA A100-SXM4-40GB"), large)
    assert not carries(
        Device("", "NVIDIA RTX 6000 Ada Generation"), Hardware("r", 1.0, gpus=1, gpu_model="NVIDIA RTX 6000")
    )


def test_a_kind_without_a_gpu_is_given_none_and_always_has_room() -> None:
    assert devices_for(CPU, (), []) == ()


def test_a_machine_stands_for_a_slice_only_if_it_has_one_of_that_size() -> None:
    whole, cut = Machine("", 8, ("NVIDIA A100-SXM4-80GB",)), Machine("", 8, ("NVIDIA A100-SXM4-80GB 1g.10gb",))
    assert why_not_here(SLICE, cut) is None
    assert why_not_here(SLICE, whole) == ("this machine has NVIDIA A100-SXM4-80GB, and NVIDIA A100 1g.10gb is needed")


A100 = {
    "name": "NVIDIA A100-SXM4-80GB",
    "uuid": "GPU-b",
    "slices": [
        {"name": "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "uuid": "MIG-x", "total": 10 << 30},
        {"name": "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "uuid": "MIG-y", "total": 40 << 30, "used": 7},
    ],
}


def test_nvml_reports_whole_gpus_and_the_slices_that_were_made_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [{"name": "Tesla T4", "uuid": "GPU-a", "total": 16 << 30, "used": 5}, A100])
    assert devices() == (
        Device("GPU-a", "Tesla T4", 16 << 30, used_bytes=5),
        Device("MIG-x", "NVIDIA A100-SXM4-80GB", 10 << 30, "1g.10gb", index=1),
        Device("MIG-y", "NVIDIA A100-SXM4-80GB", 40 << 30, "3g.40gb", used_bytes=7, index=1),
    )
    assert used_bytes(("GPU-a", "MIG-y")) == 12
    assert used_bytes(("GPU-gone",)) is None


@pytest.mark.parametrize("broken", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetName"])
def test_a_driver_that_fails_is_a_machine_without_gpus(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [A100], fail=broken)
    assert devices() == ()


def test_a_machine_without_the_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert devices() == ()


def test_a_gpu_that_is_lost_or_forbidden_hides_no_other_and_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nvml._warn.cache_clear()
    lost, forbidden = {"error": 15, "uuid": "GPU-l"}, {"error": 4, "uuid": "GPU-f"}
    cut = {**A100, "slices": [{"error": 15, "uuid": "MIG-l", "name": ""}, *A100["slices"]]}
    install(monkeypatch, [FOUR[0], lost, forbidden, FOUR[1], cut])
    for _ in range(2):
        assert [(d.uuid, d.index) for d in devices()] == [
            ("GPU-aaaaaaaa", 0),
            ("GPU-bbbbbbbb", 3),
            ("MIG-x", 4),
            ("MIG-y", 4),
        ]
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 1 is not used: NVML answers: GPU is lost",
        "GPU 2 is not used: NVML answers: Insufficient Permissions",
        "slice 0 of GPU 4 is not used: NVML answers: GPU is lost",
    ]


def test_how_devices_stand_is_what_the_driver_says_and_errors_of_programs_are_not_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hot = {"temperature_c": 88, "throttle_reasons": 0x40, "utilization": 70, "xids": [31, 48, 43], "used": 4 << 30}
    capped = {"throttle_reasons": 0x4}  # by the power limit, as at any full load
    install(monkeypatch, [{**FOUR[0], **hot}, {**FOUR[1], **capped}, {**A100, "xids": [79]}])
    reader = DeviceReader()
    for _ in range(2):
        assert reader.look().states == (
            DeviceState("GPU-aaaaaaaa", "Tesla T4", 0.25, 0.7, 88, True, 48),
            DeviceState("GPU-bbbbbbbb", "Tesla T4", 300 / 16384, None, 40, False),
            DeviceState("MIG-x", "NVIDIA A100-SXM4-80GB", 0.0, None, 40, None, 79),
            DeviceState("MIG-y", "NVIDIA A100-SXM4-80GB", 7 / (40 << 30), None, 40, None, 79),
        )


def test_a_device_that_is_lost_keeps_its_name_and_one_that_is_hidden_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    falls, hidden = {**FOUR[0], "xids": [79]}, dict(FOUR[2])
    install(monkeypatch, [falls, {**FOUR[1], "error": 4}, hidden])
    reader = DeviceReader()
    assert [state.device for state in reader.look().states] == ["GPU-aaaaaaaa", "GPU 1", "GPU-cccccccc"]
    falls["error"] = 15
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [state.trouble for state in reader.look().states] == [
        "GPU-aaaaaaaa is lost: GPU is lost",
        "GPU 1 is lost: Insufficient Permissions",
    ]
    assert reader.look().devices == ()


FOUR = tuple(
    {"name": "Tesla T4", "uuid": f"GPU-{letter * 8}", "total": 16 << 30, "used": 300 << 20} for letter in "abcd"
)


@pytest.mark.parametrize(
    ("named", "letters"),
    [
        ("2,3", "cd"),
        ("3, 0", "da"),
        ("GPU-bbb", "b"),
        ("", ""),
        ("-1", ""),
        ("1,9,2", "b"),
    ],
)
def test_devices_that_were_hidden_from_this_process_are_not_its_own_to_give(
    named: str, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FOUR)
    assert len(devices()) == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [device.uuid[4] for device in devices()] == list(letters)


@pytest.mark.parametrize(
    ("access", "nodes"),
    [
        (
            "DeviceFileMinor: {}\nDeviceFileMode: 292\n",
            ("nvidia-caps/nvidia-cap30", "nvidia-caps/nvidia-cap31", "nvidia3"),
        ),
        ("another kernel's words", ("nvidia-caps", "nvidia3")),
    ],
)
async def test_a_replica_in_a_slice_is_confined_to_its_own_nodes_and_runs_on_its_gpus_side_of_the_machine(
    access: str, nodes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = min(os.sched_getaffinity(0))
    for number, file in ((30, "gpu3/mig/gi2/access"), (31, "gpu3/mig/gi2/ci0/access"), (39, "gpu3/mig/gi5/access")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(access.format(number))
    monkeypatch.setattr("inferline_stream.actuators.nvml._CAPABILITIES", tmp_path)
    slices = [{**cut, "instance": instance} for cut, instance in zip(A100["slices"], (2, 5), strict=True)]
    install(monkeypatch, [FOUR[0], {**A100, "slices": slices, "minor": 3, "near": {near}}])
    children = Children(tmp_path, lambda *_: None, devices=devices(), replica_module="replica_double")
    try:
        child = children.start_replica(ReplicaSpec("r", "a", "/nowhere/topology.py", SLICE, isolation=Isolation()))
        assert child.devices == ("MIG-x",)
        assert child.launch.confinement.nodes == nodes
        assert child.pinned == {near}
    finally:
        children.close()


def test_the_cores_on_a_gpus_side_of_the_machine_are_known_and_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [{**FOUR[0], "near": {1, 63, 64, 200}}])
    (gpu,) = devices()
    assert gpu.near == {1, 63, 64, 200}
    assert cores_for(2, range(100), [], gpu.near) == {63, 64}
    assert cores_for(2, range(100), [(1, {63}), (1, {64})], gpu.near) == {1, 99}, "others where those are taken"


def test_a_gpu_in_slices_is_named_by_its_number_or_a_slice_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [FOUR[0], A100])
    found = devices()
    assert [device.uuid for device in visible(found, "1", by_bus=True)] == ["MIG-x", "MIG-y"]
    assert [device.uuid for device in visible(found, "MIG-y,0", by_bus=True)] == ["MIG-y", "GPU-aaaaaaaa"]


def test_a_number_names_no_gpu_where_cuda_may_count_those_of_several_models_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nvml._warn.cache_clear()
    install(monkeypatch, [FOUR[0], {"name": "NVIDIA L4", "uuid": "GPU-l4", "total": 24 << 30}])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices() == ()
    assert "this machine has NVIDIA L4 and Tesla T4: write UUIDs" in caplog.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-l4,GPU-aa")
    assert [device.model for device in devices()] == ["NVIDIA L4", "Tesla T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [device.model for device in devices()] == ["Tesla T4"]


def test_a_device_that_others_use_is_not_given_whole_and_shared_as_far_as_it_is_free() -> None:
    others = Device("GPU-0", "Tesla T4", 16 << 30, used_bytes=6 << 30)
    assert devices_for(T4, (others,), []) is None
    assert devices_for(T4, (others, Device("GPU-1", "Tesla T4", 16 << 30, used_bytes=300 << 20)), []) == ("GPU-1",)
    assert devices_for(HALF_T4, (others,), []) == ("GPU-0",)
    assert devices_for(HALF_T4, (others,), [(HALF_T4, ("GPU-0",))]) is None


def test_a_device_that_is_busy_for_others_is_theirs_however_little_memory_they_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, ours = {1: 300 << 20}, {os.getpid(): 9 << 30}
    t4 = {"name": "Tesla T4", "total": 16 << 30, "used": 300 << 20, "utilization": 60}
    install(
        monkeypatch,
        [
            {**t4, "uuid": "busy", "processes": theirs},
            {**t4, "uuid": "idle", "processes": theirs, "utilization": 3},
            {**t4, "uuid": "ours", "processes": ours, "used": 10 << 30},
            {**t4, "uuid": "ended"},
        ],
    )
    assert {device.uuid: device.occupied for device in devices()} == {"busy": 0.6, "idle": 0, "ours": 0, "ended": 0}
    assert devices_for(T4, devices()[:1], []) is None
    assert devices_for(Hardware("t4-third", 0.2, gpus=1 / 3, gpu_model="Tesla T4"), devices()[:1], []) == ("busy",)


async def test_processes_that_descend_from_this_one_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", "sleep 60 & echo $!; wait", stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert shell.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            helper = int(await shell.stdout.readline())
        install(monkeypatch, [{**FOUR[0], "used": 5 << 30, "processes": {helper: 5 << 30}, "utilization": 90}])
        assert devices()[0].occupied == 0
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        await shell.wait()


def test_a_slice_in_which_any_process_of_others_runs_is_theirs_since_nvml_says_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts = [
        {"name": "NVIDIA A100 MIG 1g.10gb", "uuid": "MIG-0", "total": 10 << 30, "processes": {1: 50 << 20}},
        {"name": "NVIDIA A100 MIG 1g.10gb", "uuid": "MIG-1", "total": 10 << 30, "used": 400 << 20},
        {"name": "NVIDIA A100 MIG 1g.10gb", "uuid": "MIG-2", "total": 10 << 30, "used": 30 << 20},
    ]
    install(monkeypatch, [{**A100, "slices": cuts}])
    assert [device.uuid for device in devices() if not device.occupied] == ["MIG-2"]
    assert devices_for(SLICE, devices(), []) == ("MIG-2",)


def test_the_stock_of_a_kind_is_what_the_machine_has_room_for() -> None:
    def stock(kind: Hardware, machine: tuple[Device, ...]) -> tuple[int | None, float | None]:
        held = with_stock_of(kind, machine)
        return held.stock, held.gpu_stock

    four = tuple(Device(f"GPU-{n}", "Tesla T4", 16 << 30) for n in range(4))
    assert stock(T4, four) == (4, 4.0)
    assert stock(HALF_T4, four) == (8, 4.0)
    assert stock(TWO_T4, four[:3]) == (1, 3.0)
    assert stock(Hardware("few", 0.5, gpus=1, gpu_model="Tesla T4", stock=2), four) == (2, 4.0)
    used = Device("GPU-4", "Tesla T4", 16 << 30, used_bytes=8 << 30)
    assert stock(T4, (*four, used)) == (4, 4.5)
    assert stock(SLICE, MACHINE) == (2, None)
    assert stock(T4, ()) == (0, 0)
    assert with_stock_of(CPU, four) == CPU


async def test_a_replica_waits_for_a_device_that_others_use_and_starts_once_they_have_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"name": "Tesla T4", "uuid": "GPU-a", "total": 16 << 30, "used": 9 << 30}
    install(monkeypatch, [gpu])
    children = partial(Children, tmp_path, replica_module="replica_double")
    async with asyncio.timeout(DEADLINE_S), Supervisor(children, drain_timeout_s=0.0, kill_after_s=0.3) as supervisor:
        await supervisor.know({("a", "t4"): ReplicaSpec("", "a", "/nowhere/topology.py", T4)})
        await supervisor.scale("a", "t4", 1)
        waits = await pending(supervisor, "waits for a device that is t4: Tesla T4")
        assert waits.pid is None
        gpu["used"] = 0
        while (await supervisor.observe())[0].pid is None:
            await asyncio.sleep(0.01)
        gpu["used"] = 12 << 30  # its own now
        (runs,) = await supervisor.observe()
        assert (runs.replica, runs.pending) == (waits.replica, "")
        await supervisor.scale("a", "t4", 2)
        assert (await supervisor.observe())[1].pending


async def test_a_driver_that_hangs_stops_neither_ends_nor_restarts_nor_those_that_need_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    install(monkeypatch, [{**FOUR[0], "hang": answers}])
    children = partial(Children, tmp_path, replica_module="replica_double")
    kinds = {("a", "t4"): T4, ("b", "cpu-1"): CPU}
    try:
        async with asyncio.timeout(DEADLINE_S), Supervisor(children, drain_timeout_s=0, kill_after_s=0.3) as supervisor:
            await supervisor.know({key: ReplicaSpec("", key[0], "/nowhere/topology.py", kinds[key]) for key in kinds})
            await supervisor.scale("a", "t4", 1)
            await pending(supervisor, "waits for the GPU driver to say which devices are free")
            await supervisor.scale("b", "cpu-1", 1)
            died = (await supervisor.observe())[1]
            assert died.pid is not None
            os.kill(died.pid, signal.SIGKILL)
            assert (await supervisor.next_exit()).exit_code == -signal.SIGKILL
            while (again := (await supervisor.observe())[1]).state != "running" or again.pid is None:
                await asyncio.sleep(0.01)
            monkeypatch.setattr("inferline_stream.actuators.nvml.LIMIT_S", 0.1)
            await pending(supervisor, "waits for the GPU driver, which has not answered for 0 s", "1 s", "2 s", "3 s")
            (state,) = await supervisor.devices()
            assert state.trouble.startswith("every GPU is lost: the driver has not answered for ")
            answers.set()
            while (await supervisor.observe())[0].pid is None:
                await asyncio.sleep(0.01)
            assert [state.device for state in await supervisor.devices()] == ["GPU-aaaaaaaa"]
    finally:
        answers.set()


async def pending(supervisor: Supervisor, *words: str) -> ObservedReplica:
    """Wait until the first replica says why it waits, by the end of its words."""
    while not (first := (await supervisor.observe())[0]).pending.endswith(words):
        await asyncio.sleep(0.01)
    return first


async def test_memory_of_one_that_has_ended_is_waited_for_by_a_look_after_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu: dict[str, Any] = dict(FOUR[0])
    install(monkeypatch, [gpu])
    children = partial(Children, tmp_path, replica_module="replica_double")
    async with asyncio.timeout(DEADLINE_S), Supervisor(children, drain_timeout_s=0.0, kill_after_s=0.3) as supervisor:
        await supervisor.know({("a", "t4"): ReplicaSpec("", "a", "/nowhere/topology.py", T4)})
        await supervisor.scale("a", "t4", 1)
        while (first := (await supervisor.observe())[0]).pid is None:
            await asyncio.sleep(0.01)
        gpu |= {"used": 12 << 30, "processes": {first.pid: 12 << 30}}
        os.kill(first.pid, signal.SIGKILL)
        await supervisor.next_exit()
        gpu["processes"] = {}  # the driver still frees it
        await pending(supervisor, "waits for a device that is t4: Tesla T4")
        gpu["used"] = 0
        while (await supervisor.observe())[0].pid is None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("kind", "servers"), [(T4, 0), (CPU, 1)], ids=["on a GPU", "on a core"])
async def test_no_replica_on_a_gpu_is_forked_nor_waits_for_a_fork_server(
    tmp_path: Path, kind: Hardware, servers: int
) -> None:
    gpus = (Device("GPU-a", "Tesla T4"),)
    spec = ReplicaSpec("", "a", "/nowhere/topology.py", kind, isolation=Isolation(forked=True, seal="imports"))
    children = partial(Children, tmp_path, replica_module="replica_double", devices=gpus)
    async with asyncio.timeout(DEADLINE_S), Supervisor(children, drain_timeout_s=0.0, kill_after_s=0.3) as supervisor:
        await supervisor.know({("a", kind.name): spec})
        await supervisor.scale("a", kind.name, 1)
        while (await supervisor.observe())[0].pid is None:
            await asyncio.sleep(0.01)
        assert len(supervisor._children._fork_servers._servers) == servers


async def test_replicas_see_their_own_gpu_and_the_next_one_waits_for_its_turn(tmp_path: Path) -> None:
    kinds = {("a", "t4"): T4, ("b", "cpu-1"): CPU}

    def sees(pid: int | None) -> str:
        deadline_s, environ = time.monotonic() + 5, ""
        while not environ and time.monotonic() < deadline_s:  # empty while the kernel sets a new program up
            environ = Path(f"/proc/{pid}/environ").read_text()
        return dict(line.split("=", 1) for line in environ.split("\0") if "=" in line)["CUDA_VISIBLE_DEVICES"]

    two = (Device("GPU-a", "Tesla T4"), Device("GPU-b", "Tesla T4"))
    children = partial(Children, tmp_path, replica_module="replica_double", devices=two)
    async with Supervisor(children, drain_timeout_s=0.0, kill_after_s=0.3) as actuator:
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


async def test_a_replica_that_was_placed_is_given_what_its_host_sees_however_much_others_use_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, [{"name": "Tesla T4", "uuid": "GPU-a", "total": 16 << 30, "used": 12 << 30, "minor": 3}])
    children = Children(tmp_path, lambda *_: None, placed=True, replica_module="replica_double")
    try:
        specs = [ReplicaSpec(k.name, "a", "/nowhere/topology.py", k, isolation=Isolation()) for k in (T4, CPU)]
        placed = [children.start_replica(spec) for spec in specs]
        assert placed[0].launch.confinement.nodes == ("nvidia3",)
        assert [child.launch.environment.get("CUDA_VISIBLE_DEVICES") for child in placed] == ["GPU-a", None]
    finally:
        children.close()


async def test_a_replica_on_a_gpu_computes_with_the_cores_that_come_with_its_price(tmp_path: Path) -> None:
    """A g4dn.xlarge has four vCPUs beside its T4; halves of that GPU have half of the three that are left."""
    children = Children(tmp_path, lambda *_: None, devices=MACHINE[:2], replica_module="replica_double")
    kinds = catalogue()
    try:
        started = [
            children.start_replica(ReplicaSpec(name, "a", "/nowhere/topology.py", kinds[name]))
            for name in ("t4", "t4-1of2")
        ]
        assert [child.launch.environment["OMP_NUM_THREADS"] for child in started] == ["3", "1"]
    finally:
        children.close()


async def test_one_that_still_waits_for_a_gpu_leaves_at_once(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), Supervisor(partial(Children, tmp_path, devices=())) as actuator:
        await actuator.know({("a", "t4"): ReplicaSpec("", "a", "/nowhere/topology.py", T4)})
        await actuator.scale("a", "t4", 1)
        await actuator.scale("a", "t4", 0)
        gone = await actuator.next_exit()
        assert (gone.expected, gone.exit_code) == (True, 0)
        assert await actuator.observe() == ()
