"""What a process was granted stays granted, whatever the kernel forgets meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferline_stream.isolation import landlock

READS_AFTER_RECLAIM = """
import contextlib, os, sys
from pathlib import Path
from inferline_stream.isolation import kernel_calls, landlock

reclaim, amount = sys.argv[1:]
Path(reclaim).with_name("cgroup.procs").write_text("0")
if (child := os.fork()) == 0:  # what is known of it in /proc is the group's
    file = os.open(reclaim, os.O_WRONLY)
    kernel_calls.prctl(kernel_calls.SET_NO_NEW_PRIVS, 1)
    landlock.restrict([landlock.PathGrant("/proc/self/status"), landlock.PathGrant("/proc/self/fd")], ())
    for _ in range(3):
        with contextlib.suppress(OSError):  # there is not so much to reclaim
            os.write(file, amount.encode())
    print(kernel_calls.status("NoNewPrivs"), len(os.listdir("/proc/self/fd")) > 0, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def reclaiming() -> tuple[Path, str, str] | None:
    """The group of this process's memory, the file that reclaims a group's, and what is written there; None without."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found = Path("/sys/fs/cgroup/memory") / path.lstrip("/"), "memory.force_empty", "0"
        elif not controllers:
            found = Path("/sys/fs/cgroup") / path.lstrip("/"), "memory.reclaim", "1G"
        else:
            continue
        if os.access(found[0], os.W_OK) and (found[0] / found[1]).exists():
            return found
    return None


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
@pytest.mark.skipif(reclaiming() is None, reason="no group of memory can be made here")
def test_a_process_reads_its_own_proc_after_the_kernel_ran_short_of_memory() -> None:
    found = reclaiming()
    assert found is not None
    within, file, amount = found
    (group := within / f"inferline-test-{os.getpid()}").mkdir()
    try:
        command = (sys.executable, "-c", READS_AFTER_RECLAIM, str(group / file), amount)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        group.rmdir()
    assert done.stdout == "1 True\n", done.stderr
