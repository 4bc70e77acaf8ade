"""A process with one stage in it: runs sample events, weighs them, and times emulated hardware's sleeping.

Run through `isolation.bootstrap`, so that cores and thread counts are set before any library is imported.
Requests come on standard input, answers go to what was standard output; what the stage prints goes to
standard error.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from inferline_stream.dataplane.frames import Done, Failed, StageInput
from inferline_stream.dataplane.replica.stage_call import Settled, StageCall, built, is_out_of_memory, new_event_loop
from inferline_stream.dataplane.replica.stage_code import StageCode, code_of
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import last_line, load_code, load_topology
from inferline_stream.errors import InferlineError, ServerUnavailable, StageFailed
from inferline_stream.isolation.confinement import decoded
from inferline_stream.isolation.refusals import Refusals
from inferline_stream.isolation.seal import seal
from inferline_stream.pipeline.annotations import condition_type, stage_types
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.topology import Pipeline, Stage, is_asynchronous
from inferline_stream.profiler.worker_messages import (
    LENGTH_BYTES,
    SAMPLE_BATCH,
    Answer,
    Begin,
    EventOutcome,
    Failure,
    Measure,
    Outcomes,
    ProcessEvents,
    Request,
    StageBuilt,
    Times,
    Weigh,
    Weights,
    decode_request,
    framed,
    length_of,
)


class StageWorker:
    """One stage, built as in a replica.

    Raises:
        InferlineError: the topology or the stage cannot be loaded.
        TypeError: what a name gives is no stage, or no condition.
    """

    def __init__(self, begin: Begin) -> None:
        pipeline = load_topology(begin.topology)
        confinement = decoded(begin.confinement)
        refusals = Refusals(confinement)
        if begin.build_only:
            run = _named_code(pipeline.stage(begin.stage), pipeline, Path(begin.topology).parent)
        else:
            self._code = StageCode(pipeline, begin.stage, begin.topology)
            self._children = routes_of(pipeline, begin.stage).children
            run = self._code.run
            cost, folder = pipeline.stage(begin.stage).cost, Path(begin.topology).parent
            self._cost: Callable[[Any], float] | None = load_code(cost, folder) if isinstance(cost, str) else cost
        unpaced = Hardware("unpaced", 0.0, gpus=float(confinement.gpu))
        self._loop = new_event_loop() if is_asynchronous(run) else None
        self._call = self._built(lambda: StageCall(refusals.guarded(run), unpaced))
        refusals.sealed = seal(confinement).sealed

    def _built(self, build: Callable[[], StageCall]) -> StageCall:
        """Build the stage, on its event loop where it is asynchronous."""

        return build() if self._loop is None else self._loop.run_until_complete(built(build))

    def run(self, inputs: list[StageInput]) -> Outcomes:
        """Run events once; one that cannot be decoded or that the stage raises on has failed."""
        outcomes: list[EventOutcome] = []
        for start in range(0, len(inputs), SAMPLE_BATCH):
            settled = self._process(self._call, inputs[start : start + SAMPLE_BATCH])
            outcomes += map(self._outcome, settled.outcomes)
        return Outcomes(outcomes)

    def answer(self, request: ProcessEvents | Measure | Weigh) -> Answer:
        """Do what is asked."""
        match request:
            case ProcessEvents():
                return self.run(request.inputs)
            case Measure():
                return self.measure(request)
            case Weigh():
                return self.weigh(request)

    def measure(self, order: Measure) -> Times:
        """Time batches of one size on emulated hardware, from encoded events to encoded results."""
        run = self._call if self._loop is None else self._call.awaited
        call = StageCall(run, order.hardware, order.emulated_s)
        events = itertools.cycle(order.inputs)
        self._time_batch(call, events, order.batch_size)  # the first of a size warms it up
        service_s: list[float] = []
        end_s = time.perf_counter() + order.seconds
        while len(service_s) < order.most and (len(service_s) < order.fewest or time.perf_counter() < end_s):
            service_s.append(self._time_batch(call, events, order.batch_size))
        return Times(service_s)

    def weigh(self, order: Weigh) -> Weights:
        """What the topology says of each event: its cost, or its weight on emulated hardware."""
        emulated = self._code.emulated
        function = (None if emulated is None else emulated.weight) if order.emulated else self._cost
        return Weights(None if function is None else self._code.weigh(function, order.inputs))

    def _time_batch(self, call: StageCall, events: Iterator[StageInput], size: int) -> float:
        inputs = list(itertools.islice(events, size))
        began_s = time.perf_counter()
        outcomes = self._process(call, inputs).outcomes
        took_s = time.perf_counter() - began_s
        failed = next((outcome for outcome in outcomes if isinstance(outcome, Failed)), None)
        if failed is not None:
            raise StageFailed(f"raised on an event that it had taken before: {failed.summary}")
        return took_s

    def _process(self, call: StageCall, inputs: list[StageInput]) -> Settled:
        if self._loop is not None:
            return self._loop.run_until_complete(self._code.process_awaited(call.awaited, inputs))
        return self._code.process(call, inputs)

    def _outcome(self, found: Done | Failed) -> EventOutcome:
        if isinstance(found, Failed):
            return EventOutcome(b"", [], found.summary)
        taken = [child for bit, child in enumerate(self._children) if found.edges >> bit & 1]
        return EventOutcome(found.value, sorted(taken))


def _named_code(stage: Stage, pipeline: Pipeline, folder: Path) -> Callable[..., Any]:
    """Return a stage's code; what it and its conditions name is loaded and judged, which nothing else does before."""
    run = code_of(stage, str(folder))
    if isinstance(stage.run, str):
        stage_types(run)
    for edge in (edge for child in pipeline.stages for edge in child.after if edge.parent is stage):
        if isinstance(edge.condition, str):
            condition_type(load_code(edge.condition, folder))
    return run


def main() -> None:
    """Answer requests until standard input ends."""
    _import_replica()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    worker: StageWorker | None = None
    while (request := _read(requests)) is not None:
        try:
            answer: Answer
            if isinstance(request, Begin):
                worker = StageWorker(request)
                answer = StageBuilt()
            else:
                assert worker is not None, "Begin comes first"
                answer = worker.answer(request)
        except InferlineError as error:
            unavailable = isinstance(error, ServerUnavailable) or isinstance(error.__cause__, ServerUnavailable)
            answer = Failure(str(error), memory=is_out_of_memory(error.__cause__), unavailable=unavailable)
        except Exception as error:
            answer = Failure(last_line(error), memory=is_out_of_memory(error))
        answers.write(framed(answer))
        answers.flush()


def _import_replica() -> None:
    """What a replica imports belongs to its start-up time."""
    from inferline_stream.dataplane.replica import replica

    assert replica


def _read(requests: BinaryIO) -> Request | None:
    header = requests.read(LENGTH_BYTES)
    return decode_request(requests.read(length_of(header))) if len(header) == LENGTH_BYTES else None


if __name__ == "__main__":
    main()
