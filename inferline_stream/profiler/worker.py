"""A process with one stage in it: runs sample events and times batches, just as a replica would.

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
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from inferline_stream.dataplane.loading import last_line, load_topology
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.dataplane.worker import Calls, Done, Failed, StageCall, run_batch
from inferline_stream.errors import InferlineError, StageFailed
from inferline_stream.isolation.confinement import decoded
from inferline_stream.isolation.refusals import Refusals
from inferline_stream.isolation.sealing import seal
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.profiler.messages import (
    LENGTH_BYTES,
    Answer,
    Begin,
    Failure,
    Measure,
    Outcome,
    Outcomes,
    Ready,
    Request,
    Run,
    StageInput,
    Times,
    decode_request,
    framed,
    length_of,
)

_R = TypeVar("_R")

_UNPACED = Hardware("unpaced", 0.0)
_SAMPLE_BATCH = 16


class _TooLarge(Exception):
    """The stage raised on a batch, and not on its halves."""


class StageWorker:
    """One stage, built in the thread that will call it, as in a replica.

    Raises:
        InferlineError: the topology or the stage cannot be loaded.
    """

    def __init__(self, begin: Begin) -> None:
        pipeline = load_topology(begin.topology)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage")
        confinement = decoded(begin.confinement)
        refusals = Refusals(confinement)
        run = refusals.guarded(pipeline.stage(begin.stage).run)
        self._call = self._thread.submit(StageCall, run, _UNPACED).result()
        if not begin.build_only:
            self._wiring = Wiring(pipeline, begin.stage)
        refusals.sealed = seal(confinement).sealed

    def run(self, inputs: list[StageInput]) -> Outcomes:
        """Run events once; one that cannot be decoded or that the stage raises on has failed."""
        outcomes: list[Outcome] = []
        for start in range(0, len(inputs), _SAMPLE_BATCH):
            decoded = [self._decoded(event) for event in inputs[start : start + _SAMPLE_BATCH]]
            values = [value for value in decoded if not isinstance(value, Failed)]
            found = iter(self._timed(self._call, values)[1].outcomes if values else ())
            outcomes += [_outcome(value if isinstance(value, Failed) else next(found)) for value in decoded]
        return Outcomes(outcomes)

    def measure(self, order: Measure) -> Times:
        """Time batches of one size. Decoding is left out, which a replica does while the stage runs."""
        call = StageCall(self._call, order.hardware, order.emulated_s)
        events = itertools.cycle(order.inputs)
        self._time_batch(call, events, order.batch_size)  # the first of a size allocates and compiles
        service_s: list[float] = []
        end_s = time.perf_counter() + order.seconds
        while len(service_s) < order.most and (len(service_s) < order.fewest or time.perf_counter() < end_s):
            service_s.append(self._time_batch(call, events, order.batch_size))
        return Times(service_s)

    def _time_batch(self, call: StageCall, events: Iterator[StageInput], size: int) -> float:
        took_s, calls = self._timed(call, [self._decoded(event) for event in itertools.islice(events, size)])
        failed = next((outcome for outcome in calls.outcomes if isinstance(outcome, Failed)), None)
        if failed is not None:
            raise StageFailed(f"raised on an event that it had taken before: {failed.summary}")
        if len(calls.calls) != 1:
            raise _TooLarge(f"raised on a batch of {size}, but not on smaller ones")
        return took_s

    def _timed(self, call: StageCall, values: list[Any]) -> tuple[float, Calls]:
        """From handing a batch to the stage's thread to having its encoded results, and those."""
        began_s = time.perf_counter()
        calls = self._thread.submit(until_devices_rest, run_batch, call, self._settled, values).result()
        return time.perf_counter() - began_s, calls

    def _settled(self, result: Any) -> Done:
        return Done(self._wiring.encode(result), self._wiring.taken(result))

    def _decoded(self, event: StageInput) -> Any:
        try:
            if isinstance(event, bytes):
                return self._wiring.decoders[None](event)
            return self._wiring.join_input(
                {parent: self._wiring.decoders[parent](value) for parent, value in event.items()}
            )
        except Exception as error:
            return Failed.of(error)


def until_devices_rest(run: Callable[..., _R], *arguments: Any) -> _R:
    """Run, and wait for what was begun on a GPU meanwhile.

    Encoded results have been copied from the device. What a stage has left running behind them, a cache's update for
    instance, occupies the device before the next batch all the same.
    """
    found = run(*arguments)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return found


def _outcome(found: Done | Failed) -> Outcome:
    if isinstance(found, Done):
        return Outcome(found.value, sorted(found.taken))
    return Outcome(b"", [], found.summary)


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
                answer = Ready()
            else:
                assert worker is not None, "Begin comes first"
                answer = worker.run(request.inputs) if isinstance(request, Run) else worker.measure(request)
        except InferlineError as error:
            answer = Failure(str(error), memory=_is_memory(error.__cause__))
        except Exception as error:
            answer = Failure(last_line(error), memory=_is_memory(error))
        answers.write(framed(answer))
        answers.flush()


def _import_replica() -> None:
    """What a replica imports belongs to its start-up time."""
    import uvloop

    from inferline_stream.dataplane import bound_replica, moving

    assert uvloop
    assert moving
    assert bound_replica


def _read(requests: BinaryIO) -> Request | None:
    header = requests.read(LENGTH_BYTES)
    return decode_request(requests.read(length_of(header))) if len(header) == LENGTH_BYTES else None


def _is_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, on the host or, by the words of every framework, on its device."""
    return isinstance(error, MemoryError | _TooLarge) or "out of memory" in str(error).lower()


if __name__ == "__main__":
    main()
