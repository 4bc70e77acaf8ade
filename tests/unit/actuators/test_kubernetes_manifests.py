"""What the Kubernetes actuator asks for: names, pods and claims of a stage, and what a quota leaves of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from inferline_stream.actuators.kubernetes.gpu_nodes import PRODUCT_LABEL, products, products_of
from inferline_stream.actuators.kubernetes.manifests import HOST_MIB, Cluster, StageManifests, resources
from inferline_stream.actuators.kubernetes.object_names import replicas_name
from inferline_stream.actuators.kubernetes.pods import left_by_quotas
from inferline_stream.actuators.mps import shared_by
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.isolation import Isolation

KINDS = catalogue([Hardware("a100-1g.10gb", 0.6, gpus=1 / 7, gpu_model="NVIDIA A100")])


def template(stage: str, hardware: str) -> ReplicaSpec:
    return ReplicaSpec("", stage, "/app/topology.py", KINDS[hardware])


def pod_of(spec: ReplicaSpec, **of: str) -> dict[str, Any]:
    stage = StageManifests("p", spec.stage, Cluster("ns", "image", **of))
    made = stage.replicas(spec, "10.0.0.1:9470", grace_s=30.0)
    return made["spec"]["template"]["spec"]


def nodes_of(hardware: Hardware) -> dict[str, tuple[str, list[str]]]:
    pod = pod_of(ReplicaSpec("", "a", "/app/topology.py", hardware))
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return {each["key"].rpartition(".")[2]: (each["operator"], each["values"]) for each in term["matchExpressions"]}


def test_quotas_are_read_as_kubernetes_writes_them() -> None:
    wanted = resources(replace(KINDS["t4"], cores=1.0), Isolation(memory_mb=928))
    gpus = {"status": {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": "1"}}}
    processor = {"status": {"hard": {"cpu": "2", "limits.memory": "3Gi"}, "used": {"cpu": "500m"}}}
    others = {"spec": {"scopes": ["BestEffort"]}, "status": {"hard": {"pods": "0"}}}
    assert left_by_quotas(wanted, [gpus]) == [3]
    assert sorted(left_by_quotas(wanted, [processor, others])) == [1, 3]
    assert left_by_quotas(resources(KINDS["cpu-1"], Isolation()), [gpus]) == []


def test_names_of_deployments_are_labels_and_differ_where_their_stages_do() -> None:
    assert replicas_name("p", "a", "cpu-1") == "p-a-cpu-1"
    names = {replicas_name("p", stage, "cpu-0.5") for stage in ("a_b", "a-b", "a" * 80, "a" * 81)}
    assert len(names) == 4
    assert all(
        len(name) <= 52 and name.strip("-") == name and name.isascii() and name == name.lower() for name in names
    )


def test_a_gpu_its_slice_and_its_nodes_are_asked_for_by_their_names_in_the_cluster() -> None:
    assert resources(KINDS["t4"], Isolation())["limits"]["nvidia.com/gpu"] == "1"
    assert resources(KINDS["a100-1g.10gb"], Isolation())["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    media = Hardware("a100-1g.10gb+me", 0.4, gpus=1 / 7, gpu_model="NVIDIA A100")
    assert resources(media, Isolation())["limits"]["nvidia.com/mig-1g.10gb.me"] == "1"
    pod = pod_of(template("a", "t4"))
    assert pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["Tesla-T4"]}]}
        ]
    }
    assert "nvidia.com/gpu" in [toleration["key"] for toleration in pod["tolerations"]]


def test_a_model_that_comes_in_several_forms_is_any_of_them_and_one_that_is_named_in_full_is_itself() -> None:
    assert "NVIDIA-A100-SXM4-80GB" in products(KINDS["a100-1g.10gb"])
    assert products(Hardware("mine", 1.0, gpus=1, gpu_model="NVIDIA A100-SXM4-80GB")) == ("NVIDIA-A100-SXM4-80GB",)
    assert products(Hardware("any", 1.0, gpus=1)) == products(KINDS["cpu-1"]) == ()
    nodes_alike = "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"
    assert nodes_alike not in products(KINDS["a100-1g.10gb"]), "they offer nvidia.com/gpu, and no slice by its name"
    assert products(KINDS["h200"]) == ("NVIDIA-H200", "NVIDIA-H200-NVL")


@pytest.mark.parametrize(("kind", "shared"), [("a100", ""), ("a100-1of2", "-SHARED")])
def test_the_products_of_a_kind_are_those_that_nodes_have_and_each_finds_its_own(kind: str, shared: str) -> None:
    here = ["NVIDIA-A100-SXM4-80GB", "NVIDIA-L4", "NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-40GB"]
    nodes = [{}, *({PRODUCT_LABEL: product + shared} for product in here)]
    found = products_of(KINDS[kind], nodes)
    assert found == ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB")
    assert [nodes_of(replace(KINDS[kind], gpu_model=product))["product"] for product in found] == [
        ("In", [product + shared]) for product in found
    ]
    labelled = Hardware("a100-80", 2.0, gpus=1, gpu_model="NVIDIA A100", node_labels={"pool": "large"})
    assert products_of(KINDS["t4"], nodes) == products_of(KINDS["cpu-1"], nodes) == products_of(labelled, nodes) == ()


def test_a_share_of_a_gpu_runs_where_nodes_share_theirs_among_as_many_and_never_books_a_whole_one() -> None:
    half = Hardware("half-t4", 0.263, gpus=0.5, gpu_model="Tesla T4")
    shared = {"replicas": ("In", ["2"]), "sharing-strategy": ("NotIn", ["mps"])}
    assert nodes_of(half) == {"product": ("In", ["Tesla-T4-SHARED"]), **shared}
    assert nodes_of(replace(half, gpu_model=None)) == shared
    by_mps = replace(half, node_labels={"nvidia.com/gpu.sharing-strategy": "mps"})
    assert nodes_of(by_mps) == {"sharing-strategy": ("In", ["mps"])}
    assert [shared_by(kind, Isolation("none")) for kind in (by_mps, replace(half, node_labels={"a": "b"}))] == [
        "MPS",
        "time slices",
    ]
    whole = Hardware("any", 1.0, gpus=1)
    assert nodes_of(whole) == {"sharing-strategy": ("NotIn", ["time-slicing", "mps"])}, "nor a whole one a half"


def test_weights_and_shared_memory_are_mounted_as_a_stage_asks_for_them() -> None:
    isolation = Isolation(memory_mb=1000, volumes=("weights:/models",), shm_mb=2048)
    pod = pod_of(ReplicaSpec("", "a", "/app/topology.py", KINDS["t4"], isolation=isolation))
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes["volume-0"] == {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}}
    assert volumes["shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "2048Mi"}}
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["volume-0"] == {"name": "volume-0", "mountPath": "/models", "readOnly": True}
    assert mounts["shm"]["mountPath"] == "/dev/shm"
    memory = container["resources"]["limits"]["memory"]
    assert memory == f"{1000 + 2048 + HOST_MIB}Mi", "what is shared counts as memory"


def test_a_replicas_pod_has_no_right_in_the_cluster_and_none_on_its_node() -> None:
    pod = pod_of(template("a", "cpu-1"), secret="kafka")
    assert not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert "envFrom" not in container, "Kafka's password is for dispatchers"


def test_what_a_pod_may_use_is_limited_by_what_its_stage_declares() -> None:
    spec = msgspec.structs.replace(
        template("a", "cpu-1"), isolation=Isolation(memory_mb=512, scratch=True, file_mb=100)
    )
    pod = pod_of(spec)
    limits = pod["containers"][0]["resources"]["limits"]
    assert (limits["memory"], limits["ephemeral-storage"]) == ("608Mi", "228Mi")
    assert {v["name"]: v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if "emptyDir" in v} == {
        "life": "64Mi",
        "tmp": "100Mi",
    }


def test_no_pod_is_ended_for_what_users_code_does_and_none_has_a_token_or_may_write() -> None:
    stage = StageManifests("p", "a", Cluster("ns", "image", secret="k"))
    dispatcher = stage.dispatchers(DispatcherHostSpec("", "kafka:9092", "p", "life", "credential", 9470))
    for pod in (pod_of(template("a", "t4")), dispatcher["spec"]["template"]["spec"]):
        (container,) = pod["containers"]
        assert "livenessProbe" not in container
        assert container["readinessProbe"]["exec"]["command"] == ["test", "-e", "/run/inferline/ready"]
        assert not pod["automountServiceAccountToken"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert all("sizeLimit" in v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v)


def test_labels_of_a_cloud_stand_in_the_place_of_those_of_nvidias_feature_discovery() -> None:
    gke = Hardware("l4", 0.8, gpus=0.5, gpu_model="NVIDIA L4", node_labels={"cloud.google.com/gke-accelerator": "l4"})
    assert nodes_of(gke) == {"com/gke-accelerator": ("In", ["l4"])}
    assert nodes_of(Hardware("pool", 0.1, node_labels={"b.c": "2", "a.d": "1"})) == {
        "d": ("In", ["1"]),
        "c": ("In", ["2"]),
    }


def test_devices_of_a_class_are_claimed_by_each_pod_and_no_resource_of_a_plugin_is() -> None:
    spec = ReplicaSpec("", "a", "/app/topology.py", Hardware("two", 2.0, gpus=2, device_class="gpu.nvidia.com"))
    pod = pod_of(spec)
    deployment = {"metadata": {"name": "p-a-two", "uid": "1"}}
    claims = StageManifests("p", "a", Cluster("ns", "image")).claim_template(spec.hardware, deployment)
    assert claims is not None
    assert pod["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": claims["metadata"]["name"]}]
    wanted = pod["containers"][0]["resources"]
    assert wanted["claims"] == [{"name": "gpu"}]
    assert not any("nvidia.com" in name for name in wanted["limits"])
    assert "affinity" not in pod
    (request,) = claims["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "gpu.nvidia.com", "count": 2}
    other = msgspec.structs.replace(spec, hardware=replace(spec.hardware, device_class="mig.nvidia.com"))
    assert pod_of(other)["resourceClaims"] != pod["resourceClaims"], "a template cannot be changed"


@pytest.mark.parametrize("runtime_class", ["", "nvidia", "gvisor"])
def test_pods_have_the_runtime_class_of_their_kind(runtime_class: str) -> None:
    kind = Hardware("t4", 0.5, gpus=1, gpu_model="Tesla T4", runtime_class=runtime_class)
    pod = pod_of(ReplicaSpec("", "a", "/app/topology.py", kind, isolation=Isolation()))
    assert pod.get("runtimeClassName", "") == runtime_class
