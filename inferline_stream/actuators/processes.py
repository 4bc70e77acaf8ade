"""What a supervisor starts and connects: processes of this host, or actors of a cluster."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.supervisor_messages import Attach, FromDispatcher, FromSupervisor
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.observability.pipeline_state import DeviceState


class ManagedProcess(Protocol):
    """A dispatcher or a replica that was started, here or on another host."""

    @property
    def name(self) -> str:
        """Of the dispatcher or replica."""

    @property
    def pid(self) -> int | None:
        """Its process, once that is known."""

    @property
    def pending(self) -> str:
        """Why it has no place to run on yet; empty if it runs."""

    @property
    def node(self) -> str:
        """The host that it runs on; empty for this one, or while that is not known."""

    @property
    def forked(self) -> bool:
        """Whether it was forked by a fork server."""

    @property
    def devices(self) -> tuple[str, ...]:
        """GPUs of this host that it was given."""

    @property
    def ran_s(self) -> float:
        """CPU time so far; 0 where nothing tells."""

    @property
    def waited_s(self) -> float:
        """Time that it could have run and had no core; 0 where nothing tells."""

    @property
    def died_at(self) -> BatchId | None:
        """The batch that has ended a dispatcher as it took it in."""

    def signal(self, number: signal.Signals, /) -> None:
        """Signal it."""

    def tell(self, message: FromSupervisor, /) -> None:
        """Send a dispatcher a message that hands over nothing."""

    def leave(self) -> None:
        """Have a replica end once it has no batch in hand."""


class Remote(Protocol):
    """A replica on another host, which has one connection to this one."""

    name: str
    hardware: str
    node: str
    gpu: bool
    """Whether it loads its stage on a GPU."""
    again: bool
    """Whether it was connected with a dispatcher before."""

    def connect(self, dispatcher: socket.socket) -> None:
        """Carry the replica's frames to and from this socket."""

    def replace(self, reason: str) -> None:
        """Have its host end it now, and start another one."""


P = TypeVar("P", bound=ManagedProcess)


@dataclass(frozen=True, slots=True)
class FoundProcess(Generic[P]):
    """A process that an earlier controller has left.

    Args:
        process: the dispatcher or replica.
        spec: what it was started with.
        age_s: time since it was started.
        serving: of a dispatcher, whether it owns its partitions.
        attached: of a dispatcher, the names of the replicas that it is connected with.
    """

    process: P
    spec: ReplicaSpec | DispatcherSpec
    age_s: float
    serving: bool = False
    attached: tuple[str, ...] = ()


class Processes(Protocol[P]):
    """Starts processes, connects them, and reports their ends."""

    async def found(self) -> Sequence[FoundProcess[P]]:
        """Return what an earlier controller has left, and take it over; asked once."""

    def start_replica(self, spec: ReplicaSpec, /) -> P:
        """Start a replica.

        Raises:
            NoDevice: its GPU is not free.
            InvalidInput: its isolation needs what the machine does not have.
            OSError: the process could not be started.
        """

    def start_dispatcher(self, spec: DispatcherSpec, /) -> P:
        """Start a dispatcher.

        Raises:
            OSError: the process could not be started.
        """

    def attach(self, dispatcher: P, replica: P | Remote, attach: Attach, /) -> None:
        """Connect a replica with a dispatcher."""

    async def room(self, specs: Iterable[ReplicaSpec], /) -> Mapping[str, int]:
        """Return how many replicas more of each hardware kind may be started; kinds without a limit are left out.

        Args:
            specs: one of each kind.
        """

    def device_states(self) -> tuple[DeviceState, ...]:
        """Return how the GPUs of this host stand; see `Actuator.devices`."""

    def close(self) -> None:
        """End what is left at once; its end is not reported."""


Ended = Callable[[P, int, str, str], None]
"""Takes a process that has ended, its exit code, a reason in words and its last lines."""

Heard = Callable[[P, FromDispatcher], None]
"""Takes a dispatcher and its message."""
