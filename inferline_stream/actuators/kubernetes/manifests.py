"""What one stage is in Kubernetes: a Deployment of dispatchers, one of replicas per hardware kind, and what joins them.

Plain values, derived from the catalogue and the replicas' specs. Fields that are not named here belong to those who set
them: tolerations, affinities or a service mesh's annotations stay, since objects are applied server-side.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from inferline_stream.actuators.network.credentials import Credential
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.actuators.network.replica_host import ReplicaHostSpec
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, ReplicaSpec
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import HOST_ADDRESS, HOST_NAME, HOST_NODE, HOST_SPEC

FIELD_MANAGER = "inferline-stream"
PIPELINE_LABEL = "inferline-stream.dev/pipeline"
STAGE_LABEL = "inferline-stream.dev/stage"
HARDWARE_LABEL = "inferline-stream.dev/hardware"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
DISPATCHER, REPLICA = "dispatcher", "replica"
"""Values of `COMPONENT_LABEL`, and names of containers."""

LIFE_FOLDER = "/run/inferline"
"""Of the pod, not of the container: what is left in it shows a restarted container that it is one."""

READY_FILE = f"{LIFE_FOLDER}/ready"
CREDENTIAL_FOLDER = "/etc/inferline/credential"
DISPATCHER_PORT = 9470

HOST_MIB = 96
"""Memory of a replica's host beside the replica."""

LIFE_MIB = 64
"""Of a replica's logs, which are cut at 16 MiB, and of `/tmp` where its stage asks for none."""

DISPATCHER_LIFE_MIB = 256
"""Of a dispatcher's logs: those of some that died are kept."""

SPARE = 1
"""Dispatchers' pods beyond the slots: one takes over within seconds where a node is lost."""

_UNREACHABLE_S = 5
"""How long a pod stays bound to a node that has fallen silent: the cluster's own default is five minutes."""

_STOP_S = 5.0
"""Time of a host beyond that of draining."""

SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Of every container."""

_LONGEST_NAME = 52  # a pod's name adds two suffixes, and its host name may have 63 characters


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a pipeline runs in a cluster.

    Args:
        namespace: of everything that is made.
        image: holds this package, the topology, and what its stages import.
        topology: path of the topology file in the image; empty for where it is here.
        service_account: of the pods, which never speak to the API server.
        secret: name of a Secret whose keys become environment variables of dispatchers, such as Kafka's password;
            empty for none.
        kafka_ports: TCP ports that dispatchers may reach: Kafka's, and where spans go.
    """

    namespace: str
    image: str
    topology: str = ""
    service_account: str = "default"
    secret: str = ""
    kafka_ports: tuple[int, ...] = (9092,)


def replicas_name(pipeline: str, stage: str, hardware: str) -> str:
    """Name of the Deployment of a stage's replicas on a hardware kind."""
    return dns_label(f"{pipeline}-{stage}-{hardware}")


def dispatchers_name(pipeline: str, stage: str) -> str:
    """Name of a stage's Deployment of dispatchers, and of what belongs to it."""
    return dns_label(f"{pipeline}-{stage}-dispatcher")


def credential_name(pipeline: str, stage: str, component: str) -> str:
    """Name of the Secret with one side's credential."""
    return dns_label(f"{pipeline}-{stage}-{component}-tls")


def dns_label(whole: str) -> str:
    """Return a name that Kubernetes takes; a hash keeps those apart that differ in other characters only."""
    plain = re.sub(r"[^a-z0-9-]+", "-", whole.lower()).strip("-")
    if plain == whole and len(plain) <= _LONGEST_NAME:
        return plain
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST_NAME - 7].strip('-')}-{digest}"


def labels(pipeline: str, stage: str, component: str, hardware: str = "") -> dict[str, str]:
    """By which pods are found."""
    found = {PIPELINE_LABEL: pipeline, STAGE_LABEL: stage, COMPONENT_LABEL: component, **MANAGED_BY}
    return found | ({HARDWARE_LABEL: hardware} if hardware else {})


def resources(hardware: Hardware, isolation: Isolation) -> dict[str, Any]:
    """Requests and limits of one replica's pod. Emulated kinds sleep, and ask for next to nothing.

    The limit of memory lies above what the replica limits itself to, so that the kernel ends the replica, whose batch
    is then judged, and not its host.
    """
    cpu = f"{max(10, round(hardware.cores * 1000))}m"
    limits = {"ephemeral-storage": f"{2 * LIFE_MIB + _scratch_mib(isolation)}Mi"}
    if not hardware.emulated:
        limits["cpu"] = cpu
    if isolation.memory_mb is not None:
        processes_mib = isolation.memory_mb * (1 + isolation.helpers)
        limits["memory"] = f"{processes_mib + HOST_MIB + (isolation.shm_mb or 0)}Mi"
    if hardware.gpus:
        resource = f"nvidia.com/mig-{hardware.slice}" if hardware.slice else "nvidia.com/gpu"
        limits[resource] = str(math.ceil(hardware.gpus))
    return {"requests": {"cpu": cpu, **limits}, "limits": limits}


def _scratch_mib(isolation: Isolation) -> int:
    """Of files that a replica may write: none is longer than `file_mb`, and few are needed."""
    return isolation.file_mb if isolation.scratch or isolation.writes else LIFE_MIB


_PRODUCTS = {
    "Tesla V100": tuple(f"Tesla-V100-{form}" for form in ("SXM2-16GB", "SXM2-32GB", "PCIE-16GB", "PCIE-32GB")),
    "NVIDIA A100": tuple(f"NVIDIA-A100-{form}" for form in ("SXM4-40GB", "SXM4-80GB", "PCIE-40GB", "80GB-PCIe")),
    "NVIDIA H100": tuple(f"NVIDIA-H100-{form}" for form in ("80GB-HBM3", "PCIe", "NVL")),
    "NVIDIA H200": ("NVIDIA-H200", "NVIDIA-H200-NVL"),
}
"""What NVIDIA's feature discovery labels nodes with, of models that come in several forms."""

_MOST_SHARES = 48
"""Replicas of one GPU; more are no share of any use."""


def products(hardware: Hardware) -> tuple[str, ...]:
    """Values of the label ``nvidia.com/gpu.product`` that nodes of the kind carry; none where any node will do.

    Nodes that lend a GPU to several pods at once say ``-SHARED``. Nodes with slices (MIG) keep the name of the GPU
    where slices differ (strategy ``mixed``), and add the slice to it where all are alike.
    """
    if not hardware.gpus or hardware.gpu_model is None:
        return ()
    found = _PRODUCTS.get(hardware.gpu_model, (hardware.gpu_model.replace(" ", "-"),))
    if hardware.shares_gpu:
        return tuple(f"{product}-SHARED" for product in found)
    return (*found, *(f"{product}-MIG-{hardware.slice}" for product in found)) if hardware.slice else found


def shares(hardware: Hardware) -> int:
    """Return among how many pods nodes have to share a GPU so that one of them is what a kind pays for; 1 for none.

    Raises:
        InvalidTopology: no whole number of such shares makes a GPU, so that a pod would get more than is paid for.
    """
    if not hardware.shares_gpu:
        return 1
    parts = round(1 / hardware.gpus)
    if not 1 < parts <= _MOST_SHARES or abs(parts * hardware.gpus - 1) > 0.01:
        raise InvalidTopology(
            f"hardware {hardware.name!r}: Kubernetes lends whole parts of a GPU, and gpus={hardware.gpus:g} is none; "
            "write 1/2, 1/3, …, and have nodes share their GPUs among as many pods"
        )
    return parts


def _nodes(hardware: Hardware) -> list[dict[str, Any]]:
    """What the labels of a node have to say so that a replica may run there; nothing where any will do."""

    def says(label: str, operator: str, *values: str) -> dict[str, Any]:
        return {"key": f"nvidia.com/gpu.{label}", "operator": operator, "values": list(values)}

    if not hardware.gpus:
        return []
    wanted = [says("product", "In", *found)] if (found := products(hardware)) else []
    if (parts := shares(hardware)) > 1:
        return [*wanted, says("replicas", "In", str(parts))]
    # Without a model nothing else keeps a whole GPU's replica from a node that lends only a part.
    return wanted or [says("sharing-strategy", "NotIn", "time-slicing", "mps")]


def replicas(
    pipeline: str, spec: ReplicaSpec, cluster: Cluster, dispatcher: str, *, grace_s: float, stops_first: bool = False
) -> dict[str, Any]:
    """Return a stage's Deployment on a hardware kind, without its number of replicas: that belongs to the actuator.

    A replica needs no port and no right in the cluster, and reaches nothing but its stage's dispatchers. Its name is
    the pod's, and a pod runs one replica in its life.

    Args:
        pipeline: its name.
        spec: of the replicas.
        cluster: where.
        dispatcher: ``host:port`` of the stage's dispatchers.
        grace_s: time a replica has to finish its batch.
        stops_first: whether an older pod ends before a newer one is made, because no node has a place for both.

    Raises:
        InvalidTopology: a share of a GPU that nodes cannot lend.
    """
    hardware, isolation = spec.hardware, spec.isolation
    spec = msgspec.structs.replace(spec, replica="", topology=cluster.topology or spec.topology)
    host = ReplicaHostSpec(spec, dispatcher, LIFE_FOLDER, CREDENTIAL_FOLDER)
    container = _container(REPLICA, cluster, msgspec.json.encode(host).decode(), resources(hardware, isolation))
    pod = _pod(pipeline, spec.stage, REPLICA, container, cluster, grace_s=grace_s, scratch_mib=_scratch_mib(isolation))
    for name, path, volume in _declared_volumes(isolation):
        pod["volumes"].append({"name": name, **volume})
        container["volumeMounts"].append(
            {"name": name, "mountPath": path, **({"readOnly": True} if path != _SHM else {})}
        )
    if found := _nodes(hardware):
        required = {"nodeSelectorTerms": [{"matchExpressions": found}]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if hardware.gpus:
        # Nodes with GPUs are commonly kept free of all that needs none.
        pod["tolerations"] += [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if isolation.level in ("gvisor", "kata"):
        pod["runtimeClassName"] = isolation.level
    name = replicas_name(pipeline, spec.stage, hardware.name)
    made = _deployment(name, labels(pipeline, spec.stage, REPLICA, hardware.name), pod, cluster)
    if stops_first:
        made["spec"]["strategy"]["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}
    return made


_SHM = "/dev/shm"  # noqa: S108  the container's own


def _declared_volumes(isolation: Isolation) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, path and source of the volumes that a stage asks for."""
    for number, (claim, path) in enumerate(isolation.mounts):
        yield f"volume-{number}", path, {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    if isolation.shm_mb is not None:
        yield "shm", _SHM, {"emptyDir": {"medium": "Memory", "sizeLimit": f"{isolation.shm_mb}Mi"}}


def dispatchers(
    pipeline: str,
    stage: str,
    bootstrap_servers: str,
    assignments: str,
    cluster: Cluster,
    *,
    grace_s: float,
    module: str = DISPATCHER_MODULE,
) -> dict[str, Any]:
    """Return a stage's Deployment of dispatchers, without its number of replicas.

    Args:
        pipeline: its name.
        stage: the stage.
        bootstrap_servers: of Kafka.
        assignments: full name of the topic that has the postings.
        cluster: where.
        grace_s: time a dispatcher has to drain.
        module: what a dispatcher's process runs as ``__main__``.
    """
    host = DispatcherHostSpec(
        stage,
        bootstrap_servers,
        assignments,
        LIFE_FOLDER,
        CREDENTIAL_FOLDER,
        DISPATCHER_PORT,
        drain_timeout_s=grace_s,
        module=module,
    )
    storage = f"{DISPATCHER_LIFE_MIB + 2 * LIFE_MIB}Mi"
    wanted = {"cpu": "1", "memory": "384Mi", "ephemeral-storage": storage}
    limits = {"memory": "2Gi", "ephemeral-storage": storage}
    given = msgspec.json.encode(host).decode()
    container = _container(DISPATCHER, cluster, given, {"requests": wanted, "limits": limits})
    container["ports"] = [{"name": "replicas", "containerPort": DISPATCHER_PORT}]
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    own = labels(pipeline, stage, DISPATCHER)
    pod = _pod(
        pipeline,
        stage,
        DISPATCHER,
        container,
        cluster,
        grace_s=grace_s,
        scratch_mib=LIFE_MIB,
        life_mib=DISPATCHER_LIFE_MIB,
    )
    apart = {"labelSelector": {"matchLabels": own}, "topologyKey": "kubernetes.io/hostname"}
    preferred = [{"weight": 100, "podAffinityTerm": apart}]
    pod["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return _deployment(dispatchers_name(pipeline, stage), own, pod, cluster)


def service(pipeline: str, stage: str, cluster: Cluster) -> dict[str, Any]:
    """Return the one address of a stage's dispatchers: replicas need no name service to find it."""
    spec = {
        "selector": labels(pipeline, stage, DISPATCHER),
        "ports": [{"name": "replicas", "port": DISPATCHER_PORT, "targetPort": DISPATCHER_PORT}],
    }
    return _object("v1", "Service", dispatchers_name(pipeline, stage), pipeline, cluster, spec=spec)


def credential_secrets(pipeline: str, stage: str, credential: Credential, cluster: Cluster) -> list[dict[str, Any]]:
    """Return one Secret for each side."""
    return [
        _object(
            "v1",
            "Secret",
            credential_name(pipeline, stage, component),
            pipeline,
            cluster,
            type="Opaque",
            stringData={name: content.decode() for name, content in files.items()},
        )
        for component, files in ((DISPATCHER, credential.dispatcher), (REPLICA, credential.replica))
    ]


def disruption_budgets(pipeline: str, stage: str, cluster: Cluster) -> list[dict[str, Any]]:
    """Nodes are emptied one pod of each at a time: a replica finishes its batch before the next one goes."""
    return [
        _object(
            "policy/v1",
            "PodDisruptionBudget",
            dns_label(f"{pipeline}-{stage}-{component}"),
            pipeline,
            cluster,
            spec={"maxUnavailable": 1, "selector": {"matchLabels": labels(pipeline, stage, component)}},
        )
        for component in (DISPATCHER, REPLICA)
    ]


def network_policies(pipeline: str, stage: str, cluster: Cluster, ports: Collection[int] = ()) -> list[dict[str, Any]]:
    """Return who may reach whom: dispatchers reach Kafka, and replicas the dispatchers of their stage.

    Args:
        pipeline: its name.
        stage: the stage.
        cluster: where.
        ports: that the stage itself declares.
    """
    mine, theirs = labels(pipeline, stage, DISPATCHER), labels(pipeline, stage, REPLICA)
    declared = [NAMES, {"ports": [policy_port(number) for number in sorted(ports)]}] if ports else []
    outside = [policy_port(number) for number in sorted(cluster.kafka_ports)]
    return [
        _policy(
            pipeline, stage, DISPATCHER, cluster,
            ingress=[{"from": [{"podSelector": {"matchLabels": theirs}}], "ports": [policy_port(DISPATCHER_PORT)]}],
            egress=[NAMES, {"ports": outside}],
        ),
        _policy(
            pipeline, stage, REPLICA, cluster,
            ingress=[],
            egress=[
                {"to": [{"podSelector": {"matchLabels": mine}}], "ports": [policy_port(DISPATCHER_PORT)]},
                *declared,
            ],
        ),
    ]  # fmt: skip


def policy_port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    """Return a port of a network policy."""
    return {"protocol": protocol, "port": number}


NAMES: dict[str, Any] = {
    "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
    "ports": [policy_port(53, "UDP"), policy_port(53)],
}
"""An egress rule: the cluster's name service."""


def _policy(
    pipeline: str, stage: str, component: str, cluster: Cluster, *, ingress: list[Any], egress: list[Any]
) -> dict[str, Any]:
    spec = {
        "podSelector": {"matchLabels": labels(pipeline, stage, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    name = dns_label(f"{pipeline}-{stage}-{component}")
    return _object("networking.k8s.io/v1", "NetworkPolicy", name, pipeline, cluster, spec=spec)


def _object(version: str, kind: str, name: str, pipeline: str, cluster: Cluster, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": cluster.namespace, "labels": {PIPELINE_LABEL: pipeline, **MANAGED_BY}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def _deployment(name: str, own: dict[str, str], pod: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": cluster.namespace, "labels": own},
        "spec": {
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": own}, "spec": pod},
            # A changed template replaces pods one after another, the new one READY before the old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        },
    }


def _container(component: str, cluster: Cluster, given: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    def field(path: str) -> dict[str, Any]:
        return {"fieldRef": {"fieldPath": path}}

    return {
        "name": component,
        "image": cluster.image,
        "command": ["python", "-m", f"inferline_stream.actuators.network.{component}_host"],
        "env": [
            {"name": HOST_NAME, "valueFrom": field("metadata.name")},
            {"name": HOST_ADDRESS, "valueFrom": field("status.podIP")},
            {"name": HOST_NODE, "valueFrom": field("spec.nodeName")},
            {"name": HOST_SPEC, "value": given},
        ],
        "resources": dict(wanted),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Whether the host listens, or the replica has loaded its stage. Nothing ends a container for what it answers.
        "readinessProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "life", "mountPath": LIFE_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "credential", "mountPath": CREDENTIAL_FOLDER, "readOnly": True},
        ],
        "securityContext": dict(SECURITY),
    }


def _pod(
    pipeline: str,
    stage: str,
    component: str,
    container: dict[str, Any],
    cluster: Cluster,
    *,
    grace_s: float,
    scratch_mib: int,
    life_mib: int = LIFE_MIB,
) -> dict[str, Any]:
    return {
        "containers": [container],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # variables named after other people's services
        "serviceAccountName": cluster.service_account,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": math.ceil(grace_s + _STOP_S),
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": _UNREACHABLE_S,
            }
            for state in ("not-ready", "unreachable")
        ],
        "volumes": [
            {"name": "life", "emptyDir": {"sizeLimit": f"{life_mib}Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{scratch_mib}Mi"}},
            {"name": "credential", "secret": {"secretName": credential_name(pipeline, stage, component)}},
        ],
    }
