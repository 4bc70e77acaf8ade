"""Stages that are measured in a cluster, by a dispatcher and replicas that run there for a while."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.actuators.kubernetes import actuator
from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.gpu_nodes import PRODUCT_LABEL
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.cli.platform import products_there
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.kafka.connection import client_options
from inferline_stream.kafka.pipeline_topics import create_topics
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.profiler import benches, hop_latency, overheads, profiling_session
from inferline_stream.profiler.bench_dispatcher import MODULE
from inferline_stream.profiler.benches import MakeActuator, open_benches
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profile_store import ProfileStore
from inferline_stream.profiler.profiling_options import Options, Progress
from inferline_stream.profiler.profiling_session import replica_spec
from inferline_stream.profiler.replica_failures import NoPlace
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.pooled import PASSING
from tests.kube.answers import refused
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet
from tests.kube.node import Container

DEADLINE_S = 120.0
CLUSTERED = Path(__file__).with_name("clustered.py")
EVENTS = [b"%d" % number for number in range(40)]
HERE = Machine("Test CPU", 2)
QUICK = Options(sample_s=0.5, stage_s=0.2, platform="kubernetes", elsewhere=True)


def on(api: KubeApi, client: Any, broker: KafkaServer) -> MakeActuator:
    @asynccontextmanager
    async def made(names: Names) -> AsyncIterator[Actuator]:
        cluster = Cluster(api.namespace, "image")
        async with KubernetesActuator(
            names, broker.bootstrap_servers, cluster, client, drain_timeout_s=1.0, dispatcher_module=MODULE
        ) as pods:
            try:
                yield pods
            finally:
                await pods.aclose()

    return made


@dataclass
class Profiling:
    """A profiler beside a cluster."""

    api: KubeApi
    client: Any
    kubelet: Kubelet
    broker: KafkaServer
    root: Path
    notes: list[str] = field(default_factory=list)

    async def no_image(self, container: Container) -> int:
        """What a node does that cannot get a pod's image."""
        waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "image"'}
        status = {"name": "replica", "image": "", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Pending", "containerStatuses": [{**status, "state": {"waiting": waiting}}]}
        await self.api.node.report(container.pod["metadata"]["name"], status)
        return await container.end

    async def bench(self, folder: Path) -> None:
        """Ask for a replica of a stage."""
        topology = folder / "topology.py"
        topology.write_text(NOWHERE)
        pipeline, where = load_topology(topology), self.broker.bootstrap_servers
        make, soon = on(self.api, self.client, self.broker), Settings(start_timeout_s=0.5)
        stage = pipeline.stage("only")
        spec = replica_spec(topology, stage, catalogue(pipeline.hardware)["rare"])
        async with open_benches(Names("nowhere"), where, make, [spec], soon) as opened, opened.bench(stage, spec):
            pass

    async def profile(self, topology: Path = CLUSTERED, options: Options = QUICK) -> PipelineProfile:
        """What `profile --on kubernetes` does; nothing is left when it has ended, however it does."""

        def note(progress: Progress) -> None:
            self.notes += [progress.note] if progress.note else []

        before = await topics_of(self.broker)
        try:
            return await profile_pipeline(
                load_topology(topology),
                topology,
                EVENTS,
                bootstrap_servers=self.broker.bootstrap_servers,
                options=options,
                machine=HERE,
                root=self.root,
                cluster=on(self.api, self.client, self.broker) if options.platform != "local" else None,
                progress=note,
            )
        finally:
            assert (self.api.pods(), self.api.applied) == ([], {}), "something was left in the cluster"
            assert await topics_of(self.broker) == before


@asynccontextmanager
async def profiling(broker: KafkaServer, folder: Path, **options: Any) -> AsyncIterator[Profiling]:
    async with asyncio.timeout(DEADLINE_S), KubeApi(**options) as api, client_of(api) as client:
        kubelet = api.node.run = Kubelet(folder, api)
        yield Profiling(api, client, kubelet, broker, folder / "profiles")


async def topics_of(broker: KafkaServer) -> set[str]:
    admin: Any = AIOKafkaAdminClient(**client_options(broker.bootstrap_servers))
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


@asynccontextmanager
async def slow_wires(kubelet: Kubelet, slow_s: float) -> AsyncIterator[None]:
    """Every byte between pods comes so much later."""

    async def slows() -> None:
        while True:
            for wire in kubelet.wires.values():
                wire.slow_s = slow_s
            await asyncio.sleep(0.01)

    slowing = asyncio.create_task(slows())
    try:
        yield
    finally:
        slowing.cancel()


async def test_each_kind_is_measured_where_it_is_without_the_way_there_and_once(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    async with profiling(embedded_broker, tmp_path) as of:
        async with slow_wires(of.kubelet, 0.03):
            measured = await of.profile()
        kinds = {pod["metadata"]["labels"].get("inferline-stream.dev/hardware") for pod in of.api.every_pod}
        requests = len(of.api.requests)
        again = await of.profile()
        assert len(of.api.requests) == requests, "what is known is not measured again"
    assert {"core", "rare"} < kinds
    for kind in ("core", "rare"):
        times = measured.profiles["first", kind]
        assert times.batch_sizes == (1, 2, 4)
        for size in times.batch_sizes:
            # How much longer depends on who else uses the machine; how much shorter does not.
            assert 0.01 * (1 + size / 10) <= times.service_time_s(size)
        assert times.service_time_s(1) < 0.011 + measured.network_s, "the way there is no service time"
        assert times.start_up_s > 0
    assert measured.network_s >= 0.03, "a batch goes there and its results come back"
    assert again.network_s == pytest.approx(measured.network_s, rel=1e-3), "the first plan of a run knows it"
    assert measured.profiles["second", "core"].batch_sizes == (1, 2, 4, 8, 16)
    assert any("batches of 32: its process was killed" in note for note in of.notes), of.notes

    pipeline = load_topology(CLUSTERED)
    there = ProfileStore(pipeline, CLUSTERED.parent, EVENTS, HERE, of.root, platform="kubernetes")
    assert there.load().there == set(measured.profiles)
    controller = ProfileStore(
        pipeline, CLUSTERED.parent, EVENTS, Machine("Pod", 1), tmp_path / "pod", platform="kubernetes"
    )
    controller.take(there.files())
    assert controller.load().profiles.keys() == measured.profiles.keys(), "deploy ships them"
    here = ProfileStore(pipeline, CLUSTERED.parent, EVENTS, HERE, of.root)
    assert here.load().profiles == {}, "they say nothing of this machine"


async def test_the_products_that_nodes_have_of_a_kind_are_seen_by_those_who_may_list_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [catalogue()[name] for name in ("a100", "t4", "cpu-1")]
    found = ("NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-SXM4-80GB")
    async with KubeApi() as api:
        (config := tmp_path / "kubeconfig").write_text(json.dumps(api.kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(config))
        api.node_labels = [{}, *({PRODUCT_LABEL: product} for product in (*found, "NVIDIA-L4", *found))]
        assert await products_there(kinds) == {"a100": found}
        api.refuse = lambda request: refused(403, "Forbidden", "nodes is forbidden")
        assert await products_there(kinds) == {}


async def test_emulated_kinds_are_measured_here_and_the_network_there(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling_session, "WARM_UP_BATCHES", 2)
    monkeypatch.setattr(profiling_session, "BATCHES", 10)
    async with profiling(embedded_broker, tmp_path) as of:
        measured = await of.profile(PASSING)
        assert measured.network_s > 0
        local = await of.profile(PASSING, replace(QUICK, platform="local", elsewhere=False))
    assert local.network_s == 0
    assert local.profiles.keys() == measured.profiles.keys()


NOWHERE = """
from inferline_stream import Hardware, Pipeline, Stage, Topic

def same(values: list[bytes]) -> list[bytes]:
    return values

both = Stage("both", same, hardware=["emulated-cpu", "rare"], emulated={1: "1ms"}, max_batch_size=1)
only = Stage("only", same, hardware=["rare"], after=[both], max_batch_size=1)
pipeline = Pipeline("nowhere", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[both, only], hardware=[Hardware("rare", 0.5, cores=1)])
"""


ONLY_THERE = """
import os
from inferline_stream import Hardware, Pipeline, Stage, Topic

class NeedsGpu:
    def __init__(self) -> None:
        if "CUDA_THERE" not in os.environ:
            raise RuntimeError("no CUDA device is available")

    def __call__(self, values: list[bytes]) -> list[bytes]:
        if b"7" in values:
            raise ValueError("seven")
        return [value + b"!" for value in values]

def passes(values: list[bytes]) -> list[bytes]:
    assert all(value.endswith(b"!") for value in values)
    return values

only = Stage("only", NeedsGpu, hardware=["core"], max_batch_size=1)
after = Stage("after", passes, hardware=["emulated-cpu"], emulated={1: "1ms"}, after=[only])
pipeline = Pipeline("there", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[only, after], hardware=[Hardware("core", 0.1, cores=1)])
"""


async def test_the_sample_of_a_stage_that_can_be_built_there_alone_runs_there(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    topology = tmp_path / "topology.py"
    topology.write_text(ONLY_THERE)
    async with profiling(embedded_broker, tmp_path) as of:
        of.api.node.run = of.kubelet = Kubelet(tmp_path, of.api, {"image": {"CUDA_THERE": "1"}})
        products = ("A100-40", "A100-80")
        measured = await of.profile(topology, replace(QUICK, products={"core": products}))
        kinds = [pod["metadata"]["labels"].get("inferline-stream.dev/hardware") for pod in of.api.every_pod]
    assert measured.profiles.keys() == {("only", "core"), ("after", "emulated-cpu")}
    assert measured.profiles["only", "core"].products == products
    assert kinds.count("core") == 3, "one for the sample, and one for each product"
    built, failed = of.notes
    assert "stage 'only' cannot be built here (" in built
    assert "no CUDA device is available" in built
    assert "seven; stage 'only' raised on 1 of 40 sample events" in failed


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"places": {"rare": 0}}, "0/1 nodes are available: 1 Insufficient rare.; add a node that has room for it"),
        ({"quota": {"pods": "2"}}, "the cluster made none, as where a ResourceQuota leaves no room; raise it"),
    ],
)
async def test_a_cluster_without_room_is_said_with_what_helps(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, why: str
) -> None:
    monkeypatch.setattr(actuator, "_CREATED_WITHIN_S", 0.5)
    async with profiling(embedded_broker, tmp_path, **options) as of:
        with pytest.raises(NoPlace) as caught:
            await of.bench(tmp_path)
        assert of.api.pods() == []
    assert str(caught.value).startswith(f"stage 'only' on 'rare': no replica was ready there within 0.5 s: {why}")


async def test_an_image_that_no_node_can_get_is_named(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benches, "DISPATCHER_START_S", 1.0)
    async with profiling(embedded_broker, tmp_path) as of:
        of.api.node.run = of.no_image
        with pytest.raises(StageFailed, match=r"'only': its dispatcher.*: Back-off pulling image \"image\""):
            await of.bench(tmp_path)


@pytest.mark.parametrize("module", [benches, hop_latency, overheads])
async def test_topics_of_a_measurement_are_deleted_where_making_them_fails(
    embedded_broker: KafkaServer, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    where, before = embedded_broker.bootstrap_servers, await topics_of(embedded_broker)

    async def some(*args: Any, **options: Any) -> None:
        await create_topics(*args, **options)
        assert await topics_of(embedded_broker) > before
        raise Unreachable("Kafka did not answer in time")

    async def opened() -> None:
        async with open_benches(Names("passing"), where, lambda names: pytest.fail("used"), [], Settings()):
            pass

    monkeypatch.setattr(module, "create_topics", some)
    measure = {
        benches: opened,
        hop_latency: lambda: hop_latency.measure_hop(where, fetch_wait_s=0.1),
        overheads: lambda: overheads.measure_overheads(where),
    }[module]
    with pytest.raises(Unreachable, match="did not answer in time"):
        await measure()
    assert await topics_of(embedded_broker) == before
