"""Hostile records between good ones through a whole run: is any good event lost, and does any process end or grow?

A pipeline with a condition and a join (emulated hardware) on the embedded broker and then on Apache Kafka. A producer
with nothing but write access to its source topic sends what `_hostile_records` draws: headers, keys, values,
timestamps, codecs and sizes, events on which a stage raises at length, and a batch of empty records. Meanwhile records
that nobody can decode go into each topic of the control plane, and what people, the controller and the dispatchers
write there after them must count all the same.

`good_lost`: good events that are not in the sink topic. `processes_ended`: dispatchers, replicas, the supervisor and
control loops that did not live through it. `memory_growth_mb`: what one of them, replicas excepted, has more in the
end than before the first hostile record, of the controller and the supervisor also by themselves; `memory_peak_mb`:
the most that it had more at any moment, which a batch that is small as long as nobody decompresses it would show in.
`control_records_blocked`: valid records after hostile ones that were not honoured, of `control_records`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.controlplane.decide.decider import Decider
from inferline_stream.controlplane.leadership import leads
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.recovery import recover
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import write_once
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import EmbeddedKafka, find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._hostile_producer import Attack, Sent
from tests.benchmarks._hostile_records import HostileRecords
from tests.support.emulated_runs import emulated_run
from tests.support.faults import LineProcess

FUZZED = Path(__file__).parents[1] / "scenarios" / "fuzzed"
CONTROLLER, SUPERVISOR = "controller", "supervisor"

WARM = 60
"""Good events before the first hostile record."""

HONOURED_S = 5.0
"""Longest until a control record counts: a controller reads them twice a second."""

STALLED_S = 20.0
"""No good event for so long: none is to come any more."""

UNSERVED = 4
"""Events that the first stage never takes, as if its server were away: others get their turns between them. More than
it has replicas."""

_CONTROL_BURST = 12

_WRITES = 5
"""Attempts at one valid record: between those of hostile ones a busy machine's Kafka may not answer in time."""


def measure(quick: bool) -> Figures:
    figures: list[Figures] = []
    for server in (EmbeddedKafka, find_apache_kafka):
        with server() as kafka, tempfile.TemporaryDirectory() as folder:
            records, bombs, empty = (1000, 8, 50_000) if quick else (5200, 24, 150_000)
            attacking = attacked(
                kafka.bootstrap_servers,
                Path(folder),
                hostile=records,
                bombs=bombs,
                empty=empty,
                unserved=UNSERVED,
                seed=len(figures),
            )
            figures.append(asyncio.run(attacking))
    embedded, apache = figures
    found: Figures = {}
    for name, one in embedded.items():
        other = apache[name]
        assert not isinstance(one, str | None)
        assert not isinstance(other, str | None)
        found[name] = max(one, other) if name.startswith("memory") else one + other
    return found


async def attacked(
    bootstrap_servers: str, folder: Path, *, hostile: int, bombs: int, empty: int, unserved: int, seed: int
) -> Figures:
    """Attack one run; returns its figures.

    Args:
        bootstrap_servers: of a Kafka.
        folder: for what replicas write.
        hostile: see `Attack`.
        bombs: see `Attack`.
        empty: see `Attack`.
        unserved: see `Attack`.
        seed: of every hostile record.
    """
    run = emulated_run(
        FUZZED,
        bootstrap_servers,
        folder,
        levels=[(1.0, 1.0)],
        changes=[(1.0, {"parse": 2})],
        probability={("parse", "check"): 1 / 3},
        settings=Settings(drain_timeout_s=STALLED_S),
    )
    async with open_run(replace(run, feed=None)) as under_way:
        await under_way.ready()
        names, source = under_way.context.names, under_way.context.source
        mark = secrets.token_hex(8)
        attack = Attack(bootstrap_servers, source, names.control, mark, WARM, hostile, bombs, empty, unserved, seed)
        producer = await LineProcess.start("tests.benchmarks._hostile_producer", line=msgspec.json.encode(attack))
        await producer.says(b"warm", 30.0)
        arrived: Counter[int] = Counter()
        counting = asyncio.create_task(_count(under_way, mark, arrived))
        assert await until(lambda: _has(arrived, WARM), 30.0), "the pipeline works before it is attacked"
        Path("/proc/self/clear_refs").write_text("5")  # this process, the controller's: its peak counts from now on
        before, memory = await _processes(under_way), await _memory(under_way)
        sending = asyncio.create_task(producer.ask(600.0))
        control = await _attack_control(under_way, HostileRecords(seed, source, names.control))
        sent = msgspec.json.decode(await sending, type=Sent)
        await _arrived(arrived, sent.good)
        ended = before - await _processes(under_way)
        after = await _memory(under_way)
        report = await under_way.report(await under_way.drain())
        after |= await _memory(under_way)  # the report, too
        counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counting
        await producer.end()
    grown = {name: after[name].now_mb - memory[name].now_mb for name in after.keys() & memory.keys()}
    return {
        "records": sent.hostile,
        "good_lost": sent.good - len(arrived),
        "processes_ended": len(ended),
        "memory_growth_mb": max(grown.values()),
        "control_records_blocked": control.blocked,
        "good": sent.good,
        "good_repeated": arrived.total() - len(arrived),
        "control_records": control.written,
        "refused_by_kafka": sent.refused,
        "unaccounted": report.lost,
        "control_failures": under_way.controller.loop.failures,
        "memory_peak_mb": max(after[name].peak_mb - memory[name].peak_mb for name in grown),
        "memory_growth_controller_mb": grown.get(CONTROLLER),
        "memory_growth_supervisor_mb": grown.get(SUPERVISOR),
    }


@dataclass(slots=True)
class ControlRecords:
    """Valid records of the control plane after hostile ones, and how many of them were not honoured."""

    written: int = 0
    blocked: int = 0

    def add(self, *honoured: bool) -> None:
        """Count records."""
        self.written += len(honoured)
        self.blocked += honoured.count(False)


async def _attack_control(under_way: LiveRun, records: HostileRecords) -> ControlRecords:
    """Write hostile records before each of a few valid ones, in the way that each topic gets its own."""
    controller, counted = under_way.controller, ControlRecords()
    names, servers = under_way.context.names, under_way.run.bootstrap_servers
    topics = [names.control, names.decisions, names.assignments, names.stage_stats, names.arrivals, names.completed]
    overrides: dict[str, Override] = {}
    for most in range(40, 43):
        await _spoil(servers, topics, records)
        for stage in under_way.context.shape.stages:
            override = Override("limits", stage, minimum=1, maximum=most)
            overrides[override.key] = override
            await _written(servers, Record.keyed(names.control, override.key, encode(override)))
        counted.add(
            *await asyncio.gather(*(_in_force(controller.decider, override) for override in overrides.values()))
        )
        counted.add(*await _still_reporting(under_way))
    await _spoil(servers, topics, records)
    counted.add(*await _granted(under_way))
    await _spoil(servers, topics, records)
    counted.add(*await _found(under_way, overrides))
    return counted


async def _written(bootstrap_servers: str, record: Record) -> None:
    """Write it, and again where a busy machine's Kafka has not taken it in time, as a person would."""
    for _ in range(_WRITES - 1):
        with contextlib.suppress(Unreachable):
            return await write_once(bootstrap_servers, record)
    await write_once(bootstrap_servers, record)


async def _spoil(bootstrap_servers: str, topics: list[str], records: HostileRecords) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
        for topic in topics:
            for _ in range(_CONTROL_BURST):
                key, value = records.control()
                await producer.send(topic, value, key=key, partition=0)
        await producer.flush()


async def _in_force(decider: Decider, override: Override) -> bool:
    async def there() -> bool:
        return decider.overrides.by_key.get(override.key) == override

    return await until(there, HONOURED_S)


async def _still_reporting(under_way: LiveRun) -> list[bool]:
    """For each dispatcher, whether the controller hears its next report."""
    reports = under_way.controller.view.reports

    def number(dispatcher: str) -> int:
        newest = reports.newest(dispatcher)
        return newest.report if newest is not None else 0

    before = {found.dispatcher: number(found.dispatcher) for found in await under_way.controller.actuator.dispatchers()}

    async def heard(dispatcher: str) -> bool:
        return number(dispatcher) > before[dispatcher]

    return list(await asyncio.gather(*(until(functools.partial(heard, name), HONOURED_S) for name in before)))


async def _granted(under_way: LiveRun) -> list[bool]:
    """For each slot, whether its dispatcher takes up a grant with other batch limits: those of another plan."""
    controller = under_way.controller
    view, table = controller.view, controller.slots.table
    before = {(stage, slot): grant.number for stage, held in table.grants.items() for slot, grant in held.items()}
    smaller = {
        stage: tuple(replace(found, max_batch_size=found.max_batch_size // 2) for found in kinds)
        for stage, kinds in view.plan.allocations.items()
    }
    view.adopt(replace(view.plan, allocations=smaller), view.measured)

    async def taken_up(stage: str, slot: int) -> bool:
        grant = controller.slots.table.grants[stage][slot]
        newest = view.reports.newest(grant.dispatcher)
        return grant.number > before[stage, slot] and newest is not None and newest.number >= grant.number

    return list(await asyncio.gather(*(until(functools.partial(taken_up, *at), HONOURED_S) for at in before)))


async def _found(under_way: LiveRun, overrides: Mapping[str, Override]) -> list[bool]:
    """Whether a controller that starts now would find overrides, plan, decisions, grants and the leader."""
    servers, names, controller = under_way.run.bootstrap_servers, under_way.context.names, under_way.controller
    kept = [decision.number for decision in controller.decider.decisions]

    async def states() -> list[bool]:
        found = await recover(servers, names)
        decisions = {decision.number for decision in found.decisions}
        return [
            *(found.overrides.by_key.get(key) == override for key, override in overrides.items()),
            found.its_plan() is not None,
            *(number in decisions for number in kept),
        ]

    async def leader() -> list[bool]:
        return [await leads(servers, names)]

    return [*await _read(states, len(overrides) + 1 + len(kept)), *await _read(leader, 1)]


async def _read(reading: Callable[[], Awaitable[list[bool]]], records: int) -> list[bool]:
    """What a reader finds; none of the records where it fails."""
    try:
        return await reading()
    except (InferlineError, ValueError):  # one undecodable record hides the others
        return [False] * records


async def _count(under_way: LiveRun, mark: str, arrived: Counter[int]) -> None:
    """Count good events in the sink topic, by number."""
    context = under_way.context
    (sink,) = context.sinks.values()
    async with TopicFollower(context.kafka.bootstrap_servers, sink) as follower:
        while True:
            for record in await follower.read(0.5):
                event = msgspec.json.decode(record.value or b"{}")
                if event.get("mark") == mark:
                    arrived[event["number"]] += 1


async def _has(arrived: Counter[int], count: int) -> bool:
    return len(arrived) >= count


async def _arrived(arrived: Counter[int], good: int) -> None:
    """Wait until every good event is there, or none has come for long."""
    while (before := len(arrived)) < good:
        if not await until(functools.partial(_has, arrived, before + 1), STALLED_S):
            return


async def _processes(under_way: LiveRun) -> set[tuple[str, int | None]]:
    """Name and process of what runs. The controller is a task of this process."""
    actuator = under_way.controller.actuator
    assert isinstance(actuator, LocalActuator)
    living = [(found.replica, found.pid) for found in await actuator.observe() if found.state == "running"]
    living += [(found.dispatcher, found.pid) for found in await actuator.dispatchers()]
    living.append((SUPERVISOR, actuator.supervisor_pid))
    if not under_way.control.done():
        living.append((CONTROLLER, None))
    return set(living)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process, in MiB: its heap now, and the most of everything that it ever had."""

    now_mb: float
    peak_mb: float


async def _memory(under_way: LiveRun) -> dict[str, Memory]:
    """The memory of each process other than replicas, by name."""
    dispatchers = {found.dispatcher for found in await under_way.controller.actuator.dispatchers()}
    memory = {}
    for name, pid in await _processes(under_way):
        if name in dispatchers | {SUPERVISOR, CONTROLLER}:
            with contextlib.suppress(FileNotFoundError, ValueError):  # it has just ended
                lines = dict(line.split(":") for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines())
                memory[name] = Memory(*(int(lines[field].split()[0]) / 1024 for field in ("RssAnon", "VmHWM")))
    return memory
