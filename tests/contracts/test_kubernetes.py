"""The Kubernetes actuator against an API server that fails, forgets, loses nodes and has no places left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from inferline_stream.actuators.kubernetes import actuator as actuator_module
from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.errors import InferlineError, Unreachable, UsageError
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.testing.kafka import KafkaServer
from tests.kube.answers import answer, refused
from tests.kube.api import KubeApi, client_of
from tests.support.deadlines import next_exit, until

DEADLINE_S = 30.0
KINDS = catalogue()


def template(stage: str, hardware: str) -> ReplicaSpec:
    return ReplicaSpec("", stage, "/app/topology.py", KINDS[hardware])


SPECS = {(stage, kind): template(stage, kind) for stage in ("a", "b") for kind in ("cpu-1", "t4")}
NOBODY = "127.0.0.1:1"
PATCH_SCALE = ("PATCH", "/scale")


@asynccontextmanager
async def acting(api: KubeApi, image: str = "image") -> AsyncIterator[KubernetesActuator]:
    async with (
        client_of(api) as client,
        KubernetesActuator(Names("p"), NOBODY, Cluster(api.namespace, image), client, drain_timeout_s=1.0) as actuator,
    ):
        await actuator.know(SPECS)
        yield actuator


async def test_a_death_during_an_outage_of_the_api_server_is_reported_after_it() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        await until(lambda: len(api.containers) == 2, "two containers")
        await api.stop_serving()
        died = next(iter(api.containers))
        api.containers[died].end.set_result(137)
        with pytest.raises(Unreachable, match="API server does not answer"):
            await actuator.scale("a", "cpu-1", 3)
        await api.serve()
        gone = await next_exit(actuator)
        assert (gone.replica, gone.exit_code, gone.expected) == (died, -9, False)
        await actuator.scale("a", "cpu-1", 3)
        await until(lambda: len(api.pods()) == 3, "three pods")


async def test_an_api_server_that_does_not_answer_is_reported_before_anything_is_asked_of_it() -> None:
    async with KubeApi() as api:
        await api.stop_serving()
        with pytest.raises(Unreachable, match="API server does not answer"):
            async with acting(api):
                pass


async def test_a_watch_that_the_server_has_forgotten_begins_with_a_new_list() -> None:
    async with KubeApi(keep_events=1) as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 3)
        await api.stop_serving()
        await api.lose_node_of(api.pods()[0]["metadata"]["name"])
        api.forget_events()
        await api.serve()
        gone = await next_exit(actuator)
        assert "node is gone" in gone.reason
        names = {pod["metadata"]["name"] for pod in api.pods()}
        async with asyncio.timeout(DEADLINE_S):
            while {r.replica for r in await actuator.observe()} != names:
                await asyncio.sleep(0.01)


async def test_a_watch_that_says_nothing_any_more_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes.api_server._WATCH_S", 0.2)
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        api.mute = True
        lost = (await actuator.observe())[0].replica
        await api.lose_node_of(lost)
        assert (await next_exit(actuator)).replica == lost


REFUSALS = [
    (429, "too many requests", Unreachable, "cannot do it now: too many requests"),
    (500, "etcdserver: request timed out", Unreachable, "cannot do it now"),
    (503, "shutting down", Unreachable, "cannot do it now"),
    (409, "the object has been modified", Unreachable, "at this moment"),
    (401, "Unauthorized", UsageError, "renew the kubeconfig's credentials"),
    (403, "deployments.apps is forbidden", UsageError, "grant the controller's Role"),
    (403, "exceeded quota: most", InferlineError, "raise the quota"),
    (422, "is invalid", InferlineError, "Kubernetes refuses: is invalid"),
]


@pytest.mark.parametrize(("code", "message", "kind", "says"), REFUSALS)
async def test_a_refusal_that_passes_is_an_outage_and_another_names_what_to_change(
    code: int, message: str, kind: type[InferlineError], says: str
) -> None:
    async with KubeApi() as api, acting(api) as actuator:
        api.refuse = lambda request: refused(code, "Because", message) if request.method == "PATCH" else None
        with pytest.raises(InferlineError, match=says) as caught:
            await actuator.scale("a", "cpu-1", 1)
        assert type(caught.value) is kind
        api.refuse = lambda request: None
        await actuator.scale("a", "cpu-1", 1)
        assert len(api.pods()) == 1


async def test_an_api_server_that_wants_a_pause_is_asked_for_nothing_meanwhile_and_nobody_waits() -> None:
    def busy(request: web.Request) -> web.Response | None:
        if request.method == "GET":
            return None
        response = refused(429, "TooManyRequests", "too many requests")
        response.headers["Retry-After"] = "1"
        return response

    async with KubeApi() as api, acting(api) as actuator:
        api.refuse = busy
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable, match="too many requests"):
            await actuator.scale("a", "cpu-1", 1)
        asked, api.refuse = len(api.requests), lambda request: None
        for stage in ("a", "b"):
            with pytest.raises(Unreachable, match="wants not to be asked"):
                await actuator.scale(stage, "cpu-1", 1)
        assert len(api.requests) == asked
        async with asyncio.timeout(DEADLINE_S):
            while not api.pods():
                await asyncio.sleep(0.05)
                with contextlib.suppress(Unreachable):
                    await actuator.scale("a", "cpu-1", 1)
        assert asyncio.get_running_loop().time() - began_s >= 1.0


async def test_a_drain_asks_although_the_api_server_wanted_a_pause() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 1)
        actuator._pause_until_s = float("inf")
        async with asyncio.timeout(DEADLINE_S):
            await actuator.drain(0.0)
        assert api.pods() == []


async def test_a_deployment_that_may_not_be_made_without_pods_is_not_made_with_one() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        api.refuse = lambda request: refused(403, "Forbidden", "no") if request.method == "POST" else None
        with pytest.raises(UsageError, match="grant the controller's Role"):
            await actuator.scale("a", "cpu-1", 1)
        assert api.deployments() == []


async def test_a_dead_pod_is_replaced_although_its_deletion_is_refused_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes.actuator._DELETE_AGAIN_S", 0.01)
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 1)
        await until(lambda: len(api.containers) == 1, "its container")
        (dead,) = api.containers
        left = iter(range(3))

        def refuse(request: web.Request) -> web.Response | None:
            wanted = request.method == "DELETE" and next(left, None) is not None
            return refused(500, "InternalError", "not now") if wanted else None

        api.refuse = refuse
        api.containers[dead].end.set_result(137)
        await until(lambda: [pod["metadata"]["name"] for pod in api.pods()] not in ([dead], []), "another pod")
        assert next(left, None) is None


async def test_a_watch_that_is_refused_is_not_asked_for_without_end() -> None:
    async with KubeApi() as api:
        api.refuse = lambda r: refused(403, "Forbidden", "no watch") if r.query.get("watch") == "true" else None
        async with acting(api):
            before = len(api.requests)
            await asyncio.sleep(1.0)
            assert len(api.requests) - before <= 2 * 5, "at once, and after .1, .2, .4 and .8 s"


async def test_what_cannot_be_read_of_a_pod_does_not_blind_the_controller() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        first, second = (pod["metadata"]["name"] for pod in api.pods())
        await api.node.report(first, {"containerStatuses": [{"ready": False}]})  # without what it must have
        await asyncio.sleep(0.05)
        await api.lose_node_of(first)
        async with asyncio.timeout(DEADLINE_S):
            assert (await actuator.next_exit()).replica == first
            while second not in {r.replica for r in await actuator.observe()}:
                await asyncio.sleep(0.01)


async def test_what_has_the_same_name_and_is_another_s_is_left_alone() -> None:
    async with KubeApi() as api, client_of(api) as client:

        async def scaled(pipeline: str, stage: str) -> None:
            where = Cluster(api.namespace, "image")
            async with KubernetesActuator(Names(pipeline), NOBODY, where, client, drain_timeout_s=1.0) as actuator:
                await actuator.know({(stage, "cpu-1"): template(stage, "cpu-1")})
                await actuator.scale(stage, "cpu-1", 1)

        await scaled("shop", "rank-cpu")
        (before,) = api.deployments()
        with pytest.raises(UsageError, match=r"'shop-rank-cpu-cpu-1' .* \(.*pipeline=shop,.*choose another --prefix"):
            await scaled("shop-rank", "cpu")
        assert api.deployments() == [before]


async def test_a_controller_that_ends_before_it_has_led_removes_nothing() -> None:
    async with KubeApi() as api, acting(api) as leads:
        await leads.scale("a", "cpu-1", 1)
        await until(lambda: len(api.containers) == 1, "a container")
        where = Cluster(api.namespace, "image")
        async with client_of(api) as client, KubernetesActuator(Names("p"), NOBODY, where, client) as waits:
            await waits.aclose()
        assert [each["spec"]["replicas"] for each in api.deployments()] == [1]


async def test_a_run_of_the_same_name_on_another_kafka_is_left_alone(embedded_broker: KafkaServer) -> None:
    servers = embedded_broker.bootstrap_servers
    await create_topics(servers, [WantedTopic(Names("p").assignments, 1, "postings")], replication=1)
    routes = Routes("p", "", "a", "in", "out", ("a",), (), (), True, 1.0, "process", b"1")

    async def dispatched(kafka: str) -> None:
        where = Cluster(api.namespace, "image")
        async with KubernetesActuator(Names("p"), kafka, where, client, drain_timeout_s=1.0) as actuator:
            await actuator.know(SPECS)
            await actuator.dispatch("a", [DispatcherSpec("a-0-x", 0, routes, kafka)])

    async with KubeApi() as api, client_of(api) as client:
        await dispatched(servers)
        (made,) = (each["spec"]["template"]["spec"] for each in api.deployments())
        made["containers"].insert(0, {"name": "istio-proxy", "image": "proxy"})  # as a service mesh does
        with pytest.raises(UsageError, match=f"of a run on another Kafka, {servers}: choose another --prefix"):
            await dispatched("elsewhere:9092")
        await dispatched(f"localhost:1,{servers}")  # the same one, by more of its addresses


async def test_pods_of_a_lost_node_are_reported_and_their_places_filled() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        lost, kept = await actuator.observe()
        await api.lose_node_of(lost.replica)
        gone = await next_exit(actuator)
        assert (gone.replica, gone.expected, gone.restart_in_s) == (lost.replica, False, 0.0)
        await until(lambda: len(api.pods()) == 2, "another pod")
        async with asyncio.timeout(DEADLINE_S):
            while len(found := await actuator.observe()) < 2:
                await asyncio.sleep(0.01)
        assert found[0] == kept
        assert found[1].restarts == 1


async def test_a_pod_is_missed_although_fewer_were_asked_for_in_vain_before() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 2)
        lost, _ = await actuator.observe()
        api.refuse = lambda r: refused(409, "Conflict", "modified") if (r.method, r.path[-6:]) == PATCH_SCALE else None
        for _ in range(3):
            with pytest.raises(Unreachable, match="modified"):
                await actuator.scale("a", "cpu-1", 1)
        api.refuse = lambda request: None
        await actuator.scale("a", "cpu-1", 2)
        await api.evict(lost.replica)
        gone = await next_exit(actuator)
        assert (gone.replica, gone.expected) == (lost.replica, False)


async def test_a_pod_without_a_place_says_why() -> None:
    async with KubeApi(places={"t4": 1}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 2)
        await until(lambda: len(api.containers) == 1, "one container")
        said = {r.pending for r in await actuator.observe()}
        assert said == {"", "0/1 nodes are available: 1 Insufficient t4."}


async def test_a_kind_without_a_place_left_is_reported_until_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


async def test_what_a_quota_leaves_is_reported_and_taken_up_once_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes.actuator._QUOTAS_S", 0.0)
    async with KubeApi(quota={"requests.nvidia.com/gpu": "3"}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 2)
        assert await actuator.capacity() == {"t4": 3}
        api.quota["requests.nvidia.com/gpu"] = "2"
        assert await actuator.capacity() == {"t4": 2}


async def test_a_taint_of_its_node_says_that_a_replica_is_going_and_one_who_may_not_look_asks_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actuator_module, "_NODES_S", 0.0)
    tainted, allowed = set[str](), True

    def nodes(request: web.Request) -> web.Response | None:
        name = request.path.removeprefix("/api/v1/nodes/")
        if name == request.path:
            return None
        if not allowed:
            return refused(403, "Forbidden", f'nodes "{name}" is forbidden')
        taints = [{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}] if name in tainted else []
        return answer({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"taints": taints}})

    async with KubeApi() as api, acting(api) as actuator:
        api.refuse = nodes
        await actuator.scale("a", "cpu-1", 2)
        await actuator.capacity()
        first, second = await actuator.observe()
        assert {first.going, second.going} == {False}
        assert first.node != second.node
        tainted.add(first.node)
        await actuator.capacity()
        assert [r.going for r in await actuator.observe()] == [True, False]
        allowed = False
        for _ in range(3):
            await actuator.capacity()
        assert [r.going for r in await actuator.observe()] == [True, False], "what was seen last holds"
        asked = [path for _, path in api.requests if path.startswith("/api/v1/nodes/")]
        assert len(asked) == 2 + 2 + 1


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


async def test_replicas_on_a_kind_that_is_not_planned_any_more_are_sent_away_all_the_same() -> None:
    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "t4", 1)
        async with acting(api) as second:
            await second.know({("a", "cpu-1"): SPECS["a", "cpu-1"]})
            await second.scale("a", "t4", 0)
            await second.scale("b", "t4", 0)
        assert api.deployment("p-a-t4")["spec"]["replicas"] == 0


async def test_a_kind_that_is_not_planned_any_more_limits_nothing() -> None:
    async with KubeApi(quota={"requests.nvidia.com/gpu": "3"}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 1)
        assert await actuator.capacity() == {"t4": 3}
        await actuator.know({("a", "cpu-1"): SPECS["a", "cpu-1"]})
        assert await actuator.capacity() == {}


async def test_a_newer_image_replaces_every_replica_and_their_ends_are_expected() -> None:
    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "cpu-1", 2)
            before = {r.replica for r in await first.observe()}
        async with acting(api, "image:2") as second:
            await second.scale("a", "cpu-1", 2)
            for _ in before:
                await second.scale("a", "cpu-1", 2)  # changes nothing, and does not wait for the cluster
                gone = await next_exit(second)
                assert (gone.replica in before, gone.expected, gone.restart_in_s) == (True, True, None)
            after = await second.observe()
            assert [(r.state, r.restarts) for r in after] == [("running", 0)] * 2
        assert {pod["spec"]["containers"][0]["image"] for pod in api.pods()} == {"image:2"}


async def test_two_controllers_that_ask_for_the_same_make_it_once() -> None:
    async with KubeApi() as api, acting(api) as one, acting(api) as other:
        await asyncio.gather(one.scale("a", "cpu-1", 3), other.scale("a", "cpu-1", 3))
        assert len(api.pods()) == 3


async def test_what_others_have_set_on_a_deployment_stays() -> None:
    async with KubeApi() as api, acting(api) as actuator:
        await actuator.scale("a", "cpu-1", 1)
        api.deployment("p-a-cpu-1")["spec"]["template"]["spec"]["priorityClassName"] = "high"
        async with acting(api) as another:
            await another.scale("a", "cpu-1", 2)
        assert api.deployment("p-a-cpu-1")["spec"]["template"]["spec"]["priorityClassName"] == "high"
        assert api.deployment("p-a-cpu-1")["spec"]["replicas"] == 2


async def test_where_no_node_has_a_place_for_a_newer_pod_an_older_one_ends_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes.actuator.PATIENCE_S", 0.2)
    async with KubeApi(places={"t4": 1}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 1)
        (old,) = await actuator.observe()
        await until(lambda: old.replica in api.containers, "it runs")
        strategy = api.deployment("p-a-t4")["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 1, "maxUnavailable": 0}
        newer = {key: msgspec.structs.replace(spec, topology="/app/newer.py") for key, spec in SPECS.items()}
        await actuator.know(newer)
        await actuator.scale("a", "t4", 1)
        async with asyncio.timeout(DEADLINE_S):
            while [r.pending for r in await actuator.observe()] != [""] or old.replica in api.containers:
                await actuator.capacity()
                await asyncio.sleep(0.02)
        strategy = api.deployment("p-a-t4")["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


async def test_what_there_is_room_for_is_reported_while_older_pods_cannot_make_room_for_newer_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferline_stream.actuators.kubernetes.actuator.PATIENCE_S", 0.1)
    async with KubeApi(places={"t4": 1}, quota={"requests.nvidia.com/gpu": "3"}) as api, acting(api) as actuator:
        await actuator.scale("a", "t4", 1)
        await actuator.know(
            {key: msgspec.structs.replace(spec, topology="/app/newer.py") for key, spec in SPECS.items()}
        )
        await actuator.scale("a", "t4", 1)
        assert await actuator.capacity() == {"t4": 3}
        await until(lambda: bool(actuator._pods.stuck(asyncio.get_running_loop().time(), 0.1)), "a newer pod waits")
        await api.stop_serving()
        assert await actuator.capacity() == {"t4": 3}


async def test_what_a_stage_has_in_common_is_made_once_and_its_keys_are_kept() -> None:
    async with KubeApi() as api:
        async with acting(api) as first:
            await first.scale("a", "cpu-1", 1)
        made = {key: value["data"] for key, value in api.applied.items() if key[0] == "secrets"}
        async with acting(api) as second:
            await second.scale("a", "cpu-1", 2)
            await second.scale("a", "t4", 1)
        assert {key: value["data"] for key, value in api.applied.items() if key[0] == "secrets"} == made
        assert sorted(api.applied) == [
            ("networkpolicies", "p-a-dispatcher"),
            ("networkpolicies", "p-a-replica"),
            ("poddisruptionbudgets", "p-a-dispatcher"),
            ("poddisruptionbudgets", "p-a-replica"),
            ("secrets", "p-a-dispatcher-tls"),
            ("secrets", "p-a-replica-tls"),
            ("services", "p-a-dispatcher"),
        ]


def dispatcher(name: str, slot: int = 0) -> DispatcherSpec:
    routes = Routes("p", "", "a", "in", "out", ("a",), (), (), True, 1.0, "process", b"1")
    return DispatcherSpec(name, slot, routes, NOBODY)


async def test_a_dispatcher_is_posted_to_a_pod_and_its_successor_to_the_one_that_waits(
    kafka: Any, clients: Any
) -> None:
    names = Names("p", clients.unique("prefix"))
    await create_topics(
        kafka.bootstrap_servers, [WantedTopic(names.assignments, 1, "grants", {"cleanup.policy": "compact"})]
    )
    async with (
        KubeApi() as api,
        client_of(api) as client,
        KubernetesActuator(names, kafka.bootstrap_servers, Cluster(api.namespace, "image"), client) as actuator,
    ):
        await actuator.know(SPECS)
        await actuator.dispatch("a", [dispatcher("a-0-x")])
        await until(lambda: len(api.containers) == 2, "one that serves and one that waits")
        await until(lambda: actuator._dispatcher_pods.pod_of("a-0-x") is not None, "its pod")
        pod = actuator._dispatcher_pods.pod_of("a-0-x")
        assert [d.dispatcher for d in await actuator.dispatchers()] == ["a-0-x"]
        await actuator.replace_dispatcher("a-0-x")
        assert await actuator.dispatchers() == (), "it was silent, and may live on"
        await actuator.dispatch("a", [dispatcher("a-0-y")])
        await until(lambda: actuator._dispatcher_pods.pod_of("a-0-y") is not None, "the successor's pod")
        assert actuator._dispatcher_pods.pod_of("a-0-y") != pod
        async with (
            KubernetesActuator(names, kafka.bootstrap_servers, Cluster("test", "image"), client) as waits,
            KubernetesActuator(names, kafka.bootstrap_servers, Cluster("test", "image"), client) as another,
        ):
            assert [d.dispatcher for d in await another.dispatchers()] == ["a-0-y"]
            await another.dispatch("a", [dispatcher("a-0-z")])
            await until(lambda: another._dispatcher_pods.pod_of("a-0-z") is not None, "the next one's pod")
            assert [d.dispatcher for d in await waits.dispatchers()] == ["a-0-z"], "it knows what was posted meanwhile"
            await another.dispatch("a", [])
            await until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in api.pods()), "all pods to go")
