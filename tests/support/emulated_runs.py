"""Whole runs for tests: profiles from declared service times, a plan by hand, scaling by a script, a trace as feed.

Emulated hardware only: replicas sleep the service times that the topology declares.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from inferline_stream.actuators.actuator import ProcessTerms
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.calculus.envelope import trace_envelope, windows_s
from inferline_stream.connectors.sources.replay_process import replayed
from inferline_stream.controlplane.run_inputs import FeedTo, Run
from inferline_stream.controlplane.run_options import RecordOptions
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.connection import client_options
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.emulation import emulated_s, fallback_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.names import EVENT_ID, Names
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, independent_paths, shape_of, visit_ratios
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.runs.lifecycle import open_run, run_to_report
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.runs.report import RunReport
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.policy import TunerState

SWING = Path(__file__).parents[1] / "scenarios/swing"
"""A pipeline of three stages on emulated hardware; `parse` sends a third of its results to `check`."""


def declared_profile(
    pipeline: Pipeline, probability: Mapping[tuple[str, str], float], start_up_s: float = 1.0
) -> PipelineProfile:
    """The profile that emulated hardware has by declaration.

    Args:
        pipeline: whose stages all run on emulated hardware.
        probability: share of a parent's results that take each conditional edge, by (parent, child).
        start_up_s: of every replica.
    """
    profiles = {}
    for stage in pipeline.stages:
        for hardware in stage.hardware:
            times = tuple(ServiceTime(size, time_s) for size, time_s in emulated_s(stage.emulated, hardware).items())
            profile = Profile(stage.name, hardware, times, start_up_s)
            if stage.fallback is not None:
                faster = tuple(ServiceTime(*each) for each in fallback_s(stage.emulated, hardware).items())
                profile = replace(profile, fallback=faster, fallback_share=stage.degraded_share)
            profiles[stage.name, hardware] = profile
    return PipelineProfile(profiles, independent_paths(shape_of(pipeline), probability), hop_overhead_s=0.003)


def plan_by_hand(
    pipeline: Pipeline,
    measured: PipelineProfile,
    sample: Trace,
    replicas: Mapping[str, int],
    *,
    max_batch_sizes: Mapping[str, int] | None = None,
) -> Plan:
    """A plan of so many replicas per stage on its first hardware kind, for that traffic; largest batches by default."""
    shape, kinds = shape_of(pipeline), catalogue(pipeline.hardware)
    profiles = {stage.name: measured.profiles[stage.name, stage.hardware[0]] for stage in pipeline.stages}
    limits = {name: profile.batch_sizes[-1] for name, profile in profiles.items()} | dict(max_batch_sizes or {})
    allocations = {
        name: (Allocation(profile.hardware, limits[name], replicas[name]),) for name, profile in profiles.items()
    }
    ratios = visit_ratios(shape, measured.paths)
    longest_s = shape.longest_path_s({name: profile.service_time_s(1) for name, profile in profiles.items()})
    return Plan(
        pipeline=pipeline.name,
        slo_s=pipeline.slo_s,
        allocations=allocations,
        cost_per_hour=cost_per_hour(allocations, kinds),
        predicted_p99_s=pipeline.slo_s,
        arrival_rate=sample.arrival_rate,
        envelope=trace_envelope(sample, windows_s(longest_s)),
        visit_ratios=ratios,
        utilization={
            name: sample.arrival_rate * ratios[name] / (replicas[name] * profile.throughput(limits[name]))
            for name, profile in profiles.items()
        },
        algorithm="by hand",
    )


def provisioned(pipeline: Pipeline, measured: PipelineProfile, sample: Trace, **more: Any) -> Plan:
    """The Planner's plan for that traffic; ``more`` are further fields of `Problem`, e.g. another ``target_s``."""
    chosen: dict[str, Any] = {"target_s": pipeline.slo_s, "catalogue": catalogue(pipeline.hardware), **more}
    return provision(Problem(shape_of(pipeline), measured, (sample,), **chosen), pipeline=pipeline.name)


@dataclass(slots=True)
class Script:
    """A policy that decides at given times, counted from the first arrival that it sees.

    Args:
        changes: (seconds, replicas by stage), ascending; stages left out keep theirs.
    """

    changes: Sequence[tuple[float, Mapping[str, int]]]
    _began_s: float | None = None
    _done: int = 0
    _replicas: dict[str, dict[str, int]] = field(default_factory=dict)

    def __call__(self, state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
        """One step; the state is the Tuner's and stays as it is."""
        if self._began_s is None:
            if not seen.arrival_rate:
                return state, None
            self._began_s = seen.time_s
            self._replicas = {stage: dict(kinds) for stage, kinds in state.wanted.items()}
        if self._done == len(self.changes) or seen.time_s - self._began_s < self.changes[self._done][0]:
            return state, None
        after_s, wanted = self.changes[self._done]
        self._done += 1
        more = any(count > sum(self._replicas[stage].values()) for stage, count in wanted.items())
        for stage, count in wanted.items():
            self._replicas[stage] = {next(iter(self._replicas[stage])): count}
        action, reason = (Action.SCALE_UP, Reason.LIMIT_CHANGED) if more else (Action.SCALE_DOWN, Reason.LIMIT_CHANGED)
        return state, Decision(self._replicas, action, reason, f"scripted for {after_s:g} s")


def trace_feed(trace: Trace, events: Path, folder: Path, key_field: str | None = None) -> FeedTo:
    """What replays a trace into the source topic.

    Args:
        trace: arrivals.
        events: JSONL file whose lines are sent in turn.
        folder: where the trace's file goes.
        key_field: field of the events that becomes the record's key.
    """
    arrivals = folder / "trace.csv"
    arrivals.write_text("arrival_s\n" + "".join(f"{time_s:.6f}\n" for time_s in trace.arrivals_s))

    return replayed(arrivals, events, key_field=key_field)


def one_stage(
    name: str = "p", source: str = "posts", arrivals: str = "offsets", hardware: Iterable[Hardware] = ()
) -> Pipeline:
    """A pipeline of one stage "a", from the source topic to "out"."""

    def work(numbers: list[int]) -> list[int]:
        return numbers

    stages = [Stage("a", work, hardware=["cpu"])]
    source_topic, sink = Topic(source, arrivals=arrivals), Topic("out")
    return Pipeline(name, slo="500ms", source=source_topic, sink=sink, stages=stages, hardware=hardware)


def emulated_run(
    topology: Path,
    bootstrap_servers: str,
    folder: Path,
    *,
    levels: Sequence[tuple[float, float]],
    changes: Sequence[tuple[float, Mapping[str, int]]] = (),
    replicas: Mapping[str, int] | None = None,
    probability: Mapping[tuple[str, str], float] | None = None,
    planned_rate: float = 40.0,
    key_field: str | None = None,
    seed: int = 7,
    prefix: str | None = None,
    delivery: Delivery = "at_least_once",
    **more: Any,
) -> Run:
    """A run of a topology on emulated hardware, fed with gamma arrivals and scaled by a script.

    Args:
        topology: the file, or its folder.
        bootstrap_servers: of a Kafka.
        folder: for the trace and what replicas write.
        levels: traffic as (events per second, seconds).
        changes: the script's; see `Script`.
        replicas: to begin with, by stage; 1 of each by default.
        probability: see `declared_profile`.
        planned_rate: of the traffic that the plan is made for.
        key_field: field of the events that becomes the record's key.
        seed: of the arrivals.
        prefix: of every topic and group; by default one of its own.
        delivery: how results get into the sink.
        more: further fields of `Run`, e.g. another ``policy``.
    """
    file = topology / "topology.py" if topology.is_dir() else topology
    pipeline = load_topology(file)
    rng = np.random.default_rng(seed)
    measured = declared_profile(pipeline, probability or {})
    sample = gamma_trace(planned_rate, 1.0, 30.0, rng)
    assert pipeline.sample is not None, "the events come from the sample"
    chosen: dict[str, Any] = {
        "pipeline": pipeline,
        "topology": file,
        "bootstrap_servers": bootstrap_servers,
        "plan": plan_by_hand(pipeline, measured, sample, replicas or {stage.name: 1 for stage in pipeline.stages}),
        "measured": measured,
        "log_folder": folder / "logs",
        "records": RecordOptions(prefix=f"t{secrets.token_hex(4)}." if prefix is None else prefix, delivery=delivery),
        "feed": trace_feed(
            levels_trace(list(levels), 1.0, rng), file.parent / pipeline.sample.events, folder, key_field
        ),
        "policy": Script(changes),
        "replans": False,
    }
    return Run(**{**chosen, **more})


def unfed_run(
    code: str, bootstrap_servers: str, folder: Path, *, paths: Paths | None = None, events: str = "1\n", **more: Any
) -> Run:
    """A run of a topology of this code, written into the folder; its events are put into its topics by who runs it.

    The lines of events are the sample's; paths, unless the declared ones hold, are those of the profile.
    """
    (folder / "topology.py").write_text(code)
    (folder / "arrivals.csv").write_text("arrival_s\n0.0\n0.5\n")
    (folder / "events.jsonl").write_text(events)
    run = emulated_run(folder, bootstrap_servers, folder, levels=[(20, 1)], feed=None, **more)
    return run if paths is None else replace(run, measured=replace(run.measured, paths=paths))


def swing_runs(folder: Path, topology: Path = SWING, **more: Any) -> partial[Run]:
    """Return what builds runs of the swing topology, or of another version of it, on a Kafka: see `emulated_run`."""
    return partial(emulated_run, topology, folder=folder, probability={("parse", "check"): 1 / 3}, **more)


async def put_before(run: Run, topic: str, values: Sequence[bytes], ids: Sequence[str] = ()) -> None:
    """Create the topics of a run that will begin, and write records to a source's partitions by turns.

    Args:
        run: the run.
        topic: the source topic, without the run's prefix.
        values: of the records.
        ids: that their producer names for the first of them.
    """
    await create_topics(run.bootstrap_servers, topics_of(run.pipeline, run.records.prefix))
    name = Names(run.pipeline.name, run.records.prefix).topic(topic)
    async with AIOKafkaProducer(**client_options(run.bootstrap_servers), acks="all") as producer:  # it tries again
        partitions = len(await producer.partitions_for(name))
        for number, value in enumerate(values):
            headers = [(EVENT_ID, ids[number].encode())] if number < len(ids) else []
            place = {"key": b"k%d" % number, "partition": number % partitions}
            await producer.send_and_wait(name, value, headers=headers, **place)


async def ran(run: Run, *, start: str = "committed") -> RunReport:
    """Run until everything that came is done; return the report."""
    run = replace(run, records=replace(run.records, start=start))
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(120):
        return await run_to_report(run, stop)


async def records_in(run: Run, topic: str) -> list[Record]:
    """Return what a topic of the run's pipeline holds."""
    name = Names(run.pipeline.name, run.records.prefix).topic(topic)
    async with TopicFollower(run.bootstrap_servers, name) as follower:
        return [record async for record in follower.until(await follower.end())]


async def ids_in(run: Run, topic: str) -> list[str]:
    """Return the ids that the events of a source topic have where their producer names none."""
    name = Names(run.pipeline.name, run.records.prefix).topic(topic)
    async with TopicFollower(run.bootstrap_servers, name) as follower:
        events = [record async for record in follower.until(await follower.end())]
        return [f"{follower.ids_from}/{event.partition}/{event.offset}" for event in events]


@contextlib.asynccontextmanager
async def on_this_host(run: Run, within_s: float) -> AsyncIterator[tuple[LiveRun, LocalActuator]]:
    """A run whose replicas are ready, and the actuator that started them, which a test may look at and may stop.

    Args:
        run: what runs.
        within_s: how long all of the block may take.
    """
    async with (
        asyncio.timeout(within_s),
        LocalActuator(ProcessTerms(str(run.log_folder))) as actuator,
        open_run(run, actuator) as under_way,
    ):
        await under_way.ready()
        yield under_way, actuator
