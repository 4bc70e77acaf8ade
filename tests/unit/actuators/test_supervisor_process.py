"""The supervisor's process, without children."""

from __future__ import annotations

from pathlib import Path

from inferline_stream.actuators.supervisor_calls import Dispatch, Hello
from inferline_stream.actuators.supervisor_process import _Process
from inferline_stream.dataplane.process_specs import DispatcherSpec
from tests.unit.dataplane.dispatcher.doubles import routes


async def test_a_supervisor_that_ends_starts_nothing_that_a_controller_still_asks_for(tmp_path: Path) -> None:
    process = _Process(Hello("", str(tmp_path), 1.0, 1.0, 1.0))
    async with process.supervisor:
        process.end()
        await process._call(Dispatch("work", [DispatcherSpec("work-0-a", 0, routes(), "127.0.0.1:9")]))
        assert await process.supervisor.dispatchers() == ()
        await process.over.wait()
