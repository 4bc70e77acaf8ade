"""Time that handing a batch to a replica's process takes, and having its results back."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import time

from inferline_stream.dataplane.frames import Batch, encode_frame, to_replica
from inferline_stream.errors import StageFailed

_ROUND_TRIPS = 200
_RECORD_BYTES = 1024
_ECHO = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
while data := peer.recv(65536):
    peer.sendall(data)
"""


async def handover_s() -> float:
    """Return the time that a record takes to another process and back, in frames; the median."""
    batch, frames, times_s = Batch(1, 1, [bytes(_RECORD_BYTES)]), to_replica(), []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        command = (sys.executable, "-I", "-S", "-c", _ECHO, str(theirs.fileno()))
        echo = await asyncio.create_subprocess_exec(*command, pass_fds=(theirs.fileno(),))
        theirs.close()
        loop = asyncio.get_running_loop()
        for _ in range(_ROUND_TRIPS):
            began_s = time.perf_counter()
            await loop.sock_sendall(ours, encode_frame(batch))
            while not list(frames.feed(data := await loop.sock_recv(ours, 65536))):
                if not data:
                    raise StageFailed("the process that hands batches back has ended; profile again")
            times_s.append(time.perf_counter() - began_s)
    await echo.wait()
    return statistics.median(times_s)
