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

from inferline_stream.actuators.api_server import apply, controllers
from inferline_stream.actuators.installation import (
    PROFILES_FOLDER,
    RIGHTS,
    Installation,
    file_name,
    kustomization,
    manifests,
    overcommitted,
)
from inferline_stream.actuators.kubernetes import KubernetesActuator
from inferline_stream.actuators.manifests import Cluster, deployment, job
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.errors import InferlineError
from inferline_stream.observability.rules import Target
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.kube_api import KubeApi, client_of

DEADLINE_S = 30.0
KINDS = catalogue([Hardware("a100-1g.10gb", 0.6, gpus=1 / 7, gpu_model="NVIDIA A100")])
OURS = Installation(
    target=Target("moderation", 0.5, 0.99),
    topology="/srv/topologies/moderation/topology.py",
    cluster=Cluster("ml", "registry.example/moderation:3", "moderation-replica", secret="kafka"),
    bootstrap_servers="kafka-0.kafka:9092,kafka-1.kafka:9093",
    profiles={"paths.json": "{}", "kubernetes/language.cpu-1.json": "{}"},
    stock={"t4": 4},
)
OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()
OPERATOR = json.loads((Path(__file__).parent / "schemas/prometheus-operator.json").read_text())


def spec(hardware: str, level: str = "none") -> ReplicaSpec:
    isolation = Isolation(level)
    return ReplicaSpec("", "a", "/srv/topology.py", "", "kafka:9092", KINDS[hardware], 1, isolation=isolation)


def everything() -> list[dict[str, Any]]:
    replicas = [
        deployment("moderation", spec(kind, level), OURS.cluster)
        for kind, level in (
            ("cpu-0.25", "sandbox"),
            ("t4", "gvisor"),
            ("a100-1g.10gb", "kata"),
            ("emulated-cpu", "none"),
        )
    ]
    jobs = [job("profile-a", ["python"], KINDS["t4"], Isolation("gvisor"), OURS.cluster, deadline_s=900.0)]
    return [*manifests(OURS), *replicas, *jobs]


def kind(name: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests(OURS) if manifest["kind"] == name]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "manifest", [m for m in everything() if "coreos" not in m["apiVersion"]], ids=lambda m: file_name(m)
)
def test_every_manifest_is_valid_by_the_schemas_of_old_and_new_clusters(manifest, version) -> None:
    assert version.startswith(kubernetes_validate.validate(manifest, version, strict=True))


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


def test_policies_and_budgets_are_about_the_controllers_and_about_the_replicas_and_nobody_is_both() -> None:
    (controller,) = kind("Deployment")
    controllers = controller["spec"]["template"]["metadata"]["labels"]
    replicas = deployment("moderation", spec("cpu-1"), OURS.cluster)["spec"]["template"]["metadata"]["labels"]
    for of, selected in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        found = [manifest["spec"][selected]["matchLabels"].items() for manifest in kind(of)]
        assert [labels <= controllers.items() for labels in found] == [True, False]
        assert [labels <= replicas.items() for labels in found] == [False, True]


def test_replicas_reach_names_and_kafka_and_are_reached_by_nobody() -> None:
    policy = kind("NetworkPolicy")[1]["spec"]
    assert (policy["ingress"], policy["policyTypes"]) == ([], ["Ingress", "Egress"])
    reached = {(p["protocol"], p["port"]) for rule in policy["egress"] for p in rule["ports"]}
    assert reached == {("UDP", 53), ("TCP", 53), ("TCP", 9092), ("TCP", 9093)}


def test_one_node_at_a_time_is_emptied_and_two_controllers_prefer_two_nodes() -> None:
    (controller,) = kind("Deployment")
    assert controller["spec"]["replicas"] == 2
    assert [budget["spec"]["maxUnavailable"] for budget in kind("PodDisruptionBudget")] == [1, 1]
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


def test_kustomize_is_told_of_every_manifest_and_no_two_share_a_file() -> None:
    found = manifests(OURS)
    names = kustomization(OURS, found)["resources"]
    assert names == [file_name(manifest) for manifest in found]
    assert len(set(names)) == len(names) == 13


async def asked_of_the_api_server() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything that the actuator asks for: scaling, a death, an end by force."""
    async with (
        KubeApi() as api,
        client_of(api) as client,
        asyncio.timeout(DEADLINE_S),
        KubernetesActuator(
            "p", lambda _, kind: spec(kind), Cluster(api.namespace, "i"), client, drain_timeout_s=0.2
        ) as actuator,
    ):
        await actuator.scale("a", "cpu-1", 2)
        while len(api.containers) < 2:
            await asyncio.sleep(0.01)
        first, second = await actuator.observe()
        api.containers[first.replica].end.set_result(1)
        await actuator.next_exit()
        await actuator.capacity()
        await actuator.scale("a", "cpu-1", 1, [second.replica])
        await actuator.aclose()
        return {_right(*request) for request in api.requests}


def _right(method: str, path: str) -> tuple[str, str, str]:
    """The authorisation attributes of a request, as Kubernetes' documentation derives them."""
    matched = re.fullmatch(r"/apis?(?:/(?P<group>[^/]+))?/v\d\w*/namespaces/[^/]+/(?P<rest>.+)", path)
    assert matched is not None, path
    resource, name, *sub = [*matched["rest"].split("/"), ""][:3]
    verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get" if name else "list"}
    return matched["group"] or "", "/".join([resource, *(part for part in sub if part)]), verbs[method]


async def test_the_controller_has_the_rights_that_it_uses_and_no_others() -> None:
    granted = {(group, resource, verb) for group, found, verbs in RIGHTS for resource in found for verb in verbs}
    watched = {("", "pods", "watch")}  # a list with a parameter, by its path
    assert await asked_of_the_api_server() | watched == granted


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
            unknown = await apply(client, ours)
            assert [text.partition(":")[0] for text in unknown] == ["ServiceMonitor", "PrometheusRule"]
        assert len(api.pods()) == 2
        kinds = {plural for plural, _ in api.applied}
    assert {"roles", "rolebindings", "networkpolicies", "poddisruptionbudgets", "services", "configmaps"} <= kinds


async def test_shares_that_together_exceed_the_stock_are_told_apart_from_those_that_do_not() -> None:
    async with KubeApi() as api, client_of(api) as client:
        for name, share in (("moderation", 4), ("search", 3)):
            ours = _in(api.namespace)
            theirs = replace(ours, target=replace(ours.target, pipeline=name), stock={"t4": share, "cpu-1": 1})
            await apply(client, manifests(theirs))
        found = await controllers(client, api.namespace)
    assert overcommitted(found, {"t4": 6, "cpu-1": 2}) == {"t4": (6, {"moderation": 4, "search": 3})}


async def test_what_is_applied_is_what_was_rendered() -> None:
    async with KubeApi() as api, client_of(api) as client:
        ours = manifests(_in(api.namespace))
        assert await apply(client, ours) == []
        found = [*api.applied.values(), *api.deployments()]
    for manifest in ours:
        (sent,) = [
            s for s in found if (s["kind"], s["metadata"]["name"]) == (manifest["kind"], manifest["metadata"]["name"])
        ]
        sent["metadata"].pop("resourceVersion")
        assert json.loads(json.dumps(sent)) == manifest


async def test_an_api_server_that_refuses_says_what_is_missing() -> None:
    async with KubeApi(unknown_groups=frozenset({"policy"})) as api, client_of(api) as client:
        with pytest.raises(InferlineError, match=r"refuses: 404 Not Found: /apis/policy"):
            await apply(client, manifests(_in(api.namespace)))


def _in(namespace: str) -> Installation:
    return Installation(
        target=OURS.target,
        topology=OURS.topology,
        cluster=Cluster(namespace, OURS.cluster.image, OURS.cluster.service_account),
        bootstrap_servers=OURS.bootstrap_servers,
        profiles=OURS.profiles,
    )
