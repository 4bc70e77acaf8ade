"""Installs the pipelines of `InferencePipeline` resources that have an image, and again when these change.

Only a Job of that image loads the pipeline's own code: it runs `deploy`. The operator makes the Job, and says in the
resource's status what came of it. The resource owns all that is made, so the cluster takes it away with the resource.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import ConfigMap, Pod
from lightkube.types import CascadeType

from inferline_stream.actuators.kubernetes.api_server import apply, passing, plain, translated
from inferline_stream.actuators.kubernetes.conditions import Condition, conditions
from inferline_stream.actuators.kubernetes.inference_pipeline import (
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    PipelineResource,
    reference,
)
from inferline_stream.actuators.kubernetes.installation import RIGHTS, files_words
from inferline_stream.actuators.kubernetes.manifests import (
    POD_SECURITY,
    SECURITY,
    Cluster,
    deployment,
    made,
    topology_files,
)
from inferline_stream.actuators.kubernetes.object_names import COMPONENT_LABEL, FIELD_MANAGER, PIPELINE_LABEL, dns_label
from inferline_stream.errors import InferlineError

logger = logging.getLogger(__name__)

EVERY_S = 5.0
FOLDER = "/srv/topology"
"""Of a topology that a ConfigMap has."""

OPERATOR, INSTALLER = "inferline-operator", "inferline-installer"
"""Service accounts: of the operator, and of the Jobs that install."""

Rights = tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]

OPERATOR_RIGHTS: Rights = (
    (GROUP, (PLURAL,), ("get", "list")),
    (GROUP, (f"{PLURAL}/status",), ("patch",)),
    ("", ("configmaps",), ("get", "list", "create", "patch", "delete")),
    ("", ("pods",), ("list",)),
    ("apps", ("deployments",), ("list",)),
    ("batch", ("jobs",), ("list", "create", "patch", "delete")),
)
INSTALLER_RIGHTS: Rights = (
    *RIGHTS,  # a Role can be given by those alone who have its rights
    ("", ("configmaps", "serviceaccounts"), ("create", "patch")),
    ("", ("secrets",), ("get", "list", "patch", "delete")),
    ("", ("services",), ("list", "delete")),
    ("apps", ("deployments",), ("list", "delete")),
    ("networking.k8s.io", ("networkpolicies",), ("list", "delete")),
    ("policy", ("poddisruptionbudgets",), ("list", "delete")),
    ("rbac.authorization.k8s.io", ("roles", "rolebindings"), ("create", "patch")),
    ("monitoring.coreos.com", ("servicemonitors", "prometheusrules"), ("create", "patch")),
)


def operator_manifests(image: str, namespace: str) -> list[dict[str, Any]]:
    """Return what installs the operator of one namespace.

    Args:
        image: with this package.
        namespace: whose resources it follows.
    """
    cluster = Cluster(namespace, image)
    own = {"app.kubernetes.io/name": FIELD_MANAGER, COMPONENT_LABEL: "operator"}
    rbac, found = "rbac.authorization.k8s.io/v1", []
    for name, rights in ((OPERATOR, OPERATOR_RIGHTS), (INSTALLER, INSTALLER_RIGHTS)):
        rules = [{"apiGroups": [group], "resources": list(what), "verbs": list(verbs)} for group, what, verbs in rights]
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        found += [
            made("v1", "ServiceAccount", name, cluster, own),
            made(rbac, "Role", name, cluster, own, rules=rules),
            made(rbac, "RoleBinding", name, cluster, own, roleRef=role, subjects=[subject]),
        ]
    container = {
        "name": "operator",
        "image": image,
        "command": ["inferline-stream", "operate"],
        "args": ["--namespace", namespace, "--log-format", "json"],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(SECURITY),
    }
    pod = {"containers": [container], "serviceAccountName": OPERATOR, "securityContext": dict(POD_SECURITY)}
    return [*found, made("apps/v1", "Deployment", OPERATOR, cluster, own, spec={"replicas": 1, **deployment(own, pod)})]


def job_of(resource: Mapping[str, Any], files: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Return the Job that installs a resource's pipeline, behind the copy of its files that the Job and pods have.

    Both have names by what is in them: what has changed is another Job, and pods of either time keep the files that
    they were started with.

    Args:
        resource: with an image, as the API server has it.
        files: of its ConfigMap, by name; None where the image has the topology.
    """
    spec, metadata = resource["spec"], resource["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    of = Cluster(namespace, spec["image"], owner=reference(name, metadata["uid"]))
    own = {"app.kubernetes.io/name": FIELD_MANAGER, COMPONENT_LABEL: "installer", PIPELINE_LABEL: name}
    path, copies = spec["topology"].get("path", ""), []
    if files is not None:
        copy = dns_label(f"{name}-topology-{_digest(files)}")
        copies = [made("v1", "ConfigMap", copy, of, own, data=dict(files), immutable=True)]
        path = f"{FOLDER}/topology.py"
        of = Cluster(namespace, spec["image"], path, files=(copy, tuple(sorted(files))), owner=of.owner)
    volumes, mounts = topology_files(of)
    writable = {"life": str(PurePosixPath(path).parent / ".inferline"), "tmp": "/tmp"}  # noqa: S108
    secret = spec["kafka"].get("secret", "")
    options = {"--secret": secret, "--prefix": spec.get("prefix", ""), "--delivery": spec.get("delivery", "")}
    container: dict[str, Any] = {
        "name": "install",
        "image": spec["image"],
        "command": ["inferline-stream", "deploy", path],
        "args": [
            *("--target", "kubernetes", "--image", spec["image"], "--namespace", namespace),
            *("--bootstrap-servers", spec["kafka"]["bootstrapServers"]),
            *(word for option, text in options.items() if text for word in (option, text)),
            *files_words(of),
        ],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*({"name": key, "mountPath": folder} for key, folder in writable.items()), *mounts],
        "securityContext": dict(SECURITY),
    }
    if secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    pod = {
        "containers": [container],
        "restartPolicy": "Never",
        "serviceAccountName": INSTALLER,
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
        "volumes": [*({"name": key, "emptyDir": {"sizeLimit": "256Mi"}} for key in writable), *volumes],
    }
    template = {"metadata": {"labels": own}, "spec": pod}
    title = dns_label(f"{name}-install-{_digest(template)}")
    return [*copies, made("batch/v1", "Job", title, of, own, spec={"backoffLimit": 2, "template": template})]


def _digest(of: Mapping[str, Any]) -> str:
    return hashlib.blake2s(json.dumps(of, sort_keys=True).encode(), digest_size=4).hexdigest()


async def operate(client: AsyncClient, namespace: str) -> None:
    """Bring about what the resources of a namespace want, and do so again every `EVERY_S`, for good.

    Args:
        client: to the API server.
        namespace: of the resources.
    """
    kind: Any = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
    why = ""
    while True:
        try:
            with translated():
                for found in [plain(each) async for each in client.list(kind, namespace=namespace)]:
                    if found.get("spec", {}).get("image") and "deletionTimestamp" not in found["metadata"]:
                        await _reconcile(client, found)
            why = ""
        except InferlineError as error:
            if str(error) != why:
                logger.warning("the resources of %s are not followed: %s", namespace, error)
            why = str(error)
        await asyncio.sleep(EVERY_S)


async def _reconcile(client: AsyncClient, resource: Mapping[str, Any]) -> None:
    """Bring about what one resource wants; what the API server refuses is said in its status."""
    metadata = resource["metadata"]
    try:
        with translated():
            said = await _installed(client, resource)
    except InferlineError as error:
        said = Condition("Installed", "False", "Refused", str(error))
    before = (resource.get("status") or {}).get("conditions", [])
    now = conditions(before, [said])
    if now != before:
        logger.info("%s: %s: %s", metadata["name"], said.reason, said.message)
        await PipelineResource(client, metadata["namespace"], metadata["name"]).report({"conditions": now})


async def _installed(client: AsyncClient, resource: Mapping[str, Any]) -> Condition:
    """Take one step towards it, and return how far it is."""
    name, namespace = resource["metadata"]["name"], resource["metadata"]["namespace"]
    files = None
    if config_map := resource["spec"]["topology"].get("configMap"):
        files = await _files(client, namespace, config_map)
        if files is None:
            return Condition("Installed", "False", "NoTopology", f"{config_map}: no ConfigMap with a topology.py")
    wanted = job_of(resource, files)
    title = wanted[-1]["metadata"]["name"]
    chosen: Any = {PIPELINE_LABEL: name, COMPONENT_LABEL: "installer"}
    found = [plain(job) async for job in client.list(Job, namespace=namespace, labels=chosen)]
    jobs = {job["metadata"]["name"]: job for job in found}
    if older := sorted(jobs.keys() - {title}):
        for each in older:  # the next one begins once these are gone: two would write the same objects
            with passing(404):
                await client.delete(Job, each, namespace=namespace, cascade=CascadeType.FOREGROUND)
        return Condition("Installed", "Unknown", "Changed", "what was begun before is ended first")
    if title not in jobs:
        await apply(client, wanted)
        return Condition("Installed", "Unknown", "Installing", f"{title} profiles and installs it")
    ended = {c["type"] for c in jobs[title].get("status", {}).get("conditions", ()) if c["status"] == "True"}
    if "Failed" in ended:
        return Condition("Installed", "False", "Failed", f"{title}: {await _last_words(client, namespace, title)}")
    if "Complete" not in ended:
        return Condition("Installed", "Unknown", "Installing", f"{title} profiles and installs it")
    await _forget_copies(client, namespace, chosen, {each["metadata"]["name"] for each in wanted[:-1]})
    return Condition("Installed", "True", "Installed", f"by {title}")


async def _files(client: AsyncClient, namespace: str, config_map: str) -> dict[str, str] | None:
    with passing(404):
        found = plain(await client.get(ConfigMap, config_map, namespace=namespace)).get("data", {})
        return found if "topology.py" in found else None
    return None


async def _last_words(client: AsyncClient, namespace: str, job: str) -> str:
    """What the last of a Job's pods wrote at its end."""
    text = "it failed; its pods are gone"
    async for found in client.list(Pod, namespace=namespace, labels={"job-name": job}):
        for container in plain(found).get("status", {}).get("containerStatuses", ()):
            text = container["state"].get("terminated", {}).get("message", "").strip() or text
    return text[-500:]


async def _forget_copies(client: AsyncClient, namespace: str, chosen: Any, used: set[str]) -> None:
    """Delete copies of a topology that no Deployment has any more."""
    copies = [plain(c)["metadata"]["name"] async for c in client.list(ConfigMap, namespace=namespace, labels=chosen)]
    if set(copies) <= used:
        return
    mounted = [json.dumps(plain(found)["spec"]) async for found in client.list(Deployment, namespace=namespace)]
    for name in copies:
        if name not in used and not any(f'"{name}"' in text for text in mounted):
            with passing(404):
                await client.delete(ConfigMap, name, namespace=namespace)
