"""What a cluster's network adds to a batch, measured by a dispatcher and a replica that run there for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.kafka.connection import client_options
from inferline_stream.kafka.topics import create_topics
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler import hop_latency, network_time, overheads
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.network_time import MakeActuator, measure_network
from inferline_stream.profiler.pipeline_profiler import Options, profile_pipeline
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.pooled import PASSING
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet
from tests.kube.node import Container

DEADLINE_S = 120.0
EVENTS = [b"one", b"two"]


def on(api: KubeApi, client: Any, broker: KafkaServer) -> MakeActuator:
    @asynccontextmanager
    async def actuator(names: Names) -> AsyncIterator[Actuator]:
        cluster = Cluster(api.namespace, "image")
        async with KubernetesActuator(names, broker.bootstrap_servers, cluster, client, drain_timeout_s=1.0) as pods:
            try:
                yield pods
            finally:
                await pods.aclose()

    return actuator


async def topics_of(broker: KafkaServer) -> set[str]:
    admin: Any = AIOKafkaAdminClient(**client_options(broker.bootstrap_servers))
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


async def test_the_slower_the_way_to_a_pod_the_more_is_measured_and_planned_with_and_nothing_is_left(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_time, "WARM_UP_BATCHES", 2)
    monkeypatch.setattr(network_time, "BATCHES", 10)
    pipeline, before = load_topology(PASSING), await topics_of(embedded_broker)

    async with asyncio.timeout(DEADLINE_S), KubeApi() as api, client_of(api) as client:
        kubelet = api.node.run = Kubelet(tmp_path, api)

        async def measured(slow_s: float) -> float:
            async def slows() -> None:
                while True:
                    for wire in kubelet.wires.values():
                        wire.slow_s = slow_s
                    await asyncio.sleep(0.01)

            slowing = asyncio.create_task(slows())
            try:
                return await measure_network(
                    pipeline,
                    PASSING,
                    EVENTS,
                    embedded_broker.bootstrap_servers,
                    actuator=on(api, client, embedded_broker),
                    settings=Settings(),
                )
            finally:
                slowing.cancel()

        fast_s, slow_s = await measured(0.0), await measured(0.05)
        assert (api.pods(), api.applied) == ([], {}), "something was left in the cluster"
    assert await topics_of(embedded_broker) == before
    assert fast_s > 0
    assert slow_s >= 0.05, "a batch goes there and its results come back"

    async def network() -> float:
        return slow_s

    options = Options(sample_s=1.0, stage_s=0.1, platform="kubernetes", elsewhere=True)
    machine, events = Machine("Test CPU", 2), EVENTS
    first = await profile_pipeline(
        pipeline, PASSING, events, options=options, machine=machine, root=tmp_path / "profiles", network=network
    )
    assert (first.network_s, first.hop_overhead_s) == pytest.approx((slow_s, slow_s))
    again = await profile_pipeline(
        pipeline, PASSING, events, options=options, machine=machine, root=tmp_path / "profiles"
    )
    assert again.network_s == pytest.approx(slow_s, rel=1e-3), "the first plan of a run knows it"
    here = Options(sample_s=1.0, stage_s=0.1)
    local = await profile_pipeline(pipeline, PASSING, events, options=here, machine=machine, root=tmp_path / "profiles")
    assert (local.network_s, local.hop_overhead_s) == (0.0, 0.0)


async def test_a_cluster_without_a_place_is_a_reason_and_leaves_nothing_behind(embedded_broker: KafkaServer) -> None:
    async with asyncio.timeout(DEADLINE_S), KubeApi() as api, client_of(api) as client:
        with pytest.raises(StageFailed, match="nothing was ready in the cluster within 1 s: see the logs of its pods"):
            await measure_network(
                load_topology(PASSING),
                PASSING,
                EVENTS,
                embedded_broker.bootstrap_servers,
                actuator=on(api, client, embedded_broker),
                settings=Settings(start_timeout_s=1.0),
            )
        assert api.pods() == []


async def test_what_ends_again_and_again_in_the_cluster_is_the_reason_with_its_stage_and_kind(
    embedded_broker: KafkaServer,
) -> None:
    async def fails(container: Container) -> int:
        return 3

    pipeline = load_topology(PASSING)
    (stage,) = pipeline.stages
    async with asyncio.timeout(DEADLINE_S), KubeApi(run=fails) as api, client_of(api) as client:
        with pytest.raises(
            StageFailed, match=rf"stage '{stage.name}' on '.*': nothing was ready .*: the replica ended: "
        ):
            await measure_network(
                pipeline,
                PASSING,
                EVENTS,
                embedded_broker.bootstrap_servers,
                actuator=on(api, client, embedded_broker),
                settings=Settings(start_timeout_s=2.0),
            )


@pytest.mark.parametrize("module", [network_time, hop_latency, overheads])
async def test_topics_of_a_measurement_are_deleted_where_making_them_fails(
    embedded_broker: KafkaServer, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    where, before = embedded_broker.bootstrap_servers, await topics_of(embedded_broker)

    async def some(*args: Any, **options: Any) -> None:
        await create_topics(*args, **options)
        assert await topics_of(embedded_broker) > before
        raise Unreachable("Kafka did not answer in time")

    monkeypatch.setattr(module, "create_topics", some)
    measure = {
        network_time: lambda: measure_network(
            load_topology(PASSING),
            PASSING,
            EVENTS,
            where,
            actuator=lambda names: pytest.fail("used"),
            settings=Settings(),
        ),
        hop_latency: lambda: hop_latency.measure_hop(where, fetch_wait_s=0.1),
        overheads: lambda: overheads.measure_overheads(where),
    }[module]
    with pytest.raises(Unreachable, match="did not answer in time"):
        await measure()
    assert await topics_of(embedded_broker) == before
