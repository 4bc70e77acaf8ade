"""Heavy computing beside the control loop: in a child process of the lowest priority, so that neither decisions
nor replicas wait for it.

``python -m inferline_stream.controlplane.decide.subprocess_call`` reads a function of this package and its arguments
from standard input and writes what it returns, or raises, to standard output. Both ends are ours, so pickle is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import pickle
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from inferline_stream.isolation import bootstrap

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def call_in_subprocess(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a module's function in a child process, which ends when this is cancelled, or this process ends.

    Raises:
        RuntimeError: the process ended without an answer, e.g. for want of memory.
        Exception: whatever the function raises.
    """
    process = await asyncio.create_subprocess_exec(
        *bootstrap.command(__name__, orphaned=signal.SIGKILL), stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        order = pickle.dumps((function.__module__, function.__qualname__, args, kwargs))
        answer, _ = await process.communicate(order)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # to the end of its pipes: only then are they closed
    if not answer:
        raise RuntimeError(f"{function.__qualname__} in a process of its own ended with {process.returncode}")
    succeeded, result = pickle.loads(answer)  # noqa: S301  written by our own child
    if not succeeded:
        raise result
    returned: _T = result
    return returned


def main() -> None:
    """Answer one order."""
    os.nice(19)
    with contextlib.suppress(OSError):  # where sessions are groups, a nice value counts within its own alone
        Path("/proc/self/autogroup").write_text("19")
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not the answer
    module, name, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301  written by our own parent
    outcome: tuple[bool, Any]
    try:
        outcome = True, getattr(importlib.import_module(module), name)(*args, **kwargs)
    except Exception as error:
        outcome = False, error
    with answer:
        pickle.dump(outcome, answer)


if __name__ == "__main__":
    main()
