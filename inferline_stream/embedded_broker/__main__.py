"""`python -m inferline_stream.embedded_broker --port 9092`: the embedded broker as a process."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Coroutine

from inferline_stream.embedded_broker.server import EmbeddedBroker


def main() -> None:
    """Serve until SIGTERM, SIGINT or the end of the parent."""
    parser = argparse.ArgumentParser(
        prog="python -m inferline_stream.embedded_broker",
        description="A Kafka broker in memory, for trying things out and for tests. It keeps nothing.",
    )
    parser.add_argument("--port", type=int, default=9092, help="port to listen on; 0 takes a free one (default: 9092)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on and to tell clients")
    parser.add_argument("--output", choices=["text", "json"], default="text", help="how the address is printed")
    parser.add_argument("--parent-pipe", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    try:
        _run(_serve(arguments))
    except OSError as error:
        sys.exit(
            f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}; choose another --port, 0 for any"
        )


def _run(serving: Coroutine[None, None, None]) -> None:
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
    except ImportError:  # uvloop has no wheel for this platform: slower, nothing else
        asyncio.run(serving)


async def _serve(arguments: argparse.Namespace) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with EmbeddedBroker(arguments.host, arguments.port) as broker:
        _announce(broker.bootstrap_servers, arguments.output)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_parent_ended(ended)) if arguments.parent_pipe else None
            await ended.wait()
            if watch is not None:
                watch.cancel()


def _announce(bootstrap_servers: str, output: str) -> None:
    text = f"Embedded broker on {bootstrap_servers}, in memory: it keeps nothing, every record is gone when it ends."
    line = json.dumps({"bootstrap_servers": bootstrap_servers, "keeps": "nothing"}) if output == "json" else text
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _parent_ended(ended: asyncio.Event) -> None:
    """The parent holds the other end of our standard input, and the kernel closes it when the parent is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while await reader.read(1024):
            pass
        ended.set()
    finally:
        transport.close()


if __name__ == "__main__":
    main()
