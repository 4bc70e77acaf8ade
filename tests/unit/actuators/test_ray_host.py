"""The hosts of a dispatcher and of a replica, without a cluster: their children are this test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from inferline_stream.actuators import ray as on_ray
from inferline_stream.actuators.ray import RayActors, RayProcess
from inferline_stream.actuators.ray_host import HostPlace, HostTerms, RayHost
from inferline_stream.dataplane.frames import Batch, Leave, Ready, Results, encode_frame, to_dispatcher, to_replica
from inferline_stream.dataplane.process_specs import EXIT_FENCED
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, encode_attachment
from inferline_stream.errors import Unreachable

DEADLINE_S = 20.0
TERMS = HostTerms("replica", "", "same", "me", "", "", "", 60.0, 1.0)
BATCH, RESULTS = bytes(encode_frame(Batch(1, 1, [b"x"]))), bytes(encode_frame(Results(1, 1, [], [], 0.0)))
READY = bytes(encode_frame(Ready("r", 0.0, None)))


class Child:
    """A dispatcher or a replica by its ends of socket pairs."""

    def __init__(self) -> None:
        self.socks: list[socket.socket] = []
        self.heard: list[Any] = []

    def take(self, attach: Attach, sock: socket.socket) -> None:
        self.connect(sock)

    def connect(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socks.append(sock)

    def tell(self, message: Any) -> None:
        self.heard.append(message)

    async def receive(self, at: int = -1) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.get_running_loop().sock_recv(self.socks[at], 1 << 16)

    async def send(self, data: bytes, at: int = -1) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socks[at], data)


class Handle:
    """Calls a host as Ray does; `lost` is what it raises once it is set."""

    def __init__(self, host: RayHost) -> None:
        self.lost: Exception | None = None
        for name in ("connect", "run"):
            setattr(self, name, SimpleNamespace(remote=self._through(getattr(host, name))))

    def _through(self, method: Any) -> Any:
        async def call(*given: Any) -> Any:
            found = await method(*given)
            if self.lost is not None:
                raise self.lost
            return found

        return call


class Pair:
    """A dispatcher's host attached to a replica's."""

    def __init__(self) -> None:
        self.dispatcher, self.replica = Child(), Child()
        self.hosts = [RayHost(msgspec.json.encode(TERMS)) for _ in range(2)]
        for host, child in zip(self.hosts, (self.dispatcher, self.replica), strict=True):
            host._child = child  # type: ignore[assignment]
            host._up.set()
        self.handle = Handle(self.hosts[1])

    async def attach(self) -> None:
        await self.hosts[0].attach("me", encode_attachment(Attach("r", "cpu-1", 0)), self.handle)
        before = len(self.replica.socks)
        async with asyncio.timeout(DEADLINE_S):
            while len(self.replica.socks) == before:
                await asyncio.sleep(0.001)
        await self.replica.send(READY)
        assert await self.dispatcher.receive() == READY

    def messages(self) -> list[Any]:
        return self.hosts[0]._messages


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    await made.attach()
    yield made
    for bridge in made.hosts[0]._bridges.values():
        bridge.cancel()
        await asyncio.gather(bridge, return_exceptions=True)
    for sock in (*made.dispatcher.socks, *made.replica.socks):
        sock.close()
    for link in made.hosts[1]._links.values():
        link.close()


async def test_frames_go_to_the_replica_and_back(pair: Pair) -> None:
    for _ in range(3):
        await pair.dispatcher.send(BATCH)
        (frame,) = to_replica().feed(await pair.replica.receive())
        assert frame.inputs == [b"x"]
        await pair.replica.send(RESULTS)
        (frame,) = to_dispatcher().feed(await pair.dispatcher.receive())
        assert frame.batch == 1


async def test_a_replica_that_runs_several_batches_at_once_gets_them_at_once(pair: Pair) -> None:
    batches = [bytes(encode_frame(Batch(1, number, [b"x"]))) for number in (1, 2, 3)]
    for batch in batches:
        await pair.dispatcher.send(batch)
    buffer, found = to_replica(), list[int]()
    while len(found) < 3:
        found += [frame.batch for frame in buffer.feed(await pair.replica.receive())]
    assert found == [1, 2, 3]
    for number in (3, 1, 2):  # whichever is done first
        await pair.replica.send(bytes(encode_frame(Results(1, number, [], [], 0.0))))
    answers, heard = to_dispatcher(), list[int]()
    while len(heard) < 3:
        heard += [frame.batch for frame in answers.feed(await pair.dispatcher.receive())]
    assert sorted(heard) == [1, 2, 3]


async def test_a_replica_that_leaves_or_dies_closes_the_connection_and_that_is_all(pair: Pair) -> None:
    await pair.dispatcher.send(bytes(encode_frame(Leave())))
    await pair.replica.receive()
    pair.replica.socks[-1].close()
    assert await pair.dispatcher.receive() == b""
    assert (pair.dispatcher.heard, pair.messages()) == ([], [])


async def test_a_bridge_leaves_no_task_behind(pair: Pair) -> None:
    left: list[str] = []

    def look(bridge: asyncio.Task[None]) -> None:
        left.extend(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]

    bridge = pair.hosts[0]._bridges["r"]
    bridge.add_done_callback(look)
    await pair.dispatcher.send(BATCH)
    await pair.replica.receive()
    pair.replica.socks[-1].close()
    async with asyncio.timeout(DEADLINE_S):
        await bridge
    assert "_Link.receive" not in left


async def test_a_way_that_breaks_blames_nobody_and_has_the_replica_replaced(pair: Pair) -> None:
    pair.handle.lost = ActorUnavailableError("its node does not answer", None)
    for _ in range(2):
        await pair.dispatcher.send(BATCH)
        await pair.replica.receive()
    await pair.replica.send(RESULTS)
    async with asyncio.timeout(DEADLINE_S):
        while not pair.dispatcher.heard:
            await asyncio.sleep(0.001)
    assert pair.dispatcher.heard == [ReplicaLost("r")]
    (message,) = pair.messages()
    assert isinstance(message, Replace)
    assert message.replica == "r"
    await asyncio.sleep(0.02)
    with pytest.raises(BlockingIOError):
        pair.dispatcher.socks[-1].recv(1)  # open still: its end would be a death, and somebody's fault
    pair.dispatcher.socks[-1].close()
    async with asyncio.timeout(DEADLINE_S):
        await pair.hosts[0]._bridges["r"]


async def test_another_dispatcher_gets_the_replica_once_that_has_answered_what_it_had(pair: Pair) -> None:
    running = asyncio.create_task(pair.hosts[1].run(1, BATCH))
    await pair.replica.receive()
    connecting = asyncio.create_task(pair.hosts[1].connect())
    await asyncio.sleep(0.02)
    await pair.replica.send(RESULTS, 0)
    async with asyncio.timeout(DEADLINE_S):
        assert await running == RESULTS
        await pair.replica.send(READY)
        assert await connecting == (2, READY)
        assert await pair.hosts[1].run(1, BATCH) == b""
    again = asyncio.create_task(pair.hosts[1].run(2, BATCH))
    await pair.replica.receive()
    await pair.replica.send(RESULTS)
    assert await again == RESULTS


async def test_orders_of_a_controller_that_was_superseded_are_not_obeyed(pair: Pair) -> None:
    assert await pair.hosts[0].adopt("another", "other code") is None
    pair.hosts[0]._where = HostPlace("n", "n", 1)
    news = asyncio.create_task(pair.hosts[0].news("me"))
    await asyncio.sleep(0.01)
    assert await pair.hosts[0].adopt("another", "same") is not None
    assert b'"superseded":true' in await news
    sockets = len(pair.dispatcher.socks)
    await pair.hosts[0].attach("me", encode_attachment(Attach("s", "cpu-1", 0)), pair.handle)
    assert len(pair.dispatcher.socks) == sockets


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Actors that were killed, the host's own among them."""
    found: list[str] = []
    context = SimpleNamespace(current_actor="the host")
    cluster = SimpleNamespace(kill=found.append, get_runtime_context=lambda: context)
    monkeypatch.setattr("inferline_stream.actuators.ray_host.ray", cluster)
    return found


async def test_a_host_that_retires_ends_although_a_controller_goes_on_asking(killed: list[str]) -> None:
    host = RayHost(msgspec.json.encode(TERMS))
    host._over.set()  # its child has ended
    host._going = asyncio.create_task(host._watch_controller())
    asking = asyncio.create_task(host.news("me"))
    await asyncio.sleep(0.01)
    await host.retire()
    assert b'"superseded":true' in await asking
    assert b'"superseded":true' in await host.news("me")
    async with asyncio.timeout(DEADLINE_S):
        await host._going
    assert killed == ["the host"]


async def test_a_host_that_was_never_started_ends_when_it_retires(killed: list[str]) -> None:
    host = RayHost(msgspec.json.encode(msgspec.structs.replace(TERMS, drain_timeout_s=0.01)))
    await host.retire()
    assert host._going is not None
    async with asyncio.timeout(DEADLINE_S):
        await host._going
    assert killed == ["the host"]


@pytest.mark.parametrize(
    ("error", "forced", "code", "avoided"),
    [
        (ActorDiedError(), False, -9, []),
        (ActorDiedError(), True, EXIT_FENCED, ["n"]),
        (ActorUnavailableError("no answer", None), False, EXIT_FENCED, ["n"]),
    ],
)
async def test_the_name_of_a_dispatcher_that_may_live_is_not_used_again(
    error: Any, forced: bool, code: int, avoided: list[str]
) -> None:
    actors = RayActors(lambda *_: None, lambda *_: None, namespace="", terms=TERMS, environment={})
    process = RayProcess("d", "dispatcher", node="host/n", node_id="n", forced=forced)
    assert actors._lost(process, error).exit_code == code
    assert actors._avoided() == avoided


async def test_an_actor_that_says_what_cannot_be_read_is_ended_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    ended: list[tuple[int, str]] = []
    monkeypatch.setattr(on_ray.ray, "kill", killed.append)

    async def garbage(*_: Any) -> bytes:
        return b"garbage"

    actor = SimpleNamespace(start=SimpleNamespace(remote=garbage))
    actors = RayActors(
        lambda process, code, reason, tail: ended.append((code, reason)),
        lambda *_: None,
        namespace="",
        terms=TERMS,
        environment={},
    )
    await actors._live(RayProcess("r", "replica", actor), {})
    assert killed == [actor]
    ((code, reason),) = ended
    assert code == -9
    assert "it says what cannot be read" in reason


async def test_a_cluster_that_does_not_answer_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: bool) -> None:
        raise RayError("the head node is gone")

    monkeypatch.setattr(on_ray, "list_named_actors", silent)
    actors = RayActors(lambda *_: None, lambda *_: None, namespace="", terms=TERMS, environment={})
    with pytest.raises(Unreachable, match="the Ray cluster does not answer: the head node is gone"):
        await actors.found()
