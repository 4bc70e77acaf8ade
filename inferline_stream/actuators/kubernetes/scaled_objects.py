"""Manifests of KEDA's ScaledObjects that ask the external scaler of a run."""

from __future__ import annotations

from typing import Any

from inferline_stream.actuators.kubernetes.object_names import FIELD_MANAGER, dns_label
from inferline_stream.pipeline.consumer_group import ConsumerGroup, KedaScaler

_POLL_S = 5
"""KEDA asks so often whether a group of no worker has become active; how many it wants, with each sync of 15 s."""

_FAILURES = 3


def scaled_object(group: ConsumerGroup, pipeline: str, address: str, most: int, secret: str) -> dict[str, Any]:
    """Return the ScaledObject of a group whose workers are `KedaScaler`.

    Its `behavior` leaves the waiting to our policy: it goes where the metric says at once, in either direction. While
    the scaler is away, the number of workers stays as it is.

    Args:
        group: the group.
        pipeline: its name.
        address: of the scaler, as KEDA reaches it, ``host:port``.
        most: workers; more than the topic has partitions are idle.
        secret: with ``ca.crt``, and ``tls.crt`` and ``tls.key`` where the scaler asks for them; empty without TLS.
    """
    scaler = group.workers
    assert isinstance(scaler, KedaScaler), "KEDA scales it"
    namespace, _, deployment = scaler.deployment.rpartition("/")
    name = dns_label(f"{pipeline}-{group.name}")
    at_once: dict[str, Any] = {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Pods", "value": most, "periodSeconds": 15}],
    }
    if scaler.tolerance == 0:
        at_once["tolerance"] = "0"
    trigger: dict[str, Any] = {
        "type": "external-push",
        "metricType": "AverageValue",
        "metadata": {"scalerAddress": address, "group": group.name},
    }
    if secret:
        trigger["metadata"]["enableTLS"] = "true"
        trigger["authenticationRef"] = {"name": name}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(name, namespace),
        "spec": {
            "scaleTargetRef": {"name": deployment or dns_label(group.name)},
            "pollingInterval": _POLL_S,
            "minReplicaCount": 1,
            "maxReplicaCount": most,
            "fallback": {"failureThreshold": _FAILURES, "replicas": 1, "behavior": "currentReplicasIfHigher"},
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": at_once, "scaleDown": at_once}}},
            "triggers": [trigger],
        },
    }


def trigger_authentication(group: ConsumerGroup, pipeline: str, secret: str) -> dict[str, Any]:
    """Return the TriggerAuthentication that its `scaled_object` names, of a Secret of TLS."""
    assert isinstance(group.workers, KedaScaler), "KEDA scales it"
    keys = {"caCert": "ca.crt", "tlsClientCert": "tls.crt", "tlsClientKey": "tls.key"}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": _metadata(dns_label(f"{pipeline}-{group.name}"), group.workers.deployment.rpartition("/")[0]),
        "spec": {"secretTargetRef": [{"parameter": of, "name": secret, "key": key} for of, key in keys.items()]},
    }


def _metadata(name: str, namespace: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
    return {"name": name, "labels": labels, **({"namespace": namespace} if namespace else {})}
