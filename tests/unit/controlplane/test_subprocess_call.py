from __future__ import annotations

import asyncio
import contextlib
import linecache
import os
import time
from pathlib import Path

import pytest

from inferline_stream.controlplane.decide.subprocess_call import call_in_subprocess
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.units import duration_s


def children() -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may have ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


async def test_a_function_is_called_in_a_process_of_its_own() -> None:
    assert await call_in_subprocess(duration_s, "250ms") == 0.25
    assert await call_in_subprocess(os.getpid) != os.getpid()


async def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="not a duration"):
        await call_in_subprocess(duration_s, "soon")


async def test_errors_of_ours_keep_what_they_carry() -> None:
    assert (await call_in_subprocess(Infeasible, "no", 0.5)).smallest_slo_s == 0.5


async def test_the_event_loop_goes_on_meanwhile_and_a_cancelled_call_leaves_no_process() -> None:
    before = children()
    calling = asyncio.create_task(call_in_subprocess(time.sleep, 60.0))
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert children() - before
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(calling, 5.0)
    assert not children() - before


async def test_a_process_that_dies_is_no_silent_failure() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        await call_in_subprocess(os._exit, 3)


async def test_it_yields_to_every_other_session_as_well() -> None:
    assert await call_in_subprocess(os.nice, 0) == 19
    group = Path("/proc/self/autogroup")
    if group.exists():  # else sessions are no groups, and the nice value counts everywhere
        assert (await call_in_subprocess(linecache.getline, str(group), 1)).endswith("nice 19\n")
