"""Whether every stage can be built in a process of its own, as its replicas will be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.profiler.process import WorkerFailed, WorkerProcess


async def building_problems(pipeline: Pipeline, topology: Path, start_timeout_s: float) -> list[str]:
    """What stands in the way of building each stage in a worker process, ``file:line: what`` each.

    Args:
        pipeline: a pipeline that is valid as declared.
        topology: its file.
        start_timeout_s: longest that one stage may take.
    """
    at_once = asyncio.Semaphore(max(1, len(os.sched_getaffinity(0))))

    async def build(stage: Stage) -> str | None:
        async with at_once:
            try:
                async with WorkerProcess(topology, stage.name, 1, start_timeout_s=start_timeout_s):
                    return None
            except WorkerFailed as error:
                return f"{stage.declared}: stage {stage.name!r} cannot be built in a worker process: {error}"

    async with asyncio.TaskGroup() as tasks:
        building = [tasks.create_task(build(stage)) for stage in pipeline.stages]
    return [problem for task in building if (problem := task.result()) is not None]
