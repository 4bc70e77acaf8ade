"""Which process of pytest-xdist runs which file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

COMPUTED = ("tests/laws/", "tests/unit/")
"""Rooms that wait for little."""
ON_RAY = tuple(f"tests/contracts/test_{name}.py" for name in ("actuator_contract", "bench_contract", "ray"))
"""Files of one process, which starts one Ray cluster: three would start, and idle until the tests end."""
NICE = 5


def is_last(worker: str, workers: int) -> bool:
    """Whether a process, such as ``gw3``, computes in what time the others leave.

    There is one where others remain for what waits, on any machine.
    """
    return workers > 2 and worker == f"gw{workers - 1}"


def yield_to_others() -> None:
    """Let processes of this and of all other sessions go first: they get three times as much of a busy core.

    No more than that, since there are deadlines among what is computed, too.
    """
    os.nice(NICE)
    with contextlib.suppress(OSError):  # where sessions are groups, a nice value counts within its own alone
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(NICE))


class Scheduling(LoadFileScheduling):
    """Files in the order in which they are collected, slow rooms first; the last process begins with the other rooms.

    Tests of slow rooms wait for two thirds of their time, others compute. The last process has a lower priority
    and runs these beside those.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return ON_RAY[0] if file in ON_RAY else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        if is_last(node.gateway.id, self.numnodes):
            computed = next((file for file in self.workqueue if file.startswith(COMPUTED)), None)
            if computed is not None:
                self.workqueue.move_to_end(computed, last=False)
        super()._assign_work_unit(node)
