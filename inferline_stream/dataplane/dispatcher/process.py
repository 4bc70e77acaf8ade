"""The dispatcher's process: its event loop, signals and exit code."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Protocol

import uvloop

from inferline_stream.dataplane.dispatcher.dispatcher import Dispatcher
from inferline_stream.dataplane.process_specs import EXIT_FAILED, DispatcherSpec, decode_dispatcher_spec
from inferline_stream.dataplane.supervisor_messages import MAX_DATAGRAM_BYTES
from inferline_stream.errors import InferlineError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.isolation.name_service import Loop
from inferline_stream.isolation.seal import seal
from inferline_stream.observability.plain_logs import log_to_stderr_plainly

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of the options in malloc.h."""

_COLLECT_EVERY = 50_000
"""Objects between two looks for cycles. Records and their headers are freed without one; at the interpreter's 700, its
looks at those that wait took a thirteenth of a dispatcher's time."""

_LARGE_BYTES = 8 * 1024 * 1024
"""More than a fetch or a request has: those would get new pages from the system each time."""


class ServesSlot(Protocol):
    """A dispatcher, or what stands in its place."""

    def leave(self, why: str) -> None:
        """Drain and end."""

    async def run(self) -> int:
        """Serve to the end; return the exit code."""


MakeDispatcher = Callable[[DispatcherSpec, int, Callable[[], None]], ServesSlot]
"""Makes one of its spec, the descriptor of the mark (-1 for none), and what seals the process, called once it is
connected."""


def main(channel: socket.socket, names: socket.socket | None = None) -> int:
    """Run a dispatcher to its end and return the exit code; see `serve`."""
    return serve(channel, names, lambda spec, mark, seal_it: Dispatcher(spec, channel, seal_it, mark=mark))


def serve(channel: socket.socket, names: socket.socket | None, make: MakeDispatcher) -> int:
    """Run what a dispatcher's process holds to its end and return the exit code.

    Args:
        channel: to the supervisor, SOCK_SEQPACKET; the spec is the first datagram, with the descriptor of the mark.
        names: where addresses of hosts are asked for once it is sealed; see `isolation.name_service`.
        make: makes the dispatcher, within the event loop.
    """
    log_to_stderr_plainly()
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    data, files, _, _ = socket.recv_fds(channel, MAX_DATAGRAM_BYTES, 1)
    spec, mark = decode_dispatcher_spec(data), files[0] if files else -1
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)
    _give_buffers_back()

    async def live() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.channel = names

        def seal_it() -> None:
            held = seal(dispatcher_confinement(spec.bootstrap_servers, spec.tracing))
            loop.sealed = held.sealed
            if held.missing:
                logger.warning(
                    "dispatcher %s is not sealed as it should be: %s", spec.dispatcher, "; ".join(held.missing)
                )

        dispatcher = make(spec, mark, seal_it)
        loop.set_exception_handler(_end_at_once)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, dispatcher.leave, f"{number.name} received")
        try:
            return await dispatcher.run()
        except InferlineError as error:
            logger.error("dispatcher %s: %s", spec.dispatcher, error)
            return error.exit_code

    return uvloop.run(live(), loop_factory=Loop)


def _give_buffers_back() -> None:
    """Have the C library map buffers above `_LARGE_BYTES` by themselves, and so give them back when they are freed.

    glibc raises its limit for that to the largest buffer that was, up to 32 MiB. After a batch that was decompressed,
    all later buffers would lie between other memory, and their places stay with the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)  # glibc's own proportion, once it has raised its limit


def _end_at_once(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process where a callback failed: what it left half done would hold up its events for ever."""
    loop.default_exception_handler(context)
    if "handle" in context:
        logging.shutdown()
        os._exit(EXIT_FAILED)
