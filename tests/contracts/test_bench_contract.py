"""A stage on a bench: on this host, on Ray and on Kubernetes it is built, run, weighed and timed in the same way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ray.util import list_named_actors as ray_actors

from inferline_stream.actuators.actuator import Actuator, ProcessTerms
from inferline_stream.actuators.ray import RayActuator
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler.bench_dispatcher import MODULE
from inferline_stream.profiler.bench_messages import EventOutcome, Measure
from inferline_stream.profiler.benches import Benches, MakeActuator, benches_here, open_benches
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options
from inferline_stream.profiler.profiling_session import replica_spec
from inferline_stream.profiler.replica_failures import NoPlace, ReplicaFailed
from inferline_stream.profiler.service_times import measure
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.test_cluster_profiles import on
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet

TOPOLOGY = Path(__file__).with_name("benched.py")
PIPELINE = load_topology(TOPOLOGY)
DEADLINE_S = 120.0
Engine = tuple[str, MakeActuator | None]


def spec_of(stage: str) -> ReplicaSpec:
    (kind,) = PIPELINE.stage(stage).hardware
    return replica_spec(TOPOLOGY, PIPELINE.stage(stage), catalogue(PIPELINE.hardware)[kind])


@pytest.fixture(params=["local", "ray", "kubernetes"])
async def engine(request: pytest.FixtureRequest, embedded_broker: KafkaServer, tmp_path: Path) -> AsyncIterator[Engine]:
    """Name of an engine, and what starts processes on it, for a while; None for this host."""

    def ray(names: Names) -> contextlib.AbstractAsyncContextManager[Actuator]:
        namespace = f"{names.prefix}{names.pipeline}"
        return contextlib.aclosing(
            RayActuator(namespace, ProcessTerms(str(tmp_path), drain_timeout_s=1.0, dispatcher_module=MODULE))
        )

    async with asyncio.timeout(DEADLINE_S), contextlib.AsyncExitStack() as stack:
        if request.param == "local":
            yield "local", None
        elif request.param == "ray":
            request.getfixturevalue("ray_cluster")
            yield "ray", ray
        else:
            api = await stack.enter_async_context(KubeApi())
            client = await stack.enter_async_context(client_of(api))
            api.node.run = Kubelet(tmp_path, api)
            yield "kubernetes", on(api, client, embedded_broker)


def opened(
    engine: Engine, broker: KafkaServer, *stages: str, start_timeout_s: float = 60.0
) -> contextlib.AbstractAsyncContextManager[Benches]:
    """Benches on an engine."""
    specs, settings, make = list(map(spec_of, stages)), Settings(start_timeout_s=start_timeout_s), engine[1]
    if make is None:
        return benches_here(specs, settings)
    return open_benches(Names("benched"), broker.bootstrap_servers, make, specs, settings)


async def test_a_stage_is_run_weighed_and_timed_and_so_is_emulated_hardware(
    engine: Engine, embedded_broker: KafkaServer
) -> None:
    events = [b"%d" % number for number in range(12)]
    async with (
        opened(engine, embedded_broker, "work") as benches,
        benches.bench(PIPELINE.stage("work"), spec_of("work")) as bench,
    ):
        *before, failed = await bench.run(events[:8])
        assert before == [EventOutcome(event, edges=1) for event in events[:7]]
        assert f"{TOPOLOGY}:" in failed.error
        assert failed.error.endswith("in works: ValueError: seven")
        assert await bench.weigh(events) == list(map(float, range(12)))
        assert await bench.weigh(events, emulated=True) is None
        kept = events[:7]
        for size, order in ((1, Measure(1, 0.1, 3, 20)), (3, Measure(1, 0.1, 3, 20, sleeps_s=0.03))):
            times_s = await bench.time(kept, order)
            assert len(times_s) >= 3
            # How much longer depends on who else uses the machine; how much shorter does not.
            assert 0.009 * size <= min(times_s) < 1.0
        times, _, why = await measure(bench, kept, 8, seconds=2.0)  # of fewer batches two slow ones hide the gain
        assert [entry.batch_size for entry in times] == [1, 2, 4]
        assert why.startswith("batches of 8: its process was killed, as the system does when memory runs out")
        assert await bench.time(kept, Measure(1, 0.0, 1, 1)), "another replica has taken its place"
        assert bench.start_up_s > 0


async def test_a_stage_that_cannot_be_built_says_why_with_the_users_own_line(
    engine: Engine, embedded_broker: KafkaServer
) -> None:
    why = r"benched.py:\d+ in __init__: NeedsModel cannot be built: .*No module named 'a_model_that_nobody_has'\Z"
    async with opened(engine, embedded_broker, "broken") as benches:
        with pytest.raises(ReplicaFailed, match=why):
            async with benches.bench(PIPELINE.stage("broken"), spec_of("broken")):
                pass


ON_CORES = """
import time
from inferline_stream import Hardware, Pipeline, Stage, Topic

def works(values: list[bytes]) -> list[bytes]:
    time.sleep(0.01)
    return values

work = Stage("work", works, hardware=["core"], max_batch_size=2)
pipeline = Pipeline("on-cores", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[work], hardware=[Hardware("core", 0.1, cores=1)])
"""


async def test_stages_are_profiled_where_they_will_run_with_what_the_way_there_adds_to_a_batch(
    engine: Engine, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    platform, make = engine
    topology = tmp_path / "topology.py"
    topology.write_text(ON_CORES)
    measured = await profile_pipeline(
        load_topology(topology),
        topology,
        [b"one", b"two"],
        bootstrap_servers=embedded_broker.bootstrap_servers,
        options=Options(sample_s=0.5, stage_s=0.1, platform=platform, elsewhere=make is not None),
        cluster=make,
    )
    assert measured.profiles.keys() == {("work", "core")}
    profile = measured.profiles["work", "core"]
    assert min(map(profile.service_time_s, profile.batch_sizes)) >= 0.01
    assert profile.start_up_s > 0
    assert (0 < measured.network_s < 1) == (make is not None)
    (stored,) = (tmp_path / ".inferline" / "profiles" / "on-cores").glob("*/*.json")
    said = f"{platform}, " if make is not None else this_machine().cpu
    assert json.loads(stored.read_text())["machine"]["cpu"].startswith(said), "and says of which node"


@pytest.mark.parametrize("engine", ["ray"], indirect=True)
async def test_a_ray_cluster_without_room_is_said_with_what_helps(engine: Engine, embedded_broker: KafkaServer) -> None:
    async with opened(engine, embedded_broker, "large", start_timeout_s=0.5) as benches:
        with pytest.raises(NoPlace, match="waits for a node of the Ray cluster that has num_cpus 99 free; add a node"):
            async with benches.bench(PIPELINE.stage("large"), spec_of("large")):
                pass
    assert not any(each["namespace"].startswith("profile-") for each in ray_actors(all_namespaces=True))
