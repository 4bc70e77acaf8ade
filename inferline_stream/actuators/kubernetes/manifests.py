"""What one stage is in Kubernetes: a Deployment of dispatchers, one of replicas per hardware kind, and what joins them.

Plain values, derived from the catalogue and the replicas' specs. Fields that are not named here belong to those who set
them: tolerations, affinities or a service mesh's annotations stay, since objects are applied server-side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferline_stream.actuators.kubernetes.gpu_nodes import claim_spec, node_requirements, written
from inferline_stream.actuators.kubernetes.object_names import (
    DISPATCHER,
    MANAGED_BY,
    PIPELINE_LABEL,
    REPLICA,
    credential_name,
    dispatchers_name,
    dns_label,
    labels,
    replicas_name,
)
from inferline_stream.actuators.network.credentials import Credential
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.actuators.network.replica_host import ReplicaHostSpec
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, ReplicaSpec
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.settings import HOST_ADDRESS, HOST_NAME, HOST_NODE, HOST_SPEC

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
        dispatcher_keys: of the Secret, by the variables that they become in dispatchers, which then are given no other
            key of it; empty for all keys under their own names.
    """

    namespace: str
    image: str
    topology: str = ""
    service_account: str = "default"
    secret: str = ""
    kafka_ports: tuple[int, ...] = (9092,)
    dispatcher_keys: Mapping[str, str] = field(default_factory=dict)


def resources(hardware: Hardware, isolation: Isolation) -> dict[str, Any]:
    """Requests and limits of one replica's pod. Emulated kinds sleep, and ask for next to nothing.

    The limit of memory lies above what the replica limits itself to, so that the kernel ends the replica, whose batch
    is then judged, and not its host.
    """
    cpu = f"{max(10, round(hardware.cores * 1000))}m"
    limits = {"ephemeral-storage": f"{2 * LIFE_MIB + _scratch_mib(hardware, isolation)}Mi"}
    if not hardware.emulated:
        limits["cpu"] = cpu
    if isolation.memory_mb is not None:
        processes_mib = isolation.memory_mb * (1 + isolation.helpers)
        limits["memory"] = f"{processes_mib + HOST_MIB + (isolation.shm_mb or 0)}Mi"
    if hardware.gpus and not hardware.device_class:
        resource = f"nvidia.com/mig-{written(hardware.slice)}" if hardware.slice else "nvidia.com/gpu"
        limits[resource] = str(math.ceil(hardware.gpus))
    return {"requests": {"cpu": cpu, **limits}, "limits": limits}


def _scratch_mib(hardware: Hardware, isolation: Isolation) -> int:
    """Of files that a replica may write: none is longer than `file_mb`, and few are needed."""
    return isolation.file_mb if isolation.scratch or isolation.writes or hardware.gpus else LIFE_MIB


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
    pod = _pod(
        pipeline,
        spec.stage,
        REPLICA,
        container,
        cluster,
        grace_s=grace_s,
        scratch_mib=_scratch_mib(hardware, isolation),
    )
    for name, path, volume in _declared_volumes(isolation):
        pod["volumes"].append({"name": name, **volume})
        container["volumeMounts"].append(
            {"name": name, "mountPath": path, **({"readOnly": True} if path != _SHM else {})}
        )
    if found := node_requirements(hardware):
        required = {"nodeSelectorTerms": [{"matchExpressions": found}]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if hardware.gpus:
        # Nodes with GPUs are commonly kept free of all that needs none.
        pod["tolerations"] += [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if runtime_class := isolation.level if isolation.level in ("gvisor", "kata") else hardware.runtime_class:
        pod["runtimeClassName"] = runtime_class
    if hardware.device_class:
        named = _claim_name(pipeline, spec.stage, hardware)
        pod["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": named}]
        container["resources"]["claims"] = [{"name": "gpu"}]
    name = replicas_name(pipeline, spec.stage, hardware.name)
    made = _deployment(name, labels(pipeline, spec.stage, REPLICA, hardware.name), pod, cluster)
    if stops_first:
        made["spec"]["strategy"]["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}
    return made


def claim_template(
    pipeline: str, spec: ReplicaSpec, cluster: Cluster, deployment: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what the pods of a Deployment of replicas claim their devices by; None for kinds without a device class.

    Args:
        pipeline: its name.
        spec: of the replicas.
        cluster: where.
        deployment: as it is in the cluster; the template goes with it.
    """
    if not spec.hardware.device_class:
        return None
    name = _claim_name(pipeline, spec.stage, spec.hardware)
    claims = claim_spec(spec.hardware)
    made = _object("resource.k8s.io/v1", "ResourceClaimTemplate", name, pipeline, cluster, spec=claims)
    named = {key: deployment["metadata"][key] for key in ("name", "uid")}
    made["metadata"]["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": "Deployment", **named}]
    return made


def _claim_name(pipeline: str, stage: str, hardware: Hardware) -> str:
    """A template cannot be changed: another claim has another name."""
    return dns_label(f"{pipeline}-{stage}-{hardware.name}-{hardware.device_class}-{math.ceil(hardware.gpus)}")


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
    if cluster.secret and cluster.dispatcher_keys:
        container["env"] += [_secret_variable(cluster.secret, *each) for each in cluster.dispatcher_keys.items()]
    elif cluster.secret:
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


def _secret_variable(secret: str, name: str, key: str) -> dict[str, Any]:
    """One that keeps its name, such as those of spans, need not come from there."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": name == key}}}


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
