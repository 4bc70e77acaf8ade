"""The sample's events, run once through the whole pipeline: what each stage is given, and which arrows events take."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.shape import FanOut, Paths, Scope, Shape
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
        masks: by scope, events by the set of arrows taken; bit i stands for `Shape.arrows[i]`.
        counts: by position of a stage that gives many results, events by how many it gave.
        failed: by stage, how many events it raised on, and the first of its messages.
        events: how many events were run.
    """

    inputs: dict[str, list[StageInput]]
    masks: defaultdict[Scope, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    counts: defaultdict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
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
        fan_outs = []
        for scope in sorted(self.masks):
            if scope and (counts := self.counts[scope[-1]]):
                ascending = sorted(counts.items())
                shares = tuple(events / counts.total() for _, events in ascending)
                ranked = _ranked(self.masks[scope]) if self.masks[scope] else ((0,), (1.0,))
                fan_outs.append(FanOut(scope[-1], tuple(count for count, _ in ascending), shares, *ranked))
        return Paths(*_ranked(self.masks[()]), tuple(sorted(fan_outs, key=lambda fan_out: fan_out.stage)))


def _ranked(masks: Counter[int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return masks, most frequent first, and the share of each."""
    ranked = sorted(masks.items(), key=lambda item: (-item[1], item[0]))
    return tuple(mask for mask, _ in ranked), tuple(count / masks.total() for _, count in ranked)


async def run_sample(
    shape: Shape,
    stages: Mapping[str, RunEvents],
    events: Sequence[bytes],
    seconds: float,
    progress: Callable[[float], None] = lambda share: None,
    *,
    sources: Sequence[int] = (),
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
        sources: number of each event's source, where there are several.
        chunk: events to begin with.

    Raises:
        InvalidTopology: a stage is reached by no event, or raises on every one.
    """
    run = SampleRun({stage: [] for stage in shape.stages})
    chosen = _spread(list(zip(events, sources or [0] * len(events), strict=True)))
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
        if count and not run.masks[()]:
            raise InvalidTopology(f"{message}; stage {stage!r} raised on {count} of {run.events} sample events")
    for stage in stages:
        if not run.inputs[stage]:
            raise InvalidTopology(
                f"stage {stage!r}: none of the {run.events} sample events reached it; add some that do"
            )
    return run


def within_bytes(inputs: Sequence[StageInput]) -> list[StageInput]:
    """Return the first inputs that come to `INPUT_BYTES` together at most; one in any case."""
    fitting = sum(total <= INPUT_BYTES for total in itertools.accumulate(map(_size, inputs)))
    return list(inputs[: max(1, fitting)])


def _is_small(event: StageInput) -> bool:
    return _size(event) <= SAMPLE_BYTES


def _size(event: StageInput) -> int:
    if isinstance(event, bytes):
        return len(event)
    return sum(len(part or b"") for part in (event.values() if isinstance(event, dict) else event))


def _spread(events: Sequence[tuple[bytes, int]]) -> Sequence[tuple[bytes, int]]:
    """At most `MOST_EVENTS` events, in an order in which every beginning is drawn evenly: files tend to be sorted.

    Fractional parts of multiples of the golden section leave no large gap anywhere, at any time.
    """
    ranked = sorted(range(len(events)), key=lambda i: i * _GOLDEN % 1.0)
    return [events[i] for i in ranked[:MOST_EVENTS]]


@dataclass(slots=True)
class _Items:
    """Events of a chunk in one scope: the source's own, or the results of a stage that gives many.

    Args:
        of: by item, the event that it is a result of, by place in the scope before.
        masks: arrows taken.
        results: by stage.
        dead: those that failed.
    """

    of: list[int]
    masks: list[int] = field(default_factory=list)
    results: list[dict[str, bytes]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)


async def _run_chunk(
    shape: Shape, stages: Mapping[str, RunEvents], chosen: Sequence[tuple[bytes, int]], run: SampleRun
) -> None:
    events, entered = [event for event, _ in chosen], [shape.source_bit(source) for _, source in chosen]
    items: dict[Scope, _Items] = {(): _Items(list(range(len(events))), entered, [{} for _ in events])}
    for at, stage in enumerate(shape.stages):
        if stage not in stages:
            continue
        scope = shape.scopes()[at]
        own = items.setdefault(scope, _Items([]))
        given = _gathered(shape, at, items) if shape.gathers(at) else _given(shape, at, own, events)
        outcomes = await stages[stage](list(given.values())) if given else []
        parts = items.setdefault((*scope, at), _Items([])) if at in shape.many else None
        for i, outcome in zip(given, outcomes, strict=True):
            if outcome.error:
                own.dead.add(i)
                count, first = run.failed.get(stage, (0, outcome.error))
                run.failed[stage] = (count + 1, first)
                continue
            if parts is not None:
                own.results[i][stage] = b""
                run.counts[at].update([len(outcome.many or ())])
            for value, edges in ((outcome.value, outcome.edges),) if outcome.many is None else outcome.many:
                mask = sum(1 << bit for edge, bit in enumerate(shape.children(at)) if edges >> edge & 1)
                if parts is not None:
                    parts.of.append(i)
                    parts.masks.append(mask)
                    parts.results.append({stage: value})
                else:
                    own.results[i][stage] = value
                    own.masks[i] |= mask
            if len(run.inputs[stage]) < INPUTS_KEPT:
                run.inputs[stage].append(given[i])
    for scope, found in items.items():
        run.masks[scope].update(mask for i, mask in enumerate(found.masks) if i not in found.dead)
    run.events += len(events)


def _given(shape: Shape, at: int, own: _Items, events: Sequence[bytes]) -> dict[int, StageInput]:
    """Return what a stage gets of each item that visits it."""
    bits = {shape.arrows[bit].parent: bit for bit in shape.parents(at)}
    given: dict[int, StageInput] = {}
    for i in (i for i in range(len(own.of)) if i not in own.dead):
        values = {
            shape.stages[p]: own.results[i][shape.stages[p]] for p, bit in bits.items() if own.masks[i] >> bit & 1
        }
        if not bits:
            if at in shape.entries(shape.source_of(own.masks[i])):
                given[i] = events[i]
        elif values:
            given[i] = values if len(bits) > 1 else next(iter(values.values()))
    return given


def _gathered(shape: Shape, at: int, items: Mapping[Scope, _Items]) -> dict[int, StageInput]:
    """Return the results of every event that a stage gathers, of which none died."""
    parent = shape.arrows[shape.parents(at)[0]].parent
    scope = shape.scope_after(parent)
    own, parts = items[scope[:-1]], items.get(scope, _Items([]))
    found: dict[int, list[bytes | None]] = {
        i: [] for i in range(len(own.of)) if shape.stages[scope[-1]] in own.results[i] and i not in own.dead
    }
    for i, of in enumerate(parts.of):
        if i in parts.dead:
            found.pop(of, None)
            own.dead.add(of)
        elif of in found and shape.stages[parent] in parts.results[i]:
            found[of].append(parts.results[i][shape.stages[parent]])
    return dict(found)
