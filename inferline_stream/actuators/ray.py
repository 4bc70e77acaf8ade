"""Replicas as actors of a Ray cluster, one each. Alone knows ray."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
import ray
from ray.exceptions import RayError

from inferline_stream.actuators.actuator import ObservedReplica, ReplicaExit
from inferline_stream.actuators.places import Place, Places
from inferline_stream.actuators.supervising import REPLICA_MODULE, reason_of, supervise
from inferline_stream.dataplane.protocol import ReplicaSpec, decode_spec, encode
from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)

LOST = -1
"""Exit code of a replica whose node, or whose actor, is gone."""


def requirements(hardware: Hardware) -> dict[str, Any]:
    """What an actor asks its node for. Emulated kinds sleep, and ask for nothing.

    A GPU's model becomes Ray's accelerator type, which Ray's nodes find out by themselves: ``Tesla T4`` is ``T4``.
    """
    asked: dict[str, Any] = {"num_cpus": hardware.cores, "num_gpus": hardware.gpus}
    if hardware.gpus and hardware.gpu_model is not None:
        asked["accelerator_type"] = hardware.gpu_model.split()[-1]
    return asked


class _Host:
    """The actor: supervises one replica, on the node where Ray has put it."""

    def __init__(self) -> None:
        self._going = asyncio.Event()
        self._pid: asyncio.Future[int] = asyncio.get_event_loop().create_future()

    async def live(self, spec: bytes, module: str) -> int:
        """Run the replica to its end; returns its exit code."""
        return await supervise(decode_spec(spec), self._going, started=self._pid.set_result, module=module)

    async def started(self) -> int:
        """Wait for its process."""
        return await self._pid

    async def leave(self) -> None:
        """Have it hand over and leave."""
        self._going.set()


class RayActuator:
    """`Actuator` on a Ray cluster that is there.

    The topology and what its stages import must be at the same place on every node. Replicas end with this object,
    however it ends. Must be used within one event loop; `async with` joins the cluster, and ends every replica.

    Args:
        template: the spec of a replica of that stage and hardware kind.
        address: of the cluster, as `ray.init` takes it; where this process has joined one, that is used.
        drain_timeout_s: time a retiring replica has to hand over before it is asked to leave at once.
        kill_after_s: time from then to its end by force.
        module: what each replica's process runs as ``__main__``.
    """

    def __init__(
        self,
        template: Callable[[str, str], ReplicaSpec],
        address: str = "auto",
        *,
        drain_timeout_s: float = 30.0,
        kill_after_s: float = 5.0,
        module: str = REPLICA_MODULE,
    ) -> None:
        self._template = template
        self._address = address
        self._module = module
        self._actors: dict[Place, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = Places(
            self._start, self._terminate, self._kill, drain_timeout_s=drain_timeout_s, kill_after_s=kill_after_s
        )

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        self._places.scale(stage, hardware, replicas, retiring)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        return self._places.observe()

    async def capacity(self) -> Mapping[str, int]:
        """Replicas that have a place, of each hardware kind that has none left."""
        return self._places.capacity()

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._places.next_exit()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone."""
        await self._places.drain(deadline_s)

    async def aclose(self) -> None:
        """End every replica now; none is left when this returns."""
        try:
            await self.drain(0.0)
        finally:
            for place in list(self._actors):
                self._kill(place)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await join(self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _start(self, place: Place) -> None:
        spec = self._template(place.stage, place.hardware)
        place.replica = f"{place.stage}-{place.hardware}-{secrets.token_hex(4)}"
        asked = requirements(spec.hardware)
        place.pending = f"waits for a node of the Ray cluster that has {_words(asked)} free"
        actor = self._actors[place] = ray.remote(_Host).options(**asked).remote()
        task = asyncio.create_task(self._live(place, actor, msgspec.structs.replace(spec, replica=place.replica)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, place: Place, actor: Any, spec: ReplicaSpec) -> None:
        """Follow one actor from its place on a node to its end."""
        life = asyncio.ensure_future(_result(actor.live.remote(encode(spec), self._module)))
        started = asyncio.ensure_future(_result(actor.started.remote()))
        try:
            await asyncio.wait((life, started), return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                place.pid, place.pending = started.result(), ""
                logger.info("replica %s started", place.replica)
            code = await life
            reason = reason_of(code)
        except RayError as error:
            forced = place not in self._actors
            code = -signal.SIGKILL if forced else LOST
            reason = reason_of(code) if forced else f"its node or its actor is gone: {str(error).splitlines()[0]}"
        finally:
            started.cancel()
            await asyncio.gather(life, started, return_exceptions=True)
        if self._actors.pop(place, None) is not None:
            ray.kill(actor)
        self._places.ended(place, code, reason)

    def _terminate(self, place: Place) -> None:
        if place.pending:  # it has not begun: there is nothing to hand over
            self._kill(place)
        elif (actor := self._actors.get(place)) is not None:
            actor.leave.remote()

    def _kill(self, place: Place) -> None:
        if (actor := self._actors.pop(place, None)) is not None:
            ray.kill(actor)


def _run(command: list[str]) -> str:
    """A command's output and errors, on the node where Ray has put this."""
    done = subprocess.run(
        [sys.executable, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


async def run_command(command: list[str], hardware: Hardware, deadline_s: float) -> str:
    """Run Python with these arguments once on a hardware kind of the cluster that this process has joined.

    Args:
        command: the first is Python, whichever runs there.
        hardware: the kind.
        deadline_s: longest until it has ended.

    Returns:
        What it wrote, to standard output and standard error.

    Raises:
        InferlineError: it has no place within the deadline, or its node is gone.
    """
    asked = requirements(hardware)
    task = ray.remote(_run).options(**asked, max_retries=0).remote(command)
    try:
        async with asyncio.timeout(deadline_s):
            said: str = await task
            return said
    except TimeoutError:
        ray.cancel(task, force=True)
        raise InferlineError(f"not done after {deadline_s:g} s: is a node with {_words(asked)} free?") from None
    except RayError as error:
        raise InferlineError(f"its node is gone: {str(error).splitlines()[0]}") from error


async def join(address: str) -> None:
    """Join a Ray cluster, unless this process has joined one.

    Raises:
        Unreachable: none answers there.
    """
    if not ray.is_initialized():
        try:
            await asyncio.to_thread(ray.init, address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RayError, OSError) as error:
            raise Unreachable(
                f"no Ray cluster answers at {address!r}: {error}; start one with `ray start --head`"
            ) from None


async def _result(reference: Any) -> int:
    found: int = await reference
    return found


def _words(asked: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in asked.items() if value) or "room"
