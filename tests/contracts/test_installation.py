"""What `deploy --target kubernetes` renders: valid by Kubernetes' own schemas, and no more rights than are used."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import msgspec
import pytest
import yaml
from kubernetes_validate import ValidationError

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.api_server import controllers, install
from inferline_stream.actuators.kubernetes.installation import (
    PROFILES_FOLDER,
    RIGHTS,
    SECRET_RIGHTS,
    Installation,
    manifests,
    overcommitted,
)
from inferline_stream.actuators.kubernetes.manifests import Cluster, StageManifests
from inferline_stream.actuators.network.credentials import Credential
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.errors import InferlineError
from inferline_stream.observability.alert_rules import Target
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.names import Names
from tests.kube.api import KubeApi, client_of

DEADLINE_S = 30.0
CLAIMED = Hardware("claimed", 2.0, gpus=2, device_class="gpu.nvidia.com", runtime_class="nvidia")
KINDS = catalogue([Hardware("a100-1g.10gb", 0.6, gpus=1 / 7, gpu_model="NVIDIA A100"), CLAIMED])
OURS = Installation(
    target=Target("moderation", 0.5, 0.99),
    topology="/srv/topologies/moderation/topology.py",
    stages=("language", "toxicity"),
    cluster=Cluster(
        "ml",
        "registry.example/moderation:3",
        service_account="moderation-pod",
        secret="kafka",
        kafka_ports=(9092, 9093),
    ),
    bootstrap_servers="kafka-0.kafka:9092,kafka-1.kafka:9093",
    profiles={"paths.json": "{}", "kubernetes/language.cpu-1.json": "{}"},
    stock={"t4": 4},
    reserve=1.5,
)
OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()
OPERATOR = json.loads((Path(__file__).parent / "schemas/prometheus-operator.json").read_text())


def spec(hardware: str, level: str = "none", **fields: Any) -> ReplicaSpec:
    return ReplicaSpec("", "a", "/srv/topology.py", KINDS[hardware], isolation=Isolation(level, **fields))


def stage(name: str, ports: tuple[int, ...] = (), of: Cluster = OURS.cluster) -> list[dict[str, Any]]:
    """Everything that the controller makes of a stage, its replicas on four kinds."""
    made = StageManifests("moderation", name, of)
    kinds = [("cpu-0.25", "sandbox"), ("t4", "sandbox"), ("a100-1g.10gb", "sandbox"), ("emulated-cpu", "none")]
    return [
        *made.credential_secrets(Credential({"own.pem": b"x"}, {"own.pem": b"y"})),
        *made.network_policies(ports),
        *made.disruption_budgets(),
        made.service(),
        made.dispatchers(
            DispatcherHostSpec("", OURS.bootstrap_servers, "moderation.assignments", "life", "credential", 9470)
        ),
        *(
            made.replicas(msgspec.structs.replace(spec(kind, level), stage=name), "10.0.0.1:9470", grace_s=30.0)
            for kind, level in kinds
        ),
    ]


def everything() -> list[dict[str, Any]]:
    return [*manifests(OURS), *stage("language"), *stage("toxicity", (443,))]


def key(manifest: dict[str, Any]) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def of_kubernetes(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose kind every cluster has."""
    return [m for m in found if not m["apiVersion"].startswith("monitoring.coreos.com")]


def kind(name: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests(OURS) if manifest["kind"] == name]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", of_kubernetes(everything()), ids=lambda m: "-".join(key(m)))
def test_every_manifest_is_valid_by_the_schemas_of_old_and_new_clusters(manifest, version) -> None:
    assert version.startswith(kubernetes_validate.validate(manifest, version, strict=True))


def test_a_claim_of_devices_and_the_pods_that_refer_to_it_are_valid_by_the_schemas_of_new_clusters() -> None:
    of = StageManifests("moderation", "a", OURS.cluster)
    deployment = of.replicas(spec("claimed"), "10.0.0.1:9470", grace_s=30.0)
    deployment["metadata"]["uid"] = "7d2f1c7e"
    claims = of.claim_template(KINDS["claimed"], deployment)
    assert claims is not None
    for manifest in (claims, deployment):
        assert NEWEST.startswith(kubernetes_validate.validate(manifest, NEWEST, strict=True))
    claims["spec"]["spec"]["devices"]["requests"][0]["deviceClass"] = "x"
    with pytest.raises(ValidationError, match="deviceClass"):
        kubernetes_validate.validate(claims, NEWEST, strict=True)


def test_a_field_that_kubernetes_does_not_know_would_be_found() -> None:
    (controller,) = kind("Deployment")
    controller["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(ValidationError, match="imagePullPolcy"):
        kubernetes_validate.validate(controller, NEWEST, strict=True)


@pytest.mark.parametrize("name", ["ServiceMonitor", "PrometheusRule"])
def test_what_the_prometheus_operator_reads_is_valid_by_its_definitions(name: str) -> None:
    (manifest,) = kind(name)
    jsonschema.validate(manifest, OPERATOR[name])


def test_a_field_that_the_prometheus_operator_does_not_know_or_a_wrong_duration_would_be_found() -> None:
    (monitor,), (rule,) = kind("ServiceMonitor"), kind("PrometheusRule")
    monitor["spec"]["endpoints"][0]["intervall"] = "5s"
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        jsonschema.validate(monitor, OPERATOR["ServiceMonitor"])
    rule["spec"]["groups"][0]["interval"] = "5 s"
    with pytest.raises(jsonschema.ValidationError, match="'5 s' does not match"):
        jsonschema.validate(rule, OPERATOR["PrometheusRule"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    (rule,) = kind("PrometheusRule")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"SUCCESS: [1-9]\d* rules found", done.stdout)


def test_the_monitor_finds_the_service_and_the_service_the_controllers() -> None:
    (monitor,), (service,), (controller,) = kind("ServiceMonitor"), kind("Service"), kind("Deployment")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["spec"]["endpoints"]} == {p["name"] for p in service["spec"]["ports"]}
    pod = controller["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
    arguments = pod["spec"]["containers"][0]["args"]
    assert str(ports["metrics"]) == arguments[arguments.index("--metrics-port") + 1]


def test_controllers_hold_the_reserve_that_was_asked_for() -> None:
    def arguments(of: Installation) -> list[str]:
        (controller,) = [m for m in manifests(of) if m["kind"] == "Deployment"]
        found: list[str] = controller["spec"]["template"]["spec"]["containers"][0]["args"]
        return found

    asked = arguments(OURS)
    assert asked[asked.index("--reserve") + 1] == "1.5"
    assert "--reserve" not in arguments(_in("ml"))


def test_one_node_at_a_time_is_emptied_and_two_controllers_prefer_two_nodes() -> None:
    (controller,) = kind("Deployment")
    assert controller["spec"]["replicas"] == 2
    assert [budget["spec"]["maxUnavailable"] for budget in kind("PodDisruptionBudget")] == [1]
    (term,) = controller["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"


def test_profiles_reach_the_controller_as_the_files_that_they_were() -> None:
    (controller,), (profiles,) = kind("Deployment"), kind("ConfigMap")
    pod = controller["spec"]["template"]["spec"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == PROFILES_FOLDER]
    (volume,) = [v["configMap"] for v in pod["volumes"] if v["name"] == mount["name"]]
    assert volume["name"] == profiles["metadata"]["name"]
    shown = {item["path"]: profiles["data"][item["key"]] for item in volume["items"]}
    assert shown == OURS.profiles
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in profiles["data"])


async def asked_of_the_api_server() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything that the actuator asks for: scaling, a death, an end by force."""
    async with (
        KubeApi() as api,
        client_of(api) as client,
        asyncio.timeout(DEADLINE_S),
        KubernetesActuator(
            Names("p"), "127.0.0.1:1", Cluster(api.namespace, "i"), client, drain_timeout_s=0.2
        ) as actuator,
    ):
        await actuator.know({("a", kind): spec(kind) for kind in ("cpu-1", "claimed")})
        await actuator.scale("a", "claimed", 0)
        await actuator.scale("a", "cpu-1", 2)
        while len(api.containers) < 2:
            await asyncio.sleep(0.01)
        first, second = await actuator.observe()
        api.containers[first.replica].end.set_result(1)
        await actuator.next_exit()
        await actuator.capacity()
        await actuator.scale("a", "cpu-1", 1, [second.replica])
        await actuator.drain(0.0)
        return {_right(*request) for request in api.requests}


def _right(method: str, path: str) -> tuple[str, str, str]:
    """The authorisation attributes of a request, as Kubernetes' documentation derives them."""
    matched = re.fullmatch(r"/apis?(?:/(?P<group>[^/]+))?/v\d\w*/(?:namespaces/[^/]+/)?(?P<rest>.+)", path)
    assert matched is not None, path
    resource, name, *sub = [*matched["rest"].split("/"), ""][:3]
    verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get" if name else "list"}
    return matched["group"] or "", "/".join([resource, *(part for part in sub if part)]), verbs[method]


async def test_the_controller_has_the_rights_that_it_uses_and_no_others() -> None:
    granted = {(group, resource, verb) for group, found, verbs in RIGHTS for resource in found for verb in verbs}
    granted |= {("", "secrets", verb) for verb in SECRET_RIGHTS}
    watched = {("", "pods", "watch")}  # a list with a parameter, by its path
    # A Role cannot give what has no namespace. The guide to spot capacity does; without it nodes are not looked at.
    asked = await asked_of_the_api_server() - {("", "nodes", "get")}
    # What is applied may have to be created first.
    created = {
        (group, resource, "create") for group, resource, verb in asked if verb == "patch" and "/" not in resource
    }
    assert asked | watched | created - {("", "pods", "create")} == granted
    secrets = [rule for rule in kind("Role")[0]["rules"] if rule["resources"] == ["secrets"] and "get" in rule["verbs"]]
    made = {m["metadata"]["name"] for name in OURS.stages for m in stage(name) if m["kind"] == "Secret"}
    assert [set(rule["resourceNames"]) for rule in secrets] == [made]


def test_only_the_controllers_account_has_a_token() -> None:
    (controller,) = kind("Deployment")
    own = controller["spec"]["template"]["spec"]["serviceAccountName"]
    accounts = {a["metadata"]["name"]: a.get("automountServiceAccountToken") for a in kind("ServiceAccount")}
    assert accounts == {own: None, OURS.cluster.service_account: False}
    (binding,) = kind("RoleBinding")
    assert [subject["name"] for subject in binding["subjects"]] == [own]


async def test_applying_twice_changes_nothing_and_a_cluster_without_the_operator_goes_without_its_rules() -> None:
    async with KubeApi(unknown_groups=frozenset({"monitoring.coreos.com"})) as api, client_of(api) as client:
        ours = msgspec.convert(msgspec.to_builtins(manifests(_in(api.namespace))), list[dict[str, Any]])
        for _ in range(2):
            unknown = await install(client, ours)
            assert [text.partition(":")[0] for text in unknown] == ["ServiceMonitor", "PrometheusRule"]
        assert len(api.pods()) == 2
        kinds = {plural for plural, _ in api.applied}
    assert {"roles", "rolebindings", "networkpolicies", "poddisruptionbudgets", "services", "configmaps"} <= kinds


async def test_shares_that_together_exceed_the_stock_are_reported_apart_from_those_that_do_not() -> None:
    async with KubeApi() as api, client_of(api) as client:
        for name, share in (("moderation", 4), ("search", 3)):
            ours = _in(api.namespace)
            theirs = replace(ours, target=replace(ours.target, pipeline=name), stock={"t4": share, "cpu-1": 1})
            await install(client, manifests(theirs))
        found = await controllers(client, api.namespace)
    assert overcommitted(found, {"t4": 6, "cpu-1": 2}) == {"t4": (6, {"moderation": 4, "search": 3})}


async def test_what_is_applied_is_what_was_rendered() -> None:
    async with KubeApi() as api, client_of(api) as client:
        ours = manifests(_in(api.namespace))
        assert await install(client, ours) == []
        found = [*api.applied.values(), *api.deployments()]
    for manifest in ours:
        (sent,) = [
            s for s in found if (s["kind"], s["metadata"]["name"]) == (manifest["kind"], manifest["metadata"]["name"])
        ]
        sent["metadata"].pop("resourceVersion")
        sent["metadata"].pop("generation", None)
        sent["metadata"].pop("uid", None)
        sent.get("spec", {}).pop("clusterIP", None)
        assert json.loads(json.dumps(sent)) == manifest


async def test_an_api_server_that_refuses_says_what_is_missing() -> None:
    async with KubeApi(unknown_groups=frozenset({"policy"})) as api, client_of(api) as client:
        with pytest.raises(InferlineError, match=r"refuses: 404 Not Found: /apis/policy"):
            await install(client, manifests(_in(api.namespace)))


def _in(namespace: str) -> Installation:
    return Installation(
        target=OURS.target,
        stages=OURS.stages,
        topology=OURS.topology,
        cluster=Cluster(namespace, OURS.cluster.image, service_account=OURS.cluster.service_account),
        bootstrap_servers=OURS.bootstrap_servers,
        profiles=OURS.profiles,
    )


# Who may reach whom


KAFKA, DNS, API, ELSEWHERE = "kafka", "dns", "api server", "elsewhere"
OUTSIDE = {KAFKA: (9092, 9093), DNS: (53,), API: (6443,), ELSEWHERE: (443, 80)}


def pods_of(found: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Labels of a pod of each Deployment, by its name."""
    made = (m for m in found if m["kind"] == "Deployment")
    return {m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"] for m in made}


def chosen(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    return selector is not None and selector.get("matchLabels", {}).items() <= labels.items()


def admits(rules: list[dict[str, Any]], side: str, peer: str, labels: dict[str, str], port: int) -> bool:
    """Whether one of a policy's rules admits a peer at a port; a pod of another namespace counts as its DNS' own."""

    def is_peer(of: dict[str, Any]) -> bool:
        if "namespaceSelector" in of:
            return peer == DNS and of["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
        return peer not in OUTSIDE and chosen(of["podSelector"], labels)

    return any(
        (side not in rule or any(map(is_peer, rule[side]))) and any(p["port"] == port for p in rule["ports"])
        for rule in rules
    )


def reaches(
    policies: list[dict[str, Any]], pods: dict[str, dict[str, str]], source: str, target: str, port: int
) -> bool:
    """As Kubernetes defines it: both ends must admit it, each by any policy that selects it; none selects, all pass."""
    verdicts = []
    for end, peer, direction, side in ((source, target, "egress", "to"), (target, source, "ingress", "from")):
        if end in OUTSIDE:
            continue
        own = [p["spec"] for p in policies if chosen(p["spec"]["podSelector"], pods[end])]
        verdicts.append(not own or any(admits(p[direction], side, peer, pods.get(peer, {}), port) for p in own))
    return all(verdicts)


def test_every_pod_reaches_what_it_needs_and_no_pair_of_pods_more() -> None:
    found = everything()
    policies, pods = [m for m in found if m["kind"] == "NetworkPolicy"], pods_of(found)
    ports = sorted({9464, 9470, 22, *(port for own in OUTSIDE.values() for port in own)})
    seen = {
        (source, target, port)
        for source in (*pods, ELSEWHERE)
        for target in (*pods, *OUTSIDE)
        for port in (OUTSIDE.get(target) or ports)
        if source != target and not (source in OUTSIDE and target in OUTSIDE)
        and reaches(policies, pods, source, target, port)
    }  # fmt: skip
    controller = "moderation-controller"
    dispatchers_ = {name: f"moderation-{name}-dispatcher" for name in ("language", "toxicity")}
    wanted = {(source, KAFKA, port) for source in (controller, *dispatchers_.values()) for port in (9092, 9093)}
    wanted |= {(source, DNS, 53) for source in (controller, *dispatchers_.values())}
    wanted |= {(controller, API, 6443), (controller, ELSEWHERE, 443)}  # either may be the API server's port
    wanted |= {(source, controller, 9464) for source in (ELSEWHERE,)}  # scrapes, from a namespace without policies
    for name, dispatcher in dispatchers_.items():
        own = [pod for pod, labels in pods.items() if pod.startswith(f"moderation-{name}-") and pod != dispatcher]
        assert len(own) == 4
        wanted |= {(replica, dispatcher, 9470) for replica in own}
        if name == "toxicity":  # it declares a port
            wanted |= {(replica, ELSEWHERE, 443) for replica in own} | {(replica, DNS, 53) for replica in own}
    assert seen == wanted


def test_each_budget_and_service_is_about_one_stages_dispatchers_or_replicas() -> None:
    found = everything()
    pods = pods_of(found)
    budgets = {m["metadata"]["name"]: m["spec"]["selector"] for m in found if m["kind"] == "PodDisruptionBudget"}
    selected = {name: {pod for pod in pods if chosen(of, pods[pod])} for name, of in budgets.items()}
    assert {name: len(of) for name, of in selected.items()} == {
        "moderation-controller": 1,
        "moderation-language-dispatcher": 1,
        "moderation-language-replica": 4,
        "moderation-toxicity-dispatcher": 1,
        "moderation-toxicity-replica": 4,
    }
    services = [m for m in found if m["kind"] == "Service" and "dispatcher" in m["metadata"]["name"]]
    for each in services:
        assert [pod for pod in pods if chosen({"matchLabels": each["spec"]["selector"]}, pods[pod])] == [
            each["metadata"]["name"]
        ]
