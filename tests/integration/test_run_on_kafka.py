"""Whole runs on Apache Kafka: real replica processes on emulated hardware."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.controlplane.run_options import RecordOptions
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.profile import Contention, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths, shape_of
from inferline_stream.pipeline.trace import gamma_trace, levels_trace
from inferline_stream.runs.lifecycle import run_to_report
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.policy import POLICIES, TunerState
from tests.support.emulated_runs import Script, provisioned, trace_feed


async def test_traffic_scales_stages_in_process_behind_servers_and_waiting(
    tmp_path: Path, apache_kafka: KafkaServer
) -> None:
    topology = Path(__file__).parents[1] / "scenarios/served/topology.py"
    pipeline = load_topology(topology)
    stages = (
        Profile("embed", "emulated-cpu", (ServiceTime(1, 0.024), ServiceTime(2, 0.04), ServiceTime(4, 0.076)), 1.0),
        Profile(
            "rank",
            "client",
            (ServiceTime(1, 0.05), ServiceTime(2, 0.05)),
            1.0,
            contention=(Contention(2, (1.4, 1.4)), Contention(4, (2.2, 2.2))),
        ),
        Profile("compose", "emulated-cpu", (ServiceTime(1, 0.08),), 1.0, contention=(Contention(4, (1.0,)),)),
    )
    measured = PipelineProfile(
        {(p.stage, p.hardware): p for p in stages}, independent_paths(shape_of(pipeline), {}), 0.003
    )
    rng = np.random.default_rng(3)
    sample = gamma_trace(25.0, 1.0, 30.0, rng)
    plan = provisioned(pipeline, measured, sample)
    assert plan.allocations["rank"][0].concurrency > 1
    planned = {stage: sum(a.replicas for a in held) for stage, held in plan.allocations.items()}
    falls = Script([(0.0, planned)])
    risen = False

    def rises_by_traffic(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
        """The default policy, which would give replicas back a minute after the surge, made impatient."""
        nonlocal risen
        ready = {stage: sum(kind.ready for kind in s.supply.values()) for stage, s in seen.stages.items()}
        risen = risen or all(ready.get(stage, 0) > count for stage, count in planned.items())
        return falls(state, seen) if risen else POLICIES["default"](state, seen)

    run = Run(
        pipeline=pipeline,
        topology=topology,
        bootstrap_servers=apache_kafka.bootstrap_servers,
        plan=plan,
        measured=measured,
        log_folder=tmp_path / "logs",
        records=RecordOptions(prefix=f"t{secrets.token_hex(4)}."),
        feed=trace_feed(
            levels_trace([(25, 1), (90, 5), (5, 8)], 1.0, rng), topology.parent / "numbers.jsonl", tmp_path
        ),
        policy=rises_by_traffic,
        replans=False,
    )
    async with asyncio.timeout(120):
        report = await run_to_report(run, asyncio.Event())
    assert (report.lost, report.duplicated, report.unknown) == (0, 0, 0)
    assert report.events_in == report.events_out > 400
    assert report.exits == []
    *before, down = report.decisions
    # It holds while a busy machine delays statistics.
    ups = [decision for decision in before if decision.action != "hold"]
    assert {decision.action for decision in ups} == {"scale_up"}
    assert all(ups[-1].replicas[stage] > planned[stage] for stage in planned), "traffic asked for more of each"
    assert (down.action, down.replicas) == ("scale_down", planned)
