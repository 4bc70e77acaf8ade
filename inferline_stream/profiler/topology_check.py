"""What is wrong with a topology beyond what it declares: its files, and stages that cannot be built."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from inferline_stream.dataplane.codecs import codec
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.errors import InferlineError, InvalidInput
from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.topology import Pipeline, Sample, Stage
from inferline_stream.pipeline.units import moment_s
from inferline_stream.profiler.benches import Benches, benches_here
from inferline_stream.profiler.replica_failures import ReplicaFailed, blame
from inferline_stream.profiler.this_host import sample_spec
from inferline_stream.settings import Settings

_EVENTS_TRIED = 1000


def sample_problems(pipeline: Pipeline, folder: Path) -> list[str]:
    """Sample files that are missing or hold something else, ``file[:line]: what`` each."""
    found = []
    for sample in (pipeline.sample, *(getattr(source, "sample", None) for source in pipeline.own_sources.values())):
        if isinstance(sample, Sample):
            for name in (sample.arrivals, *([] if sample.replay is None else [sample.replay])):
                found += _problems(read_arrivals, folder / name)
            found += _problems(read_events, folder / sample.events)
    return found


def event_problems(pipeline: Pipeline, folder: Path) -> list[str]:
    """Sample events that an entry stage of a valid pipeline cannot decode; the first of each stage."""
    found = []
    for stage in pipeline.stages:
        sample = None if stage.after else pipeline.samples[(stage.source or pipeline.source).name]
        if sample is not None:
            file = folder / sample.events
            events = read_events(file)
            decode = codec(pipeline.codec_of(stage)).decoder(types_of(stage).takes)
            for event in events[:_EVENTS_TRIED]:
                try:
                    decode(event)
                except (ValueError, TypeError) as error:
                    shown = event[:80].decode(errors="replace")
                    found.append(f"{file}: stage {stage.name!r} cannot take the event {shown} ({error})")
                    break
    return found


def deadline_problems(pipeline: Pipeline, now_s: float) -> list[str]:
    """Background topics of a valid pipeline that should be done by a time that is over; `run` takes them all the same.

    Args:
        pipeline: what the topology declares.
        now_s: seconds since the epoch.
    """
    return [
        f"{pipeline.declared}: source topic {topic.name!r}: finish_by {topic.finish_by!r} is over; give a time to come"
        for topic in pipeline.others
        if topic.finish_by is not None and moment_s(topic.finish_by) <= now_s
    ]


async def building_problems(pipeline: Pipeline, topology: Path, limits: Settings) -> tuple[list[str], dict[str, float]]:
    """Stages that cannot be built in a process of their own, as their replicas will be, ``file:line: what`` each.

    And how long each of the others took, in seconds.

    Args:
        pipeline: what the topology declares, valid or not.
        topology: the file.
        limits: how long building one stage may take.
    """
    at_once = asyncio.Semaphore(max(1, len(os.sched_getaffinity(0))))
    on_devices = asyncio.Lock()  # two models need not fit on one
    kinds = catalogue(kind for kind in pipeline.hardware if isinstance(kind, Hardware))
    specs: dict[str, tuple[Stage, ReplicaSpec]] = {}
    start_ups_s: dict[str, float] = {}
    for stage in pipeline.stages:
        if isinstance(stage, Stage) and isinstance(stage.name, str):
            with contextlib.suppress(ValueError):  # an isolation that cannot be is a problem of its own
                may = [kinds[name] for name in stage.hardware if name in kinds]
                specs[stage.name] = stage, sample_spec(stage, topology, may, purpose="check")

    async def build(benches: Benches, stage: Stage, spec: ReplicaSpec) -> str | None:
        async with on_devices if spec.hardware.gpus else at_once:
            try:
                async with benches.bench(stage, spec) as bench:
                    start_ups_s[stage.name] = bench.start_up_s
                    return None
            except ReplicaFailed as error:
                return blame(error, stage.declared, f"stage {stage.name!r} cannot be built in a worker process")

    async with benches_here([spec for _, spec in specs.values()], limits) as benches, asyncio.TaskGroup() as tasks:
        building = [tasks.create_task(build(benches, *each)) for each in specs.values()]
    return [problem for task in building if (problem := task.result()) is not None], start_ups_s


def _problems(read: Callable[[Path], object], file: Path) -> list[str]:
    try:
        read(file)
    except InvalidInput as error:
        return list(error.problems)
    except InferlineError as error:
        return [str(error)]
    return []
