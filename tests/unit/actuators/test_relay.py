"""The relay between a replica in a container and its dispatchers, with a replica that speaks as one in a container."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from inferline_stream.actuators.relay import Relay
from inferline_stream.dataplane.frames import Batch, Done, Ready, Results, ToDispatcher, encode_frame, to_dispatcher
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
