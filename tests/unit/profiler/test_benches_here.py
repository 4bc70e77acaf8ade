"""Replicas on this host's benches: built, run and timed behind a dispatcher, and clear about what went wrong."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.profiler.bench_messages import Measure
from inferline_stream.profiler.benches import Bench, benches_here
from inferline_stream.profiler.profiling_session import replica_spec
from inferline_stream.profiler.replica_failures import ReplicaFailed
from inferline_stream.profiler.service_times import measure
from inferline_stream.settings import Settings
from tests.support import deadlines

TOPOLOGY = Path(__file__).parent / "odd_stages" / "topology.py"
MACHINE = len(os.sched_getaffinity(0))
KINDS = catalogue([Hardware("whole", 0.1, cores=MACHINE)])
NUMBERS = [b'{"value": %d}' % number for number in range(12)]


@asynccontextmanager
async def bench(stage: str, hardware: str = "cpu-1", start_timeout_s: float = 30.0) -> AsyncIterator[Bench]:
    """A bench of an odd stage, for at most a minute."""
    declared = load_topology(TOPOLOGY).stage(stage)
    spec, soon = replica_spec(TOPOLOGY, declared, KINDS[hardware]), Settings(start_timeout_s=start_timeout_s)
    async with (
        asyncio.timeout(60.0),
        benches_here([spec], soon) as benches,
        benches.bench(declared, spec, crowded=True) as found,
    ):
        yield found


@pytest.mark.parametrize(("hardware", "cores"), [("cpu-1", 1), ("whole", MACHINE)])
async def test_a_stage_is_kept_to_its_cores_and_threads_and_always_called_by_one_thread(
    hardware: str, cores: int
) -> None:
    async with bench("tell", hardware) as replica:
        reported = [json.loads(outcome.value) for outcome in await replica.run(NUMBERS * 3)]
    assert {one["threads"] for one in reported} == {str(cores)}
    assert {len(one["cores"]) for one in reported} == {cores}
    assert len({one["thread"] for one in reported}) == 1


async def test_a_quarter_of_a_core_takes_four_times_as_long_beside_neighbours() -> None:
    async with bench("busy", "cpu-0.25") as replica:
        times_s = await replica.time(NUMBERS, Measure(8, 0.5, 10, 20))
    # What a period lets through at once is no part of the mean over many batches.
    assert sum(times_s) >= 4 * len(times_s) * 0.013 * 0.85


async def test_the_neighbour_hears_no_ctrl_c_and_ends_with_the_profiler() -> None:
    held = (
        "import os, time\n"
        "from inferline_stream.actuators.actuator import ObservedReplica\n"
        "from inferline_stream.pipeline.hardware import Hardware\n"
        "from inferline_stream.profiler.this_host import neighbour\n"
        "replica = ObservedReplica('a', 'a', 'half', 'running', os.getpid(), 0.0, 0)\n"
        "with neighbour(Hardware('half', 0.1, cores=0.5), replica):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60.0)\n"
    )
    profiler = await asyncio.create_subprocess_exec(sys.executable, "-c", held, stdout=asyncio.subprocess.PIPE)
    assert profiler.stdout is not None
    assert await profiler.stdout.readline() == b"held\n"
    (beside,) = map(int, Path(f"/proc/{profiler.pid}/task/{profiler.pid}/children").read_text().split())
    assert os.getsid(beside) == beside
    profiler.kill()
    await profiler.wait()
    await deadlines.until(lambda: not deadlines.alive(beside), "the neighbour has ended")


@pytest.mark.parametrize(("stage", "largest"), [("memory", 4), ("device", 2)])
async def test_memory_that_runs_out_caps_the_batch(stage: str, largest: int) -> None:
    async with bench(stage) as replica:
        times, _, why = await measure(replica, NUMBERS, 64, seconds=0.2)
    assert times[-1].batch_size == largest
    assert why.startswith(f"batches of {2 * largest}: ")


async def test_a_stage_that_loses_results_is_reported() -> None:
    async with bench("forgetful") as replica:
        with pytest.raises(ReplicaFailed, match="returned 3 results for a batch of 4; return one per event"):
            await replica.time(NUMBERS, Measure(4, 0.1, 3, 20))


async def test_an_event_costs_no_less_than_nothing_and_one_that_cannot_be_decoded_fails_alone() -> None:
    async with bench("priceless") as replica:
        *before, undecoded = await replica.run([*NUMBERS, b'{"value": "x"}'])
        assert not any(outcome.error for outcome in before)
        assert "ValidationError" in undecoded.error
        with pytest.raises(
            ReplicaFailed, match=r'less_than_nothing gives -1.0 for sample event .*"value": 1.*0 or more'
        ):
            await replica.weigh(NUMBERS)


async def test_what_a_stage_writes_to_its_dispatcher_is_no_result() -> None:
    async with bench("forges") as replica:
        with pytest.raises(ReplicaFailed, match="it did not answer as a replica does: a frame has format 255"):
            await replica.run([b'{"value": 1}'])


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("exits", r"\Athe licence has expired"),
        ("sleepy", "was not built within 0.5 s; if it needs longer, set INFERLINE_START"),
    ],
)
async def test_a_stage_that_cannot_be_built_is_reported(stage: str, said: str) -> None:
    with pytest.raises(ReplicaFailed, match=said):
        async with bench(stage, start_timeout_s=0.5 if stage == "sleepy" else 30.0):
            pass
