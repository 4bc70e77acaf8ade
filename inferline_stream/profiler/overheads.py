"""What runs around replicas takes: the records a second that one slot's dispatcher carries, and cores by rate.

One stage that does nothing runs behind a real dispatcher on an embedded broker. CPU time is what counts, of this
process and all that it has started but for the replica, so that others on the machine do not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from inferline_stream.actuators.children import Children
from inferline_stream.actuators.core_times import cpu_s
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes, routes_of
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan, encode_control, grant_key
from inferline_stream.dataplane.start_offsets import commit_start_offsets
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import UNREADABLE, Unreachable
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import create_topics, delete_topics, topics_of
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.profile import Overheads
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.machine import Machine
from inferline_stream.settings import release, surroundings

_TOPOLOGY = Path(__file__).with_name("overheads_topology.py")
_STAGE = "pass"
_PARTITIONS = 8
_FLOOD = 8_000
"""Records that wait when the dispatcher begins: about a second of work."""
_BATCH = 8
"""A stage whose dispatcher is what limits it has batches: its replicas are not free for each record."""
_VALUE = b'"%b"' % (b"x" * 254)
_RATES = (0.0, 100.0, 1_000.0)
"""At which cores are measured: requests to the broker dominate at low rates, records at high ones."""
_RATE_S = 0.8
_STEP_S = 0.01
_UP_S = 30.0
_BUSY = 0.5
"""Utilization that a slot's dispatcher is planned for: bursts have to fit, too."""


def needs_overheads(pipeline: Pipeline) -> bool:
    """Whether any replica may take a core: emulated hardware needs no budget of them."""
    kinds = catalogue(pipeline.hardware)
    return any(kinds[name].cores > 0 for stage in pipeline.stages for name in stage.hardware)


def overheads_file(machine: Machine) -> Path:
    """Where a machine's overheads are kept, for every pipeline."""
    return surroundings().cache / "machines" / f"{machine.folder}.json"


def kept_overheads(file: Path) -> Overheads | None:
    """What was measured by this release, if it was."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_StoredOverheads)
    except (*UNREADABLE, OSError):
        return None
    return found.overheads if found.release == release() else None


def keep_overheads(file: Path, overheads: Overheads) -> None:
    """Write it down; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(_StoredOverheads(release(), overheads)))
        os.replace(new, file)


class _StoredOverheads(msgspec.Struct):
    release: str
    overheads: Overheads


async def measure_overheads(bootstrap_servers: str, *, timeout_s: float = 10.0) -> Overheads:
    """Measure a slot's capacity, and what a stage's dispatcher, broker and feed take by rate. A few seconds.

    Uses topics of its own, deleted again.

    Raises:
        Unreachable: Kafka does not answer in time.
    """
    pipeline, prefix = load_topology(_TOPOLOGY), f"{secrets.token_hex(4)}-"
    topics = topics_of(pipeline, prefix, {_STAGE: _PARTITIONS})
    try:
        await create_topics(bootstrap_servers, topics, replication=1, timeout_s=timeout_s)
        await commit_start_offsets(bootstrap_servers, pipeline, prefix, "earliest", timeout_s=timeout_s)
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferline-overheads-")))
            run = _Pool(
                bootstrap_servers,
                Names(pipeline.name, prefix),
                await stack.enter_async_context(Supervisor(partial(Children, folder))),
                await stack.enter_async_context(RecordProducer(bootstrap_servers)),
                await stack.enter_async_context(Offsets(bootstrap_servers, timeout_s)),
            )
            async with asyncio.timeout(_UP_S):
                return await run.measured(routes_of(pipeline, _STAGE, prefix))
    except TimeoutError:
        raise Unreachable(f"a dispatcher did not do {_FLOOD} records in {_UP_S:g} s") from None
    finally:
        await delete_topics(bootstrap_servers, [topic.name for topic in topics])


class _Pool:
    """One stage that does nothing, behind a dispatcher."""

    def __init__(
        self,
        bootstrap_servers: str,
        names: Names,
        supervisor: Supervisor,
        producer: RecordProducer,
        offsets: Offsets,
    ) -> None:
        self._servers = bootstrap_servers
        self._names = names
        self._supervisor = supervisor
        self._producer = producer
        self._offsets = offsets
        self._source, self._sink = names.topic("in"), names.topic("out")
        self._sent = 0

    async def measured(self, routes: Routes) -> Overheads:
        kind = Hardware("cpu-1", 0.0, cores=0.0)
        await self._supervisor.know({(_STAGE, kind.name): ReplicaSpec("", _STAGE, str(_TOPOLOGY), kind)})
        name = f"{_STAGE}-0-{secrets.token_hex(4)}"
        await self._supervisor.dispatch(_STAGE, [DispatcherSpec(name, 0, routes, self._servers)])
        await self._supervisor.scale(_STAGE, kind.name, 1)
        grant = Grant(_STAGE, 0, 1, name, 1, 1, plan=StagePlan({kind.name: HardwarePlan(_BATCH)}))
        key = grant_key(_STAGE, 0).encode()
        await self._producer.send(self._names.assignments, encode_control(grant), key=key)
        await self._send(1)
        await self._done()
        (dispatcher,) = await self._supervisor.dispatchers()
        (replica,) = await self._supervisor.observe()
        assert dispatcher.pid is not None
        assert replica.pid is not None
        began_s = cpu_s(dispatcher.pid)
        await self._send(_FLOOD)
        await self._done()
        slot_rate = _BUSY * _FLOOD / max(cpu_s(dispatcher.pid) - began_s, 1e-3)
        cores = [(rate, await self._cores(rate, replica.pid)) for rate in _RATES]
        return Overheads(slot_rate, tuple(cores))

    async def _cores(self, rate: float, replica: int) -> float:
        """Cores that this process and its descendants take at so many records a second, the replica left out."""
        began_s, began_cpu_s = time.perf_counter(), tree_cpu_s(os.getpid()) - cpu_s(replica)
        while (past_s := time.perf_counter() - began_s) < _RATE_S:
            await self._send(int(past_s * rate) - int((past_s - _STEP_S) * rate) if past_s > _STEP_S else 0)
            await asyncio.sleep(_STEP_S)
        await self._done()
        took_s = time.perf_counter() - began_s
        return (tree_cpu_s(os.getpid()) - cpu_s(replica) - began_cpu_s) / took_s

    async def _send(self, records: int) -> None:
        for _ in range(records):
            self._sent += 1
            await self._producer.send(self._source, _VALUE, key=b"%d" % self._sent)

    async def _done(self) -> None:
        """Wait until every record that was sent has come out."""
        while sum((await self._offsets.ends({self._sink: _PARTITIONS}))[self._sink]) < self._sent:  # noqa: ASYNC110
            await asyncio.sleep(_STEP_S)  # Kafka calls nobody back


def tree_cpu_s(process: int) -> float:
    """Return the CPU time of a process and of all that descend from it, in seconds."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    family = {process}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(map(cpu_s, family))
