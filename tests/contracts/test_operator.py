"""The operator of `InferencePipeline` resources: one Job for what a resource wants, and a word on what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate
import pytest
from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource

from inferline_stream.actuators.kubernetes import operator
from inferline_stream.actuators.kubernetes.api_server import apply
from inferline_stream.actuators.kubernetes.inference_pipeline import GROUP, KIND, PLURAL, VERSION
from inferline_stream.actuators.kubernetes.installation import manifests
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.actuators.kubernetes.operator import INSTALLER_RIGHTS, job_of, operate, operator_manifests
from tests.contracts.test_installation import NEWEST, OLDEST, OURS, stage
from tests.kube.api import KubeApi, client_of
from tests.kube.node import Container

DEADLINE_S = 30.0
RESOURCE: Any = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
KAFKA = {"bootstrapServers": "kafka:9092", "secret": "user"}
FILES = {"topology.py": "pipeline = ...", "events.jsonl": "{}"}
WANTED = {"image": "reviews:1", "topology": {"configMap": "mine"}, "kafka": KAFKA, "delivery": "exactly_once"}


@dataclass
class World:
    """A namespace with an operator, whose Jobs end as the test says."""

    api: KubeApi
    client: AsyncClient
    begun: list[Container] = field(default_factory=list)

    async def put(self, kind: str, name: str, **fields: Any) -> None:
        version = "inferline-stream.dev/v1alpha1" if kind == "InferencePipeline" else "v1"
        metadata = {"name": name, "namespace": self.api.namespace}
        await apply(self.client, [{"apiVersion": version, "kind": kind, "metadata": metadata, **fields}])

    def named(self, plural: str) -> list[str]:
        return sorted(name for of, name in self.api.applied if of == plural)

    def said(self) -> tuple[str, str]:
        conditions = self.api.applied[PLURAL, "reviews"].get("status", {}).get("conditions", [])
        found = next((c for c in conditions if c["type"] == "Installed"), {"status": "", "message": ""})
        return found["status"], found["message"]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def operated() -> AsyncIterator[World]:
    async with KubeApi() as api, client_of(api) as client:
        world = World(api, client)

        async def run(container: Container) -> int:
            world.begun.append(container)
            container.ready.set()
            return await container.end

        api.node.run = run
        operating = asyncio.create_task(operate(client, api.namespace))
        try:
            yield world
        finally:
            operating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await operating


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "EVERY_S", 0.02)


async def test_a_resource_with_an_image_is_installed_by_a_job_with_its_files() -> None:
    async with operated() as world:
        await world.put("InferencePipeline", "reviews", spec=WANTED)
        await world.until(lambda: world.said() == ("False", "mine: no ConfigMap with a topology.py"))
        await world.put("ConfigMap", "mine", data=FILES)
        await world.until(lambda: world.begun)
        (container,) = world.begun[0].pod["spec"]["containers"]
        (copy,) = {*world.named("configmaps")} - {"mine"}
        assert container["command"] == ["inferline-stream", "deploy", "/srv/topology/topology.py"]
        words = " ".join(container["args"])
        assert f"--config-map={copy}=events.jsonl,topology.py" in words
        assert "--bootstrap-servers kafka:9092 --secret user --delivery exactly_once" in words
        assert {m["mountPath"] for m in container["volumeMounts"] if "subPath" in m} == {
            "/srv/topology/topology.py", "/srv/topology/events.jsonl"
        }  # fmt: skip
        await world.until(lambda: world.said()[0] == "Unknown")
        world.begun[0].end.set_result(0)
        await world.until(lambda: world.said()[0] == "True")


@pytest.mark.parametrize("kind", ["image", "file"])
async def test_what_has_changed_is_installed_by_another_job_once_the_one_before_is_gone(kind: str) -> None:
    async with operated() as world:
        await world.put("ConfigMap", "mine", data=FILES)
        await world.put("InferencePipeline", "reviews", spec=WANTED)
        await world.until(lambda: world.begun)
        before = world.named("jobs")
        await world.put("InferencePipeline", "reviews", spec=WANTED | {"slo": "1s", "paused": True})
        seen = len(world.api.requests)
        await world.until(lambda: len(world.api.requests) > seen + 20)
        assert world.named("jobs") == before, "the controller follows these"
        if kind == "image":
            await world.put("InferencePipeline", "reviews", spec=WANTED | {"image": "reviews:2"})
        else:
            await world.put("ConfigMap", "mine", data=FILES | {"topology.py": "pipeline = 2"})
        await world.until(lambda: len(world.begun) == 2)
        assert len(world.named("jobs")) == 1
        assert world.begun[0].stop.is_set(), "the one before was ended first"
        world.begun[1].end.set_result(0)
        await world.until(lambda: world.said()[0] == "True")
        await world.until(lambda: len(world.named("configmaps")) == 2)  # ours, and the copy in use


async def test_what_a_failed_job_wrote_last_is_the_conditions_message() -> None:
    async with operated() as world:
        await world.put("InferencePipeline", "reviews", spec=WANTED | {"topology": {"path": "/srv/t/topology.py"}})
        await world.until(lambda: world.begun)
        world.begun[0].log = "looking\nstage 'a': batch size 48 was not profiled\n"
        world.begun[0].end.set_result(3)
        await world.until(lambda: world.said()[0] == "False")
        assert world.said()[1].endswith("stage 'a': batch size 48 was not profiled")


async def test_all_that_was_made_goes_with_the_resource_and_one_without_an_image_is_left_alone() -> None:
    async with operated() as world:
        await world.put("ConfigMap", "mine", data=FILES)
        await world.put("InferencePipeline", "other", spec={"slo": "1s"})
        await world.put("InferencePipeline", "reviews", spec=WANTED)
        await world.until(lambda: world.begun)
        await world.client.delete(RESOURCE, "reviews", namespace=world.api.namespace)
        await world.until(lambda: world.begun[0].stop.is_set())
        assert (world.named("jobs"), world.named("configmaps"), world.named(PLURAL)) == ([], ["mine"], ["other"])


def resource() -> dict[str, Any]:
    return {"metadata": {"name": "reviews", "namespace": "ml", "uid": "1"}, "spec": WANTED}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_what_it_applies_is_valid_by_the_schemas_of_old_and_new_clusters(version: str) -> None:
    files = ("copy", ("topology.py", "events.jsonl"))
    owned = Cluster("ml", "reviews:1", "/srv/t/topology.py", files=files, owner={
        "apiVersion": "inferline-stream.dev/v1alpha1", "kind": "InferencePipeline", "name": "reviews", "uid": "1"
    })  # fmt: skip
    for each in (*operator_manifests("reviews:1", "ml"), *job_of(resource(), FILES), *stage("language", of=owned)):
        kubernetes_validate.validate(each, version, strict=True)


def test_an_installer_has_every_right_that_it_gives_to_controllers() -> None:
    held = {(group, what, verb) for group, kinds, verbs in INSTALLER_RIGHTS for what in kinds for verb in verbs}
    (role,) = [m for m in manifests(OURS) if m["kind"] == "Role"]
    given = {
        (group, what, verb)
        for rule in role["rules"] for group in rule["apiGroups"] for what in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert given <= held
