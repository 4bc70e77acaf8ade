"""A process confined as a replica on a GPU is: what its driver does as it starts goes on, and the ways out are shut.

No device is needed, and none has run this. What a driver does is taken from reports of NVIDIA/OpenShell#710 and #1696,
nolabs-ai/nono#673, and from the C library's own source.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferline_stream.isolation import paths, syscall_rules
from inferline_stream.isolation.bpf import ALLOW, Architecture, refused, verdict
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import GPU, run
from tests.support.probes import probe
from tests.support.sandbox import needs_sandbox

ME = 4711
MACHINES = [pytest.param(on, id=name) for name, on in syscall_rules.MACHINES.items()]

DRIVER = """
    import ctypes, glob, mmap
    seal_first = {sealed}
    if seal_first:
        held = seal(CONFINEMENT)
    libc = ctypes.CDLL(None)

    def renamed(number, path, flags):
        file = os.open(path, flags)
        os.write(file, b"cuda-%d" % number)
        os.close(file)
        outcome["name %d" % number] = open("/proc/self/task/%d/comm" % thread.native_id).read().strip()

    going = threading.Event()
    thread = threading.Thread(target=going.wait)
    thread.start()
    for number, path in enumerate((
        "/proc/self/task/%d/comm" % thread.native_id,
        "/proc/%d/task/%d/comm" % (os.getpid(), thread.native_id),
        "/proc/thread-self/comm",
    )):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            tried("comm %d %d" % (number, flags), lambda: renamed(number, path, flags))
    libc.pthread_setname_np.argtypes = (ctypes.c_ulong, ctypes.c_char_p)
    outcome["the C library"] = libc.pthread_setname_np(thread.ident, b"cuda-c")
    for path in ("/proc/driver/nvidia/version", "/proc/driver/nvidia-uvm", "/proc/devices",
                 "/proc/sys/vm/mmap_min_addr", "/proc/self/maps", "/proc/self/status", "/proc/meminfo"):
        if os.path.isdir(path):
            tried(path, lambda: os.listdir(path))
        elif os.path.exists(path):
            tried(path, lambda: open(path).read())
    for path in [p for p in glob.glob("/dev/nvidia*") if not os.path.isdir(p)]:
        tried(path, lambda: os.close(os.open(path, os.O_RDWR)))
    tried("memfd", lambda: os.ftruncate(os.memfd_create("cuda"), 4096))
    tried("reserved", lambda: mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | 0x4000, prot=0).close())
    tried("shared memory", lambda: (open("/dev/shm/inferline-test-%d" % os.getpid(), "wb").close(),
                                    os.unlink("/dev/shm/inferline-test-%d" % os.getpid())))
    tried("event", lambda: os.close(os.eventfd(0)))
    tried("pair", lambda: [one.close() for one in socket.socketpair()])
    going.set()
    thread.join()
    """
"""What `cuInit` does."""


@needs_sandbox
@pytest.mark.parametrize("sealed", [False, True], ids=["as it starts", "sealed"])
def test_a_driver_starts_in_a_process_confined_for_a_gpu(tmp_path: Path, sealed: bool) -> None:
    found = run(tmp_path, DRIVER.format(sealed=sealed), Isolation(), GPU)
    assert found.pop("the C library") == 0
    names = {found.pop(f"name {number}") for number in range(2)}
    assert names == {"cuda-0", "cuda-1"}
    found.pop("name 2")  # of the calling thread
    assert set(found.values()) == {"done"}, found


@needs_sandbox
def test_a_process_without_a_gpu_renames_no_thread_by_its_file(tmp_path: Path) -> None:
    code = """
        tried("comm", lambda: open("/proc/self/task/%d/comm" % threading.get_native_id(), "w"))
        """
    assert run(tmp_path, code, Isolation()) == {"comm": "EACCES"}


@needs_sandbox
@pytest.mark.parametrize("ports", [(), (9,)], ids=["no network", "a port"])
async def test_a_process_sealed_for_a_gpu_has_no_network_and_three_known_ways(ports: tuple[int, ...]) -> None:
    found = await probe(Isolation(ports=ports), gpu=True)
    assert [attempt.name for attempt in found.attempts if not attempt.blocked] == [
        "read another stage's code",
        "read it as one of its threads",
        "write to memory and execute it",
    ]
    lack, *others = found.held.missing
    assert all("no control group limits it" in other for other in others)
    assert "what a GPU's driver needs is not known" in lack
    assert (found.held.sealed, found.held.degraded) == (False, True)


@pytest.mark.parametrize("on", MACHINES)
@pytest.mark.parametrize("sealed", [False, True])
def test_calls_of_no_use_to_a_driver_are_refused_beside_it(on: Architecture, sealed: bool) -> None:
    program = syscall_rules.program(syscall_rules.beside_driver(ME, on, sealed=sealed), on)

    def may(name: str, *arguments: int) -> bool:
        return verdict(program, on.audit, on.numbers[name], arguments) == ALLOW

    useless = """ptrace bpf io_uring_setup userfaultfd keyctl add_key request_key mount umount2 unshare setns kexec_load
    kexec_file_load perf_event_open process_vm_readv pidfd_getfd execve execveat connect bind listen clone3"""
    assert [name for name in useless.split() if may(name)] == []
    # Families: 1 Unix, 2 and 10 Internet, 16 netlink, 17 packet, 38 crypto, 40 virtual machine.
    assert [(f, t) for f in range(48) for t in (1, 2, 3, 5) if may("socket", f, t, 0)] == [(1, 1), (1, 5)]
    assert not may("fcntl", 3, 8, 1)
    assert may("fcntl", 3, 1033, 1)  # F_ADD_SEALS, on shared memory
    assert may("ioctl", 3, 0xC020462A)  # NV_ESC_RM_CONTROL
    assert may("ioctl", 3, 0x30000001)  # UVM_INITIALIZE
    assert may("clone", 0x3D0F00)
    assert not may("clone", 0x01200011)
    assert all(map(may, ("openat", "mmap", "memfd_create", "sched_setaffinity", "eventfd2", "mlock", "statx")))
    assert may("getsid") != sealed


@pytest.mark.parametrize("on", MACHINES)
def test_names_are_looked_up_before_the_seal_alone(on: Architecture) -> None:
    for sealed in (False, True):
        program = syscall_rules.program(syscall_rules.beside_driver(ME, on, network=True, sealed=sealed), on)
        answers = [
            verdict(program, on.audit, on.numbers["socket"], kind) for kind in ((2, 2, 17), (2, 1, 6), (1, 1, 0))
        ]
        assert answers == [refused(1) if sealed else ALLOW, ALLOW, refused(1)]


@pytest.mark.parametrize(
    ("own", "granted"),
    [
        (None, {"nvidia0", "nvidia1", "nvidia10", "nvidia-caps"}),
        (("nvidia1",), {"nvidia1"}),
        (("nvidia1", "nvidia-caps/nvidia-cap30"), {"nvidia1", "nvidia-caps/nvidia-cap30"}),
        ((), set()),
    ],
)
def test_of_the_machines_gpus_and_slices_a_process_is_granted_its_own(
    own: tuple[str, ...] | None, granted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = ["nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps", "dri", "kfd", "sda"]
    listed = os.listdir
    monkeypatch.setattr(paths.os, "listdir", lambda path=".": nodes if path == "/dev" else listed(path))
    grants = paths.grants(Confinement(Isolation(), "/app/topology.py", gpu=True, nodes=own))
    common = {"nvidiactl", "nvidia-uvm"}
    assert {grant.path for grant in grants if grant.device} == {f"/dev/{name}" for name in common | granted}
