"""Run a pipeline's sample through its stages unrestricted, and report what each isolation would have refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.isolation.audit import Audit, Finding, declaration
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.benches import benches_here
from inferline_stream.profiler.sample_run import run_sample
from inferline_stream.profiler.this_host import ThisHost, sample_spec
from inferline_stream.settings import Settings

_SAMPLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Audited:
    """What one stage's isolation lacks.

    Args:
        stage: the stage.
        found: what would have been refused, and how often.
        declaration: its isolation as it would have to be written.
    """

    stage: str
    found: dict[Finding, int]
    declaration: str


async def audit_pipeline(
    pipeline: Pipeline,
    file: Path,
    events: Sequence[bytes],
    limits: Settings,
    *,
    stages: Sequence[str] = (),
    sources: Sequence[int] = (),
) -> list[Audited]:
    """Build every stage and run the sample, with calls looked at rather than refused.

    A stage without isolation is judged by the plain sandbox.

    Args:
        pipeline: a valid pipeline.
        file: its topology.
        events: the sample's.
        limits: how long building one stage may take.
        stages: those to audit; empty for all.
        sources: number of each event's source, where there are several.

    Raises:
        ReplicaFailed: a stage cannot be built.
        InvalidTopology: a stage is reached by no event, or raises on every one.
    """
    shape, kinds = shape_of(pipeline), catalogue(pipeline.hardware)
    audits, specs = dict[str, Audit](), list[ReplicaSpec]()
    for name in shape.stages:
        stage = pipeline.stage(name)
        watched = not stages or name in stages
        isolation = stage.confined if stage.confined.sandboxed or not watched else Isolation()
        specs.append(spec := sample_spec(stage, file, [kinds[kind] for kind in stage.hardware], isolation))
        if watched:
            audits[name] = Audit(confined(isolation, file, spec.hardware))
    async with AsyncExitStack() as stack:
        benches = await stack.enter_async_context(benches_here(specs, limits, ThisHost(audits=audits)))
        opened = [await stack.enter_async_context(benches.bench(pipeline.stage(each.stage), each)) for each in specs]
        await run_sample(shape, {bench.stage.name: bench.run for bench in opened}, events, _SAMPLE_S, sources=sources)
    return [
        Audited(name, dict(sorted(audit.found.items())), declaration(audit.found, audit.confinement))
        for name, audit in audits.items()
    ]
