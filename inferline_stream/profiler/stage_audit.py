"""Run a pipeline's sample through its stages unrestricted, and report what each isolation would have refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from inferline_stream.actuators.devices import Device, carries, devices_for
from inferline_stream.actuators.nvml import devices
from inferline_stream.isolation.audit import Audit, Finding, declaration
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.profiler.sample_run import run_sample
from inferline_stream.profiler.worker_process import WorkerProcess
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


def _devices(
    kinds: Sequence[Hardware], machine: Sequence[Device], taken: Sequence[tuple[Hardware, tuple[str, ...]]]
) -> tuple[str, ...]:
    """Return devices of a stage's own; where they do not go round, one that another stage has, too."""
    for kind in (kind for kind in kinds if kind.gpus):
        if found := devices_for(kind, machine, taken):
            return found
    shared = [device.uuid for device in machine if any(kind.gpus and carries(device, kind) for kind in kinds)]
    return tuple(shared[:1])


async def audit_pipeline(
    pipeline: Pipeline, file: Path, events: Sequence[bytes], limits: Settings, *, stages: Sequence[str] = ()
) -> list[Audited]:
    """Build every stage and run the sample, with calls looked at rather than refused.

    A stage without isolation is judged by the plain sandbox.

    Args:
        pipeline: a valid pipeline.
        file: its topology.
        events: the sample's.
        limits: how long building one stage may take.
        stages: those to audit; empty for all.

    Raises:
        WorkerFailed: a stage cannot be built.
        InvalidTopology: a stage is reached by no event, or raises on every one.
    """
    shape = shape_of(pipeline)
    audits: dict[str, Audit] = {}
    catalogued, machine = catalogue(pipeline.hardware), devices()
    taken: list[tuple[Hardware, tuple[str, ...]]] = []
    async with AsyncExitStack() as stack:
        workers = {}
        for name in shape.stages:
            declared = pipeline.stage(name).confined
            watched = not stages or name in stages
            isolation = declared if declared.sandboxed or not watched else Isolation()
            kinds = [catalogued[kind] for kind in pipeline.stage(name).hardware]
            given = _devices(kinds, machine, taken)
            taken.append((Hardware("worker", 0.0, gpus=min(len(given), 1)), given))
            confinement = confined(isolation, file, taken[-1][0], "")
            if watched:
                audits[name] = Audit(confinement)
            workers[name] = await stack.enter_async_context(
                WorkerProcess(
                    file,
                    name,
                    confinement,
                    start_timeout_s=limits.start_limit_s(gpu=bool(given)),
                    audit=audits.get(name),
                    devices=given,
                )
            )
        await run_sample(shape, workers, events, _SAMPLE_S)
    return [
        Audited(name, dict(sorted(audit.found.items())), declaration(audit.found, audit.confinement))
        for name, audit in audits.items()
    ]
