"""Dispatchers and replicas on a Ray cluster, each behind an actor that is its host.

Actors are detached, in a namespace of the pipeline's own: they outlive the controller, and the next one finds them
there. Ray restarts none of them. The end of an actor, or of its node, is the end of what it hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from inferline_stream.actuators.actuator import ProcessTerms
from inferline_stream.actuators.network.credentials import Credential, new_credential
from inferline_stream.actuators.network.replica_host import HostEnd
from inferline_stream.actuators.ray_cluster import cause, requirements, room, words
from inferline_stream.actuators.ray_host import HostNews, HostState, HostTerms, RayHost
from inferline_stream.actuators.wanted_processes import WantedProcess, WantedProcesses
from inferline_stream.dataplane.process_specs import EXIT_FENCED, DispatcherSpec, ReplicaSpec
from inferline_stream.errors import InvalidInput, Unreachable
from inferline_stream.observability.pipeline_state import DeviceState

logger = logging.getLogger(__name__)

_ADOPT_S = 5.0
"""Longest that an actor may take to answer a new controller; after that it is given up."""

_FORCE_S = 2.0
"""From the order to kill a child to the end of its actor: a host that is frozen hears no order."""

_AVOID_S = 60.0
"""So long nothing is started on a node that has not answered, if there is room elsewhere: Ray itself takes ten seconds
or more to find out that a node is gone, and goes on placing actors there."""

DISPATCHER_NEEDS: dict[str, Any] = {"num_cpus": 0}
"""What the actor of a dispatcher asks its node for: nothing. While it had no place, its stage would stand still."""

_SUPERSEDED = "another controller has taken it over"

_DEAD_LOGS = 30
"""Of replicas that failed: so many are kept, wherever they are. The next start on a node removes older ones there."""


@dataclass(slots=True, eq=False)
class _Actor:
    """A dispatcher or a replica, and the actor that hosts it.

    Args:
        of: what it fills.
        handle: of the actor.
        controller: this one.
        node_id: that it is on; empty while it has no place.
        address: of a dispatcher's host.
        heard: ends of its child so far.
        following: hears of those.
        dismissed: set once it was asked to end: it counts as ended then where it obeys another controller.
    """

    of: WantedProcess
    handle: Any
    controller: str
    node_id: str = ""
    address: str = ""
    heard: int = 0
    following: asyncio.Task[None] | None = None
    dismissed: asyncio.Event = field(default_factory=asyncio.Event)

    def signal(self, number: signal.Signals) -> None:
        """Signal the child; one that has no place yet, or whose host does not obey, loses its actor."""
        self.dismissed.set()
        if not self.node_id:
            self.kill()
            return
        self.handle.signal.remote(self.controller, int(number))
        if number == signal.SIGKILL:
            asyncio.get_running_loop().call_later(_FORCE_S, self._force, self.heard)

    def leave(self) -> None:
        """Have a dispatcher stop, or a replica end once it has no batch in hand."""
        self.dismissed.set()
        if self.node_id:
            self.handle.leave.remote(self.controller)
        else:
            self.kill()

    def kill(self) -> None:
        """End the actor, and its child with it."""
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self.handle)

    def _force(self, heard: int) -> None:
        if self.heard == heard and self.following is not None and not self.following.done():
            logger.warning("the host of %s does not answer: its actor is killed", self.of.name)
            self.kill()


class RayActuator:
    """`Actuator` on a cluster that this process has joined.

    Topology, code and log folder are at the same path on every node. What runs outlives this object unless it is asked
    to drain or close. Must be used within one event loop; `async with` only ends to watch.

    Args:
        namespace: of the pipeline's actors: the next controller finds them by it.
        terms: how processes run, and the actors that host them.
        environment: variables for dispatchers, such as credentials for Kafka, beside those of their node.
    """

    def __init__(self, namespace: str, terms: ProcessTerms, environment: Mapping[str, str] | None = None) -> None:
        self._namespace, self._terms, self._identity = namespace, terms, terms.identity
        self._environment = dict(environment or {})
        self._controller, self._superseded = secrets.token_hex(8), False
        self._knows = False
        self._wanted = WantedProcesses(
            self._start,
            lambda process: self._actors[process].leave(),
            lambda process, number: self._actors[process].signal(number),
            drain_timeout_s=terms.drain_timeout_s,
            kill_after_s=terms.kill_after_s,
        )
        wanted = self._wanted  # these promises of `Actuator` it keeps as they are
        self.scale, self.replace_dispatcher, self.drain = wanted.scale, wanted.replace_dispatcher, wanted.drain
        self.observe, self.dispatchers, self.next_exit = wanted.observe, wanted.dispatchers, wanted.next_exit
        self._actors: dict[WantedProcess, _Actor] = {}
        self._slots: dict[str, int] = {}
        """Dispatchers that each stage was asked for."""
        self._credentials: dict[str, Credential] = {}
        """By stage."""
        self._dead: deque[str] = deque(maxlen=10 * _DEAD_LOGS)
        """Replicas that failed; the newest last."""
        self._avoid_until_s: dict[str, float] = {}
        """By id of a node."""

    # Actuator

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`.

        The first call takes over what an earlier controller has left; actors of another identity drain and end.

        Raises:
            Unreachable: the cluster does not answer.
        """
        await self._wanted.know(specs)
        if self._knows:
            return
        self._knows = True
        try:
            listed = await asyncio.to_thread(list_named_actors, True)
        except RayError as error:
            raise Unreachable(f"the Ray cluster does not answer: {cause(error)}") from error
        names = [str(each["name"]) for each in listed if each["namespace"] == self._namespace]
        there = [found for found in await asyncio.gather(*map(self._found, names)) if found is not None]
        for handle, found in sorted(there, key=lambda each: -each[1].age_s):  # the oldest first
            self._adopt(handle, found)

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage; see `Actuator.dispatch`."""
        self._slots[stage] = len({each.slot for each in dispatchers})  # one may stand by for another
        await self._wanted.dispatch(stage, dispatchers)

    async def capacity(self) -> Mapping[str, int]:
        """Return the replicas that have a place, of each kind that has none left; and what the cluster may grow to."""
        found, may_grow = await self._wanted.capacity(), await room((self._wanted.specs or {}).values())
        seen = await self._wanted.observe()
        for kind, more in may_grow.items():
            held = sum(r.hardware == kind and r.state != "waiting" and not r.pending for r in seen)
            found[kind] = min(found.get(kind, held + more), held + more)
        return found

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return nothing: Ray reports its nodes' GPUs itself."""
        return ()

    async def aclose(self) -> None:
        """End everything now: SIGTERM, and SIGKILL to what stays; no actor is left when this returns."""
        try:
            await self.drain(0.0)
        finally:  # also when cancelled: nothing stays behind
            for actor in self._actors.values() if not self._superseded else ():
                actor.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        following = [actor.following for actor in self._actors.values() if actor.following is not None]
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    # What there is

    async def _found(self, name: str) -> tuple[Any, HostState] | None:
        """Return an actor that an earlier controller has left; None where it is not to be taken over."""
        try:
            handle = await asyncio.to_thread(ray.get_actor, name, self._namespace)
        except ValueError:
            return None  # it has ended meanwhile
        if name.rpartition("/")[0] != self._identity:
            logger.info("actor %s belongs to other code: it drains", name)
            handle.retire.remote()
            return None
        try:
            async with asyncio.timeout(_ADOPT_S):
                return handle, msgspec.json.decode(await handle.state.remote(self._controller), type=HostState)
        except (TimeoutError, RayError, msgspec.MsgspecError) as error:
            logger.warning("actor %s does not answer and is killed: %s", name, error)
            with contextlib.suppress(RayError):
                ray.kill(handle)
            return None

    def _adopt(self, handle: Any, found: HostState) -> None:
        started_s = asyncio.get_running_loop().time() - found.age_s
        if (spec := found.terms.replica) is not None:
            of = WantedProcess(spec.stage, spec.hardware.name, spec.replica, started_s=started_s)
        else:
            assert found.terms.dispatcher is not None, "a host is of one of the two"
            incarnation = found.terms.dispatcher.incarnation + found.ends
            spec_ = msgspec.structs.replace(found.terms.dispatcher, incarnation=incarnation)
            stage, name = spec_.routes.stage, spec_.dispatcher
            of = WantedProcess(stage, name=name, spec=spec_, started_s=started_s)
        self._wanted.adopt(of)
        self._credentials[of.stage] = found.terms.credential
        actor = self._actors[of] = _Actor(of, handle, self._controller, heard=found.ends)
        self._placed(actor, found)
        actor.following = asyncio.create_task(self._follow(actor, None))

    # What is started

    def _start(self, of: WantedProcess) -> None:
        if self._superseded:
            self._ended(of, HostEnd(127, f"could not be started: {_SUPERSEDED}"))
            return
        name, given = f"{self._identity}/{of.name}", dict[str, Any]()
        if of.spec is None:
            try:
                spec = self._wanted.replica_spec(of)
            except InvalidInput as error:
                self._ended(of, HostEnd(error.exit_code, str(error)))
                return
            asked, given = requirements(spec), {"replica": spec}
            of.way = "alone" if spec.isolation.forked else ""
        else:
            name += f".{of.spec.incarnation}"  # the actor before may be about to end
            slots, asked = self._slots.get(of.stage, 1), DISPATCHER_NEEDS
            given = {"dispatcher": of.spec, "slots": slots, "environment": self._environment}
        options = {"name": name, "namespace": self._namespace, "lifetime": "detached", "max_restarts": 0, **asked}
        if avoided := self._avoided():
            elsewhere = {"ray.io/node-id": f"!in({','.join(avoided)})"}
            options |= {"label_selector": elsewhere, "fallback_strategy": [{"label_selector": {}}]}
        try:
            handle = ray.remote(RayHost).options(**options).remote()
        except (RayError, ValueError) as error:
            self._ended(of, HostEnd(127, f"could not be started: {error}"))
            return
        if of.stage not in self._credentials:
            self._credentials[of.stage] = new_credential(of.stage)
        of.pending = f"waits for a node of the Ray cluster that has {words(asked)} free"
        actor = self._actors[of] = _Actor(of, handle, self._controller)
        terms = HostTerms(
            processes=self._terms,
            controller=self._controller,
            credential=self._credentials[of.stage],
            dispatchers=self._addresses(of.stage),
            forgotten=list(self._dead)[:-_DEAD_LOGS],
            **given,
        )
        actor.following = asyncio.create_task(self._follow(actor, terms))

    def _avoided(self) -> list[str]:
        now_s = asyncio.get_running_loop().time()
        self._avoid_until_s = {node: until_s for node, until_s in self._avoid_until_s.items() if until_s > now_s}
        return list(self._avoid_until_s)

    async def _follow(self, actor: _Actor, terms: HostTerms | None) -> None:
        """Follow a process from its place on a node to its end."""
        try:
            if terms is not None:
                found = await actor.handle.start.remote(msgspec.json.encode(terms))
                self._placed(actor, msgspec.json.decode(found, type=HostState))
            end = None
            while end is None:
                found = await actor.handle.news.remote(self._controller, actor.heard, actor.of.pid)
                news = msgspec.json.decode(found, type=HostNews)
                if news.superseded:
                    await self._stay_away(actor)
                    return
                end = self._heard(actor, news)
        except RayError as error:
            end = self._lost(actor, cause(error))
        except msgspec.MsgspecError as error:  # nobody would hear of its end
            end = self._lost(actor, f"it says what cannot be read: {error}")
        actor.kill()
        self._ended(actor.of, end)

    async def _stay_away(self, actor: _Actor) -> None:
        if not self._superseded:
            logger.warning("the pipeline's actors serve this controller no more: %s", _SUPERSEDED)
        self._superseded = True
        await actor.dismissed.wait()
        self._ended(actor.of, HostEnd(0, _SUPERSEDED))

    def _placed(self, actor: _Actor, found: HostState) -> None:
        actor.node_id, actor.address = found.node_id, found.address
        actor.of.pid, actor.of.node, actor.of.pending = found.pid, found.node, ""
        if actor.of.spec is not None:
            self._tell(actor.of.stage)
        else:  # there may be others since it was started
            actor.handle.find.remote(self._controller, self._addresses(actor.of.stage))

    def _heard(self, actor: _Actor, news: HostNews) -> HostEnd | None:
        """Take in what has happened; return how it has ended, once it has."""
        actor.of.pid, actor.heard = news.pid, news.heard
        for end in news.ends:
            if not end.restarted:
                return end
            self._wanted.restarted(actor.of, end.exit_code, end.reason, end.tail)
        return None

    def _lost(self, actor: _Actor, why: str) -> HostEnd:
        """Return the end of a process whose actor cannot be asked.

        The name of a dispatcher that had a place is not used again: where it lives on, it would serve beside its
        successor; with another name that one has the slot.
        """
        if not actor.node_id:
            return HostEnd(-signal.SIGKILL, f"its actor is gone: {why}")
        self._avoid_until_s[actor.node_id] = asyncio.get_running_loop().time() + _AVOID_S
        code = -signal.SIGKILL if actor.of.spec is None else EXIT_FENCED
        return HostEnd(code, f"its actor on {actor.of.node} is gone: {why}")

    def _ended(self, of: WantedProcess, end: HostEnd) -> None:
        self._actors.pop(of, None)
        if end.exit_code and of.spec is None:
            self._dead.append(of.name)
        self._wanted.ended(of, end.exit_code, end.reason, end.tail, at_once=end.replaced)
        if of.spec is not None:
            self._tell(of.stage)

    def _addresses(self, stage: str) -> list[str]:
        """Of a stage's dispatchers."""
        return [actor.address for of, actor in self._actors.items() if of.stage == stage and actor.address]

    def _tell(self, stage: str) -> None:
        """Tell a stage's replicas where its dispatchers are now."""
        addresses = self._addresses(stage)
        for of, actor in self._actors.items():
            if of.spec is None and of.stage == stage and actor.node_id:
                actor.handle.find.remote(self._controller, addresses)
