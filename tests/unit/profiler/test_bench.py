"""A replica on the bench: timed behind a dispatcher's process, and clear about what went wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.profiler.bench import ReplicaBench
from inferline_stream.profiler.service_times import measure
from inferline_stream.profiler.worker_messages import Measure, Times
from inferline_stream.profiler.worker_process import WorkerFailed, WorkerProcess

TOPOLOGY = Path(__file__).parent / "odd_stages" / "topology.py"
KINDS = catalogue()
NUMBERS = [b'{"value": %d}' % number for number in range(12)]


@asynccontextmanager
async def bench(stage: str, hardware: str = "cpu-1", start_timeout_s: float = 30.0) -> AsyncIterator[ReplicaBench]:
    """A bench of an odd stage, for at most a minute."""
    confinement = confined(Isolation("none"), TOPOLOGY, Hardware("worker", 0.0), "")
    spec = ReplicaSpec("", stage, str(TOPOLOGY), KINDS[hardware])
    routes = routes_of(load_topology(TOPOLOGY), stage)
    async with (
        asyncio.timeout(60.0),
        WorkerProcess(TOPOLOGY, "busy", confinement, start_timeout_s=30.0) as weigher,
        ReplicaBench(spec, routes, weigher, start_timeout_s=start_timeout_s) as found,
    ):
        yield found


def order(size: int) -> Measure:
    return Measure(NUMBERS, KINDS["cpu-1"], {}, size, 0.1, 3, 20)


async def test_service_times_are_those_of_the_stage() -> None:
    async with bench("busy") as replica:
        for size in (1, 8):
            times_s = (await replica.ask(order(size), Times)).service_s
            # How much longer depends on who else uses the machine; how much shorter does not.
            assert len(times_s) >= 3
            assert 0.005 + 0.001 * size <= min(times_s) < 1.0
        assert replica.start_up_s > 0


async def test_a_quarter_of_a_core_takes_four_times_as_long_beside_neighbours() -> None:
    async with bench("busy", "cpu-0.25") as replica:
        times_s = (await replica.ask(Measure(NUMBERS, KINDS["cpu-0.25"], {}, 8, 0.5, 10, 20), Times)).service_s
    # What a period lets through at once is no part of the mean over many batches.
    assert sum(times_s) >= 4 * len(times_s) * 0.013 * 0.85


@pytest.mark.parametrize(("stage", "largest"), [("memory", 4), ("device", 2), ("killed", 2)])
async def test_memory_that_runs_out_caps_the_batch(stage: str, largest: int) -> None:
    async with bench(stage) as replica:
        times, _, why = await measure(replica, KINDS["cpu-1"], NUMBERS, 64, seconds=0.2)
    assert times[-1].batch_size == largest
    assert why.startswith(f"batches of {2 * largest}: ")


async def test_a_stage_that_loses_results_is_reported() -> None:
    async with bench("forgetful") as replica:
        with pytest.raises(WorkerFailed, match="returned 3 results for a batch of 4; return one per event"):
            await replica.ask(order(4), Times)


async def test_a_replica_that_ended_is_replaced() -> None:
    async with bench("killed") as replica:
        with pytest.raises(WorkerFailed) as raised:
            await replica.ask(order(4), Times)
        assert raised.value.memory
        assert (await replica.ask(order(1), Times)).service_s


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("needs-model", "No module named 'a_model_that_nobody_has'"),
        ("exits", "its process ended with exit code 3: the licence has expired|the licence has expired"),
        ("sleepy", "was not built within 0.5 s; if it needs longer, set INFERLINE_START"),
    ],
)
async def test_a_stage_that_cannot_be_built_is_reported(stage: str, said: str) -> None:
    async with bench(stage, start_timeout_s=0.5 if stage == "sleepy" else 30.0) as replica:
        with pytest.raises(WorkerFailed, match=said):
            await replica.ask(order(1), Times)
