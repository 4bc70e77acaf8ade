"""What a run on Kubernetes leaves there when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.cli import platform as cli_platform
from inferline_stream.cli.platform import Platform, actuator_of
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.kafka.controller_client import LeadershipLost

RUN: Any = SimpleNamespace(
    pipeline=SimpleNamespace(name="p"),
    records=SimpleNamespace(prefix="", tracing=""),
    settings=SimpleNamespace(drain_timeout_s=1.0),
    bootstrap_servers="kafka:9092",
)


class _Pods:
    there = True

    async def aclose(self) -> None:
        self.there = False


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (StageFailed("it cannot start"), False),
        (LeadershipLost("another controller leads"), True),
        (Unreachable("Kafka does not answer: another controller may lead"), True),
    ],
)
async def test_pods_are_removed_only_by_a_controller_that_leads(
    monkeypatch: pytest.MonkeyPatch, error: Exception, left: bool
) -> None:
    pods = _Pods()

    @asynccontextmanager
    async def cluster(*args: Any, **options: Any) -> AsyncIterator[_Pods]:
        yield pods

    monkeypatch.setattr(cli_platform, "_on_kubernetes", cluster)
    with pytest.raises(type(error)):
        async with actuator_of(Platform("kubernetes"), RUN):
            raise error
    assert pods.there is left
