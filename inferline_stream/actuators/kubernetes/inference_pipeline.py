"""The resource `InferencePipeline`: what people want of a pipeline in its cluster, and what it has come to.

`kubectl` and GitOps tools change its specification and read its status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import PatchType

from inferline_stream.actuators.kubernetes.api_server import passing, plain, translated
from inferline_stream.actuators.kubernetes.object_names import dns_label
from inferline_stream.errors import UsageError

GROUP, VERSION, KIND, PLURAL = "inferline-stream.dev", "v1alpha1", "InferencePipeline", "inferencepipelines"


class SeenResource(msgspec.Struct, frozen=True):
    """The resource as it is now.

    Args:
        generation: grows with each change of the specification.
        observed: generation that was followed last; 0 for none.
        spec: not checked yet.
        conditions: of its status.
        schedule: windows that are followed, by its status.
        uid: of this resource, and of none that has its name later.
    """

    generation: int
    observed: int
    spec: dict[str, Any]
    conditions: list[dict[str, str]]
    schedule: tuple[str, ...] = ()
    uid: str = ""


def resource_name(pipeline: str) -> str:
    """Name of a pipeline's resource."""
    return dns_label(pipeline)


def definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    text, whole = {"type": "string"}, {"type": "integer", "minimum": 0}
    multiple = {"type": "number", "minimum": 0}
    window = {"type": "object", "required": ["when"]} | {
        "properties": {"when": text, "reserve": multiple, "traffic": multiple}
    }
    spec = {
        "type": "object",
        "properties": {
            "image": text | {"description": "an operator installs the pipeline with it; without, the rest is followed"},
            "topology": {
                "type": "object",
                "properties": {
                    "path": text | {"description": "of the topology file in the image"},
                    "configMap": text | {"description": "with topology.py and the files beside it"},
                },
                "x-kubernetes-validations": [
                    {"rule": "has(self.path) != has(self.configMap)", "message": "give either path or configMap"}
                ],
            },
            "kafka": {
                "type": "object",
                "required": ["bootstrapServers"],
                "properties": {
                    "bootstrapServers": text,
                    "secret": text | {"description": "a Secret whose keys are INFERLINE_KAFKA_* and the like"},
                },
            },
            "prefix": text | {"description": "before the name of every topic"},
            "delivery": text | {"enum": ["at_least_once", "exactly_once"]},
            "schedule": {
                "type": "array",
                "items": window,
                "description": "as in a topology: Every and On, in its zone",
            },
            "slo": text | {"pattern": r"^[0-9.]+\s*(us|ms|s|m|h|d)$", "description": "target of the end-to-end P99"},
            "stock": {
                "type": "object",
                "additionalProperties": whole,
                "description": "most replicas of each hardware kind",
            },
            "paused": {"type": "boolean", "description": "hold decisions"},
        },
        "x-kubernetes-validations": [
            {
                "rule": "!has(self.image) || (has(self.topology) && has(self.kafka))",
                "message": "an image needs topology and kafka, too",
            }
        ],
    }
    columns = {
        "Ready": '.status.conditions[?(@.type=="Ready")].status',
        "Replicas": ".status.replicas",
        "SLO": ".status.slo",
        "P99": ".status.p99",
        "Late": ".status.late",
        "Cost": ".status.cost",
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *({"name": name, "type": "string", "jsonPath": path} for name, path in columns.items()),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": spec,
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": KIND, "plural": PLURAL, "singular": KIND.lower(), "shortNames": ["ip"]},
            "versions": [version],
        },
    }


async def owner_of(client: AsyncClient, namespace: str, pipeline: str) -> dict[str, str]:
    """Return the owner reference to a pipeline's resource, where that has an image: all that is made goes with it.

    Args:
        client: to the API server.
        namespace: of the pipeline.
        pipeline: its name.
    """
    name = resource_name(pipeline)
    with contextlib.suppress(UsageError):  # who may not read it runs by hand
        found = await PipelineResource(client, namespace, name).read()
        if found is not None and found.spec.get("image"):
            return reference(name, found.uid)
    return {}


def reference(name: str, uid: str) -> dict[str, str]:
    """Return the owner reference to a resource."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "name": name, "uid": uid}


class PipelineResource:
    """The resource of one pipeline, at the API server.

    Args:
        client: to the API server.
        namespace: of the pipeline.
        name: of the resource.
    """

    def __init__(self, client: AsyncClient, namespace: str, name: str) -> None:
        self._client, self._namespace, self._name = client, namespace, name
        self._kind: Any = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)

    async def read(self) -> SeenResource | None:
        """Return it; None where the cluster has none.

        Raises:
            InferlineError: the API server refuses, or does not answer.
        """
        with translated(), passing(404):
            found = plain(await self._client.get(self._kind, self._name, namespace=self._namespace))
            status: Mapping[str, Any] = found.get("status") or {}
            generation = int(found["metadata"].get("generation", 1))
            observed = int(status.get("observedGeneration", 0))
            schedule = tuple(status.get("schedule", ()))
            spec, uid = found.get("spec") or {}, found["metadata"].get("uid", "")
            return SeenResource(generation, observed, spec, status.get("conditions", []), schedule, uid)
        return None

    async def report(self, status: Mapping[str, Any]) -> None:
        """Put its status in the place of the one before.

        Raises:
            InferlineError: the API server refuses, or does not answer.
        """
        with translated(), passing(404):
            await self._client.patch(
                self._kind.Status, self._name, {"status": status}, namespace=self._namespace, patch_type=PatchType.MERGE
            )
