"""``python -m tests.benchmarks._bound_supervisor``: a supervisor whose dispatchers give each replica its own queue.

In place of `inferline_stream.actuators.supervisor_process`, for a whole run: see `_bound_dispatcher`.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from inferline_stream.actuators import local
from inferline_stream.actuators.actuator import ProcessTerms
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.local import LocalActuator
from tests.benchmarks._bound_dispatcher import MODULE, unsealed


@contextmanager
def bound_actuator(log_folder: Path) -> Iterator[LocalActuator]:
    """An actuator with such a supervisor; to be used within the block."""
    with mock.patch.object(local, "_SUPERVISOR_MODULE", "tests.benchmarks._bound_supervisor"):
        yield LocalActuator(ProcessTerms(str(log_folder), dispatcher_module=MODULE))


if __name__ == "__main__":
    Children.start_dispatcher = unsealed()(Children.start_dispatcher)  # type: ignore[method-assign]  # in this process only
    runpy.run_module("inferline_stream.actuators.supervisor_process", run_name="__main__")
