"""Profile a pipeline: run the sample through it once, then time each stage on each hardware kind, alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from inferline_stream.dataplane.sample_files import keyed
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.keys import keys_of
from inferline_stream.pipeline.live_classes import live_classes
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.validation import validated
from inferline_stream.profiler.benches import MakeActuator, open_benches
from inferline_stream.profiler.hop_latency import measure_hop
from inferline_stream.profiler.machine import Machine, this_machine
from inferline_stream.profiler.overheads import kept_overheads, overheads_file
from inferline_stream.profiler.profile_store import ProfileStore
from inferline_stream.profiler.profiling_options import Options, Progress, Steps, pairs_to_profile
from inferline_stream.profiler.profiling_session import OpenBenches, ProfilingSession, replica_spec
from inferline_stream.settings import Settings


async def profile_pipeline(
    pipeline: Pipeline,
    topology: Path,
    events: list[bytes],
    *,
    keys: Sequence[bytes | None] | None = None,
    sources: Sequence[int] = (),
    bootstrap_servers: str | None = None,
    options: Options | None = None,
    settings: Settings | None = None,
    machine: Machine | None = None,
    root: Path | None = None,
    cluster: MakeActuator | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> PipelineProfile:
    """Everything that planning needs of a pipeline: from the store where it holds, measured where not.

    What runs around replicas takes is not measured here, since that needs a broker of our own; see `measure_overheads`.

    Args:
        pipeline: the pipeline that the file declares.
        topology: the topology file.
        events: the sample's, as they stand in the source topic.
        keys: of their records; by default from the field that the sample names.
        sources: number of each event's source, where there are several.
        bootstrap_servers: a broker to measure the time between stages with; without one, the last time
            measured is taken, or 0.
        options: what, and how thoroughly; by default all that is missing, for a broker of our own.
        settings: time limits.
        machine: this machine, a cluster, or what a test makes of it.
        root: of the files; beside the topology by default.
        cluster: starts processes on the platform, where stages and its network are measured then, by way of the
            bootstrap servers. Without it, stages are measured here unless they were measured there before.
        progress: called at each step.

    Raises:
        InvalidTopology: the pipeline is not valid, a stage cannot be built or run, no sample event reaches it,
            or none of its hardware is here or was profiled elsewhere.
        StageFailed: the cluster has no place for a stage, or starts no replica of it.
        Unreachable: Kafka, or the cluster, does not answer.
    """
    validated(pipeline)
    options, file = options or Options(), _real(topology)
    limits = settings or Settings()
    here = machine or this_machine()
    if options.oversubscribe:
        here = msgspec.structs.replace(here, shares=True)
    store = ProfileStore(pipeline, file.parent, events, here, root, platform=options.platform)
    known = store.load()
    pairs, notes = pairs_to_profile(pipeline, known, options, here, in_cluster=cluster is not None)
    needs_run = bool(pairs) or known.paths is None
    needs_hop = bootstrap_servers is not None and (needs_run or options.broker not in known.hop_spread_s)
    needs_network = cluster is not None and (options.again or options.platform not in known.network_s)
    stages = len(pipeline.stages)
    steps = Steps(progress, (stages + 1 + len(pairs) if needs_run else 0) + needs_hop + needs_network)
    there: OpenBenches | None = None
    if cluster is not None:
        assert bootstrap_servers is not None
        kinds = catalogue(pipeline.hardware)
        specs = [replica_spec(file, stage, kinds[name]) for stage in pipeline.stages for name in stage.hardware]
        there = functools.partial(open_benches, Names(pipeline.name), bootstrap_servers, cluster, specs, limits)
    for note in notes:
        steps.note(note)
    if needs_hop:  # first: a broker that does not answer is reported at once
        assert bootstrap_servers is not None
        steps.begin("time between two stages")
        known.hop_overhead_s[options.broker], known.hop_spread_s[options.broker] = await measure_hop(
            bootstrap_servers, fetch_wait_s=limits.fetch_wait_s, timeout_s=limits.connect_timeout_s
        )
    session = ProfilingSession(pipeline, file, limits, options, steps, machine=here, open_benches=there)
    async with session:
        if needs_run:
            await session.measure(events, pairs, known, store, sources)
        if needs_network:
            await session.measure_network(known)
    if needs_hop or needs_network:
        store.save_paths(known)
    steps.end()
    assert known.paths is not None
    network_s = known.network_s.get(options.platform, 0.0)
    return PipelineProfile(
        known.profiles,
        known.paths,
        known.hop_overhead_s.get(options.broker, 0.0) + network_s,
        samples=known.samples,
        overheads=None if options.again else kept_overheads(overheads_file(here)),
        keys=keys_of(pipeline, _sample_keys(pipeline, events, sources) if keys is None else keys),
        network_s=network_s,
        hop_spread_s=known.hop_spread_s.get(options.broker, ()),
        classes=live_classes(pipeline),
    ).with_spot({stage.name: stage.hardware for stage in pipeline.stages})


def _sample_keys(pipeline: Pipeline, events: Sequence[bytes], sources: Sequence[int]) -> Sequence[bytes | None]:
    """Return the keys that the samples' records will have, by the field that each names; none where none names any."""
    fields = [None if sample is None else sample.key for sample in pipeline.samples.values()]
    if not any(fields):
        return []
    named = [fields[source] for source in sources] or [fields[0]] * len(events)
    return [None if field is None else keyed(event, field) for event, field in zip(events, named, strict=True)]


def _real(topology: Path) -> Path:
    """The file itself, as loaded modules name it."""
    return topology.resolve()
