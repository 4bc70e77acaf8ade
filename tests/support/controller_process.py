"""A controller in a process of its own, so that it can be killed and frozen with all that hangs on it.

``python -m tests.support.controller_process`` with a `Controlled` as one line of JSON on standard input.
It says ``started``, ``leads`` and ``ready``, a line each, and then answers every further line with a `Condition`.
Dispatchers and replicas are children of a supervisor, which the next controller of the same folder takes over if this
one dies. SIGTERM, or the end of its input: it drains the pipeline and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.errors import InferlineError
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from tests.support.emulated_runs import emulated_run


class Controlled(msgspec.Struct, frozen=True):
    """What to control; see `emulated_run`."""

    topology: str
    bootstrap_servers: str
    folder: str
    prefix: str
    replicas: dict[str, int]
    conditional: list[tuple[str, str, float]] = []
    """(parent, child, share of the parent's results that go there)."""
    planned_rate: float = 40.0
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    settings: dict[str, float] = {}

    def run(self, folder: Path) -> Run:
        """The run, without a feed."""
        run = emulated_run(
            Path(self.topology),
            self.bootstrap_servers,
            folder,
            levels=[(1.0, 1.0)],
            replicas=self.replicas,
            probability={(parent, child): share for parent, child, share in self.conditional},
            planned_rate=self.planned_rate,
            prefix=self.prefix,
            delivery=self.delivery,
        )
        return replace(
            run, feed=None, settings=replace(run.settings, **self.settings), supervisor_folder=Path(self.folder)
        )


class Condition(msgspec.Struct, frozen=True):
    """How a pipeline is, as its controller sees it."""

    replicas: list[tuple[str, str, int]]
    """(name, stage, process) of those that run."""
    dispatchers: list[tuple[str, str, int]]
    """Likewise."""
    supervisor: int | None
    """Process of the supervisor."""
    complete: bool
    """Whether every replica wanted is ready."""
    lag_s: float | None
    """The longest of all stages; None before that is known."""
    failures: int
    """Steps of the control loop that raised something unforeseen."""


async def control(given: Controlled) -> int:
    """Control until stopped, or another controller leads; returns the exit code."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    folder = Path(given.folder) / f"controller-{os.getpid()}"
    folder.mkdir()
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    _say(b"started")
    try:
        async with open_run(given.run(folder)) as under_way:
            loop.add_signal_handler(signal.SIGTERM, stop.set)  # before, there is nothing to be put in order
            _say(b"leads")
            await under_way.ready()
            _say(b"ready")
            answering = asyncio.create_task(_answer(asked, under_way, stop))
            try:
                await under_way.follow(stop)
                await under_way.drain()
            finally:
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answering
    except InferlineError as error:
        sys.stderr.write(f"controller {os.getpid()}: {error}\n")
        return error.exit_code
    return 0


async def _answer(asked: asyncio.StreamReader, under_way: LiveRun, stop: asyncio.Event) -> None:
    while await asked.readline():
        _say(msgspec.json.encode(await _condition(under_way)))
    stop.set()  # the asker is gone


async def _condition(under_way: LiveRun) -> Condition:
    controller = under_way.controller
    actuator, state = controller.actuator, controller.state
    replicas, dispatchers = await actuator.observe(), await actuator.dispatchers()
    return Condition(
        replicas=[(r.replica, r.stage, r.pid) for r in replicas if r.state == "running" and r.pid is not None],
        dispatchers=[(d.dispatcher, d.stage, d.pid) for d in dispatchers if d.state == "running" and d.pid is not None],
        supervisor=actuator.supervisor_pid if isinstance(actuator, LocalActuator) else None,
        complete=state is not None
        and all(kind.ready >= kind.wanted for stage in state.stages for kind in stage.replicas),
        lag_s=max((stage.lag_s for stage in state.stages), default=0.0) if state is not None else None,
        failures=controller.loop.failures,
    )


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Read what to control, and control it."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s controller %(process)d: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # Unbuffered: what comes after the first line is for the event loop.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return asyncio.run(control(msgspec.json.decode(line, type=Controlled)))


if __name__ == "__main__":
    sys.exit(main())
