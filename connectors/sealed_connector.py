"""Runs a connector as a process that seals itself before its first record.

The command that is started looks after that process: it answers its questions for host names and passes signals on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from inferline_stream.errors import InferlineError, InvalidFile, InvalidInput, UsageError
from inferline_stream.isolation import seal
from inferline_stream.isolation.confinement import Confinement, confined
from inferline_stream.isolation.launch import Launch
from inferline_stream.isolation.name_service import Loop
from inferline_stream.observability.plain_logs import log_to_stderr_plainly
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import SETTINGS_VARIABLES, given, kafka_addresses

logger = logging.getLogger(__name__)

_INTERRUPTED = 130
_AGAIN_S = 0.5
"""Between two attempts to take what another process has."""

_ANY_SIZE_MB = 1 << 24
"""Of files: what a sink writes grows for as long as there are events."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one connector touches beside Kafka.

    Args:
        reads: files and folders.
        writes: files, created where they are missing.
        ports: TCP ports that it connects to.
        listens: TCP ports that it is reached at.
        late: whether it opens files for reading after the seal.
    """

    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    ports: tuple[int, ...] = ()
    listens: tuple[int, ...] = ()
    late: bool = False


class Seal:
    """Called once everything is loaded and connected; from then on only records may move.

    Args:
        confinement: of this process; None where it is not isolated.
    """

    def __init__(self, confinement: Confinement | None) -> None:
        self._confinement = confinement

    def __call__(self) -> None:
        """Seal this process, in every thread.

        Raises:
            InvalidInput: it does not hold, and less was not accepted.
        """
        if self._confinement is None:
            return
        held = seal.seal(self._confinement)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.sealed = held.sealed
        for lack in held.missing:
            logger.warning("isolation is not whole: %s", lack)
        if held.sealed:
            logger.info("sealed: %d system calls, TCP ports %s", held.system_calls, held.ports)


def kafka_at(text: str) -> str:
    """Return an option's addresses of Kafka as they are.

    Raises:
        ArgumentTypeError: one of them is none.
    """
    try:
        kafka_addresses(text.removeprefix("PLAINTEXT://"))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def parser_of(module: str, description: str) -> argparse.ArgumentParser:
    """A parser of a connector's command, with the options that every connector has."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--bootstrap-servers", required=True, type=kafka_at, metavar="HOST:PORT", help="of Kafka")
    parser.add_argument(
        "--isolation",
        choices=("sandbox", "none"),
        help="sandbox: sealed, or an error; none; by default sealed as far as this machine can",
    )
    parser.add_argument("channel", nargs="?", type=int, help=argparse.SUPPRESS)
    return parser


def run(
    module: str,
    arguments: Sequence[str] | None,
    options: argparse.Namespace,
    *,
    needs: Needs,
    work: Callable[[Seal], Awaitable[None]],
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Run a connector to its end, isolated as the options say; returns its exit status.

    Args:
        module: the connector's, run again in the isolated process.
        arguments: of the command; None for those of this process.
        options: as they were read from the arguments.
        needs: what it may touch.
        work: connects, calls the seal, and moves records until it is stopped.
        prepare: called first, before anything is isolated.
    """
    log_to_stderr_plainly()
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # an outage is logged once, by us
    logging.getLogger("aiokafka.cluster").setLevel(logging.CRITICAL)  # 40 times a second that there is no such topic
    try:
        if options.channel is None:
            prepare()
            for file in needs.writes:
                _create(file)
        if options.isolation == "none":
            return _working(work, Seal(None), None)
        confinement = _confinement(options, needs)
        if options.channel is not None:
            return _working(work, Seal(confinement), socket.socket(fileno=options.channel))
        return asyncio.run(_supervise(module, sys.argv[1:] if arguments is None else arguments, confinement))
    except InferlineError as error:
        sys.stderr.write(f"{module.rpartition('.')[2]}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:  # before it listened for that
        return _INTERRUPTED


def _confinement(options: argparse.Namespace, needs: Needs) -> Confinement:
    isolation = Isolation(
        reads=tuple(str(path.absolute()) for path in needs.reads),
        writes=tuple(str(path.absolute()) for path in needs.writes),
        ports=needs.ports,
        environment=tuple(given(SETTINGS_VARIABLES)),
        seal="imports" if needs.late else "strict",
        file_mb=_ANY_SIZE_MB,
        on_unsupported="fail" if options.isolation else "degrade",
    )
    lacking = seal.unsupported(isolation)
    if lacking and options.isolation:
        raise InvalidInput(f"--isolation sandbox is not available here: {'; '.join(lacking)}; give --isolation none")
    one_core = Hardware("connector", 0.0)
    found = confined(isolation, __file__, one_core, options.bootstrap_servers)
    return Confinement(found.isolation, found.topology, found.kafka_ports, found.kafka_files, listens=needs.listens)


def _create(file: Path) -> None:
    """Only what is there can be granted."""
    try:
        file.touch()
    except OSError as error:
        raise InvalidFile(f"{file}: cannot be opened ({error.strerror}); give another path") from None
    if not file.is_file():
        raise InvalidFile(f"{file}: is no ordinary file; give another path")


async def _supervise(module: str, arguments: Sequence[str], confinement: Confinement) -> int:
    launch = Launch(module, confinement, cores=1, orphaned=signal.SIGTERM)
    # Held back until it can be passed on, and for ever in the process, which a terminal interrupts beside this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        process = await asyncio.create_subprocess_exec(
            *launch.command, *arguments, env=launch.environment, pass_fds=launch.files
        )
        launch.started(process.pid)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, process.send_signal, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        code = await process.wait()
        return code if code >= 0 else 128 - code
    finally:
        launch.close()


def _working(work: Callable[[Seal], Awaitable[None]], seal: Seal, channel: socket.socket | None) -> int:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.channel = channel
        await work(seal)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(live())
    return 0


def stopping() -> asyncio.Event:
    """Set at SIGINT and SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def done_in_time(work: asyncio.Future[Any], stop: asyncio.Event, leave_s: float) -> bool:
    """Wait for work; once stopped, it has so much time left and is then cancelled. Whether it is done."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        await asyncio.wait((work,), timeout=leave_s)
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return False
    return True


async def taken(take: Callable[[], bool], what: str) -> None:
    """Wait until what one process at a time may have can be taken.

    Args:
        take: tries to.
        what: whose it is meanwhile, in words.
    """
    if take():
        return
    logger.warning("%s; waiting for its end", what)
    while not take():  # noqa: ASYNC110  a lock tells nobody
        await asyncio.sleep(_AGAIN_S)


def tell(counts: msgspec.Struct) -> None:
    """Say on standard output, as a line of JSON, what became of the events."""
    sys.stdout.buffer.write(msgspec.json.encode(counts) + b"\n")
    sys.stdout.buffer.flush()


def end_if_halted(halted: Mapping[int, str], done: str) -> None:
    """Say at the end that not everything was done.

    Args:
        halted: partitions that are not read any more, and why.
        done: what became of the records of the others.

    Raises:
        InferlineError: there are such partitions.
    """
    if halted:
        where = "; ".join(f"partition {partition}: {why}" for partition, why in sorted(halted.items()))
        raise InferlineError(f"what came to halted partitions was not {done}. {where}; say --start earliest or latest")


def secret(file: Path | None) -> str:
    """The first line of a file that holds a secret: on a command line, or in the environment, others could read it.

    Raises:
        InvalidFile: the file cannot be read, or it is empty.
    """
    if file is None:
        return ""
    try:
        with file.open(encoding="utf-8") as opened:
            found = opened.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{file}: cannot be read ({error}); it should hold a secret in its first line") from None
    if not found:
        raise InvalidFile(f"{file}: its first line is empty; it should hold a secret")
    return found
