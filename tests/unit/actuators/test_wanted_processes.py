"""Processes that are wanted; what would start, stop and kill them only remembers."""

from __future__ import annotations

import pytest

from inferline_stream.actuators.wanted_processes import WantedProcess, WantedProcesses
from inferline_stream.dataplane.process_specs import DispatcherSpec
from tests.unit.dataplane.dispatcher.doubles import routes


def start(process: WantedProcess) -> None:
    process.pid, process.node = 1, "n"


async def test_a_dispatcher_that_is_replaced_between_two_starts_leaves_its_slot_to_its_successor_alone() -> None:
    dealt: list[set[int]] = []
    wanted = WantedProcesses(
        start,
        lambda process: None,
        lambda process, number: None,
        lambda stage: dealt.append(wanted.slots(stage)),
        drain_timeout_s=1.0,
        kill_after_s=1.0,
    )
    of = routes()
    first, other, second = (
        DispatcherSpec(name, slot, of, "127.0.0.1:9") for name, slot in (("a", 0), ("b", 1), ("c", 0))
    )
    await wanted.dispatch("work", [first, other])
    process = wanted.named["a"]
    wanted.ended(process, -9, "killed")
    wanted.ended(process, -9, "killed again")  # now it waits
    (seen, _) = await wanted.dispatchers()
    assert (seen.pid, seen.node) == (None, ""), "it is on no node"
    dealt.clear()
    await wanted.dispatch("work", [second, other])
    assert "a" not in wanted.named
    assert all(slots == {0, 1} for slots in dealt)


@pytest.mark.parametrize("logs_ends", [True, False])
async def test_ends_are_logged_unless_who_asks_for_the_processes_says_what_they_mean(
    caplog: pytest.LogCaptureFixture, *, logs_ends: bool
) -> None:
    wanted = WantedProcesses(
        start, lambda _: None, lambda *_: None, drain_timeout_s=1.0, kill_after_s=1.0, logs_ends=logs_ends
    )
    await wanted.dispatch("work", [DispatcherSpec("a", 0, routes(), "127.0.0.1:9")])
    wanted.ended(wanted.named["a"], -9, "killed")
    assert ("killed" in caplog.text) is logs_ends
    assert (await wanted.exits.get()).reason == "killed"
