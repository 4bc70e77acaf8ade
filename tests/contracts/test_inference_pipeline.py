"""The resource `InferencePipeline`: its specification becomes overrides, once; its status is what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jsonschema
import pytest

from inferline_stream.actuators.kubernetes.api_server import apply
from inferline_stream.actuators.kubernetes.inference_pipeline import PLURAL, PipelineResource, definition
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.schedule import Every, On
from inferline_stream.runs import resource_reconciler
from inferline_stream.runs.resource_reconciler import WHO, follow, overrides_of
from tests.kube.api import KubeApi, client_of
from tests.unit.observability.states import a_state

DEADLINE_S = 30.0
KINDS = {"cpu-1", "t4"}
SCHEMA = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@dataclass
class World:
    """A pipeline in a cluster, whose controller follows its resource."""

    api: KubeApi
    put: Callable[[dict[str, Any]], Awaitable[Any]]
    state: PipelineState | None = field(default_factory=a_state)
    written: list[tuple[str, Override | None]] = field(default_factory=list)

    @property
    def status(self) -> dict[str, Any]:
        return self.api.applied[PLURAL, "p"].get("status", {})

    def condition(self, kind: str) -> dict[str, str]:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.01)

    async def write(self, records: Iterable[tuple[str, Override | None]]) -> None:
        self.written += records


@asynccontextmanager
async def followed() -> AsyncIterator[World]:
    async with KubeApi() as api, client_of(api) as client:

        async def put(spec: dict[str, Any]) -> None:
            jsonschema.validate({"spec": spec}, SCHEMA)
            metadata = {"name": "p", "namespace": api.namespace}
            version = "inferline-stream.dev/v1alpha1"
            await apply(
                client, [{"apiVersion": version, "kind": "InferencePipeline", "metadata": metadata, "spec": spec}]
            )

        resource = PipelineResource(client, api.namespace, "p")
        world = World(api, put)
        following = asyncio.create_task(follow(resource, lambda: world.state, world.write, KINDS))
        try:
            yield world
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_reconciler, "EVERY_S", 0.02)


async def test_a_changed_specification_is_written_once_and_what_it_leaves_out_is_taken_back() -> None:
    async with followed() as world:
        await world.put({"slo": "150ms", "stock": {"t4": 2}, "paused": True})
        await world.until(lambda: world.status.get("observedGeneration") == 1)
        assert world.written == [
            ("slo", Override("slo", value=0.15, who=WHO)),
            ("pause", Override("pause", who=WHO)),
            ("stock/cpu-1", None),
            ("stock/t4", Override("stock", "t4", 2, who=WHO)),
        ]
        updates = len(world.api.requests)
        await world.until(lambda: len(world.api.requests) > updates + 6)
        assert len(world.written) == 4, "what people set by `scale` meanwhile stays"
        await world.put({"slo": "150ms"})
        await world.until(lambda: world.status.get("observedGeneration") == 2)
        assert dict(world.written[4:]) == {
            "slo": Override("slo", value=0.15, who=WHO), "pause": None, "stock/cpu-1": None, "stock/t4": None
        }  # fmt: skip


async def test_a_schedule_is_brought_about_and_taken_back() -> None:
    sale, mornings = "2026-11-27 08:00-20:00", "mon-fri 07:45-10:00"
    async with followed() as world:
        await world.put({"schedule": [{"when": sale, "traffic": 3}, {"when": mornings, "reserve": 1.6}]})
        await world.until(lambda: world.status.get("schedule") == [sale, mornings])
        found = {key: each for key, each in world.written if each is not None}
        assert found[f"traffic/{sale}"].window == On(sale, traffic=3.0)
        assert found[f"reserve/{mornings}"].window == Every(mornings, reserve=1.6)
        for refused, words in (({"when": "at noon", "traffic": 2.0}, "no window"), ({"when": sale}, "says nothing")):
            await world.put({"schedule": [refused]})
            await world.until(lambda said=words: said in world.condition("Accepted").get("message", ""))
        assert world.status["schedule"] == [sale, mornings], "what is wrong takes nothing back"
        world.written.clear()
        await world.put({"schedule": [{"when": sale, "reserve": 2.0}]})
        await world.until(lambda: world.status["schedule"] == [sale])
        windows = {key: each and each.value for key, each in world.written if key[:3] in ("tra", "res")}
        assert windows == {
            f"traffic/{sale}": None, f"reserve/{sale}": 2.0, f"traffic/{mornings}": None, f"reserve/{mornings}": None
        }  # fmt: skip


async def test_the_status_follows_a_scale_up_and_its_conditions_keep_their_time() -> None:
    async with followed() as world:
        await world.put({})
        await world.until(lambda: world.condition("Ready").get("status") == "False")
        assert world.condition("Ready")["message"] == "2 of 3 replicas are ready"
        assert (world.status["slo"], world.status["p99"], world.status["late"]) == (
            "250ms",
            "300ms",
            "3.00%",
        )  # 30 of 1,000
        feasible = world.condition("Feasible")
        assert world.condition("SLOMet")["status"] == "False"  # 3 % of the last 10 s, where 1 % may be
        state = a_state()
        stages = tuple(replace(s, replicas=tuple(c._replace(ready=c.wanted) for c in s.replicas)) for s in state.stages)
        world.state = replace(state, stages=stages, recent_late_share=0.001)
        await world.until(lambda: world.condition("Ready").get("status") == "True")
        assert world.status["replicas"] == "3/3"
        assert world.condition("SLOMet")["status"] == "True"
        assert world.condition("Feasible") == feasible
        world.state = replace(state, stages=tuple(replace(stage, replicas=()) for stage in stages))
        await world.until(lambda: world.status["replicas"] == "0/0")
        assert world.condition("Ready")["status"] == "True", "it sleeps, and lacks nothing"


async def test_a_wrong_specification_is_refused_in_words_and_an_outage_ends_nothing() -> None:
    async with followed() as world:
        await world.put({"stock": {"tpu": 1}})
        await world.until(lambda: world.condition("Accepted").get("status") == "False")
        assert "stock of 'tpu': the pipeline's stages run on cpu-1, t4" in world.condition("Accepted")["message"]
        assert world.written == []
        await world.api.stop_serving()
        await asyncio.sleep(0.1)
        await world.api.serve()
        await world.put({"stock": {"t4": 0}})
        await world.until(lambda: world.condition("Accepted").get("status") == "True")


async def test_a_controller_that_does_not_lead_touches_nothing() -> None:
    async with followed() as world:
        world.state = None
        await world.put({"paused": True})
        seen = len(world.api.requests)
        await asyncio.sleep(0.2)
        assert (world.written, len(world.api.requests)) == ([], seen)


@pytest.mark.parametrize(("spec", "words"), [({"slo": "soon"}, "soon"), ({"slo": 3}, "str"), ({"sla": "1s"}, "sla")])
def test_what_no_schema_has_caught_is_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        overrides_of(spec, KINDS)
