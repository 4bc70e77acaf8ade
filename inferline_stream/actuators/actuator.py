"""What the control plane asks of an actuator, which starts and stops replicas and dispatchers."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, REPLICA_MODULE, DispatcherSpec, ReplicaSpec
from inferline_stream.observability.pipeline_state import DeviceState

PATIENCE_S = 5.0
"""A replica that has had no place for so long says that there is none now; most get one sooner."""

SETTLED_S = 5.0
"""A replica that lived this long had started: its death is a new one, not the same again."""

FIRST_RESTART_S = 0.1
"""Wait before a dead replica's first restart: short, since most deaths are single ones."""

LONGEST_RESTART_S = 30.0
"""Waits double up to this: a stage that cannot start costs little, and is back soon after it is fixed."""

Way = Literal["", "fork", "alone"]
"""How a replica that may be forked came to run: forked by a fork server, or started by itself; empty for others."""


class ProcessTerms(msgspec.Struct, frozen=True):
    """How processes run that outlive the controller which has started them.

    Args:
        log_folder: absolute; where, on each host, the files go that hold what they print.
        identity: what a controller must have in common with the one before to take them over.
        drain_timeout_s: time a retiring replica, or a stopping dispatcher, has to end by itself.
        kill_after_s: time from SIGTERM to SIGKILL for a replica that stays.
        orphan_s: how long they go on without a controller.
        replica_module: what each replica's process runs as ``__main__``.
        dispatcher_module: likewise.
    """

    log_folder: str
    identity: str = ""
    drain_timeout_s: float = 30.0
    kill_after_s: float = 5.0
    orphan_s: float = 60.0
    replica_module: str = REPLICA_MODULE
    dispatcher_module: str = DISPATCHER_MODULE


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """One replica that was asked for.

    Args:
        replica: its name; a restarted one has a new name, no name is used twice.
        stage: the stage it runs.
        hardware: the hardware kind it runs on.
        state: ``running``; ``retiring``, asked to go and not counted any more; or ``waiting`` for the
            restart of one that died.
        pid: its process, where it is one and runs.
        started_s: when it was last started, on the event loop's clock.
        restarts: deaths so far.
        pending: why it has no place to run on yet, or cannot start there, where something tells; empty if it runs.
        way: how it came to run; may be learned a little later.
        node: that it is on, in a cluster; empty while it has none.
        ran_s: CPU time of its process so far, native threads included; 0 where nothing tells.
        waited_s: time that it could have run and had no core, stops for its share of one left out; likewise.
        going: whether its node is known to be taken away soon.
    """

    replica: str
    stage: str
    hardware: str
    state: Literal["running", "retiring", "waiting"]
    pid: int | None
    started_s: float
    restarts: int
    pending: str = ""
    way: Way = field(default="", compare=False)
    node: str = field(default="", compare=False)
    ran_s: float = field(default=0.0, compare=False)
    waited_s: float = field(default=0.0, compare=False)
    going: bool = field(default=False, compare=False)

    def is_noticed(self, noticed: Container[str]) -> bool:
        """Whether it will be taken, by notices of hardware kinds and of nodes, as `node_notice` calls those."""
        return self.hardware in noticed or (bool(self.node) and node_notice(self.node) in noticed)


def node_notice(node: str) -> str:
    """Return what a notice of a node is about, beside hardware kinds."""
    return f"node/{node}"


@dataclass(frozen=True, slots=True)
class ReplicaExit:
    """A replica that ended.

    Args:
        replica: its name.
        stage: the stage it ran.
        hardware: the hardware kind it ran on.
        exit_code: as the system tells it; negative for a signal.
        expected: whether it had been asked to go.
        reason: in words, with the last line that it wrote if it failed.
        restart_in_s: time until its place is filled again; None if it is not.
        tail: the last lines that it wrote, if it failed.
    """

    replica: str
    stage: str
    hardware: str
    exit_code: int
    expected: bool
    reason: str
    restart_in_s: float | None
    tail: str = ""


DispatcherState = Literal["running", "stopping"]


@dataclass(frozen=True, slots=True)
class ObservedDispatcher:
    """One dispatcher that runs, or that is started again at once.

    Args:
        dispatcher: its name, kept across restarts.
        stage: the stage it serves.
        slot: of the stage.
        incarnation: how often it was started, from 1.
        pid: its process; None while it is started again.
        state: ``stopping`` once it was sent `supervisor_messages.Stop`.
        started_s: when it was last started, on the event loop's clock.
        node: that it is on, in a cluster; empty while it has none.
        pending: why it has no place to run on yet, or cannot start there, where something tells; empty if it runs.
    """

    dispatcher: str
    stage: str
    slot: int
    incarnation: int
    pid: int | None
    state: DispatcherState
    started_s: float
    node: str = field(default="", compare=False)
    pending: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class DispatcherExit:
    """A dispatcher's process that ended.

    Args:
        dispatcher: its name.
        stage: the stage it served.
        slot: of the stage.
        incarnation: of the process that ended.
        exit_code: as the system reports it; negative for a signal.
        expected: whether it was asked to stop, or left in order.
        reason: in words, with the last line that it wrote if it failed.
        restarted: whether the same dispatcher is started again with the next incarnation.
        tail: the last lines that it wrote, if it failed.
    """

    dispatcher: str
    stage: str
    slot: int
    incarnation: int
    exit_code: int
    expected: bool
    reason: str
    restarted: bool
    tail: str = ""


class Actuator(Protocol):
    """Starts and stops replicas and dispatchers."""

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the template of every replica to come, by stage and hardware kind; its ``replica`` is replaced.

        Called before the first `scale`, and again when something in a template has changed. Running replicas stay.
        """

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; asking twice changes nothing.

        Retiring replicas do not count. Where there are too many, those named in ``retiring`` retire first,
        then those that wait for a restart, then the youngest. One that retires finishes its batch and ends by
        itself; after a deadline it is killed. There is no way back from retiring: a later scale-up starts
        another one.

        Raises:
            ValueError: fewer than 0 replicas, or a stage and hardware kind without a template.
        """

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage, by name; asking twice changes nothing.

        One that is no longer listed is sent `supervisor_messages.Stop`, and killed after the drain deadline. One that
        dies is started again at once under its name, with the next ``incarnation``; not so one that left in order
        (0) or was fenced (75).
        """

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """Kill a dispatcher now, because it is silent, and start it again under its name; an unknown one is ignored."""

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that was asked for and is not gone, oldest first."""

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """Wait for the next process that ends. Each end is reported once, as soon as it is known."""

    async def capacity(self) -> Mapping[str, int]:
        """Return how many replicas of each hardware kind there are places for now, those that run included.

        Kinds of which nothing is known have no limit and are left out.
        """

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return how the GPUs of this host stand, once a replica needed one; nothing in a cluster."""

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher, retire every replica and wait until all are gone; kill them after the deadline.

        Dispatchers stop first, since they finish what replicas have in hand.
        """

    async def aclose(self) -> None:
        """End everything now; no process is left when this returns."""


def surplus(replicas: Sequence[ObservedReplica], wanted: int, retiring: Collection[str]) -> tuple[str, ...]:
    """Names of the replicas to retire so that ``wanted`` are left, in the order that `Actuator.scale` promises.

    Args:
        replicas: those of one stage and hardware kind, oldest first.
        wanted: how many shall stay, 0 or more.
        retiring: the caller's choice.
    """
    chosen, counted = set(retiring), [replica for replica in replicas if replica.state != "retiring"]
    youngest_first = counted[::-1]
    ordered = sorted(youngest_first, key=lambda r: (r.replica not in chosen, r.state != "waiting"))
    return tuple(replica.replica for replica in ordered[: max(0, len(counted) - wanted)])


def placed(replicas: Iterable[ObservedReplica], now_s: float) -> dict[str, int]:
    """Replicas that have a place, of each hardware kind of which one has waited for its own for long.

    Args:
        replicas: of all stages.
        now_s: on the event loop's clock.
    """
    known = list(replicas)
    short = {r.hardware for r in known if r.state == "running" and r.pending and now_s - r.started_s >= PATIENCE_S}
    return {kind: sum(r.hardware == kind and not r.pending and r.state != "waiting" for r in known) for kind in short}


def deaths_in_a_row(before: int, lived_s: float) -> int:
    """Return how often a replica or dispatcher has died in a row, none of those long after its start.

    Args:
        before: this death.
        lived_s: time since its last start.
    """
    return 1 if lived_s >= SETTLED_S else before + 1


def restart_in_s(failures: int) -> float:
    """Wait before the restart that follows so many deaths in a row, 1 or more."""
    return float(min(LONGEST_RESTART_S, FIRST_RESTART_S * 2.0 ** min(failures - 1, 60)))
