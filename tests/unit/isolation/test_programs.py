"""Programs that a replica may run as it starts: those alone, confined as it is, and none of them after the seal."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from inferline_stream.isolation import bootstrap
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.enforced import unsealed
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import CORE, GPU, run
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

COMPILER = ("/usr/bin/gcc", "/usr/bin/as", "/usr/bin/ld", "/usr/lib/gcc", "/usr/libexec/gcc")

CODE = """
    import ctypes, subprocess
    (folder,) = CONFINEMENT.isolation.writes

    def compiled():
        with open(folder + "/a.c", "w") as file:
            file.write("int answer(void) { return 42; }")
        done = subprocess.run(["/usr/bin/gcc", "-shared", "-fPIC", "-o", folder + "/a.so", folder + "/a.c"],
                              env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outcome["answer"] = ctypes.CDLL(folder + "/a.so").answer()

    tried("a compiler", compiled)
    tried("another program", lambda: subprocess.run(["/usr/bin/env"], check=True))
    tried("a file by a program", lambda: subprocess.run(
        ["/usr/bin/gcc", "-E", "-x", "c", "/etc/shadow"], check=True, capture_output=True))
    tried("a session of its own", lambda: subprocess.run(["/usr/bin/gcc", "-v"], start_new_session=True))
    seal(CONFINEMENT)
    tried("a compiler once sealed", lambda: subprocess.run(["/usr/bin/gcc", "-v"]))
"""


@pytest.mark.parametrize("hardware", [CORE, GPU], ids=["on a core", "on a GPU"])
def test_a_replica_compiles_as_it_starts_runs_nothing_else_and_nothing_once_it_is_sealed(
    hardware: Hardware, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    isolation = Isolation(executes=COMPILER, writes=(str(made),), reads=("/usr/include",))
    assert run(tmp_path, CODE, isolation, hardware) == {
        "a compiler": "done",
        "answer": 42,
        "another program": "EACCES",
        "a file by a program": "CalledProcessError",
        "a session of its own": "EPERM",
        "a compiler once sealed": "EPERM",
    }


def test_without_the_grant_no_program_runs(tmp_path: Path) -> None:
    code = 'import subprocess\ntried("a compiler", lambda: subprocess.run(["/usr/bin/gcc", "-v"]))'
    assert run(tmp_path, code, Isolation()) == {"a compiler": "EPERM"}


def test_a_program_that_is_left_behind_keeps_a_replica_from_counting_as_sealed(tmp_path: Path) -> None:
    topology = tmp_path / "topology.py"
    topology.touch()
    confinement = confined(Isolation(executes=("/usr/bin/sleep",), on_unsupported="degrade"), topology, CORE)
    (tmp_path / "leaver.py").write_text(
        "import subprocess, time\nsubprocess.Popen(['/usr/bin/sleep', '60'])\nprint('left', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        bootstrap.command("leaver", confinement=confinement),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as replica:
        assert replica.stdout is not None
        assert replica.stdout.readline() == b"left\n"
        until_s, lack = time.monotonic() + 10, ""
        while not lack.startswith("sleep"):  # it has its parent's name until it is another program
            assert time.monotonic() < until_s, lack
            lack = unsealed(replica.pid, confinement)
        assert lack == "sleep, which it has started, still runs"
        os.killpg(replica.pid, 9)
