"""What the replicas of one stage on one hardware kind are in Kubernetes: a Deployment, as plain values.

Everything is derived from the catalogue and the replica's spec. Fields that are not named here belong to whoever
sets them: tolerations, affinities or a service mesh's annotations stay, since Deployments are applied server-side.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.pipeline.hardware import Hardware

FIELD_MANAGER = "inferline-stream"
PIPELINE_LABEL = "inferline-stream.dev/pipeline"
STAGE_LABEL = "inferline-stream.dev/stage"
HARDWARE_LABEL = "inferline-stream.dev/hardware"
MANAGED_BY = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
CONTAINER = "replica"
SPEC_VARIABLE = "INFERLINE_REPLICA_SPEC"
POD_VARIABLE = "INFERLINE_POD"
LIFE_FOLDER = "/run/inferline"
"""Of the pod, not of the container: what is left in it tells a restarted container that it is one."""

READY_FILE = f"{LIFE_FOLDER}/ready"

_LONGEST_NAME = 52  # a pod's name adds two suffixes, and its host name may have 63 characters
_MIG = re.compile(r"\d+g\.\d+gb")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where replicas run in a cluster.

    Args:
        namespace: of everything that is made.
        image: holds this package, the topology at the path its spec names, and what its stages import.
        service_account: of the replicas; they never speak to the API server.
        memory: limit of one replica, as Kubernetes writes it; empty for none.
        secret: name of a Secret whose keys become environment variables, such as Kafka's password; empty for none.
    """

    namespace: str
    image: str
    service_account: str = "default"
    memory: str = ""
    secret: str = ""


def deployment_name(pipeline: str, stage: str, hardware: str) -> str:
    """A DNS label for a stage on a hardware kind; a hash keeps those apart that differ in other characters only."""
    whole = f"{pipeline}-{stage}-{hardware}"
    plain = re.sub(r"[^a-z0-9-]+", "-", whole.lower()).strip("-")
    if plain == whole and len(plain) <= _LONGEST_NAME:
        return plain
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST_NAME - 7].strip('-')}-{digest}"


def labels(pipeline: str, stage: str, hardware: str) -> dict[str, str]:
    """By which the replicas of a stage on a hardware kind are found."""
    return {PIPELINE_LABEL: pipeline, STAGE_LABEL: stage, HARDWARE_LABEL: hardware, **MANAGED_BY}


def resources(hardware: Hardware, memory: str = "") -> dict[str, Any]:
    """Requests and limits of one replica. Emulated kinds sleep, and ask for next to nothing."""
    cpu = f"{max(10, round(hardware.cores * 1000))}m"
    limits: dict[str, str] = {} if hardware.emulated else {"cpu": cpu}
    if memory:
        limits["memory"] = memory
    if hardware.gpus:
        slice_ = _MIG.search(hardware.name)
        resource = f"nvidia.com/mig-{slice_.group()}" if slice_ else "nvidia.com/gpu"
        limits[resource] = str(math.ceil(hardware.gpus))
    return {"requests": {"cpu": cpu, **limits}, "limits": limits} if limits else {"requests": {"cpu": cpu}}


def node_selector(hardware: Hardware) -> dict[str, str]:
    """Nodes that carry the kind: the label that NVIDIA's feature discovery gives to a GPU's model."""
    if not hardware.gpus or hardware.gpu_model is None:
        return {}
    return {"nvidia.com/gpu.product": hardware.gpu_model.replace(" ", "-")}


def deployment(pipeline: str, spec: ReplicaSpec, cluster: Cluster, *, grace_s: float = 30.0) -> dict[str, Any]:
    """The Deployment of a stage on a hardware kind, without its number of replicas: that belongs to the actuator.

    A replica needs no service, no port and no right in the cluster. Its name is the pod's, and a pod runs one replica
    in its life: where its container is started again, it only waits to be replaced, so that no name is used twice.

    Args:
        pipeline: its name.
        spec: what each replica is told, but for its name.
        cluster: where.
        grace_s: time a replica has to hand over once it was told to go.
    """
    hardware = spec.hardware
    own = labels(pipeline, spec.stage, hardware.name)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": cluster.image,
        "command": ["python", "-m", "inferline_stream.actuators.pod", LIFE_FOLDER],
        "env": [
            {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": SPEC_VARIABLE, "value": encode(spec).decode()},
        ],
        "resources": resources(hardware, cluster.memory),
        "readinessProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 2},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "life", "mountPath": LIFE_FOLDER}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    pod: dict[str, Any] = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "serviceAccountName": cluster.service_account,
        "terminationGracePeriodSeconds": math.ceil(grace_s),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "life", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    if selector := node_selector(hardware):
        pod["nodeSelector"] = selector
    if spec.isolation.level in ("gvisor", "kata"):
        pod["runtimeClassName"] = spec.isolation.level
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": deployment_name(pipeline, spec.stage, hardware.name),
            "namespace": cluster.namespace,
            "labels": own,
        },
        "spec": {
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": own}, "spec": pod},
            # A changed template replaces replicas one after another, the new one READY before the old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        },
    }
