"""The replicas and dispatchers that an actuator was asked for: which are to go, and when a dead one starts again."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from inferline_stream.actuators.actuator import (
    DispatcherExit,
    ObservedDispatcher,
    ObservedReplica,
    ReplicaExit,
    Way,
    deaths_in_a_row,
    placed,
    restart_in_s,
    surplus,
)
from inferline_stream.dataplane.process_specs import EXIT_FENCED, DispatcherSpec, ReplicaSpec
from inferline_stream.errors import InvalidInput

logger = logging.getLogger(__name__)

_LEFT = (0, EXIT_FENCED)
"""Exit codes of dispatchers that are not started again."""


@dataclass(slots=True, eq=False)
class WantedProcess:
    """One that was asked for: its process, or the wait for the next one.

    Args:
        stage: it serves.
        hardware: of a replica, the kind it runs on.
        name: of a replica, a new one at each start; of a dispatcher, kept.
        spec: of a dispatcher; the incarnation is that of the last start.
        running: whether it was started and has not ended.
        pid: its process, where known.
        node: the host that it runs on, where that is another one.
        pending: why it does not run yet although it was started; empty if it does.
        held_up: whether nothing at all was started for it yet, and there is nothing to hand over.
        started_s: when it was last started, on the event loop's clock.
        restarts: deaths so far.
        failures: deaths in a row, none of which came long after its start.
        leaving: whether it was asked to go.
        silent: whether a dispatcher was killed because it was silent.
        way: how a replica came to run, where that differs.
    """

    stage: str
    hardware: str = ""
    name: str = ""
    spec: DispatcherSpec | None = None
    running: bool = False
    pid: int | None = None
    node: str = ""
    pending: str = ""
    held_up: bool = False
    started_s: float = 0.0
    restarts: int = 0
    failures: int = 0
    leaving: bool = False
    silent: bool = False
    way: Way = ""
    _timer: asyncio.TimerHandle | None = None
    """The restart, or the end of one that should have ended."""

    @property
    def observed(self) -> ObservedReplica:
        """A replica, as an actuator shows it."""
        running: Literal["running", "waiting"] = "running" if self.running else "waiting"
        state = "retiring" if self.leaving else running
        return ObservedReplica(
            self.name,
            self.stage,
            self.hardware,
            state,
            self.pid,
            self.started_s,
            self.restarts,
            self.pending,
            self.way,
            self.node,
        )

    @property
    def observed_dispatcher(self) -> ObservedDispatcher:
        """A dispatcher, as an actuator shows it."""
        assert self.spec is not None, "a dispatcher has a spec"
        return ObservedDispatcher(
            self.name,
            self.stage,
            self.spec.slot,
            self.spec.incarnation,
            self.pid,
            "stopping" if self.leaving else "running",
            self.started_s,
            self.node,
            self.pending,
        )


class WantedProcesses:
    """Keeps those of an actuator, and most of the promises of an `Actuator`, whose methods these are.

    Args:
        start: called with one to start; later calls `ended`, perhaps at once.
        leave: asks a running replica to finish its batch and end, or a dispatcher to drain and end.
        kill: signals a running one: SIGTERM and, ``kill_after_s`` later, SIGKILL for a replica; SIGKILL for a
            dispatcher. It must lead to `ended`.
        dealt: called with a stage whose slots may have changed.
        drain_timeout_s: time that one that was asked to go has to end by itself.
        kill_after_s: see ``kill``.
        logs_ends: whether ends are logged, too; else who asks for them says what they mean.
    """

    def __init__(
        self,
        start: Callable[[WantedProcess], None],
        leave: Callable[[WantedProcess], None],
        kill: Callable[[WantedProcess, signal.Signals], None],
        dealt: Callable[[str], None] = lambda stage: None,
        *,
        drain_timeout_s: float,
        kill_after_s: float,
        logs_ends: bool = True,
    ) -> None:
        self._logs_ends = logs_ends
        self._begin = start
        self._ask_to_leave = leave
        self._kill = kill
        self._dealt = dealt
        self._drain_timeout_s = drain_timeout_s
        self._kill_after_s = kill_after_s
        self._changed = asyncio.Event()
        self._left: set[str] = set()
        """Dispatchers that are gone for good; no name is used twice."""
        self.exits: asyncio.Queue[ReplicaExit | DispatcherExit] = asyncio.Queue()
        self.specs: Mapping[tuple[str, str], ReplicaSpec] | None = {}
        """Templates of replicas by stage and hardware kind; None for any."""
        self.replicas: list[WantedProcess] = []
        """Oldest first."""
        self.named: dict[str, WantedProcess] = {}
        """By name, oldest first."""

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """As `Actuator.know`."""
        self.specs = dict(specs)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """As `Actuator.scale`."""
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        if replicas > 0 and self.specs is not None and (stage, hardware) not in self.specs:
            raise ValueError(f"stage {stage!r} on {hardware!r}: no replica is known; call know() first")
        alike = [each for each in self.replicas if (each.stage, each.hardware) == (stage, hardware)]
        leaving = surplus([each.observed for each in alike], replicas, retiring)
        for each in alike:
            if each.name in leaving:
                self._let_go(each, self._drain_timeout_s)
        for _ in range(replicas - sum(not each.leaving for each in alike)):
            new = WantedProcess(stage, hardware)
            self.replicas.append(new)
            self._start(new)

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """As `Actuator.dispatch`."""
        wanted = {spec.dispatcher: spec for spec in dispatchers}
        before = list(self.named.values())
        for name, spec in wanted.items():
            if name not in self.named and name not in self._left:
                again = msgspec.structs.replace(spec, incarnation=spec.incarnation - 1)
                new = self.named[name] = WantedProcess(stage, name=name, spec=again)
                self._start(new)
        # Only then: one that is forgotten at once would have its replicas dealt to other slots, and back from there.
        for each in before:
            if each.stage == stage and each.name not in wanted:
                self._let_go(each, self._drain_timeout_s)
        self._dealt(stage)

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """As `Actuator.replace_dispatcher`."""
        found = self.named.get(dispatcher)
        if found is not None and found.running:
            found.silent = True
            self._kill(found, signal.SIGKILL)

    def adopt(self, process: WantedProcess) -> None:
        """Go on with one that an earlier controller has started."""
        process.running = True
        if process.spec is None:
            self.replicas.append(process)
        else:
            self.named[process.name] = process

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """As `Actuator.observe`."""
        return tuple(each.observed for each in self.replicas)

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """As `Actuator.dispatchers`."""
        return tuple(each.observed_dispatcher for each in self.named.values())

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """As `Actuator.next_exit`."""
        return await self.exits.get()

    async def capacity(self) -> dict[str, int]:
        """As `Actuator.capacity`."""
        return placed(await self.observe(), asyncio.get_running_loop().time())

    def replica_spec(self, replica: WantedProcess) -> ReplicaSpec:
        """Return what a replica is started with.

        Raises:
            InvalidInput: `know` has said nothing of it when it was last called, as of a version that is given up.
        """
        assert self.specs is not None, "templates are known"
        template = self.specs.get((replica.stage, replica.hardware))
        if template is None:
            raise InvalidInput(f"nothing says any more what stage {replica.stage!r} runs on {replica.hardware!r}")
        return msgspec.structs.replace(template, replica=replica.name)

    def slots(self, stage: str) -> set[int]:
        """Return the slots of a stage whose dispatchers are not about to stop."""
        there = [each for each in self.named.values() if each.stage == stage and not each.leaving]
        return {each.spec.slot for each in there if each.spec is not None}

    async def drain(self, deadline_s: float) -> None:
        """As `Actuator.drain`."""
        until_s = asyncio.get_running_loop().time() + deadline_s
        for kind in (self.named, self.replicas):
            left_s = max(0.0, until_s - asyncio.get_running_loop().time())
            for each in list(kind.values() if isinstance(kind, dict) else kind):
                self._let_go(each, left_s)
            while kind:
                self._changed.clear()
                await self._changed.wait()

    def ended(self, process: WantedProcess, code: int, reason: str, tail: str = "", *, at_once: bool = False) -> None:
        """Report that one has ended. It starts again unless it was to go, or is a dispatcher that left or was fenced.

        Args:
            process: the replica or dispatcher.
            code: its exit code.
            reason: in words.
            tail: the last lines that it wrote.
            at_once: whether to start the next one without a wait, unless this one did not live long either; so are
                dispatchers in any case.
        """
        loop = asyncio.get_running_loop()
        if process._timer is not None:
            process._timer.cancel()
            process._timer = None
        process.running, process.pid, process.node, process.pending = False, None, "", ""
        at_once, delay_s = at_once or process.spec is not None, None
        if not process.leaving and not (process.spec is not None and code in _LEFT):
            process.restarts += 1
            process.failures = deaths_in_a_row(process.failures, loop.time() - process.started_s)
            earlier = process.failures - (process.spec is not None)  # the first restart of a dispatcher is none
            delay_s = 0.0 if at_once and process.failures == 1 else restart_in_s(earlier)
        self._report(process, code, reason, tail, delay_s)
        if delay_s is None:
            self._forget(process)
        else:
            process._timer = loop.call_later(delay_s, self._start, process)

    def restarted(self, dispatcher: WantedProcess, code: int, reason: str, tail: str) -> None:
        """Report that a dispatcher has ended, and that its host has started it again."""
        assert dispatcher.spec is not None, "a dispatcher has a spec"
        dispatcher.silent = False  # its host says so
        self._report(dispatcher, code, reason, tail, 0.0)
        dispatcher.spec = msgspec.structs.replace(dispatcher.spec, incarnation=dispatcher.spec.incarnation + 1)
        dispatcher.started_s = asyncio.get_running_loop().time()

    def _report(self, process: WantedProcess, code: int, reason: str, tail: str, delay_s: float | None) -> None:
        what = "replica" if process.spec is None else "dispatcher"
        if self._logs_ends and delay_s is None:
            logger.info("%s %s ended: %s", what, process.name, reason)
        elif self._logs_ends:
            logger.warning("%s %s ended: %s; restarted in %.1f s", what, process.name, reason, delay_s)
        stage, spec, expected = process.stage, process.spec, process.leaving
        if spec is None:
            gone = ReplicaExit(process.name, stage, process.hardware, code, expected, reason, delay_s, tail)
            self.exits.put_nowait(gone)
            return
        again, expected = delay_s is not None, expected or code == 0
        if process.silent and again:
            reason = f"replaced, because it was silent ({reason})"
        self.exits.put_nowait(
            DispatcherExit(process.name, stage, spec.slot, spec.incarnation, code, expected, reason, again, tail)
        )

    def _start(self, process: WantedProcess) -> None:
        process._timer, process.silent, process.running = None, False, True
        process.started_s = asyncio.get_running_loop().time()
        if process.spec is None:
            process.name = f"{process.stage}-{process.hardware}-{secrets.token_hex(4)}"
        else:
            process.spec = msgspec.structs.replace(process.spec, incarnation=process.spec.incarnation + 1)
        self._begin(process)

    def _let_go(self, process: WantedProcess, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if process.leaving and process._timer is not None and process._timer.when() <= loop.time() + deadline_s:
            return  # it has to be gone sooner than that
        already, process.leaving = process.leaving, True
        if process._timer is not None:
            process._timer.cancel()
        if not process.running:
            self._forget(process)
            return
        process._timer = loop.call_later(0.0 if process.held_up else deadline_s, self._overdue, process)
        if not already:
            self._ask_to_leave(process)

    def _overdue(self, process: WantedProcess) -> None:
        if process.spec is not None:
            self._kill(process, signal.SIGKILL)
            return
        loop = asyncio.get_running_loop()
        process._timer = loop.call_later(self._kill_after_s, self._kill, process, signal.SIGKILL)
        self._kill(process, signal.SIGTERM)

    def _forget(self, process: WantedProcess) -> None:
        if process.spec is None:
            self.replicas.remove(process)
        else:
            self.named.pop(process.name, None)
            self._left.add(process.name)
            self._dealt(process.stage)
        self._changed.set()
