"""The supervisor's process, without children."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators.actuator import ProcessTerms
from inferline_stream.actuators.supervisor_calls import (
    Hello,
    Reply,
    Request,
    arguments_of,
    decode_from_controller,
    decode_from_supervisor,
    encode_line,
    request,
)
from inferline_stream.actuators.supervisor_process import _Process
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from tests.unit.dataplane.dispatcher.doubles import routes

DEADLINE_S = 20.0


def test_templates_of_replicas_come_as_they_were_sent() -> None:
    kind = Hardware("emulated-core", 0.1)
    specs = {("work", "emulated-core"): ReplicaSpec("", "work", "/topology.py", kind, {1: 0.02, 4: 0.032}, Isolation())}
    came = decode_from_controller(encode_line(request(1, "know", list(specs.items()))))
    assert isinstance(came, Request)
    assert arguments_of(came) == (specs,)


class _Writer:
    """Keeps the lines that the controller would read."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    async def drain(self) -> None:
        return None


async def test_an_order_that_fails_in_any_way_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_descriptor() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    process, writer = _Process(Hello(ProcessTerms(str(tmp_path), "", 1.0, 1.0, 1.0))), _Writer()
    controller: Any = writer
    async with process.supervisor:
        monkeypatch.setattr(process.supervisor, "observe", no_descriptor)
        await process._answer(request(7, "observe"), controller)
    (reply,) = map(decode_from_supervisor, writer.lines)
    assert isinstance(reply, Reply)
    assert reply.number == 7
    assert "Too many open files" in reply.error


async def test_what_a_supervisor_is_asked_for_as_it_ends_is_left_to_the_next_one(tmp_path: Path) -> None:
    process, writer = _Process(Hello(ProcessTerms(str(tmp_path), "", 1.0, 1.0, 1.0))), _Writer()
    controller: Any = writer
    async with process.supervisor:
        process.end()
        spec = DispatcherSpec("work-0-a", 0, routes(), "127.0.0.1:9")
        await process._answer(request(1, "dispatch", "work", [spec]), controller)
        assert await process.supervisor.dispatchers() == ()
        await process.over.wait()
    assert writer.lines == [], "a controller that is answered does not ask again"


async def test_a_connection_that_ends_before_it_says_who_comes_changes_nothing(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = _Process(Hello(ProcessTerms(str(tmp_path), "", 1.0, 1.0, 1.0)))
    async with process.supervisor, asyncio.timeout(DEADLINE_S):
        ours.close()
        await process.adopt(*await asyncio.open_unix_connection(sock=theirs))
        assert process._ending is None


async def test_a_controller_that_is_killed_as_it_asks_leaves_a_supervisor_that_drains_and_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = _Process(Hello(ProcessTerms(str(tmp_path), "", 1.0, 1.0, orphan_s=0.0)))
    async with process.supervisor, asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(process.serve(*await asyncio.open_unix_connection(sock=theirs), process._hello))
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        await reader.readline()
        writer.write(encode_line(request(1, "scale", "work", "kind", 3, []))[:20])
        writer.close()
        await process.over.wait()
