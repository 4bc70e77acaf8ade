"""Actors of a Ray cluster, without a cluster: how hosts retire, and what their controller makes of those it loses."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ray.exceptions import RayError

from inferline_stream.actuators import ray as on_ray
from inferline_stream.actuators.actuator import DispatcherExit, ProcessTerms
from inferline_stream.actuators.network.credentials import new_credential
from inferline_stream.actuators.ray import RayActuator
from inferline_stream.actuators.ray_host import HostNews, HostState, HostTerms, RayHost
from inferline_stream.dataplane.process_specs import EXIT_FENCED, DispatcherSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.errors import Unreachable

DEADLINE_S = 20.0
SPEC = DispatcherSpec("a-0-x", 0, Routes("p", "", "a", "in", "out", ("a",), (), (), True, 1.0, "process", b"1"), "k:1")
TERMS = HostTerms(
    dispatcher=SPEC,
    credential=new_credential("a"),
    processes=ProcessTerms("", drain_timeout_s=1.0, replica_module="", dispatcher_module=""),
    controller="me",
)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Actors that were killed, the host's own among them."""
    found: list[Any] = []
    context = SimpleNamespace(current_actor="the host")
    cluster = SimpleNamespace(kill=found.append, get_runtime_context=lambda: context)
    monkeypatch.setattr("inferline_stream.actuators.ray_host.ray", cluster)
    monkeypatch.setattr(on_ray.ray, "kill", found.append)
    return found


async def test_a_host_that_retires_ends_although_a_controller_goes_on_asking(killed: list[Any]) -> None:
    host = RayHost()
    host._over.set()  # its child has ended
    watching = host._tasks = [asyncio.create_task(host._watch_controller(TERMS))]
    asking = asyncio.create_task(host.news("", 0, None))
    await asyncio.sleep(0.01)
    await host.retire()
    async with asyncio.timeout(DEADLINE_S):
        await watching[0]
    asking.cancel()
    assert killed == ["the host"]


async def test_a_host_that_was_never_started_ends_when_it_retires(killed: list[Any]) -> None:
    await RayHost().retire()
    assert killed == ["the host"]


class Host:
    """An actor's handle: `start` answers at once, and `news` never, or as a test says."""

    def __init__(self, started: bytes | Exception, news: bytes | Exception | None = None) -> None:
        self.started, self.heard = started, news
        for name in ("start", "news", "find", "leave", "signal"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}", lambda *_: None)))

    async def _start(self, terms: bytes) -> bytes:
        return self._said(self.started)

    async def _news(self, controller: str, heard: int, pid: int | None) -> bytes:
        if self.heard is None:
            await asyncio.Event().wait()
        assert self.heard is not None
        return self._said(self.heard)

    def _said(self, what: bytes | Exception) -> bytes:
        if isinstance(what, Exception):
            raise what
        return what


STARTED = msgspec.json.encode(HostState("host/n", "n", "host:1", 7, 0.0, 0, TERMS))


@pytest.mark.parametrize(
    ("host", "ended", "says"),
    [
        (Host(RayError("no node")), (-9, True), "its actor is gone: no node"),
        (Host(STARTED, RayError("no answer")), (EXIT_FENCED, False), "its actor on host/n is gone: no answer"),
        (Host(STARTED, b"garbage"), (EXIT_FENCED, False), "it says what cannot be read"),
    ],
    ids=["it had no place", "its node does not answer", "it says what cannot be read"],
)
async def test_the_name_of_a_dispatcher_that_may_live_is_not_used_again_and_its_node_is_avoided(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch, host: Host, ended: tuple[int, bool], says: str
) -> None:
    made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: host))
    monkeypatch.setattr(on_ray.ray, "remote", lambda _: made)
    async with RayActuator("n", ProcessTerms("/nowhere")) as actuator, asyncio.timeout(DEADLINE_S):
        await actuator.dispatch("a", [SPEC])
        gone = await actuator.next_exit()
        assert isinstance(gone, DispatcherExit)
        assert (gone.exit_code, gone.restarted) == ended
        assert says in gone.reason
        assert killed[0] is host
        assert actuator._avoided() == ([] if gone.restarted else ["n"])


async def test_a_controller_whose_actors_obey_another_one_by_now_ends_and_starts_nothing(
    killed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Host(STARTED, msgspec.json.encode(HostNews(superseded=True)))]
    actor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: made.pop()))
    monkeypatch.setattr(on_ray.ray, "remote", lambda _: actor)
    actuator = RayActuator("n", ProcessTerms("/nowhere"))
    async with asyncio.timeout(DEADLINE_S):
        await actuator.dispatch("a", [SPEC])
        while not actuator._superseded:
            await asyncio.sleep(0.01)
        await actuator.dispatch("b", [msgspec.structs.replace(SPEC, dispatcher="b-0-y")])  # nothing is left to make
        await actuator.aclose()
    assert killed == []


async def test_a_host_obeys_the_controller_that_asked_for_its_state_last() -> None:
    host = RayHost()
    host._terms = TERMS
    host._up.set()
    await host.state("first")
    asking = asyncio.create_task(host.news("first", 0, None))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(DEADLINE_S):
        await host.state("second")
        assert msgspec.json.decode(await asking, type=HostNews).superseded
        await host._signal(9)  # there is no child
    host._ended = 1
    assert msgspec.json.decode(await host.news("second", 0, None), type=HostNews).heard == 1


async def test_a_cluster_that_does_not_answer_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: bool) -> None:
        raise RayError("the head node is gone")

    monkeypatch.setattr(on_ray, "list_named_actors", silent)
    with pytest.raises(Unreachable, match="the Ray cluster does not answer: the head node is gone"):
        await RayActuator("n", ProcessTerms("/nowhere")).know({})
