"""Dispatchers are posted to pods as these come, while more of them are asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inferline_stream.actuators.kubernetes import dispatcher_pods
from inferline_stream.actuators.kubernetes.dispatcher_pods import DispatcherPods
from inferline_stream.actuators.kubernetes.object_names import DISPATCHER, STAGE_LABEL
from inferline_stream.dataplane.host_postings import decode_posting
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.kafka.records import Record
from tests.support.deadlines import until
from tests.unit.dataplane.dispatcher.doubles import routes


class Postings:
    """In the place of Kafka: what was posted, each once that is allowed."""

    def __init__(self) -> None:
        self.written: list[tuple[str, str]] = []
        self.slots: list[int] = []
        self.asked = 0
        self.allowed = asyncio.Event()

    async def write_once(self, bootstrap_servers: str, record: Record) -> None:
        self.asked += 1
        await self.allowed.wait()
        posting = decode_posting((record.key or b"").decode(), record.value or b"")
        self.written.append((posting.host, posting.dispatcher.dispatcher))
        self.slots.append(posting.slots)


def pod(name: str, stage: str) -> dict[str, Any]:
    status = {"phase": "Running", "containerStatuses": [{"name": DISPATCHER, "ready": True}]}
    return {"metadata": {"name": name, "labels": {STAGE_LABEL: stage}}, "spec": {}, "status": status}


async def test_a_stage_that_is_asked_for_while_another_is_posted_is_posted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    postings = Postings()
    monkeypatch.setattr(dispatcher_pods, "write_once", postings.write_once)
    pods = DispatcherPods("127.0.0.1:9", "assignments")
    pods._looked = True  # no controller was there before
    keeping = asyncio.create_task(pods.keep_posted())
    pods.want("rank", [DispatcherSpec("rank-0-a", 0, routes(), "127.0.0.1:9")])
    pods.changed(pod("pod-1", "rank"), 0.0)
    await until(lambda: postings.asked, "a posting is under way")
    pods.want("score", [DispatcherSpec("score-0-b", 0, routes(), "127.0.0.1:9")])
    postings.allowed.set()
    pods.changed(pod("pod-2", "score"), 0.0)
    await until(lambda: keeping.done() or len(postings.written) == 2, "both are posted")
    assert postings.written == [("pod-1", "rank-0-a"), ("pod-2", "score-0-b")]
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_dispatcher_that_stands_by_for_a_slot_makes_no_slot_more(monkeypatch: pytest.MonkeyPatch) -> None:
    postings = Postings()
    monkeypatch.setattr(dispatcher_pods, "write_once", postings.write_once)
    postings.allowed.set()
    pods = DispatcherPods("127.0.0.1:9", "assignments")
    pods._looked = True
    old, heir = (DispatcherSpec(name, 0, routes(), "127.0.0.1:9") for name in ("rank-0-a", "rank-0-b"))
    pods.want("rank", [old])
    pods.changed(pod("pod-1", "rank"), 0.0)
    await pods.post()
    pods.want("rank", [old, heir])
    pods.changed(pod("pod-2", "rank"), 0.0)
    await pods.post()
    assert postings.written == [("pod-1", "rank-0-a"), ("pod-2", "rank-0-b")]
    assert postings.slots == [1, 1], "replicas would look for a second dispatcher for ever"
