"""The relay between a replica in a container and its dispatchers, with a replica that speaks as one in a container."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferline_stream.actuators.relay import Relay
from inferline_stream.dataplane.frames import (
    FORMAT,
    Batch,
    Broken,
    Done,
    Ready,
    Results,
    ToDispatcher,
    encode_frame,
    to_dispatcher,
)
from inferline_stream.dataplane.process_specs import ReplicaSpec, encode_spec
from inferline_stream.pipeline.hardware import Hardware

DEADLINE_S = 20.0
TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    print("the stage prints", flush=True)
    return [number + 1 for number in numbers]

stage = Stage("work", work, hardware=["cpu-1"])
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
"""


class Dispatcher:
    def __init__(self, relay: Relay) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._frames = to_dispatcher()
        relay.connect(theirs)

    async def send(self, data: bytes | bytearray) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> ToDispatcher:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                assert data, "the relay has hung up"
                for frame in self._frames.feed(data):
                    return frame


def started(folder: Path, theirs: socket.socket) -> subprocess.Popen[bytes]:
    with theirs, (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "inferline_stream.dataplane.replica"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=log,
        )


@asynccontextmanager
async def contained(folder: Path) -> AsyncIterator[tuple[Relay, subprocess.Popen[bytes]]]:
    topology = folder / "topology.py"
    topology.write_text(TOPOLOGY)
    ours, theirs = socket.socketpair()
    process = started(folder, theirs)
    relay = Relay(ours, encode_spec(ReplicaSpec("r-1", "work", str(topology), Hardware("cpu-1", 0.1, cores=1))))
    try:
        yield relay, process
    finally:
        relay.close()
        process.kill()
        process.wait()
        await asyncio.sleep(0)  # for the relay's tasks to end


async def test_one_dispatcher_after_another_finds_the_same_replica_and_it_leaves(tmp_path: Path) -> None:
    async with contained(tmp_path) as (relay, process):
        first = Dispatcher(relay)
        with first.socket:
            assert isinstance(await first.receive(), Ready)
            await first.send(encode_frame(Batch(1, 1, [b"1"])))
            results = await first.receive()
            assert isinstance(results, Results)
            assert results.outcomes == [Done(b"2", 0)]
            await first.send(encode_frame(Batch(1, 2, [b"1"]))[:-3])  # dies in the middle of a frame
        second = Dispatcher(relay)
        with second.socket:
            assert isinstance(await second.receive(), Ready)
            await second.send(encode_frame(Batch(2, 1, [b"5"])))
            results = await second.receive()
            assert isinstance(results, Results)
            assert (results.epoch, results.outcomes) == (2, [Done(b"6", 0)])
            relay.leave()
            assert await asyncio.to_thread(process.wait, DEADLINE_S) == 0
    assert "the stage prints" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_frame_of_40_mb_is_never_held_whole_whether_its_dispatcher_reads_or_not(reads: bool) -> None:
    ours, replica = socket.socketpair()
    replica.setblocking(False)
    relay = Relay(ours, b"")
    dispatcher, loop, taken = Dispatcher(relay), asyncio.get_running_loop(), 0
    ready = bytes(encode_frame(Ready("r-1", 0.1, None)))
    await loop.sock_sendall(replica, ready)
    assert isinstance(await dispatcher.receive(), Ready)
    frame = bytes([FORMAT, 0, 0, 0]) + (40 << 20).to_bytes(4, "little") + bytes(40 << 20)
    tracemalloc.start()
    sending = asyncio.create_task(loop.sock_sendall(replica, frame))
    async with asyncio.timeout(DEADLINE_S):
        while reads and taken < len(frame):
            taken += len(await loop.sock_recv(dispatcher.socket, 1 << 18))
        if not reads:
            await asyncio.sleep(0.2)  # by then everything that anybody takes is taken
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sending.done() == reads
    assert peak_bytes < 4 << 20
    sending.cancel()
    second = Dispatcher(relay)  # it is served although the first one has not read
    assert isinstance(await second.receive(), Ready)
    relay.close()
    await asyncio.sleep(0)
    for end in (replica, dispatcher.socket, second.socket):
        end.close()


async def test_a_dispatcher_that_comes_in_the_middle_of_a_frame_gets_the_next_one_first() -> None:
    ours, replica = socket.socketpair()
    replica.setblocking(False)
    relay, loop = Relay(ours, b""), asyncio.get_running_loop()
    first, old, new = Dispatcher(relay), Broken(1, 1, "x" * 1000), Broken(2, 1, "of today")
    await loop.sock_sendall(replica, encode_frame(Ready("r-1", 0.1, None)) + encode_frame(old)[:999])
    assert isinstance(await first.receive(), Ready)
    second = Dispatcher(relay)
    assert isinstance(await second.receive(), Ready)
    await loop.sock_sendall(replica, encode_frame(old)[999:] + encode_frame(new))
    assert await second.receive() == new
    relay.close()
    await asyncio.sleep(0)
    for end in (replica, first.socket, second.socket):
        end.close()
