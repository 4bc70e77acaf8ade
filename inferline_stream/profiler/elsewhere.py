"""Profile a pipeline on a cluster's machines: each stage on each kind as a job there, kept beside the topology here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from inferline_stream.errors import InferlineError, InvalidTopology
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.validation import validated
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.profiling import Options, Progress
from inferline_stream.profiler.remote import command, measured
from inferline_stream.profiler.store import ProfileStore

RunThere = Callable[[Stage, Hardware, list[str]], Awaitable[str]]
"""Runs a command line on that hardware kind, as a replica of that stage would run, and returns what it wrote."""


def cluster(place: str) -> Machine:
    """What stands for a cluster's machines, whichever they are.

    Args:
        place: ``kubernetes`` or ``ray``.
    """
    return Machine("", 0, place=place)


async def profile_elsewhere(
    pipeline: Pipeline,
    topology: Path,
    events: list[bytes],
    machine: Machine,
    run_there: RunThere,
    *,
    options: Options,
    there: str = "",
    progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Measure what the store lacks of a cluster, one job after the other, and keep it.

    Emulated kinds are left out: they sleep here as they would there.

    Args:
        pipeline: the pipeline that the file declares.
        topology: the topology file here, absolute.
        events: the sample's.
        machine: see `cluster`.
        run_there: runs a command there.
        options: what, and how thoroughly.
        there: path of the topology file there; the same by default.
        progress: told at each step.

    Raises:
        InvalidTopology: a stage could not be profiled there; says why.
    """
    validated(pipeline)
    store = ProfileStore(pipeline, topology.parent, events, machine)
    known, kinds = store.load(), catalogue(pipeline.hardware)
    pairs = [
        (stage, kinds[name])
        for stage in pipeline.stages
        for name in dict.fromkeys(stage.hardware)
        if not kinds[name].emulated
        and (options.stages is None or stage.name in options.stages)
        and (options.kinds is None or name in options.kinds)
        and (options.again or (stage.name, name) not in known.profiles)
    ]
    paths_known = known.paths is not None and not options.again
    for done, (stage, kind) in enumerate(pairs):
        progress(Progress(done, len(pairs), f"{stage.name} on {kind.name}, in {machine.place}"))
        whole = not paths_known and done == 0  # the others need no more than what leads to their stage
        line = command(there or str(topology), stage.name, kind.name, options.stage_s, whole=whole)
        try:
            store.take(measured(await run_there(stage, kind, line)))
        except InferlineError as error:
            what = f"stage {stage.name!r} on {kind.name!r} could not be profiled in {machine.place}"
            raise InvalidTopology(f"{stage.declared}: {what}: {error}") from error
    outdated = store.load().stale
    if wrong := [(stage.name, kind.name) for stage, kind in pairs if (stage.name, kind.name) in outdated]:
        raise InvalidTopology(
            f"{pipeline.declared}: {wrong[0][0]!r} on {wrong[0][1]!r} was profiled in {machine.place}, and "
            f"{outdated[wrong[0]]} here: the image holds another version of the topology, build it again"
        )
    progress(Progress(len(pairs), len(pairs), "done"))
