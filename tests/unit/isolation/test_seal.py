"""Real processes that shut themselves in: each way out that was once open stays closed."""

from __future__ import annotations

import asyncio
import os
import platform
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation import bootstrap, landlock, limits
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.kernel_features import kernel_features
from inferline_stream.isolation.limits import unbounded_memory
from inferline_stream.isolation.seal import unsupported
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import run
from tests.support.escape_attempts import ATTEMPTS
from tests.support.probes import probe
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox


@pytest.mark.parametrize("ports", [(), (9,)], ids=["no network", "a port"])
async def test_a_sealed_process_has_no_way_out(ports: tuple[int, ...]) -> None:
    found = await probe(Isolation(ports=ports))
    assert [attempt for attempt in found.attempts if not attempt.blocked] == []
    assert (len(found.attempts), found.held.missing) == (36, ())
    assert found.held.sealed


@pytest.mark.parametrize("seal", ["imports", "off"])
async def test_where_files_may_be_read_code_may(seal: str) -> None:
    found = await probe(Isolation(seal=seal))
    assert [attempt.name for attempt in found.attempts if not attempt.blocked] == ["read another stage's code"]


async def test_before_the_seal_a_stage_with_ports_may_look_names_up() -> None:
    found = await probe(Isolation(ports=(9,), seal="off"))
    assert [attempt.name for attempt in found.attempts if not attempt.blocked] == [
        "read another stage's code",
        "send a UDP datagram",
    ]


async def test_the_attempts_themselves_work_where_nothing_is_isolated() -> None:
    found = await probe(Isolation("none"))
    failed = {attempt.name: attempt.answer for attempt in found.attempts if attempt.answer != "succeeded"}
    # A kernel may lack these, and another user than root may not have the others; an attempt must not fail otherwise.
    absent = {"EAFNOSUPPORT", "EPROTONOSUPPORT", "ENODEV", "EOPNOTSUPP", "ENOSYS"}
    privileged = {"EPERM", "EACCES"}
    assert {answer for answer in failed.values() if answer not in absent | privileged} == set()
    if os.geteuid() == 0:
        assert {answer for answer in failed.values() if answer not in absent} == set()
    assert set(ATTEMPTS) - set(failed) >= {"execute a program", "connect to another TCP port", "write a file"}


def test_a_thread_that_a_library_starts_is_bound_too(tmp_path: Path) -> None:
    # Landlock binds only the thread that asks and those it starts; what numpy starts must come after.
    found = run(
        tmp_path,
        """
        import numpy
        def reach():
            tried("port", lambda: socket.create_connection(("127.0.0.1", 9), timeout=2))
            tried("file", lambda: open("/etc/shadow"))
        started = threading.Thread(target=reach)
        waiting = threading.Event()
        def later():
            waiting.wait()
            tried("port after the seal", lambda: socket.create_connection(("127.0.0.1", 9), timeout=2))
            tried("file after the seal", lambda: open("/etc/hosts"))
        early = threading.Thread(target=later)
        early.start()
        started.start(); started.join()
        seal(CONFINEMENT)
        waiting.set(); early.join()
        """,
        Isolation(),
    )
    assert found == {
        "port": "EACCES",
        "file": "EACCES",
        "port after the seal": "EACCES",
        "file after the seal": "EPERM",
    }


def test_a_relative_file_that_is_opened_after_the_seal_is_named_with_what_would_grant_it(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        from inferline_stream.isolation.refusals import Refusals
        refusals = Refusals(CONFINEMENT)
        call = refusals.guarded(lambda values: open(values[0]))
        refusals.sealed = seal(CONFINEMENT).sealed
        try:
            call(["model.bin"])
        except OSError as error:
            outcome["file"], outcome["notes"] = error.filename, error.__notes__
        """,
        Isolation(),
    )
    assert found["file"] == "model.bin"
    assert "model.bin' is opened after the seal: open it where the stage is built" in found["notes"][0]


def test_a_process_that_has_threads_before_the_bootstrap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    confinement = confined(Isolation(), tmp_path / "topology.py", Hardware("cpu-1", 0.0), "")
    done = subprocess.run(
        bootstrap.command("this", confinement=confinement),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == bootstrap.EXIT_UNSUPPORTED
    assert "2 threads run before the first import" in done.stderr


def test_tcp_has_no_other_door(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        fast = 0x20000000
        seal(CONFINEMENT)
        tried("allowed", lambda: socket.socket().connect(("127.0.0.1", 9092)))
        tried("multipath", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
        tried("fast open", lambda: socket.socket().sendto(b"x", fast, ("127.0.0.1", 9)))
        tried("fast open message", lambda: socket.socket().sendmsg([b"x"], [], fast, ("127.0.0.1", 9)))
        tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        tried("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6))
        from inferline_stream.isolation import kernel_calls
        tried("many messages", lambda: kernel_calls.call("sendmmsg", 1, None, 0, 0))
        """,
        Isolation(),
    )
    assert found.pop("allowed") == "ECONNREFUSED"  # nobody listens, but it was let through
    assert set(found.values()) == {"EPERM"}


def test_threads_start_after_the_seal_and_processes_do_not(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        import subprocess
        from inferline_stream.isolation import kernel_calls
        seal(CONFINEMENT)
        def start():
            thread = threading.Thread(target=lambda: outcome.update(ran=True))
            thread.start()
            thread.join()
        tried("thread", start)
        tried("fork", os.fork)
        tried("program", lambda: subprocess.run(["true"]))
        tried("clone3", lambda: kernel_calls.call("clone3", None, 0))
        """,
        Isolation(),
    )
    # clone3 must seem not to exist: a C library that is merely refused it starts no thread.
    assert found == {"ran": True, "thread": "done", "fork": "EPERM", "program": "EPERM", "clone3": "ENOSYS"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other numbering is x86-64's")
def test_calls_by_another_numbering_end_the_process(tmp_path: Path) -> None:
    code = """
        import ctypes
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))  # x32's getpid
            os._exit(0)
        outcome["ended by"] = os.waitpid(child, 0)[1]
        """
    assert run(tmp_path, code, Isolation(helpers=1))["ended by"] & 0x7F == 31  # SIGSYS


def test_what_is_imported_late_needs_the_imports_seal(tmp_path: Path) -> None:
    code = """
        seal(CONFINEMENT)
        import importlib
        tried("import", lambda: importlib.import_module("late"))
        tried("write", lambda: open("written", "w"))
        """
    (tmp_path / "late.py").touch()
    assert run(tmp_path, code, Isolation()) == {"import": "ModuleNotFoundError", "write": "EPERM"}
    assert run(tmp_path, code, Isolation(seal="imports")) == {"import": "done", "write": "EPERM"}


def test_machine_code_is_written_only_where_that_is_declared(tmp_path: Path) -> None:
    code = """
        import mmap
        seal(CONFINEMENT)
        tried("both", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
        """
    assert run(tmp_path, code, Isolation()) == {"both": "EPERM"}
    assert run(tmp_path, code, Isolation(jit=True)) == {"both": "done"}


def test_a_stage_may_fork_helpers_where_that_is_declared_sealed_as_it_is(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        seal(CONFINEMENT)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            tried("file", lambda: open("/etc/hosts"))
            tried("other process", lambda: os.kill(os.getppid(), 0))
            os.write(write, json.dumps(outcome).encode())
            os._exit(7)
        outcome["code"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcome["helper"] = json.loads(os.read(read, 1000))
        tried("stranger", lambda: os.kill(1, 0))
        """,
        Isolation(helpers=1),
    )
    assert found["code"] == 7
    assert found["helper"]["file"] == "EPERM"
    assert found["stranger"] == "EPERM"


def test_each_stage_reads_its_own_files_and_code_and_nothing_else(tmp_path: Path) -> None:
    for name in ("mine.bin", "theirs.bin", "module.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "weights.bin").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "closed" / "within").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)  # of somebody else, beside the code
    found = run(
        tmp_path,
        f"""
        at = {str(tmp_path)!r}
        tried("mine", lambda: open(f"{{at}}/mine.bin"))
        tried("theirs", lambda: open(f"{{at}}/theirs.bin"))
        tried("weights", lambda: open(f"{{at}}/package/weights.bin"))
        import module, package
        tried("write", lambda: open(f"{{at}}/out/new", "w"))
        tried("write beside", lambda: open(f"{{at}}/mine.bin", "a"))
        tried("home", lambda: os.listdir(os.path.expanduser("~")))
        tried("root", lambda: os.listdir("/"))
        """,
        Isolation(reads=["mine.bin"], writes=["out"]),
    )
    assert found == {
        "mine": "done",
        "theirs": "EACCES",
        "weights": "EACCES",
        "write": "done",
        "write beside": "EACCES",
        "home": "EACCES",
        "root": "EACCES",
    }


def test_limits_hold_for_memory_files_and_core_dumps(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    found = run(
        tmp_path,
        f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        tried("memory", lambda: bytearray(300 << 20))
        def fill():
            with open({str(tmp_path / "out" / "big")!r}, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 18))
        tried("file", fill)
        outcome["core"] = resource.getrlimit(resource.RLIMIT_CORE)
        seal(CONFINEMENT)
        tried("memory after", lambda: bytearray(300 << 20))
        """,
        Isolation(memory_mb=200, file_mb=1, writes=["out"]),
    )
    assert found == {"memory": "MemoryError", "file": "EFBIG", "core": [0, 0], "memory after": "MemoryError"}
    assert (tmp_path / "out" / "big").stat().st_size == 1 << 20


def test_memory_that_processes_share_is_reported_as_missing_where_no_control_group_limits_it(tmp_path: Path) -> None:
    code = """
        held = seal(CONFINEMENT)
        outcome.update(missing=held.missing, degraded=held.degraded, sealed=held.sealed)
        """
    found = run(tmp_path, code, Isolation(memory_mb=200))
    lack = unbounded_memory(Isolation(memory_mb=200))
    assert found == {"missing": [lack] if lack else [], "degraded": bool(lack), "sealed": True}
    assert run(tmp_path, code, Isolation()) == {"missing": [], "degraded": False, "sealed": True}


def test_without_control_groups_a_declared_limit_of_memory_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "own_group", lambda controller: (None, False))
    assert "shared mappings escape memory_mb=200" in unbounded_memory(Isolation(memory_mb=200))
    assert unbounded_memory(Isolation()) == unbounded_memory(Isolation("none", memory_mb=200)) == ""
    assert "missing: memory_mb holds for each process alone" in kernel_features()["control groups"]


def test_before_the_seal_certificates_of_authorities_may_be_read_and_private_keys_may_not(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        for path in ("/etc/ssl/private", "/etc/pki/tls/private", "/etc/ssl"):
            tried(path, lambda: os.listdir(path))
        import ssl
        outcome["authorities"] = len(ssl.create_default_context().get_ca_certs()) > 10
        """,
        Isolation(),
    )
    authorities = found.pop("authorities")
    assert authorities == (len(ssl.create_default_context().get_ca_certs()) > 10)
    assert found == {path: "EACCES" if os.path.isdir(path) else "ENOENT" for path in found}


def test_no_capability_is_left_and_none_comes_back(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        from inferline_stream.isolation import kernel_calls
        sets = ("CapEff", "CapPrm", "CapInh", "CapAmb")
        outcome["held"] = {name: int(kernel_calls.status(name), 16) for name in sets}
        outcome["bounding"] = int(kernel_calls.status("CapBnd"), 16) if os.geteuid() == 0 else 0
        outcome["no new privileges"] = kernel_calls.status("NoNewPrivs")
        """,
        Isolation(),
    )
    assert set(found["held"].values()) == {0}
    assert (found["bounding"], found["no new privileges"]) == (0, "1")


def test_only_the_variables_that_are_declared_or_usual_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("MODEL_REGION", "eu")
    code = """
        outcome.update({name: os.environ.get(name) for name in ("AWS_SECRET_ACCESS_KEY", "MODEL_REGION", "PATH")})
        outcome["kernel's"] = "hidden" in open("/proc/self/environ").read()
        """
    found = run(tmp_path, code, Isolation(environment=["MODEL_REGION"]))
    assert found == {
        "AWS_SECRET_ACCESS_KEY": None,
        "MODEL_REGION": "eu",
        "PATH": os.environ["PATH"],
        "kernel's": False,
    }


def test_where_a_level_is_not_available_it_fails_or_degrades_as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    (lacking,) = unsupported(Isolation())
    assert "no Landlock" in lacking
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    (lacking,) = unsupported(Isolation())
    assert "x86-64 and aarch64 only" in lacking
    assert unsupported(Isolation("none")) == ()


def test_the_bootstrap_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import inferline_stream.isolation.seal; "
        "print({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'inferline_stream'}"


def test_an_isolation_that_cannot_be_is_refused_at_once() -> None:
    for wrong in (
        {"level": "sandbax"},
        {"seal": "loose"},
        {"ports": [0]},
        {"ports": [70000]},
        {"reads": "model.bin"},
        {"helpers": -1},
        {"memory_mb": 0},
        {"on_unsupported": "shrug"},
    ):
        with pytest.raises(ValueError, match="isolation"):
            Isolation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["container", "gvisor", "kata"])
def test_a_runtime_of_the_cluster_is_no_level_and_the_refusal_says_where_to_name_it(level: str) -> None:
    with pytest.raises(ValueError, match=rf"isolation '{level}' is no level: .*runtime_class="):
        Isolation(level)


async def test_a_process_that_cannot_be_isolated_says_so_rather_than_run(monkeypatch: pytest.MonkeyPatch) -> None:
    command = bootstrap.command
    # A kernel without seccomp looks like this to the process: its bootstrap never installed a filter.
    monkeypatch.setattr(bootstrap, "command", lambda module, *_, **__: command(module))
    with pytest.raises(InvalidInput, match="files: every path may be opened"):
        await asyncio.wait_for(probe(Isolation()), 60)
