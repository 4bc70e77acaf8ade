"""The round trip of a batch between two Ray actors that host a dispatcher and a replica that does nothing.

The hosts are those of the product, in a cluster of one node on this machine; their children stand in for the
dispatcher, which measures, and for the replica. What the hosts add to one socket pair is Ray's calls, and another pair.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import ray
import uvloop

from inferline_stream.actuators.ray_host import HostTerms, RayHost
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.frames import Batch, Ready, Results, ToDispatcher
from inferline_stream.dataplane.supervisor_messages import Attach, encode_attachment

BATCHES = (1, 8)
"""Records of 1 KB in a batch."""

_ROOT = Path(__file__).parents[2]
_WARM_UP = 50


def measure(quick: bool) -> dict[str, float]:
    """Return milliseconds that Ray's calls add to a socket pair's P50, and their P99, by batch size."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(_ROOT)}
    trips = 300 if quick else 3000
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        local, remote = asyncio.run(_measured(trips))
    finally:
        ray.shutdown()
    figures = {}
    for size in BATCHES:
        added_s = statistics.median(remote[size]) - statistics.median(local[size])
        figures[f"remote_added_ms_ray_calls_{size}"] = round(added_s * 1e3, 3)
        figures[f"remote_p99_ms_ray_calls_{size}"] = round(statistics.quantiles(remote[size], n=100)[98] * 1e3, 3)
    return figures


async def _measured(trips: int) -> tuple[dict[int, list[float]], ...]:
    terms = HostTerms("replica", "", "", "me", "", "", "", 60.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _process("replica", theirs)
            await asyncio.to_thread(_process("dispatcher", ours, str(trips), f"{folder}/local").wait)
        # Ray types no method of an actor that is not decorated by it.
        hosts: list[Any] = [ray.remote(_Bench).options(num_cpus=0).remote(msgspec.json.encode(terms)) for _ in range(2)]
        await asyncio.gather(*(host.stand_in.remote(str(trips), f"{folder}/remote") for host in hosts))
        await hosts[0].attach.remote("me", encode_attachment(Attach("r", "idle", 0)), hosts[1])
        async with asyncio.timeout(120):
            while not Path(folder, "remote").exists():
                await asyncio.sleep(0.1)
        files = [Path(folder, name).read_bytes() for name in ("local", "remote")]
    return tuple(msgspec.json.decode(data, type=dict[int, list[float]]) for data in files)


class _Bench(RayHost):
    """A host whose child is one of this module's."""

    async def stand_in(self, *arguments: str) -> None:
        self._child = SimpleNamespace(  # type: ignore[assignment]  # has of a child what is called
            take=lambda attach, sock: _process("dispatcher", sock, *arguments),
            connect=lambda sock: _process("replica", sock),
            tell=lambda message: None,
        )
        self._up.set()


def _process(what: str, sock: socket.socket, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.benchmarks._ray_calls", what, str(sock.fileno()), *arguments]
    process = subprocess.Popen(command, pass_fds=[sock.fileno()], cwd=_ROOT)
    sock.close()
    return process


async def _dispatch(sock: socket.socket, trips: int, result: Path) -> None:
    heard: asyncio.Queue[ToDispatcher] = asyncio.Queue()
    connection = ReplicaConnection(sock, heard.put_nowait, lambda why: os._exit(1))
    assert isinstance(await heard.get(), Ready)
    times_s: dict[int, list[float]] = {}
    for size in BATCHES:
        batch = Batch(1, 1, [b"x" * 1024] * size)
        found = times_s[size] = []
        for _ in range(trips + _WARM_UP):
            began_s = time.perf_counter()
            connection.send(batch)
            results = await heard.get()
            found.append(time.perf_counter() - began_s)
            assert isinstance(results, Results)
        del found[:_WARM_UP]
    written = result.with_suffix(".new")
    written.write_bytes(msgspec.json.encode(times_s))
    written.rename(result)
    connection.close()


if __name__ == "__main__":
    _, role, number, *given = sys.argv
    if role == "replica":
        from tests.benchmarks._transports import serve_idly

        serve_idly(socket.socket(fileno=int(number)))
    else:
        uvloop.run(_dispatch(socket.socket(fileno=int(number)), int(given[0]), Path(given[1])))
