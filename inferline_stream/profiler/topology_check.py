"""What is wrong with a topology beyond what it declares: its files, and stages that cannot be built."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.dataplane.codecs import codec
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.errors import InferlineError, InvalidInput
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.topology import Pipeline, Sample, Stage
from inferline_stream.profiler.device_turns import DeviceTurns
from inferline_stream.profiler.worker_process import WorkerFailed, WorkerProcess, blame
from inferline_stream.settings import Settings

_EVENTS_TRIED = 1000


def sample_problems(pipeline: Pipeline, folder: Path) -> list[str]:
    """Sample files that are missing or hold something else, ``file[:line]: what`` each."""
    sample = pipeline.sample
    if not isinstance(sample, Sample):
        return []
    found = []
    arrivals = [sample.arrivals] if sample.replay is None else [sample.arrivals, sample.replay]
    for name in arrivals:
        found += _problems(read_arrivals, folder / name)
    return found + _problems(read_events, folder / sample.events)


def event_problems(pipeline: Pipeline, folder: Path) -> list[str]:
    """Sample events that an entry stage of a valid pipeline cannot decode; the first of each stage."""
    if pipeline.sample is None:
        return []
    file = folder / pipeline.sample.events
    events = read_events(file)
    found = []
    for stage in pipeline.stages:
        if not stage.after:
            decode = codec(pipeline.source.codec).decoder(types_of(stage).takes)
            for event in events[:_EVENTS_TRIED]:
                try:
                    decode(event)
                except (ValueError, TypeError) as error:
                    shown = event[:80].decode(errors="replace")
                    found.append(f"{file}: stage {stage.name!r} cannot take the event {shown} ({error})")
                    break
    return found


async def building_problems(pipeline: Pipeline, topology: Path, limits: Settings) -> list[str]:
    """Stages that cannot be built in a process of their own, as their replicas will be, ``file:line: what`` each.

    Args:
        pipeline: what the topology declares, valid or not.
        topology: the file.
        limits: how long building one stage may take.
    """
    at_once = asyncio.Semaphore(max(1, len(os.sched_getaffinity(0))))
    on_devices = asyncio.Lock()  # two models need not fit on one
    turns = DeviceTurns()
    catalogued = catalogue(kind for kind in pipeline.hardware if isinstance(kind, Hardware))

    async def build(stage: Stage) -> str | None:
        kinds = [catalogued[name] for name in stage.hardware if name in catalogued]
        gpus = max((kind.gpus for kind in kinds), default=0.0)
        async with on_devices if gpus else at_once:
            try:
                confinement = confined(stage.confined, topology, Hardware("worker", 0.0, gpus=gpus), "")
                worker = WorkerProcess(
                    topology,
                    stage.name,
                    confinement,
                    start_timeout_s=limits.start_limit_s(gpu=gpus > 0),
                    build_only=True,
                    devices=await turns.take(stage.name, kinds, _nothing),
                )
                async with worker:
                    return None
            except ValueError:
                return None  # an isolation that cannot be is a problem of its own
            except InvalidInput as error:  # this machine cannot isolate it so
                return f"{stage.declared}: stage {stage.name!r}: {error}"
            except (NoDevice, WorkerFailed) as error:
                why = error if isinstance(error, WorkerFailed) else WorkerFailed(str(error))
                return blame(why, stage.declared, f"stage {stage.name!r} cannot be built in a worker process")
            finally:
                turns.leave(stage.name)

    stages = [stage for stage in pipeline.stages if isinstance(stage, Stage) and isinstance(stage.name, str)]
    by_name = {stage.name: stage for stage in stages}
    async with asyncio.TaskGroup() as tasks:
        building = [tasks.create_task(build(stage)) for stage in by_name.values()]
    return [problem for task in building if (problem := task.result()) is not None]


async def _nothing() -> None:
    """A worker that is built here ends before the next one is given its device."""


def _problems(read: Callable[[Path], object], file: Path) -> list[str]:
    try:
        read(file)
    except InvalidInput as error:
        return list(error.problems)
    except InferlineError as error:
        return [str(error)]
    return []
