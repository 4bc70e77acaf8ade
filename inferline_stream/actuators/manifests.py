"""What the replicas of one stage on one hardware kind are in Kubernetes: a Deployment, as plain values.

Everything is derived from the catalogue and the replica's spec. Fields that are not named here belong to whoever
sets them: tolerations, affinities or a service mesh's annotations stay, since Deployments are applied server-side.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from inferline_stream.actuators.devices import slice_of
from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

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

SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Of every container."""

_LONGEST_NAME = 52  # a pod's name adds two suffixes, and its host name may have 63 characters


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
    return dns_label(f"{pipeline}-{stage}-{hardware}")


def dns_label(whole: str) -> str:
    """A name that Kubernetes takes, with a hash behind it where characters had to go."""
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
        resource = f"nvidia.com/mig-{slice_}" if (slice_ := slice_of(hardware)) else "nvidia.com/gpu"
        limits[resource] = str(math.ceil(hardware.gpus))
    return {"requests": {"cpu": cpu, **limits}, "limits": limits} if limits else {"requests": {"cpu": cpu}}


def left_by_quotas(wanted: Mapping[str, Mapping[str, str]], quotas: Iterable[Mapping[str, Any]]) -> list[int]:
    """How many more replicas each quota of a namespace has room for, for each resource that it limits.

    Args:
        wanted: of one replica, as `resources` gives it.
        quotas: ResourceQuotas as in the API server's JSON; those for some pods only are left out.
    """
    asked = {f"{verb}.{name}": value for verb in ("requests", "limits") for name, value in wanted.get(verb, {}).items()}
    asked |= {name: asked[f"requests.{name}"] for name in ("cpu", "memory") if f"requests.{name}" in asked}
    asked |= {"pods": "1"}
    found = []
    for quota in quotas:
        if any(quota.get("spec", {}).get(name) for name in ("scopes", "scopeSelector")):
            continue
        hard, used = (quota.get("status", {}).get(name) or {} for name in ("hard", "used"))
        for name, most in hard.items():
            if (each := _quantity(asked.get(name, "0"))) > 0:
                found.append(max(0, math.floor((_quantity(most) - _quantity(used.get(name, "0"))) / each + 1e-9)))
    return found


_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIXES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}


def _quantity(text: str) -> float:
    """A quantity as Kubernetes writes it, e.g. ``250m`` or ``2Gi``."""
    number = text.rstrip(string.ascii_letters)
    suffix = text.removeprefix(number)
    return float(number) * _SUFFIXES[suffix]


_PRODUCTS = {
    "Tesla V100": tuple(f"Tesla-V100-{form}" for form in ("SXM2-16GB", "SXM2-32GB", "PCIE-16GB", "PCIE-32GB")),
    "NVIDIA A100": tuple(f"NVIDIA-A100-{form}" for form in ("SXM4-40GB", "SXM4-80GB", "PCIE-40GB", "80GB-PCIe")),
    "NVIDIA H100": tuple(f"NVIDIA-H100-{form}" for form in ("80GB-HBM3", "PCIe", "NVL")),
}
"""What NVIDIA's feature discovery labels nodes with, of models that come in several forms."""


def products(hardware: Hardware) -> tuple[str, ...]:
    """Values of the label ``nvidia.com/gpu.product`` that nodes of the kind carry; none where any node will do."""
    if not hardware.gpus or hardware.gpu_model is None:
        return ()
    return _PRODUCTS.get(hardware.gpu_model, (hardware.gpu_model.replace(" ", "-"),))


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
    # Told with the first assignment; a plan's limit here would have another plan replace every replica.
    told = msgspec.structs.replace(spec, max_batch_size=1)
    container = _container(["python", "-m", "inferline_stream.actuators.pod", LIFE_FOLDER], hardware, cluster) | {
        "env": [
            {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": SPEC_VARIABLE, "value": encode(told).decode()},
        ],
        "readinessProbe": {"exec": {"command": ["test", "-e", READY_FILE]}, "periodSeconds": 2},
    }
    pod = _pod(container, hardware, spec.isolation, cluster) | {"terminationGracePeriodSeconds": math.ceil(grace_s)}
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


def job(
    name: str,
    command: Sequence[str],
    hardware: Hardware,
    isolation: Isolation,
    cluster: Cluster,
    *,
    deadline_s: float,
) -> dict[str, Any]:
    """A Job that runs a command once on a hardware kind, as a replica would run there.

    Args:
        name: of the Job, see `dns_label`.
        command: of its only container.
        hardware: the kind.
        isolation: of the stage that it is about.
        cluster: where.
        deadline_s: after so long it has failed.
    """
    pod = _pod(_container(command, hardware, cluster), hardware, isolation, cluster) | {"restartPolicy": "Never"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": math.ceil(deadline_s),
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": {"job-name": name}}, "spec": pod},
        },
    }


def _container(command: Sequence[str], hardware: Hardware, cluster: Cluster) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": cluster.image,
        "command": list(command),
        "resources": resources(hardware, cluster.memory),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "life", "mountPath": LIFE_FOLDER}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        "securityContext": dict(SECURITY),
    }
    return container | ({"envFrom": [{"secretRef": {"name": cluster.secret}}]} if cluster.secret else {})


def _pod(container: dict[str, Any], hardware: Hardware, isolation: Isolation, cluster: Cluster) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # variables named after other people's services
        "serviceAccountName": cluster.service_account,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "life", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    if found := products(hardware):
        term = {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": list(found)}]}
        required = {"nodeSelectorTerms": [term]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if hardware.gpus:
        # Nodes with GPUs are commonly kept free of all that needs none.
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if isolation.level in ("gvisor", "kata"):
        pod["runtimeClassName"] = isolation.level
    return pod
