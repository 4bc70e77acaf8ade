"""Run a pipeline's sample through its stages unrestricted, and report what each isolation would have refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from inferline_stream.isolation.audit import Audit, Finding, declaration
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation, isolation_of
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.sample_run import run_sample
from inferline_stream.profiler.worker_process import WorkerProcess

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
    pipeline: Pipeline, file: Path, events: Sequence[bytes], *, start_timeout_s: float, stages: Sequence[str] = ()
) -> list[Audited]:
    """Build every stage and run the sample, with calls looked at rather than refused.

    A stage without isolation is judged by the plain sandbox.

    Args:
        pipeline: a valid pipeline.
        file: its topology.
        events: the sample's.
        start_timeout_s: longest that building one stage may take.
        stages: those to audit; empty for all.

    Raises:
        WorkerFailed: a stage cannot be built.
        InvalidTopology: a stage is reached by no event, or raises on every one.
    """
    shape = shape_of(pipeline)
    audits: dict[str, Audit] = {}
    async with AsyncExitStack() as stack:
        workers = {}
        for name in shape.stages:
            declared = isolation_of(pipeline.stage(name).isolation)
            watched = not stages or name in stages
            isolation = declared if declared.sandboxed or not watched else Isolation()
            confinement = confined(isolation, file, Hardware("worker", 0.0), "")
            if watched:
                audits[name] = Audit(confinement)
            workers[name] = await stack.enter_async_context(
                WorkerProcess(file, name, confinement, start_timeout_s=start_timeout_s, audit=audits.get(name))
            )
        await run_sample(shape, workers, events, _SAMPLE_S)
    return [
        Audited(name, dict(sorted(audit.found.items())), declaration(audit.found, audit.confinement))
        for name, audit in audits.items()
    ]
