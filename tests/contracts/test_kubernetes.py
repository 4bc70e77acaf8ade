"""The Kubernetes actuator against an API server that fails, forgets, loses nodes and has no places left."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from inferline_stream.actuators.kubernetes import KubernetesActuator
from inferline_stream.actuators.manifests import (
    Cluster,
    deployment,
    deployment_name,
    left_by_quotas,
    products,
    resources,
)
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.kube_api import KubeApi, client_of

DEADLINE_S = 30.0
KINDS = catalogue([Hardware("a100-1g.10gb", 0.6, gpus=1 / 7, gpu_model="NVIDIA A100")])


def template(stage: str, hardware: str) -> ReplicaSpec:
    return ReplicaSpec("", stage, "/app/topology.py", "", "kafka:9092", KINDS[hardware], 1)


@asynccontextmanager
async def acting(api: KubeApi, image: str = "image") -> AsyncIterator[KubernetesActuator]:
    async with (
        client_of(api) as client,
        KubernetesActuator("p", template, Cluster(api.namespace, image), client, drain_timeout_s=1.0) as actuator,
    ):
        yield actuator


async def until(holds: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"waited {DEADLINE_S:.0f} s for {what}")


async def test_a_death_during_an_outage_of_the_api_server_is_told_after_it() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        await until(lambda: len(api.containers) == 2, "two containers")
        await api.stop_serving()
        died = next(iter(api.containers))
        api.containers[died].end.set_result(137)
        with pytest.raises(Unreachable, match="API server does not answer"):
            await actuator.scale("a", "cpu-1", 3)
        await api.serve()
        async with asyncio.timeout(DEADLINE_S):
            gone = await actuator.next_exit()
        assert (gone.replica, gone.exit_code, gone.expected) == (died, -9, False)
        await actuator.scale("a", "cpu-1", 3)
        await until(lambda: len(api.pods()) == 3, "three pods")


async def test_a_watch_that_the_server_has_forgotten_begins_with_a_new_list() -> None:
    async with KubeApi(keep_events=1) as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 3)
        await api.stop_serving()
        await api.lose_node_of(api.pods()[0]["metadata"]["name"])
        api.forget_events()
        await api.serve()
        async with asyncio.timeout(DEADLINE_S):
            gone = await actuator.next_exit()
        assert "node is gone" in gone.reason
        names = {pod["metadata"]["name"] for pod in api.pods()}
        async with asyncio.timeout(DEADLINE_S):
            while {r.replica for r in await actuator.observe()} != names:
                await asyncio.sleep(0.01)


async def test_a_watch_that_tells_nothing_any_more_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes._WATCH_S", 0.2)
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        api.mute = True
        lost = (await actuator.observe())[0].replica
        await api.lose_node_of(lost)
        async with asyncio.timeout(DEADLINE_S):
            assert (await actuator.next_exit()).replica == lost


async def test_pods_of_a_lost_node_are_told_and_their_places_filled() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        lost, kept = await actuator.observe()
        await api.lose_node_of(lost.replica)
        async with asyncio.timeout(DEADLINE_S):
            gone = await actuator.next_exit()
        assert (gone.replica, gone.expected, gone.restart_in_s) == (lost.replica, False, 0.0)
        await until(lambda: len(api.pods()) == 2, "another pod")
        async with asyncio.timeout(DEADLINE_S):
            while len(found := await actuator.observe()) < 2:
                await asyncio.sleep(0.01)
        assert found[0] == kept
        assert found[1].restarts == 1


async def test_a_pod_without_a_place_says_why() -> None:
    async with KubeApi(places={"t4": 1}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 2)
        await until(lambda: len(api.containers) == 1, "one container")
        said = {r.pending for r in await actuator.observe()}
        assert said == {"", "0/1 nodes are available: 1 Insufficient t4."}


async def test_a_kind_without_a_place_left_is_told_until_there_is_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.actuator.PATIENCE_S", 0.1)
    async with KubeApi(places={"t4": 1}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 3)
        await actuator.scale("a", "cpu-1", 1)
        async with asyncio.timeout(DEADLINE_S):
            while await actuator.capacity() != {"t4": 1}:
                await asyncio.sleep(0.01)
        api.places.clear()
        await actuator.scale("a", "t4", 1)
        async with asyncio.timeout(DEADLINE_S):
            while await actuator.capacity() != {}:
                await asyncio.sleep(0.01)


async def test_what_a_quota_leaves_is_told_and_taken_up_once_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes._QUOTAS_S", 0.0)
    async with KubeApi(quota={"requests.nvidia.com/gpu": "3"}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 2)
        assert await actuator.capacity() == {"t4": 3}
        api.quota["requests.nvidia.com/gpu"] = "2"
        assert await actuator.capacity() == {"t4": 2}


async def test_how_a_replica_came_to_run_is_told_apart() -> None:
    async with KubeApi(places={"cpu-1": 2}) as api, acting(api) as actuator:

        async def way_of(number: int) -> str:
            async with asyncio.timeout(DEADLINE_S):
                while len(found := await actuator.observe()) <= number or not found[number].way:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)  # the kubelet's events are asked for meanwhile
            return (await actuator.observe())[number].way

        await actuator.scale("a", "cpu-1", 1)
        assert await way_of(0) == "pull"
        await actuator.scale("a", "cpu-1", 2)
        assert await way_of(1) == "present"
        await actuator.scale("a", "cpu-1", 3)
        await until(lambda: len(api.pods()) == 3, "a third pod")
        api.places["cpu-1"] = 3  # a node was made
        await api.look_for_places()
        assert await way_of(2) == "provision"


def test_quotas_are_read_as_kubernetes_writes_them() -> None:
    wanted = resources(KINDS["t4"], "1Gi")
    gpus = {"status": {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": "1"}}}
    processor = {"status": {"hard": {"cpu": "2", "limits.memory": "3Gi"}, "used": {"cpu": "500m"}}}
    others = {"spec": {"scopes": ["BestEffort"]}, "status": {"hard": {"pods": "0"}}}
    assert left_by_quotas(wanted, [gpus]) == [3]
    assert sorted(left_by_quotas(wanted, [processor, others])) == [1, 3]
    assert left_by_quotas(resources(KINDS["cpu-1"]), [gpus]) == []


async def test_a_place_that_comes_free_is_taken() -> None:
    async with KubeApi(places={"t4": 1}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 1)
        await actuator.scale("b", "t4", 1)
        await actuator.scale("a", "t4", 0)
        await until(lambda: len(api.containers) == 1, "one container")
        next(iter(api.containers.values())).end.set_result(0)
        await until(lambda: [p["metadata"]["labels"]["inferline-stream.dev/stage"] for p in api.pods()] == ["b"], "b")
        async with asyncio.timeout(DEADLINE_S):
            while [r.pending for r in await actuator.observe()] != [""]:
                await asyncio.sleep(0.01)


async def test_a_deployment_that_something_else_scales_is_left_alone() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        api.autoscaler("p-a-cpu-1")
        with pytest.raises(UsageError, match=r"'p-a-cpu-1-hpa' scales Deployment 'p-a-cpu-1' too.*remove it"):
            await actuator.scale("a", "cpu-1", 2)
        assert api.pods() == []


async def test_an_autoscaler_that_comes_later_is_noticed_by_what_it_does() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        api.autoscaler("p-a-cpu-1")
        await actuator.scale("a", "cpu-1", 3)  # it has done nothing yet
        api.deployment("p-a-cpu-1")["spec"]["replicas"] = 9
        with pytest.raises(UsageError, match="'p-a-cpu-1-hpa' scales Deployment 'p-a-cpu-1' too"):
            await actuator.scale("a", "cpu-1", 2)


async def test_another_controller_finds_the_replicas_of_the_one_before() -> None:
    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "cpu-1", 2)
            before = await first.observe()
        async with acting(api) as second:
            after = await second.observe()
            assert {r.replica for r in after} == {r.replica for r in before}
            await second.scale("a", "cpu-1", 2)
            assert len(api.pods()) == 2


async def test_a_newer_image_replaces_every_replica_and_their_ends_are_expected() -> None:
    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "cpu-1", 3)
            before = {r.replica for r in await first.observe()}
        async with acting(api, "image:2") as second:
            assert not any(r.older for r in await second.observe())
            await second.scale("a", "cpu-1", 3)
            async with asyncio.timeout(DEADLINE_S):
                while not any(r.older for r in await second.observe()):
                    await asyncio.sleep(0.01)
            for _ in before:
                await second.scale("a", "cpu-1", 3)  # changes nothing, and does not wait for the cluster
                async with asyncio.timeout(DEADLINE_S):
                    gone = await second.next_exit()
                assert (gone.replica in before, gone.expected, gone.restart_in_s) == (True, True, None)
            after = await second.observe()
            assert [(r.state, r.older, r.restarts) for r in after] == [("running", False, 0)] * 3
        assert {pod["spec"]["containers"][0]["image"] for pod in api.pods()} == {"image:2"}


async def test_another_plan_of_the_same_code_replaces_nobody() -> None:
    def planned(stage: str, hardware: str) -> ReplicaSpec:
        return msgspec.structs.replace(template(stage, hardware), max_batch_size=8)

    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "cpu-1", 2)
            before = await first.observe()
        async with (
            client_of(api) as client,
            KubernetesActuator("p", planned, Cluster(api.namespace, "image"), client, drain_timeout_s=1.0) as second,
        ):
            await second.scale("a", "cpu-1", 2)
            assert {r.replica for r in await second.observe()} == {r.replica for r in before}


async def test_two_controllers_that_ask_for_the_same_make_it_once() -> None:
    async with KubeApi() as api, acting(api) as one, acting(api) as other:
        await asyncio.gather(one.scale("a", "cpu-1", 3), other.scale("a", "cpu-1", 3))
        assert len(api.pods()) == 3


async def test_what_others_have_set_on_a_deployment_stays() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 1)
        api.deployment("p-a-cpu-1")["spec"]["template"]["spec"]["tolerations"] = [{"key": "gpu"}]
        async with acting(api) as another:
            await another.scale("a", "cpu-1", 2)
        assert api.deployment("p-a-cpu-1")["spec"]["template"]["spec"]["tolerations"] == [{"key": "gpu"}]
        assert api.deployment("p-a-cpu-1")["spec"]["replicas"] == 2


async def test_a_container_that_its_kubelet_starts_again_is_no_new_replica() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 1)
        (first,) = await actuator.observe()
        await until(lambda: first.replica in api.containers, "its container")
        api.containers[first.replica].end.set_result(70)
        async with asyncio.timeout(DEADLINE_S):
            assert (await actuator.next_exit()).exit_code == 70
            while not (found := [r for r in await actuator.observe() if r.state == "running"]):
                await asyncio.sleep(0.01)
        assert found[0].replica != first.replica


def test_names_of_deployments_are_labels_and_differ_where_their_stages_do() -> None:
    assert deployment_name("p", "a", "cpu-1") == "p-a-cpu-1"
    names = {deployment_name("p", stage, "cpu-0.5") for stage in ("a_b", "a-b", "a" * 80, "a" * 81)}
    assert len(names) == 4
    assert all(
        len(name) <= 52 and name.strip("-") == name and name.isascii() and name == name.lower() for name in names
    )


def test_a_gpu_its_slice_and_its_nodes_are_asked_for_by_their_names_in_the_cluster() -> None:
    assert resources(KINDS["t4"])["limits"]["nvidia.com/gpu"] == "1"
    assert resources(KINDS["a100-1g.10gb"])["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    pod = deployment("p", template("a", "t4"), Cluster("ns", "image"))["spec"]["template"]["spec"]
    assert pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["Tesla-T4"]}]}
        ]
    }
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_a_model_that_comes_in_several_forms_is_any_of_them_and_one_that_is_named_in_full_is_itself() -> None:
    assert "NVIDIA-A100-SXM4-80GB" in products(KINDS["a100-1g.10gb"])
    assert products(Hardware("mine", 1.0, gpus=1, gpu_model="NVIDIA A100-SXM4-80GB")) == ("NVIDIA-A100-SXM4-80GB",)
    assert products(Hardware("any", 1.0, gpus=1)) == products(KINDS["cpu-1"]) == ()


def test_a_replicas_pod_has_no_right_in_the_cluster_and_none_on_its_node() -> None:
    pod = deployment("p", template("a", "cpu-1"), Cluster("ns", "image", secret="kafka"))["spec"]["template"]["spec"]
    assert not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["envFrom"] == [{"secretRef": {"name": "kafka"}}]


def test_a_level_beyond_the_sandbox_is_the_clusters_runtime_of_that_name() -> None:
    for level, runtime in (("none", None), ("sandbox", None), ("gvisor", "gvisor"), ("kata", "kata")):
        spec = msgspec.structs.replace(template("a", "cpu-1"), isolation=Isolation(level))
        pod = deployment("p", spec, Cluster("ns", "image"))["spec"]["template"]["spec"]
        assert pod.get("runtimeClassName") == runtime
