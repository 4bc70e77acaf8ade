"""A session of the profiler, with stages that run here and a cluster that is this test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import cast

import pytest

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.topology import Stage
from inferline_stream.profiler.bench_messages import EventOutcome, Measure, Times
from inferline_stream.profiler.benches import Benches
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.profile_store import Known, ProfileStore
from inferline_stream.profiler.profiling_options import Options, Progress, Steps, pairs_to_profile
from inferline_stream.profiler.profiling_session import OpenBenches, ProfilingSession, disturbance
from inferline_stream.profiler.replica_failures import NoPlace, ReplicaFailed
from inferline_stream.settings import Settings

EVENTS = [b"%d" % number for number in range(20)]
MACHINE = Machine("Test CPU", 2)

HEAD = """
from inferline_stream import Hardware, Pipeline, ServerUnavailable, Stage, Topic

def same(values: list[bytes]) -> list[bytes]:
    return values
"""
TAIL = """
pipeline = Pipeline("p", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[each for each in list(globals().values()) if isinstance(each, Stage)],
                    hardware=[Hardware("full", 0.5, cores=1), Hardware("core", 0.1, cores=1)])
"""


async def measured(
    folder: Path,
    stages: str,
    open_benches: OpenBenches | None = None,
    products: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> tuple[Known, list[str]]:
    """Measure all that a topology of these stages lacks; return what is known then, and what was noted."""
    (topology := folder / "topology.py").write_text(HEAD + stages + TAIL)
    pipeline, notes = load_topology(topology), list[str]()
    platform = "local" if open_benches is None else "kubernetes"
    options = Options(sample_s=0.2, stage_s=0.05, platform=platform, products=products)
    store = ProfileStore(pipeline, folder, EVENTS, MACHINE, folder / "profiles", platform=options.platform)
    known = store.load()
    pairs, _ = pairs_to_profile(pipeline, known, options, MACHINE, in_cluster=open_benches is not None)

    def note(progress: Progress) -> None:
        notes.extend([progress.note] if progress.note else [])

    steps = Steps(note, 1)
    of = ProfilingSession(pipeline, topology, Settings(), options, steps, machine=MACHINE, open_benches=open_benches)
    async with of as session:
        await session.measure(EVENTS, pairs, known, store)
        if open_benches is not None:
            await session.measure_network(known)
    return known, notes


async def test_a_server_that_does_not_answer_a_stage_as_it_is_built_is_no_fault_of_the_topology(tmp_path: Path) -> None:
    stage = """
class Asks:
    def __init__(self) -> None:
        raise ServerUnavailable("http://models:8000 does not answer")

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return values

only = Stage("only", Asks, hardware=["core"], max_batch_size=1)
"""
    with pytest.raises(Unreachable, match="http://models:8000 does not answer; stage 'only', declared at "):
        await measured(tmp_path, stage)


class There:
    """A cluster that has no place on some kinds."""

    def __init__(self, *full: str) -> None:
        self.full = full

    async def __aenter__(self) -> Benches:
        return cast("Benches", self)

    async def __aexit__(self, *error: object) -> None:
        pass

    @asynccontextmanager
    async def bench(self, stage: Stage, spec: ReplicaSpec) -> AsyncIterator[Bench]:
        if spec.hardware.name in self.full:
            raise NoPlace(f"no room for {stage.name} on {spec.hardware.name}")
        yield Bench(spec.hardware.price_per_hour)


class Bench:
    """A bench on which every batch takes a millisecond, and the network some time more."""

    start_up_s, waited_share, seen = 1.0, 0.0, None

    def __init__(self, network_s: float) -> None:
        self.network_s = network_s

    async def run(self, inputs: Sequence[StageInput]) -> list[EventOutcome]:
        return [EventOutcome(bytes(each)) for each in inputs if isinstance(each, bytes)]

    async def weigh(self, inputs: object, *, emulated: bool = False) -> None:
        return None

    async def time(self, inputs: object, order: Measure) -> list[float]:
        return [0.001] * order.fewest

    async def timed(self, inputs: object, order: Measure) -> Times:
        return Times([0.001 + self.network_s] * order.fewest, [self.network_s] * order.fewest)


NEEDS_GPU = """
class NeedsGpu:
    def __init__(self) -> None:
        raise RuntimeError("no CUDA device is available")

    def __call__(self, values: list[bytes]) -> list[bytes]:
        return values

only = Stage("only", NeedsGpu, hardware=["full", "emulated-cpu", "core"], emulated={1: "1ms"}, max_batch_size=1)
"""


async def test_a_stage_that_cannot_be_built_here_runs_its_sample_on_a_kind_that_has_room(
    tmp_path: Path,
) -> None:
    known, notes = await measured(tmp_path, NEEDS_GPU, lambda: There("full"))
    assert known.profiles.keys() == {("only", "core")}
    assert [note for note in notes if "leave it out" in note] == [
        "no room for only on full. Plans leave it out until it is profiled",
        "stage 'only' on 'emulated-cpu': it is measured here, where the stage cannot be built. Plans leave it out "
        "until it is profiled",
    ]


async def test_a_stage_that_can_be_built_neither_here_nor_there_for_want_of_room_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoPlace, match="no room for only on full\nno room for only on core"):
        await measured(tmp_path, NEEDS_GPU, lambda: There("full", "core"))


@pytest.mark.parametrize("kinds", [["full", "core"], ["core", "full"]])
async def test_the_network_is_that_of_the_cheapest_kind_that_has_room_whichever_was_measured_last(
    tmp_path: Path, kinds: list[str]
) -> None:
    stage = f"only = Stage('only', same, hardware={kinds}, max_batch_size=1)\n"
    known, _ = await measured(tmp_path, stage, There)
    assert known.network_s["kubernetes"] == 0.1, "what it adds there is its price"
    emulated = f"only = Stage('only', same, hardware={[*kinds, 'emulated-cpu']}, emulated={{1: '1ms'}})\n"
    with pytest.raises(StageFailed):
        await measured(tmp_path, stage, lambda: There("core", "full"))
    known, _ = await measured(tmp_path, emulated, lambda: There("core", "emulated-cpu"))
    assert known.network_s["kubernetes"] == 0.5


class Products(There):
    """A cluster whose nodes have two products, of which each is the faster one at some batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        small, large = {1: 0.004, 2: 0.006, 4: 0.009}, {1: 0.003, 2: 0.007, 4: 0.008, 8: 0.01}
        self.times_s = {"A100-40": small, "A100-80": large, "A100-NVL": {1: 0.005}}
        self.asked: list[Hardware] = []

    @asynccontextmanager
    async def bench(self, stage: Stage, spec: ReplicaSpec) -> AsyncIterator[Bench]:
        self.asked.append(spec.hardware)
        yield TimedBench(self.times_s.get(str(spec.hardware.gpu_model), {1: 1.0}))


class TimedBench(Bench):
    """Takes what a table says, and has no memory for batches beyond it."""

    def __init__(self, times_s: Mapping[int, float]) -> None:
        super().__init__(0.001)
        self.times_s = times_s

    async def time(self, inputs: object, order: Measure) -> list[float]:
        if order.batch_size not in self.times_s:
            raise ReplicaFailed("out of memory", memory=True)
        return [self.times_s[order.batch_size]] * order.fewest


async def test_a_kind_of_several_products_is_measured_on_each_and_planned_by_the_slowest(tmp_path: Path) -> None:
    stage = "only = Stage('only', same, hardware=['full'], max_batch_size=8)\n"
    cluster, two = Products(), {"full": ("A100-40", "A100-80")}
    known, _ = await measured(tmp_path, stage, lambda: cluster, two)
    assert [(kind.gpu_model, kind.name) for kind in cluster.asked] == [("A100-40", "full"), ("A100-80", "full")]
    profile = known.profiles["only", "full"]
    assert {e.batch_size: e.mean_s for e in profile.service_times} == pytest.approx({1: 0.004, 2: 0.007, 4: 0.009})
    assert (profile.hardware, profile.products) == ("full", two["full"])
    cluster.asked.clear()
    await measured(tmp_path, stage, lambda: cluster, two)
    await measured(tmp_path, stage, lambda: cluster, {"full": ("A100-40",)})
    assert {kind.gpu_model for kind in cluster.asked} == {None}, "the network alone was measured again"
    again, _ = await measured(tmp_path, stage, lambda: cluster, {"full": (*two["full"], "A100-NVL")})
    assert [entry.mean_s for entry in again.profiles["only", "full"].service_times] == pytest.approx([0.005])


NOWHERE = """
both = Stage("both", same, hardware=["emulated-cpu", "full"], emulated={1: "1ms"}, max_batch_size=1)
only = Stage("only", same, hardware=["full"], after=[both], max_batch_size=1)
"""


async def test_what_was_measured_is_kept_where_another_stage_has_no_place_at_all(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"\Ano room for only on full\Z"):
        await measured(tmp_path, NOWHERE, lambda: There("full"))
    pipeline = load_topology(tmp_path / "topology.py")
    store = ProfileStore(pipeline, tmp_path, EVENTS, MACHINE, tmp_path / "profiles", platform="kubernetes")
    assert store.load().profiles.keys() == {("both", "emulated-cpu")}


@pytest.mark.parametrize(
    ("cores", "waited_share", "said"),
    # Of shares as measured on two cores, alone and beside the tests of several people.
    [(0.25, 0.16, ""), (0.1, 0.19, ""), (0.5, 0.40, "40%"), (0.25, 0.51, "51%"), (1.0, 0.05, ""), (1.0, 0.3, "30%")],
)
def test_a_measurement_that_others_disturbed_is_said_and_one_that_the_neighbour_explains_is_not(
    cores: float, waited_share: float, said: str
) -> None:
    why = disturbance(Hardware("share", 0.1, cores=cores), waited_share)
    assert bool(why) == bool(said)
    assert said in why


def test_a_note_says_how_far_the_step_under_way_has_come() -> None:
    reported: list[Progress] = []
    steps = Steps(reported.append, 2)
    steps.begin("embed on cpu-1")
    steps.within(0.75)
    steps.note("batch sizes above 8 do not fit")
    assert [(progress.done, progress.note) for progress in reported] == [
        (0.0, ""),
        (0.75, ""),
        (0.75, "batch sizes above 8 do not fit"),
    ]
