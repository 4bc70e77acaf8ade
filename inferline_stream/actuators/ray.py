"""Dispatchers and replicas as actors of a Ray cluster, one each. With `ray_host` alone knows ray.

Actors are detached, in a namespace of the pipeline's own: they outlive the controller, and the next one takes them
over. Ray restarts none of them: the supervisor decides, as on one host. The end of an actor, or of its node, is the end
of its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray._private import worker
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.services import canonicalize_bootstrap_address_or_die  # what `ray.init` itself asks
from ray._private.state import state
from ray.exceptions import ActorDiedError, RayError
from ray.util import list_named_actors

from inferline_stream.actuators.processes import Ended, FoundProcess, Heard, Remote
from inferline_stream.actuators.ray_host import (
    ChildEnd,
    HostNews,
    HostPlace,
    HostStanding,
    HostTerms,
    RayHost,
    Role,
    cause,
)
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import (
    DISPATCHER_MODULE,
    EXIT_FENCED,
    REPLICA_MODULE,
    DispatcherSpec,
    ReplicaSpec,
    decode_dispatcher_spec,
    decode_replica_spec,
)
from inferline_stream.dataplane.supervisor_messages import Attach, FromSupervisor, Stop, encode_attachment
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.observability.pipeline_state import DeviceState

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
"""Longest wait for the cluster's first answer."""

_ADOPT_S = 5.0
"""Longest that an actor may take to answer a new controller; after that it is given up."""

_FORCE_S = 2.0
"""From the order to kill a child to the end of its actor: a host that is frozen hears no order."""

_AVOID_S = 60.0
"""So long nothing is started on a node that has not answered, if there is room elsewhere: Ray itself takes ten seconds
or more to find out that a node is gone, and goes on placing actors there."""

DISPATCHER_NEEDS: dict[str, Any] = {"num_cpus": 0}
"""What the actor of a dispatcher asks its node for: nothing. While it had no place, its stage would stand still."""

_DEAD_LOGS = 30
"""Of replicas that failed: so many are kept, wherever they are. The next start on a node removes older ones there."""

_SUPERSEDED = "another controller has taken it over"


def requirements(spec: ReplicaSpec) -> dict[str, Any]:
    """Return what a replica's actor asks its node for. Emulated kinds sleep, and ask for no core.

    A GPU's model becomes Ray's accelerator type by the rule that its nodes follow: ``Tesla T4`` is ``T4``. Ray
    knows a slice of a GPU (MIG) only as a GPU, on a node that is started with its UUID: its kind is a custom resource.
    """
    hardware = spec.hardware
    asked: dict[str, Any] = {"num_cpus": hardware.cores, "num_gpus": hardware.gpus}
    if hardware.slice:
        asked |= {"num_gpus": 1, "resources": {hardware.name: 1}}
    elif hardware.gpus and hardware.gpu_model is not None:
        named: Any = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type  # untyped
        asked["accelerator_type"] = named(hardware.gpu_model)
    if spec.isolation.memory_mb is not None:
        asked["memory"] = spec.isolation.memory_mb << 20
    return asked


@dataclass(slots=True, eq=False)
class RayProcess:
    """A dispatcher or a replica, and the actor that hosts it."""

    name: str
    role: Role
    actor: Any = None
    controller: str = ""
    pid: int | None = None
    pending: str = ""
    node: str = ""
    node_id: str = ""
    attachment: tuple[RayProcess, Attach] | None = None
    """Of a replica: the dispatcher that it has to be connected with."""
    died_at: BatchId | None = None
    ran_s: float = 0.0
    waited_s: float = 0.0
    forked: bool = False
    devices: tuple[str, ...] = ()
    forced: bool = False
    """Whether its actor was killed, so that nobody can say when its child ends."""
    following: asyncio.Task[None] | None = None
    dismissed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it was asked to end: it counts as ended then where it obeys another controller."""

    def signal(self, number: signal.Signals) -> None:
        """Signal it. One that has no place yet, or whose host does not obey, loses its actor."""
        self.dismissed.set()
        if not self.node:
            self.kill()
            return
        self.actor.signal.remote(self.controller, int(number))
        if number == signal.SIGKILL:
            asyncio.get_running_loop().call_later(_FORCE_S, self._force)

    def tell(self, message: FromSupervisor) -> None:
        """Send a dispatcher a message that hands over nothing. One that is to stop before it has begun ends at once."""
        if isinstance(message, Stop):
            self.dismissed.set()
            if not self.node:
                self.kill()
                return
        self.actor.tell.remote(self.controller, encode_attachment(message))

    def leave(self) -> None:
        """Have a replica end once it has no batch in hand."""
        self.dismissed.set()
        if self.node:
            self.actor.leave.remote(self.controller)
        else:
            self.kill()

    def kill(self) -> None:
        """End the actor, and its child with it."""
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self.actor)

    def _force(self) -> None:
        if self.following is not None and not self.following.done():
            logger.warning("the host of %s does not answer: its actor is killed", self.name)
            self.forced = True
            self.kill()


class RayActors:
    """`Processes` on a cluster that this process has joined. Must be used and closed within one event loop.

    Args:
        ended: see `Ended`.
        heard: see `Heard`.
        namespace: of the pipeline's actors.
        terms: of every actor; role and spec are filled in.
        environment: variables for dispatchers, beside those of their node.
    """

    def __init__(
        self,
        ended: Ended[RayProcess],
        heard: Heard[RayProcess],
        *,
        namespace: str,
        terms: HostTerms,
        environment: Mapping[str, str],
    ) -> None:
        self._ended = ended
        self._heard = heard
        self._namespace = namespace
        self._terms = terms
        self._environment = dict(environment)
        self._following: set[asyncio.Task[None]] = set()
        self._all: set[RayProcess] = set()
        self._superseded = False
        self._dead: deque[str] = deque(maxlen=10 * _DEAD_LOGS)
        """Replicas that failed; the newest last."""
        self._avoid_until_s: dict[str, float] = {}
        """By id of a node."""

    async def found(self) -> Sequence[FoundProcess[RayProcess]]:
        """Take over the actors of an earlier controller; those of another identity drain and end.

        Raises:
            Unreachable: the cluster does not answer.
        """
        try:
            listed = await asyncio.to_thread(list_named_actors, True)
        except RayError as error:
            raise Unreachable(f"the Ray cluster does not answer: {cause(error)}") from error
        names = [str(each["name"]) for each in listed if each["namespace"] == self._namespace]
        standing = await asyncio.gather(*map(self._adopt, names))
        return [each for each in standing if each is not None]

    async def _adopt(self, name: str) -> FoundProcess[RayProcess] | None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
        except ValueError:
            return None  # it has ended meanwhile
        try:
            async with asyncio.timeout(_ADOPT_S):
                answer = await actor.adopt.remote(self._terms.controller, self._terms.identity)
        except (TimeoutError, RayError) as error:
            logger.warning("actor %s does not answer and is killed: %s", name, error)
            with contextlib.suppress(RayError):
                ray.kill(actor)
            return None
        if answer is None:
            logger.info("actor %s belongs to other code: it drains", name)
            actor.retire.remote()
            return None
        found = msgspec.json.decode(answer, type=HostStanding)
        decode = decode_replica_spec if found.role == "replica" else decode_dispatcher_spec
        spec: ReplicaSpec | DispatcherSpec = decode(found.spec)
        called = spec.replica if isinstance(spec, ReplicaSpec) else spec.dispatcher
        process = RayProcess(called, found.role, actor, self._terms.controller, found.where.pid)
        process.node, process.node_id = found.where.node, found.where.node_id
        self._follow(process, None)
        return FoundProcess(process, spec, found.age_s, found.serving, tuple(found.attached))

    def start_replica(self, spec: ReplicaSpec) -> RayProcess:
        """Ask for an actor with what the replica's hardware kind needs.

        Raises:
            OSError: another controller has taken over.
        """
        return self._start(RayProcess(spec.replica, "replica"), spec.replica, spec, requirements(spec), {})

    def start_dispatcher(self, spec: DispatcherSpec) -> RayProcess:
        """Ask for an actor; see `DISPATCHER_NEEDS`.

        Raises:
            OSError: another controller has taken over.
        """
        name = f"{spec.dispatcher}/{spec.incarnation}"
        process = RayProcess(spec.dispatcher, "dispatcher")
        return self._start(process, name, spec, DISPATCHER_NEEDS, self._environment)

    def _start(
        self,
        process: RayProcess,
        name: str,
        spec: ReplicaSpec | DispatcherSpec,
        asked: dict[str, Any],
        environment: dict[str, str],
    ) -> RayProcess:
        if self._superseded:
            raise OSError(_SUPERSEDED)
        terms = msgspec.structs.replace(self._terms, role=process.role, spec=msgspec.json.encode(spec).decode())
        options = {"name": name, "namespace": self._namespace, "lifetime": "detached", "max_restarts": 0, **asked}
        if avoided := self._avoided():
            elsewhere = {"ray.io/node-id": f"!in({','.join(avoided)})"}
            options |= {"label_selector": elsewhere, "fallback_strategy": [{"label_selector": {}}]}
        try:
            process.actor = ray.remote(RayHost).options(**options).remote(msgspec.json.encode(terms))
        except (RayError, ValueError) as error:
            raise OSError(str(error)) from error
        process.controller = self._terms.controller
        process.pending = f"waits for a node of the Ray cluster that has {_words(asked)} free"
        self._follow(process, environment)
        return process

    def _avoided(self) -> list[str]:
        now_s = asyncio.get_running_loop().time()
        self._avoid_until_s = {node: until_s for node, until_s in self._avoid_until_s.items() if until_s > now_s}
        return list(self._avoid_until_s)

    async def room(self, specs: Iterable[ReplicaSpec]) -> Mapping[str, int]:
        """Return how many actors more of each kind the cluster may have, by the most that its configuration allows.

        A cluster that says nothing of that may grow at any time: there a replica without a place is what shows it.
        """
        try:
            most = await asyncio.to_thread(state.get_max_resources_from_cluster_config)
            if not most:
                return {}
            total, free = (
                await asyncio.to_thread(ray.cluster_resources),
                await asyncio.to_thread(ray.available_resources),
            )
        except RayError:  # an outage: the next look says more
            return {}
        used = {name: total.get(name, 0.0) - free.get(name, 0.0) for name in total}
        found = {}
        for spec in specs:
            limits = [
                (most[name] - used.get(name, 0.0)) / each
                for name, each in _resources(requirements(spec)).items()
                if name in most and each > 0
            ]
            if limits:
                found[spec.hardware.name] = max(0, math.floor(min(limits) + 1e-6))
        return found

    def device_states(self) -> tuple[DeviceState, ...]:
        """Return nothing: Ray reports its nodes' GPUs itself."""
        return ()

    def attach(self, dispatcher: RayProcess, replica: RayProcess | Remote, attach: Attach) -> None:
        """Connect a replica with a dispatcher, once the replica has a place. Actors are all that there is here."""
        assert isinstance(replica, RayProcess)
        replica.attachment = dispatcher, attach
        if replica.node:
            self._connect(replica)

    def _connect(self, replica: RayProcess) -> None:
        if replica.attachment is not None:
            dispatcher, attach = replica.attachment
            message = encode_attachment(msgspec.structs.replace(attach, node=replica.node))
            dispatcher.actor.attach.remote(self._terms.controller, message, replica.actor)

    def close(self) -> None:
        """End what is left at once; its end is not reported."""
        self._ended = lambda *_: None
        for task in self._following:
            task.cancel()
        if not self._superseded:
            for process in self._all:
                process.kill()

    def _follow(self, process: RayProcess, environment: dict[str, str] | None) -> None:
        self._all.add(process)
        process.following = asyncio.create_task(self._live(process, environment))
        self._following.add(process.following)
        process.following.add_done_callback(self._following.discard)

    async def _live(self, process: RayProcess, environment: dict[str, str] | None) -> None:
        """Follow a process from its place on a node to its end."""
        try:
            if environment is not None:
                where = msgspec.json.decode(
                    await process.actor.start.remote(environment, list(self._dead)[:-_DEAD_LOGS]), type=HostPlace
                )
                process.pid, process.node, process.node_id, process.pending = where.pid, where.node, where.node_id, ""
                self._connect(process)
            end = await self._end(process)
        except RayError as error:
            end = self._lost(process, error)
        except msgspec.MsgspecError as error:  # nobody would hear of its end
            process.forced = True
            end = self._lost(process, RayError(f"it says what cannot be read: {error}"))
        if end is None:  # another controller's now
            await process.dismissed.wait()
            self._ended(process, 0, _SUPERSEDED, "")
            return
        self._all.discard(process)
        process.kill()
        if end.exit_code and process.role == "replica":
            self._dead.append(process.name)
        process.died_at = end.died_at
        self._ended(process, end.exit_code, end.reason, end.tail)

    async def _end(self, process: RayProcess) -> ChildEnd | None:
        while True:
            news = msgspec.json.decode(await process.actor.news.remote(self._terms.controller), type=HostNews)
            if news.superseded:
                self._stay_away()
                return None
            for message in news.messages:
                self._heard(process, message)
            if news.end is not None:
                return news.end

    def _lost(self, process: RayProcess, error: RayError) -> ChildEnd:
        """Return the end of a process whose actor cannot be asked.

        A dispatcher's name is used again only where its process has surely ended. One that lives on somewhere would
        otherwise serve beside its successor; with another name it loses the slot.
        """
        surely = isinstance(error, ActorDiedError) and not process.forced
        if process.node and not surely:
            self._avoid_until_s[process.node_id] = asyncio.get_running_loop().time() + _AVOID_S
        where = f" on {process.node}" if process.node else ""
        reason = f"its actor{where} is gone: {cause(error)}"
        return ChildEnd(-signal.SIGKILL if surely or process.role == "replica" else EXIT_FENCED, reason)

    def _stay_away(self) -> None:
        if not self._superseded:
            logger.warning("the pipeline's actors serve this controller no more: %s", _SUPERSEDED)
        self._superseded = True


async def join() -> None:
    """Join the Ray cluster that RAY_ADDRESS names, else the one that runs here, unless this process has joined one.

    Raises:
        Unreachable: none answers.
    """
    if ray.is_initialized():
        return
    try:
        address = await asyncio.to_thread(canonicalize_bootstrap_address_or_die, "auto")
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(_CONNECT_S):  # Ray would try for two minutes, and then end this process
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        logging.getLogger("ray").setLevel(logging.ERROR)  # it would speak of signals, which are the command's
        worker.print_to_stdstream = _log_error  # it prints on standard output, which is the command's
        await asyncio.to_thread(ray.init, address, log_to_driver=False, configure_logging=False)
        if threading.current_thread() is threading.main_thread() and (handler := signal.getsignal(signal.SIGTERM)):
            signal.signal(signal.SIGTERM, handler)  # Ray's library has put its own in its place, which aborts
            signal.siginterrupt(signal.SIGTERM, False)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(
            f"no Ray cluster answers: {why}. Start one with `ray start --head`, or set RAY_ADDRESS"
        ) from None


def _log_error(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log what the cluster reports to everyone who has joined it."""
    for line in data["lines"]:
        logger.info("Ray: %s", str(line).splitlines()[0])


@asynccontextmanager
async def ray_actuator(
    namespace: str,
    log_folder: Path,
    *,
    identity: str = "",
    environment: Mapping[str, str] | None = None,
    drain_timeout_s: float = 30.0,
    kill_after_s: float = 5.0,
    orphan_s: float = 3600.0,
    replica_module: str = REPLICA_MODULE,
    dispatcher_module: str = DISPATCHER_MODULE,
) -> AsyncIterator[Supervisor[RayProcess]]:
    """`Actuator` on a Ray cluster that this process has joined.

    Topology, code and log folder are at the same path on every node. At the end of the block every actor ends; those of
    a controller that dies go on.

    Args:
        namespace: of the pipeline's actors: the next controller finds them by it.
        log_folder: absolute; where, on each node, the files go that hold what children print.
        identity: what a controller must have in common with the one before to take over its actors.
        environment: variables for dispatchers, such as credentials for Kafka, beside those of their node.
        drain_timeout_s: time a retiring replica, or a stopping dispatcher, has to end by itself.
        kill_after_s: time from SIGTERM to SIGKILL for a replica that stays.
        orphan_s: how long actors go on without a controller.
        replica_module: what each replica's process runs as ``__main__``.
        dispatcher_module: likewise.
    """
    terms = HostTerms(
        role="replica",
        spec="",
        identity=identity,
        controller=secrets.token_hex(8),
        log_folder=str(log_folder),
        replica_module=replica_module,
        dispatcher_module=dispatcher_module,
        orphan_s=orphan_s,
        drain_timeout_s=drain_timeout_s,
    )
    actors = partial(RayActors, namespace=namespace, terms=terms, environment=environment or {})
    async with Supervisor(actors, drain_timeout_s=drain_timeout_s, kill_after_s=kill_after_s) as supervisor:
        yield supervisor


def _resources(asked: Mapping[str, Any]) -> dict[str, float]:
    """What an actor asks for, by the names that a cluster counts it by."""
    named = {"CPU": asked.get("num_cpus", 0), "GPU": asked.get("num_gpus", 0), "memory": asked.get("memory", 0)}
    return {**named, **asked.get("resources", {})}


def _words(asked: Mapping[str, Any]) -> str:
    named = {**asked, **asked.get("resources", {})}
    named.pop("resources", None)
    return ", ".join(f"{name} {value}" for name, value in named.items() if value) or "room"
