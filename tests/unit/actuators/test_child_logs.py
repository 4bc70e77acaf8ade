"""What children print is kept, but not for ever."""

from __future__ import annotations

import asyncio
import errno
import signal
from pathlib import Path

import pytest

from inferline_stream.actuators import child_logs
from inferline_stream.actuators.child_logs import ChildLogs, cut_log
from inferline_stream.actuators.children import Children
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware


def test_a_long_log_keeps_its_end_and_says_what_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_logs, "LOG_BYTES", 1500)
    monkeypatch.setattr(child_logs, "LOG_KEPT_BYTES", 500)
    log = tmp_path / "a.log"
    lines = [f"line {number}\n" for number in range(200)]
    log.write_text("".join(lines[:100]))
    assert not cut_log(log)
    log.write_text("".join(lines))
    size = log.stat().st_size
    with log.open("a") as writer:
        assert size > 1500
        assert cut_log(log)
        writer.write("and on\n")
    first, *rest = log.read_text().splitlines(keepends=True)
    assert [*rest] == [*lines[-len(rest) + 1 :], "and on\n"]
    kept = sum(map(len, rest[:-1]))
    assert 400 < kept <= 500
    assert first == f"[{size - kept} bytes were cut off here: a log may have 1500]\n"
    assert not cut_log(tmp_path / "gone.log")


async def test_a_replica_without_a_sandbox_that_prints_on_and_on_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_logs, "LOG_BYTES", 20_000)
    monkeypatch.setattr(child_logs, "LOG_KEPT_BYTES", 5_000)
    monkeypatch.setattr(child_logs, "_LOOK_S", 0.05)
    ended: asyncio.Queue[str] = asyncio.Queue()
    started = Children(tmp_path, lambda child, code, why, tail: ended.put_nowait(tail), replica_module="replica_double")
    child = started.start_replica(ReplicaSpec("chatty-1", "chatty", "/nowhere/topology.py", Hardware("kind", 0.1)))
    longest, cuts, before = 0, 0, 0
    async with asyncio.timeout(30):
        while cuts < 5:  # it prints a kilobyte every millisecond
            size = child.log.path.stat().st_size
            longest, cuts, before = max(longest, size), cuts + (size < before), size
            await asyncio.sleep(0.005)
        child.signal(signal.SIGTERM)
        assert "chatter" in await ended.get()
    started.close()
    assert 20_000 < longest < 1_000_000
    # What came while it was cut may stand before that.
    assert b" bytes were cut off here" in child.log.path.read_bytes()


async def test_a_log_stays_while_a_child_of_that_name_runs_again_and_one_that_is_gone_ends_nothing(
    tmp_path: Path,
) -> None:
    logs = ChildLogs(tmp_path)
    again = logs.of("a-0-5f")
    again.path.write_text("it died\n")
    logs.started(again)
    logs.ended(again, "a", -9)
    logs.started(again)  # a dispatcher keeps its name when it starts again
    for number in range(child_logs._DEAD_LOGS):
        log = logs.of(f"a-cpu-{number}")
        log.path.write_text("it died, too\n")
        logs.started(log)
        logs.ended(log, "a", -9)
    assert again.path.exists()
    again.path.unlink()
    logs.ended(again, "a", 0)
    logs.close()


async def test_the_end_of_a_child_is_reported_where_no_log_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_logs, "_DEAD_LOGS", 0)

    def read_only(file: Path, **of: bool) -> None:
        raise OSError(errno.EROFS, "Read-only file system", file)

    monkeypatch.setattr(Path, "unlink", read_only)
    ended: asyncio.Queue[int] = asyncio.Queue()
    started = Children(tmp_path, lambda child, code, why, tail: ended.put_nowait(code), replica_module="replica_double")
    child = started.start_replica(ReplicaSpec("patient-1", "patient", "/nowhere/topology.py", Hardware("kind", 0.1)))
    child.signal(signal.SIGKILL)
    try:
        async with asyncio.timeout(10):
            assert await ended.get() == -signal.SIGKILL
    finally:
        started.close()
