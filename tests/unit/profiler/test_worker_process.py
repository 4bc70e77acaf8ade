"""Worker processes: kept to their cores, timed as a replica would be, and clear about what went wrong."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.profiler.topology_check import building_problems
from inferline_stream.profiler.worker_messages import Measure, Outcomes, ProcessEvents, Times, Weigh, Weights
from inferline_stream.profiler.worker_process import WorkerFailed, WorkerProcess
from inferline_stream.settings import Settings

TOPOLOGY = Path(__file__).parent / "odd_stages" / "topology.py"
KINDS = catalogue()
NUMBERS = [b'{"value": %d}' % number for number in range(12)]


@asynccontextmanager
async def start(stage: str, cores: float = 1, start_timeout_s: float = 30.0) -> AsyncIterator[WorkerProcess]:
    """A worker of an odd stage, for at most a minute."""
    confinement = confined(Isolation("none"), TOPOLOGY, Hardware("worker", 0.0, cores=cores), "")
    worker = WorkerProcess(TOPOLOGY, stage, confinement, start_timeout_s=start_timeout_s)
    async with asyncio.timeout(60.0), worker:
        yield worker


def order(hardware: str, size: int, emulated_s: dict[int, float] | None = None) -> Measure:
    return Measure(NUMBERS, KINDS[hardware], emulated_s or {}, size, 0.1, 3, 20)


async def test_a_stage_is_kept_to_its_cores_and_threads_and_always_called_by_one_thread() -> None:
    async with start("tell") as worker:
        outcomes = (await worker.ask(ProcessEvents(NUMBERS * 3), Outcomes)).outcomes
        reported = [json.loads(outcome.value) for outcome in outcomes]
    assert {one["threads"] for one in reported} == {"1"}
    assert {len(one["cores"]) for one in reported} == {1}
    assert len({one["thread"] for one in reported}) == 1
    assert worker.start_up_s > 0
    async with start("tell", cores=len(os.sched_getaffinity(0))) as worker:
        (outcome,) = (await worker.ask(ProcessEvents(NUMBERS[:1]), Outcomes)).outcomes
        assert json.loads(outcome.value)["cores"] == sorted(os.sched_getaffinity(0))


async def test_events_cost_what_the_topology_says() -> None:
    async with start("priced") as worker:
        assert (await worker.ask(Weigh(NUMBERS), Weights)).weights == list(range(12))
        assert (await worker.ask(Weigh(NUMBERS, emulated=True), Weights)).weights is None
    async with start("busy") as worker:
        assert (await worker.ask(Weigh(NUMBERS), Weights)).weights is None


async def test_a_cost_that_cannot_be_is_refused_with_its_event() -> None:
    async with start("priceless") as worker:
        with pytest.raises(
            WorkerFailed, match=r'less_than_nothing gives -1.0 for sample event .*"value": 1.*0 or more'
        ):
            await worker.ask(Weigh(NUMBERS), Weights)


async def test_emulated_hardware_takes_the_declared_time() -> None:
    async with start("busy") as worker:
        times_s = (await worker.ask(order("emulated-cpu", 4, {1: 0.02, 8: 0.055}), Times)).service_s
    assert 0.035 <= min(times_s) < 1.0


async def test_an_event_that_cannot_be_decoded_fails_alone() -> None:
    async with start("busy") as worker:
        good, bad, other = (
            await worker.ask(ProcessEvents([NUMBERS[0], b'{"value": "x"}', NUMBERS[1]]), Outcomes)
        ).outcomes
    assert (good.error, other.error) == ("", "")
    assert json.loads(other.value) == {"value": 1}
    assert "ValidationError" in bad.error


async def test_an_event_that_the_stage_raises_on_fails_alone() -> None:
    async with start("picky") as worker:
        outcomes = (await worker.ask(ProcessEvents(NUMBERS), Outcomes)).outcomes
    assert [i for i, outcome in enumerate(outcomes) if outcome.error] == [7]
    assert re.fullmatch(rf"{TOPOLOGY}:\d+ in picky: ValueError: seven is unlucky", outcomes[7].error)


@pytest.mark.parametrize("value", [0, 1])
async def test_what_a_stage_writes_to_its_workers_answers_is_no_answer(value: int) -> None:
    async with start("forges") as worker:
        with pytest.raises(WorkerFailed, match="its process did not answer ProcessEvents as a worker does"):
            await worker.ask(ProcessEvents([b'{"value": %d}' % value]), Outcomes)
        assert worker.ended


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("needs-model", "No module named 'a_model_that_nobody_has'"),
        ("exits", "its process ended with exit code 3: the licence has expired"),
        ("nobody", "nobody"),
    ],
)
async def test_a_stage_that_cannot_be_built_is_reported(stage: str, said: str) -> None:
    with pytest.raises(WorkerFailed, match=said):
        async with start(stage):
            pass


async def test_a_stage_that_takes_too_long_to_build_is_given_up() -> None:
    with pytest.raises(WorkerFailed, match=r"was not built within 0.5 s; if it needs longer, set INFERLINE_START"):
        async with start("sleepy", start_timeout_s=0.5):
            pass


async def test_check_names_every_stage_that_cannot_be_built() -> None:
    pipeline = load_topology(TOPOLOGY)
    pipeline.stages = tuple(map(pipeline.stage, ("busy", "needs-model", "exits")))
    found = await building_problems(pipeline, TOPOLOGY, Settings(start_timeout_s=30.0))
    assert len(found) == 2
    for problem, stage in zip(found, ("needs-model", "exits"), strict=True):
        assert problem.startswith(f"{TOPOLOGY}:")
        assert f"stage {stage!r}" in problem
        assert "cannot be built in a worker process" in problem
    assert re.match(rf"{TOPOLOGY}:\d+ in __init__: NeedsModel cannot be built: ModuleNotFoundError", found[0])
