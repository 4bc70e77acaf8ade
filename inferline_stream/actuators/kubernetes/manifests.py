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
from inferline_stream.dataplane.process_specs import ReplicaSpec
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

POD_SECURITY: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


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


@dataclass(frozen=True, slots=True)
class StageManifests:
    """What one stage is in a cluster.

    Args:
        pipeline: its name.
        stage: the stage's.
        cluster: where.
    """

    pipeline: str
    stage: str
    cluster: Cluster

    def replicas(
        self, spec: ReplicaSpec, dispatcher: str, *, grace_s: float, stops_first: bool = False
    ) -> dict[str, Any]:
        """Return a Deployment on a hardware kind, without its number of replicas: that belongs to the actuator.

        A replica needs no port and no right in the cluster, and reaches nothing but its stage's dispatchers. Its name
        is the pod's, and a pod runs one replica in its life.

        Args:
            spec: of the replicas.
            dispatcher: ``host:port`` of the stage's dispatchers.
            grace_s: time a replica has to finish its batch.
            stops_first: whether an older pod ends before a newer one is made, because no node has a place for both.

        Raises:
            InvalidTopology: a share of a GPU that nodes cannot lend.
        """
        hardware, isolation = spec.hardware, spec.isolation
        spec = msgspec.structs.replace(spec, replica="", topology=self.cluster.topology or spec.topology)
        host = ReplicaHostSpec(spec, dispatcher, LIFE_FOLDER, CREDENTIAL_FOLDER)
        container = self._container(REPLICA, host, resources(hardware, isolation))
        pod = self._pod(REPLICA, container, grace_s=grace_s, scratch_mib=_scratch_mib(hardware, isolation))
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
        if hardware.runtime_class:
            pod["runtimeClassName"] = hardware.runtime_class
        if hardware.device_class:
            pod["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": self._claim_name(hardware)}]
            container["resources"]["claims"] = [{"name": "gpu"}]
        name = replicas_name(self.pipeline, self.stage, hardware.name)
        made = self._deployment(name, labels(self.pipeline, self.stage, REPLICA, hardware.name), pod)
        if stops_first:
            made["spec"]["strategy"]["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}
        return made

    def claim_template(self, hardware: Hardware, deployment: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what pods of a Deployment of replicas claim their devices by; None for kinds without a device class.

        Args:
            hardware: the kind.
            deployment: as it is in the cluster; the template goes with it.
        """
        if not hardware.device_class:
            return None
        name = self._claim_name(hardware)
        made = self._object("resource.k8s.io/v1", "ResourceClaimTemplate", name, spec=claim_spec(hardware))
        named = {key: deployment["metadata"][key] for key in ("name", "uid")}
        made["metadata"]["ownerReferences"] = [{"apiVersion": "apps/v1", "kind": "Deployment", **named}]
        return made

    def _claim_name(self, hardware: Hardware) -> str:
        """A template cannot be changed: another claim has another name."""
        count = math.ceil(hardware.gpus)
        return dns_label(f"{self.pipeline}-{self.stage}-{hardware.name}-{hardware.device_class}-{count}")

    def dispatchers(self, host: DispatcherHostSpec) -> dict[str, Any]:
        """Return the Deployment of dispatchers, without its number of replicas.

        Args:
            host: of any stage's dispatchers.
        """
        host = msgspec.structs.replace(host, stage=self.stage)
        storage, cluster = f"{DISPATCHER_LIFE_MIB + 2 * LIFE_MIB}Mi", self.cluster
        wanted = {"cpu": "1", "memory": "384Mi", "ephemeral-storage": storage}
        limits = {"memory": "2Gi", "ephemeral-storage": storage}
        container = self._container(DISPATCHER, host, {"requests": wanted, "limits": limits})
        container["ports"] = [{"name": "replicas", "containerPort": DISPATCHER_PORT}]
        if cluster.secret and cluster.dispatcher_keys:
            container["env"] += [_secret_variable(cluster.secret, *each) for each in cluster.dispatcher_keys.items()]
        elif cluster.secret:
            container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
        own = self._labels(DISPATCHER)
        grace_s = host.drain_timeout_s
        pod = self._pod(DISPATCHER, container, grace_s=grace_s, scratch_mib=LIFE_MIB, life_mib=DISPATCHER_LIFE_MIB)
        pod["affinity"] = apart(own)
        return self._deployment(dispatchers_name(self.pipeline, self.stage), own, pod)

    def service(self) -> dict[str, Any]:
        """Return the one address of the dispatchers: replicas need no name service to find it."""
        spec = {
            "selector": self._labels(DISPATCHER),
            "ports": [{"name": "replicas", "port": DISPATCHER_PORT, "targetPort": DISPATCHER_PORT}],
        }
        return self._object("v1", "Service", dispatchers_name(self.pipeline, self.stage), spec=spec)

    def credential_secrets(self, credential: Credential) -> list[dict[str, Any]]:
        """Return one Secret for each side."""
        found = []
        for component, files in ((DISPATCHER, credential.dispatcher), (REPLICA, credential.replica)):
            name = credential_name(self.pipeline, self.stage, component)
            texts = {file: content.decode() for file, content in files.items()}
            found.append(self._object("v1", "Secret", name, type="Opaque", stringData=texts))
        return found

    def disruption_budgets(self) -> list[dict[str, Any]]:
        """Nodes are emptied one pod of each at a time: a replica finishes its batch before the next one goes."""
        both = (DISPATCHER, REPLICA)
        return [self._of_pods("policy/v1", "PodDisruptionBudget", each, budget(self._labels(each))) for each in both]

    def network_policies(self, ports: Collection[int] = ()) -> list[dict[str, Any]]:
        """Return who may reach whom: dispatchers reach Kafka, and replicas the dispatchers of their stage.

        Args:
            ports: that the stage itself declares.
        """
        mine, theirs = self._labels(DISPATCHER), self._labels(REPLICA)
        inside = [policy_port(DISPATCHER_PORT)]
        declared = [NAMES, {"ports": [policy_port(number) for number in sorted(ports)]}] if ports else []
        outside = [policy_port(number) for number in sorted(self.cluster.kafka_ports)]
        from_theirs = {"from": [{"podSelector": {"matchLabels": theirs}}], "ports": inside}
        to_mine = {"to": [{"podSelector": {"matchLabels": mine}}], "ports": inside}
        of_dispatchers = network(mine, ingress=[from_theirs], egress=[NAMES, {"ports": outside}])
        of_replicas = network(theirs, ingress=[], egress=[to_mine, *declared])
        return [
            self._of_pods("networking.k8s.io/v1", "NetworkPolicy", component, spec)
            for component, spec in ((DISPATCHER, of_dispatchers), (REPLICA, of_replicas))
        ]

    def _labels(self, component: str) -> dict[str, str]:
        return labels(self.pipeline, self.stage, component)

    def _of_pods(self, version: str, kind: str, component: str, spec: dict[str, Any]) -> dict[str, Any]:
        """What goes with all pods of a component, by their name."""
        return self._object(version, kind, dns_label(f"{self.pipeline}-{self.stage}-{component}"), spec=spec)

    def _object(self, version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
        return made(version, kind, name, self.cluster, {PIPELINE_LABEL: self.pipeline, **MANAGED_BY}, **fields)

    def _deployment(self, name: str, own: dict[str, str], pod: dict[str, Any]) -> dict[str, Any]:
        return made("apps/v1", "Deployment", name, self.cluster, own, spec=deployment(own, pod))

    def _container(
        self, component: str, host: ReplicaHostSpec | DispatcherHostSpec, wanted: Mapping[str, Any]
    ) -> dict[str, Any]:
        def field(path: str) -> dict[str, Any]:
            return {"fieldRef": {"fieldPath": path}}

        return {
            "name": component,
            "image": self.cluster.image,
            "command": ["python", "-m", f"inferline_stream.actuators.network.{component}_host"],
            "env": [
                {"name": HOST_NAME, "valueFrom": field("metadata.name")},
                {"name": HOST_ADDRESS, "valueFrom": field("status.podIP")},
                {"name": HOST_NODE, "valueFrom": field("spec.nodeName")},
                {"name": HOST_SPEC, "value": msgspec.json.encode(host).decode()},
            ],
            "resources": dict(wanted),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            # Whether the host listens, or the replica has loaded its stage. Nothing ends a container for its answer.
            "readinessProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "life", "mountPath": LIFE_FOLDER},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                {"name": "credential", "mountPath": CREDENTIAL_FOLDER, "readOnly": True},
            ],
            "securityContext": dict(SECURITY),
        }

    def _pod(
        self,
        component: str,
        container: dict[str, Any],
        *,
        grace_s: float,
        scratch_mib: int,
        life_mib: int = LIFE_MIB,
    ) -> dict[str, Any]:
        secret = credential_name(self.pipeline, self.stage, component)
        return {
            "containers": [container],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # variables named after other people's services
            "serviceAccountName": self.cluster.service_account,
            "securityContext": dict(POD_SECURITY),
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
                {"name": "credential", "secret": {"secretName": secret}},
            ],
        }


_SHM = "/dev/shm"  # noqa: S108  the container's own


def _declared_volumes(isolation: Isolation) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, path and source of the volumes that a stage asks for."""
    for number, (claim, path) in enumerate(isolation.mounts):
        yield f"volume-{number}", path, {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    if isolation.shm_mb is not None:
        yield "shm", _SHM, {"emptyDir": {"medium": "Memory", "sizeLimit": f"{isolation.shm_mb}Mi"}}


def _secret_variable(secret: str, name: str, key: str) -> dict[str, Any]:
    """One that keeps its name, such as those of spans, need not come from there."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": name == key}}}


# Of controllers, too: see `installation`


def made(version: str, kind: str, name: str, cluster: Cluster, own: Mapping[str, str], **fields: Any) -> dict[str, Any]:
    """Return an object with its labels."""
    metadata: dict[str, Any] = {"name": name, "namespace": cluster.namespace, "labels": dict(own)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def deployment(own: Mapping[str, str], pod: dict[str, Any]) -> dict[str, Any]:
    """Return what a Deployment of pods says, by their labels."""
    return {
        "selector": {"matchLabels": own},
        "template": {"metadata": {"labels": own}, "spec": pod},
        # A changed template replaces pods one after another, the new one READY before the old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
    }


def apart(own: Mapping[str, str]) -> dict[str, Any]:
    """Return the affinity of pods that are better on different nodes."""
    term = {"labelSelector": {"matchLabels": own}, "topologyKey": "kubernetes.io/hostname"}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def budget(own: Mapping[str, str]) -> dict[str, Any]:
    """Return a disruption budget: nodes are emptied one of these pods at a time."""
    return {"maxUnavailable": 1, "selector": {"matchLabels": own}}


def network(own: Mapping[str, str], *, ingress: list[Any], egress: list[Any]) -> dict[str, Any]:
    """Return who may reach these pods, and whom they may reach: nobody else."""
    types = ["Ingress", "Egress"]
    return {"podSelector": {"matchLabels": own}, "policyTypes": types, "ingress": ingress, "egress": egress}


def policy_port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    """Return a port of a network policy."""
    return {"protocol": protocol, "port": number}


NAMES: dict[str, Any] = {
    "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
    "ports": [policy_port(53, "UDP"), policy_port(53)],
}
"""An egress rule: the cluster's name service."""
