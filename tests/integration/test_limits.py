"""Shares of a core: held for a process and for what it has started."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inferline_stream.isolation import limits
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.support.confined_code import run

HAS_A_HELPER = """
import subprocess, sys
sys.stdin.readline()
helper = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(helper.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not limits.shares_held(), reason="no control group for cores can be made here")
def test_a_helper_that_was_started_while_the_stage_was_built_has_the_same_share_and_end(tmp_path: Path) -> None:
    kind = Hardware("kind", 0.1, cores=0.25)
    launch = Launch("nothing", confined(Isolation("none"), tmp_path / "topology.py", kind, ""), cores=kind.cores)
    command = (sys.executable, "-I", "-S", "-c", HAS_A_HELPER)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        launch.started(process.pid)
        print(file=process.stdin, flush=True)
        helper = int(process.stdout.readline())
        launch.ready()
        (group,) = Path("/sys/fs/cgroup").rglob(f"inferline-{process.pid}")
        held = set((group / "cgroup.procs").read_text().split())
        process.stdin.close()
    ended = os.pidfd_open(helper)
    launch.close()
    assert held == {str(process.pid), str(helper)}
    assert not group.exists()
    assert select.select([ended], [], [], 10.0)[0], "the helper has outlived its replica"
    os.close(ended)


def test_helpers_that_a_process_left_are_all_killed_before_any_of_them_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "inferline-1"
    group.mkdir()
    monkeypatch.setattr(limits, "own_group", lambda controller: (tmp_path, True))
    monkeypatch.setattr(limits, "_cpu_group", lambda: (None, True))
    helpers = [subprocess.Popen((sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)")) for _ in range(3)]
    (group / "cgroup.procs").write_text("\n".join(str(helper.pid) for helper in helpers))
    done, kill, selected, polled = [], signal.pidfd_send_signal, select.select, select.poll

    class Poll:
        def __init__(self) -> None:
            self._poll = polled()
            self.register, self.unregister = self._poll.register, self._poll.unregister

        def poll(self, wait_ms: float) -> list[tuple[int, int]]:
            done.append("wait")
            return self._poll.poll(wait_ms)

    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(select, "select", lambda *args: (done.append("wait"), selected(*args))[1])
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *args: (done.append("kill"), kill(*args))[1])
    limits.leave_groups(1)
    assert [helper.wait(10) for helper in helpers] == [-signal.SIGKILL] * 3
    assert done[:3] == ["kill"] * 3


@pytest.mark.skipif(
    limits.own_group("pids")[0] is None or not os.access(limits.own_group("pids")[0] or "", os.W_OK),
    reason="control groups of processes are not ours to make here",
)
def test_helpers_that_multiply_meet_their_limit_where_control_groups_are_ours(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        """
        import signal, time
        outcome["groups"] = seal(CONFINEMENT).groups
        children = []
        def multiply():
            for _ in range(500):
                child = os.fork()
                if child == 0:
                    time.sleep(30)
                    os._exit(0)
                children.append(child)
        tried("fork", multiply)
        outcome["forked"] = len(children)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        """,
        Isolation(helpers=1),
    )
    assert (found["fork"], found["groups"]) == ("EAGAIN", ["pids"])
    assert 100 < found["forked"] < 128
