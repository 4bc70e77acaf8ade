"""What a pipeline is in a cluster before it has a replica: its controller, and what it may do. Plain values.

What each stage needs is the controller's to make, see `manifests`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from inferline_stream.actuators.kubernetes.manifests import (
    NAMES,
    POD_SECURITY,
    SECURITY,
    Cluster,
    apart,
    budget,
    deployment,
    made,
    network,
    policy_port,
)
from inferline_stream.actuators.kubernetes.object_names import (
    COMPONENT_LABEL,
    DISPATCHER,
    FIELD_MANAGER,
    REPLICA,
    credential_name,
    dns_label,
)
from inferline_stream.observability.alert_rules import Target, rules_document

CONTROLLERS = 2
"""One acts, the other waits for it to fall silent."""

PROFILES_FOLDER = "/etc/inferline/profiles"
METRICS_PORT = 9464
STOCK_ANNOTATION = "inferline-stream.dev/stock"
"""On a controller's Deployment: its pipeline's share of hardware kinds."""

_HAND_OVER_S = 30

RIGHTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("apps", ("deployments",), ("get", "create", "patch")),
    ("apps", ("deployments/scale",), ("get", "patch")),
    ("autoscaling", ("horizontalpodautoscalers",), ("list",)),
    ("", ("pods",), ("list", "watch", "patch", "delete")),
    ("", ("resourcequotas",), ("list",)),
    ("", ("services",), ("create", "patch")),
    ("", ("secrets",), ("create",)),
    ("networking.k8s.io", ("networkpolicies",), ("create", "patch")),
    ("policy", ("poddisruptionbudgets",), ("create", "patch")),
    ("resource.k8s.io", ("resourceclaimtemplates",), ("create", "patch")),
)
"""API group, resources and verbs: what a controller asks for while it leads, and nothing else."""

SECRET_RIGHTS = ("get", "patch")
"""Of the stages' credentials alone, which it makes: no other Secret of the namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """One pipeline in one namespace.

    Args:
        target: what its alert rules are made from.
        topology: path of the topology file within the image.
        stages: names of its stages.
        cluster: image, namespace and what else pods are given.
        bootstrap_servers: of Kafka, as pods reach it.
        profiles: what was measured in the cluster: JSON by path within the profiles' folder.
        stock: the pipeline's share of hardware kinds.
        prefix: before the name of every topic.
        delivery: how results get into the sink.
        reserve: see `pipeline.plan.Plan`.
    """

    target: Target
    stages: Sequence[str]
    topology: str
    cluster: Cluster
    bootstrap_servers: str
    profiles: Mapping[str, str]
    stock: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""
    delivery: str = "at_least_once"
    reserve: float | None = None

    @property
    def name(self) -> str:
        """Name of the controller and of what belongs to it."""
        return dns_label(f"{self.target.pipeline}-controller")

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the controller's pods. Dispatchers' and replicas' are others: the controller looks for those."""
        return {
            "app.kubernetes.io/name": FIELD_MANAGER,
            COMPONENT_LABEL: "controller",
            "app.kubernetes.io/instance": self.target.pipeline,
        }


def manifests(of: Installation) -> list[dict[str, Any]]:
    """Return everything to apply, in the order in which things need each other."""
    return [
        _object(of, "v1", "ServiceAccount", of.name),
        _object(of, "v1", "ServiceAccount", of.cluster.service_account, automountServiceAccountToken=False),
        _role(of),
        _role_binding(of),
        _object(of, "v1", "ConfigMap", _profiles_name(of), data={_key(path): text for path, text in _files(of)}),
        _controller(of),
        _object(
            of,
            "v1",
            "Service",
            of.name,
            spec={"selector": of.labels, "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"}]},
        ),
        _object(of, "policy/v1", "PodDisruptionBudget", of.name, spec=budget(of.labels)),
        _object(of, "networking.k8s.io/v1", "NetworkPolicy", of.name, spec=_network(of)),
        _object(
            of,
            "monitoring.coreos.com/v1",
            "ServiceMonitor",
            of.name,
            spec={
                "selector": {"matchLabels": of.labels},
                "endpoints": [{"port": "metrics", "interval": "5s"}],
                "jobLabel": "app.kubernetes.io/name",
            },
        ),
        _object(of, "monitoring.coreos.com/v1", "PrometheusRule", of.name, spec=rules_document(of.target)),
    ]


def _object(of: Installation, version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return made(version, kind, name, of.cluster, of.labels, **fields)


def _role(of: Installation) -> dict[str, Any]:
    rules = [
        {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)} for group, resources, verbs in RIGHTS
    ]
    names, verbs = _credentials(of), list(SECRET_RIGHTS)
    rules.append({"apiGroups": [""], "resources": ["secrets"], "verbs": verbs, "resourceNames": names})
    return _object(of, "rbac.authorization.k8s.io/v1", "Role", of.name, rules=rules)


def _credentials(of: Installation) -> list[str]:
    """Names of the Secrets with its stages' credentials."""
    own = dns_label(of.prefix + of.target.pipeline)
    return [credential_name(own, stage, side) for stage in of.stages for side in (DISPATCHER, REPLICA)]


def _role_binding(of: Installation) -> dict[str, Any]:
    return _object(
        of,
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        of.name,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": of.name},
        subjects=[{"kind": "ServiceAccount", "name": of.name, "namespace": of.cluster.namespace}],
    )


def _controller(of: Installation) -> dict[str, Any]:
    writable = {"life": str(PurePosixPath(of.topology).parent / ".inferline"), "tmp": "/tmp"}  # noqa: S108
    container: dict[str, Any] = {
        "name": "controller",
        "image": of.cluster.image,
        "command": ["inferline-stream", "run", of.topology],
        "args": [
            *("--on", "kubernetes", "--image", of.cluster.image, "--namespace", of.cluster.namespace),
            *("--bootstrap-servers", of.bootstrap_servers, "--profiles", PROFILES_FOLDER),
            *("--service-account", of.cluster.service_account, "--hand-over", "--no-replay", "--no-ui"),
            *("--metrics-host", "0.0.0.0", "--metrics-port", str(METRICS_PORT)),  # noqa: S104  within the pod's network
            *(("--secret", of.cluster.secret) if of.cluster.secret else ()),
            *(part for kind, most in sorted(of.stock.items()) for part in ("--stock", f"{kind}={most}")),
            *(("--prefix", of.prefix) if of.prefix else ()),
            *(("--reserve", str(of.reserve)) if of.reserve is not None else ()),
            *(("--delivery", of.delivery) if of.delivery != "at_least_once" else ()),
        ],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *({"name": name, "mountPath": path} for name, path in writable.items()),
            {"name": "profiles", "mountPath": PROFILES_FOLDER, "readOnly": True},
        ],
        "securityContext": dict(SECURITY),
    }
    if of.cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": of.cluster.secret}}]
    items = [{"key": _key(path), "path": path} for path, _ in _files(of)]
    pod = {
        "containers": [container],
        "serviceAccountName": of.name,
        "enableServiceLinks": False,  # a variable named after a service could be taken for a setting of ours
        "terminationGracePeriodSeconds": _HAND_OVER_S,
        "securityContext": dict(POD_SECURITY),
        "affinity": apart(of.labels),
        "volumes": [
            *({"name": name, "emptyDir": {"sizeLimit": "256Mi"}} for name in writable),
            {"name": "profiles", "configMap": {"name": _profiles_name(of), **({"items": items} if items else {})}},
        ],
    }
    wanted = {"replicas": CONTROLLERS, **deployment(of.labels, pod)}
    found = _object(of, "apps/v1", "Deployment", of.name, spec=wanted)
    found["metadata"]["annotations"] = {
        STOCK_ANNOTATION: json.dumps(dict(of.stock), sort_keys=True, separators=(",", ":"))
    }
    return found


def overcommitted(
    controllers: Iterable[Mapping[str, Any]], stock: Mapping[str, int]
) -> dict[str, tuple[int, dict[str, int]]]:
    """Return hardware kinds of which pipelines together may hold more than there are: how many, and each one's share.

    A pipeline without a share of a kind is left out, though it may hold all of it.

    Args:
        controllers: their Deployments, as the API server gives them.
        stock: replicas of each kind that there are places for, over all pipelines.
    """
    shares: dict[str, dict[str, int]] = {}
    for controller in controllers:
        metadata = controller["metadata"]
        share = json.loads(metadata.get("annotations", {}).get(STOCK_ANNOTATION, "{}"))
        for kind, most in share.items():
            shares.setdefault(kind, {})[metadata["labels"]["app.kubernetes.io/instance"]] = most
    return {
        kind: (stock[kind], found)
        for kind, found in sorted(shares.items())
        if kind in stock and sum(found.values()) > stock[kind]
    }


def _network(of: Installation) -> dict[str, Any]:
    """In: scrapes. Out: names, Kafka, the API server."""
    kafka = [policy_port(port) for port in of.cluster.kafka_ports]
    api_server = [policy_port(443), policy_port(6443)]
    scrapes = [{"ports": [policy_port(METRICS_PORT)]}]
    return network(of.labels, ingress=scrapes, egress=[NAMES, {"ports": kafka}, {"ports": api_server}])


def _profiles_name(of: Installation) -> str:
    return dns_label(f"{of.target.pipeline}-profiles")


def _files(of: Installation) -> list[tuple[str, str]]:
    return sorted(of.profiles.items())


def _key(path: str) -> str:
    """ConfigMaps have no folders: their volume puts files into them."""
    return path.replace("/", "--")
