"""Running the sample once: what each stage is given, and which arrows events take."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.shape import Arrow, Shape, rates, visit_ratios, with_rates
from inferline_stream.profiler.bench_messages import EventOutcome
from inferline_stream.profiler.sample_run import INPUTS_KEPT, MOST_EVENTS, SAMPLE_BYTES, run_sample

DIAMOND = Shape(
    ("entry", "odd", "third", "join"),
    (Arrow(0, 1, True), Arrow(0, 2, True), Arrow(0, 3), Arrow(1, 3), Arrow(2, 3)),
)


class Replica:
    """Runs one stage in this process; a stage is a function from an input to a result and the edges that it takes."""

    def __init__(self, stage: Callable[[StageInput], tuple[bytes, int]], pause_s: float = 0.0) -> None:
        self.stage = stage
        self.pause_s = pause_s
        self.given: list[StageInput] = []

    async def __call__(self, inputs: Sequence[StageInput]) -> list[EventOutcome]:
        self.given += inputs
        await asyncio.sleep(self.pause_s)
        outcomes = []
        for event in inputs:
            try:
                outcomes.append(EventOutcome(*self.stage(event)))
            except ValueError as error:
                outcomes.append(EventOutcome(b"", error=str(error)))
        return outcomes


ODD, THIRD, JOIN = 1, 2, 4
"""Edges of ``entry``."""


def replicas() -> dict[str, Replica]:
    """Numbers: odd ones visit ``odd``, multiples of three ``third``; the join lists what it was given."""

    def entry(event: StageInput) -> tuple[bytes, int]:
        number = int(event)
        return event, ODD * (number % 2) | THIRD * (number % 3 == 0) | JOIN

    return {
        "entry": Replica(entry),
        "odd": Replica(lambda event: (b"odd " + event, 1)),
        "third": Replica(lambda event: (b"third " + event, 1)),
        "join": Replica(lambda parts: (b"/".join(parts[name] for name in sorted(parts)), 0)),
    }


def events(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_stages_without_a_replica_are_left_out_and_the_others_are_given_the_same() -> None:
    whole = await run_sample(DIAMOND, replicas(), events(100), seconds=10)
    part = {name: replica for name, replica in replicas().items() if name in ("entry", "third")}
    run = await run_sample(DIAMOND, part, events(100), seconds=10)
    assert run.inputs == {**whole.inputs, "odd": [], "join": []}


async def test_paths_are_those_that_each_event_takes_alone() -> None:
    run = await run_sample(DIAMOND, replicas(), events(100), seconds=10)
    expected: Counter[int] = Counter()
    for number in range(100):
        odd, third = number % 2 == 1, number % 3 == 0
        expected[odd << 0 | third << 1 | 1 << 2 | odd << 3 | third << 4] += 1
    assert run.masks[()] == expected
    assert run.events == 100
    assert dict(zip(run.paths.masks, run.paths.weights, strict=True)) == pytest.approx(
        {mask: count / 100 for mask, count in expected.items()}
    )


async def test_events_enter_where_their_source_does() -> None:
    shape = Shape(("left", "right", "both"), (Arrow(0, 2), Arrow(1, 2)), sources=((0,), (1,)))
    of = {name: Replica(lambda event: (event, 1)) for name in ("left", "right")}
    of["both"] = Replica(lambda parts: (b"", 0))
    run = await run_sample(shape, of, events(40), seconds=10, sources=[int(n >= 30) for n in range(40)])
    assert sorted(map(int, of["right"].given)) == list(range(30, 40))
    assert len(of["both"].given) == 40
    assert dict(zip(run.paths.masks, run.paths.weights, strict=True)) == {0b001: 0.75, 0b110: 0.25}
    assert rates(shape, with_rates(shape, run.paths, [0.1, 0.9])) == pytest.approx([0.1, 0.9])


async def test_visit_ratios_are_visits_over_events() -> None:
    """InferLine §4.1, counted where the visits happen."""
    of = replicas()
    run = await run_sample(DIAMOND, of, events(60), seconds=10)
    for stage, ratio in visit_ratios(DIAMOND, run.paths).items():
        assert ratio == pytest.approx(len(of[stage].given) / 60)


async def test_each_stage_is_given_its_parents_results() -> None:
    of = replicas()
    await run_sample(DIAMOND, of, events(12), seconds=10)
    assert sorted(map(int, of["odd"].given)) == [1, 3, 5, 7, 9, 11]
    joins = {int(parts["entry"]): parts for parts in of["join"].given}
    assert joins[4] == {"entry": b"4"}
    assert joins[9] == {"entry": b"9", "odd": b"odd 9", "third": b"third 9"}


async def test_inputs_are_kept_for_measuring_up_to_a_limit() -> None:
    run = await run_sample(DIAMOND, replicas(), events(1500), seconds=10)
    assert len(run.inputs["entry"]) == INPUTS_KEPT
    assert len(run.inputs["third"]) == 500
    assert run.inputs["join"][0].keys() >= {"entry"}


async def test_a_large_sample_is_drawn_evenly_from_the_whole_file() -> None:
    of = replicas()
    run = await run_sample(DIAMOND, of, events(3 * MOST_EVENTS), seconds=60)
    assert run.events == MOST_EVENTS
    for part in range(10):
        low, high = part * 3 * MOST_EVENTS // 10, (part + 1) * 3 * MOST_EVENTS // 10
        drawn = sum(low <= int(event) < high for event in of["entry"].given)
        assert drawn == pytest.approx(MOST_EVENTS / 10, abs=3)


async def test_a_slow_stage_ends_the_run_when_the_time_is_up() -> None:
    of = replicas()
    of["odd"].pause_s = 0.1
    run = await run_sample(DIAMOND, of, events(4000), seconds=0.15)
    assert 32 <= run.events < 1000


async def test_the_run_goes_on_until_every_stage_was_reached() -> None:
    def rare(event: StageInput) -> tuple[bytes, int]:
        return event, ODD | JOIN | THIRD * (int(event) == 700)

    of = {**replicas(), "entry": Replica(rare)}
    run = await run_sample(DIAMOND, of, events(1000), seconds=0.0001)
    assert len(run.inputs["third"]) == 1


async def test_a_stage_that_no_event_reaches_is_reported() -> None:
    of = {**replicas(), "entry": Replica(lambda event: (event, JOIN))}
    with pytest.raises(InvalidTopology, match="stage 'odd': none of the 50 sample events reached it"):
        await run_sample(DIAMOND, of, events(50), seconds=10)


async def test_failed_events_are_counted_and_go_no_further() -> None:
    def picky(event: StageInput) -> tuple[bytes, int]:
        if int(event) % 10 == 7:
            raise ValueError(f"{event.decode()} is unlucky")
        return b"odd " + event, 1

    of = {**replicas(), "odd": Replica(picky)}
    run = await run_sample(DIAMOND, of, events(100), seconds=10)
    count, message = run.failed["odd"]
    assert count == 10
    assert message.endswith("7 is unlucky")
    assert len(of["join"].given) == 90
    assert run.masks[()].total() == 90
    assert not any(int(event) % 10 == 7 for event in run.inputs["odd"])


async def test_a_stage_that_fails_on_everything_is_reported_with_its_first_words() -> None:
    def broken(event: StageInput) -> tuple[bytes, int]:
        raise ValueError("no model")

    of = {**replicas(), "entry": Replica(broken)}
    with pytest.raises(InvalidTopology, match="no model; stage 'entry' raised on 40 of 40 sample events"):
        await run_sample(DIAMOND, of, events(40), seconds=10)


async def test_a_small_input_that_each_stage_has_processed_is_kept_to_probe_replicas_with() -> None:
    of = replicas()
    of["odd"] = Replica(lambda event: (bytes(SAMPLE_BYTES), 1))

    def fails_on_1(event: StageInput) -> tuple[bytes, int]:
        if event in (b"0", b"1"):
            raise ValueError("no")
        return event, ODD * (int(event) % 2) | JOIN

    of["entry"] = Replica(fails_on_1)
    run = await run_sample(DIAMOND, {name: of[name] for name in ("entry", "odd", "join")}, events(9), seconds=10)
    assert run.samples["odd"] in (b"3", b"5", b"7")
    assert run.samples["join"] in [{"entry": b"%d" % number} for number in (2, 4, 6, 8)]
    assert "third" not in run.samples
