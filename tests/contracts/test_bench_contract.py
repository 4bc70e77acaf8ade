"""A stage on a bench: on this host, on Ray and on Kubernetes it is built, run, weighed and timed in the same way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler.bench_dispatcher import MODULE
from inferline_stream.profiler.bench_messages import EventOutcome, Measure
from inferline_stream.profiler.benches import Benches, benches_here, open_benches
from inferline_stream.profiler.profiling_session import replica_spec
from inferline_stream.profiler.replica_failures import ReplicaFailed
from inferline_stream.profiler.service_times import measure
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.test_cluster_profiles import on
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet

TOPOLOGY = Path(__file__).with_name("benched.py")
PIPELINE = load_topology(TOPOLOGY)
DEADLINE_S = 120.0


def spec_of(stage: str) -> ReplicaSpec:
    return replica_spec(TOPOLOGY, PIPELINE.stage(stage), catalogue(PIPELINE.hardware)["core"])


@pytest.fixture(params=["local", "ray", "kubernetes"])
async def benches(
    request: pytest.FixtureRequest, embedded_broker: KafkaServer, tmp_path: Path
) -> AsyncIterator[Benches]:
    """Benches on an engine, for a while."""
    servers, specs, settings = embedded_broker.bootstrap_servers, list(map(spec_of, ("work", "broken"))), Settings()

    def ray(names: Names) -> contextlib.AbstractAsyncContextManager[Actuator]:
        from inferline_stream.actuators.ray import ray_actuator

        return ray_actuator(f"{names.prefix}{names.pipeline}", tmp_path, drain_timeout_s=1.0, dispatcher_module=MODULE)

    async with asyncio.timeout(DEADLINE_S), contextlib.AsyncExitStack() as stack:
        opened: Any
        if request.param == "local":
            opened = benches_here(specs, settings)
        elif request.param == "ray":
            request.getfixturevalue("ray_cluster")
            opened = open_benches(Names("benched"), servers, ray, specs, settings)
        else:
            api = await stack.enter_async_context(KubeApi())
            client = await stack.enter_async_context(client_of(api))
            api.node.run = Kubelet(tmp_path, api)
            opened = open_benches(Names("benched"), servers, on(api, client, embedded_broker), specs, settings)
        yield await stack.enter_async_context(opened)


async def test_a_stage_is_run_weighed_and_timed_and_so_is_emulated_hardware(benches: Benches) -> None:
    events = [b"%d" % number for number in range(12)]
    async with benches.bench(PIPELINE.stage("work"), spec_of("work")) as bench:
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
        times, _, why = await measure(bench, kept, 8, seconds=0.2)
        assert [entry.batch_size for entry in times] == [1, 2, 4]
        assert why.startswith("batches of 8: its process was killed, as the system does when memory runs out")
        assert await bench.time(kept, Measure(1, 0.0, 1, 1)), "another replica has taken its place"
        assert bench.start_up_s > 0


async def test_a_stage_that_cannot_be_built_says_why_with_the_users_own_line(benches: Benches) -> None:
    why = r"benched.py:\d+ in __init__: NeedsModel cannot be built: .*No module named 'a_model_that_nobody_has'\Z"
    with pytest.raises(ReplicaFailed, match=why):
        async with benches.bench(PIPELINE.stage("broken"), spec_of("broken")):
            pass
