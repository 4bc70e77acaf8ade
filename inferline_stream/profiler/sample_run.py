"""The sample's events, run once through the whole pipeline: what each stage is given, and which arrows events take."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.profiler.bench_messages import EventOutcome

MOST_EVENTS = 4000
"""Enough for a share of 1 % to be known within a third of itself."""

INPUTS_KEPT = 512
"""Inputs of each stage that batches are made of afterwards."""

INPUT_BYTES = 32 << 20
"""Of all inputs that batches of a stage are made of; more would say nothing more."""

SAMPLE_BYTES = 64 * 1024
"""Largest input that is kept for probing replicas."""

FIRST_CHUNK, LARGEST_CHUNK = 32, 512
"""Events run at once; where replicas take turns, each chunk costs as many starts as there are stages."""

_GOLDEN = 0.6180339887498949


RunEvents = Callable[[list[StageInput]], Awaitable[list[EventOutcome]]]
"""Runs events of one stage once."""


@dataclass(slots=True)
class SampleRun:
    """What the sample's events did.

    Args:
        inputs: of each stage, as they stand in its topic; the first `INPUTS_KEPT`.
        masks: events by the set of arrows taken; bit i stands for `Shape.arrows[i]`.
        failed: by stage, how many events it raised on, and the first of its messages.
        events: how many events were run.
    """

    inputs: dict[str, list[StageInput]]
    masks: Counter[int] = field(default_factory=Counter)
    failed: dict[str, tuple[int, str]] = field(default_factory=dict)
    events: int = 0

    @property
    def samples(self) -> dict[str, StageInput]:
        """By stage, the first input of at most `SAMPLE_BYTES`."""
        small = {stage: next(filter(_is_small, inputs), None) for stage, inputs in self.inputs.items()}
        return {stage: found for stage, found in small.items() if found is not None}

    @property
    def paths(self) -> Paths:
        """The distribution of the arrows taken by events that did not fail, most frequent first."""
        total = self.masks.total()
        ranked = sorted(self.masks.items(), key=lambda item: (-item[1], item[0]))
        return Paths(tuple(mask for mask, _ in ranked), tuple(count / total for _, count in ranked))


async def run_sample(
    shape: Shape,
    stages: Mapping[str, RunEvents],
    events: Sequence[bytes],
    seconds: float,
    progress: Callable[[float], None] = lambda share: None,
    *,
    chunk: int = FIRST_CHUNK,
) -> SampleRun:
    """Run events, evenly drawn from the sample, until the time is up or all have been run.

    Goes on past the time until every stage has been given an event.

    Args:
        shape: the pipeline's DAG.
        stages: what runs each; stages without it are left out, which their parents do not notice.
        events: as they stand in the source topic.
        seconds: time to spend.
        progress: called with the share that is done.
        chunk: events to begin with.

    Raises:
        InvalidTopology: a stage is reached by no event, or raises on every one.
    """
    run = SampleRun({stage: [] for stage in shape.stages})
    chosen = _spread(events)
    end_s = time.monotonic() + seconds
    size = chunk
    while run.events < len(chosen):
        unreached = [stage for stage in stages if not run.inputs[stage]]
        if time.monotonic() >= end_s and not unreached:
            break
        await _run_chunk(shape, stages, chosen[run.events : run.events + size], run)
        size = min(2 * size, LARGEST_CHUNK)
        progress(max(run.events / len(chosen), 1 - max(0.0, end_s - time.monotonic()) / seconds))
    for stage in stages:
        count, message = run.failed.get(stage, (0, ""))
        if count and not run.masks:
            raise InvalidTopology(f"{message}; stage {stage!r} raised on {count} of {run.events} sample events")
    for stage in stages:
        if not run.inputs[stage]:
            raise InvalidTopology(
                f"stage {stage!r}: none of the {run.events} sample events reached it; add some that do"
            )
    return run


def within_bytes(inputs: Sequence[StageInput], most: int = INPUT_BYTES) -> list[StageInput]:
    """Return the first inputs that come to so many bytes together; one in any case."""
    fitting = sum(total <= most for total in itertools.accumulate(map(_size, inputs)))
    return list(inputs[: max(1, fitting)])


def _is_small(event: StageInput) -> bool:
    return _size(event) <= SAMPLE_BYTES


def _size(event: StageInput) -> int:
    return len(event) if isinstance(event, bytes) else sum(map(len, event.values()))


def _spread(events: Sequence[bytes]) -> Sequence[bytes]:
    """At most `MOST_EVENTS` events, in an order in which every beginning is drawn evenly: files tend to be sorted.

    Fractional parts of multiples of the golden section leave no large gap anywhere, at any time.
    """
    ranked = sorted(range(len(events)), key=lambda i: i * _GOLDEN % 1.0)
    return [events[i] for i in ranked[:MOST_EVENTS]]


async def _run_chunk(shape: Shape, stages: Mapping[str, RunEvents], events: Sequence[bytes], run: SampleRun) -> None:
    masks = [0] * len(events)
    dead: set[int] = set()
    results: list[dict[str, bytes]] = [{} for _ in events]
    bits = {(arrow.parent, arrow.child): bit for bit, arrow in enumerate(shape.arrows)}
    for at, stage in enumerate(shape.stages):
        if stage not in stages:
            continue
        parents = [shape.arrows[bit].parent for bit in shape.parents(at)]
        edges = [bit for bit, arrow in enumerate(shape.arrows) if arrow.parent == at]
        given: dict[int, StageInput] = {}
        for i, event in enumerate(events):
            values = {shape.stages[p]: results[i][shape.stages[p]] for p in parents if masks[i] >> bits[p, at] & 1}
            if i in dead or (parents and not values):
                continue
            given[i] = event if not parents else values if len(parents) > 1 else next(iter(values.values()))
        outcomes = await stages[stage](list(given.values())) if given else []
        for i, outcome in zip(given, outcomes, strict=True):
            if outcome.error:
                dead.add(i)
                count, first = run.failed.get(stage, (0, outcome.error))
                run.failed[stage] = (count + 1, first)
                continue
            results[i][stage] = outcome.value
            masks[i] |= sum(1 << bit for edge, bit in enumerate(edges) if outcome.edges >> edge & 1)
            if len(run.inputs[stage]) < INPUTS_KEPT:
                run.inputs[stage].append(given[i])
    run.masks.update(mask for i, mask in enumerate(masks) if i not in dead)
    run.events += len(events)
