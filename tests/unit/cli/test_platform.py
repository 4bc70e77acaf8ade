"""What `run --on kubernetes` gives its pods, and what it leaves there when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.actuators.kubernetes.manifests import StageManifests
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.cli import platform as cli_platform
from inferline_stream.cli.options import Platform, PodOptions
from inferline_stream.cli.platform import _cluster, actuator_of
from inferline_stream.controlplane.leadership import LeadershipLost
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.settings import kafka_security

RUN: Any = SimpleNamespace(
    pipeline=SimpleNamespace(name="p"),
    records=SimpleNamespace(prefix="", tracing=""),
    settings=SimpleNamespace(drain_timeout_s=1.0, orphan_s=1.0),
    bootstrap_servers="kafka:9092",
    hands_over=False,
)
ALICE = {"INFERLINE_KAFKA_SASL_USERNAME": "alice", "INFERLINE_KAFKA_SASL_PASSWORD": "decides"}
BOB = {"INFERLINE_DISPATCHER_KAFKA_SASL_USERNAME": "bob", "INFERLINE_DISPATCHER_KAFKA_SASL_PASSWORD": "moves"}
SPANS = {"OTEL_EXPORTER_OTLP_HEADERS": "key=value"}


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
        async with actuator_of(Platform(on="kubernetes"), RUN):
            raise error
    assert pods.there is left


def environment_of_a_dispatcher(secret: dict[str, str], tracing: str = "") -> dict[str, str]:
    """What a pod's process sees of a Secret, by the rules of Kubernetes' API reference."""
    platform = Platform(on="kubernetes", pods=PodOptions(image="image", secret="kafka"))
    cluster = _cluster(platform, "ml", "kafka:9092", tracing)
    host = DispatcherHostSpec("", "kafka:9092", "shop.assignments", "life", "credential", 9470)
    made = StageManifests("shop", "rank", cluster).dispatchers(host)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        assert source == {"secretRef": {"name": "kafka"}}
        found |= secret
    for entry in container["env"]:
        reference: dict[str, Any] = entry.get("valueFrom", {}).get("secretKeyRef", {})
        if reference and (reference["key"] in secret or not reference["optional"]):
            found[entry["name"]] = secret[reference["key"]]
    return found


def given(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_pods_of_dispatchers_hold_their_own_kafka_users_credentials_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = {**ALICE, **BOB, **SPANS}
    given(monkeypatch, secret)
    found = environment_of_a_dispatcher(secret, "otlp")
    assert kafka_security(found).user == "bob"
    assert set(found.values()) == {"bob", "moves", "key=value"}


def test_pods_of_dispatchers_without_a_user_of_their_own_hold_the_secrets_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = {**ALICE, "ANOTHER": "1"}
    given(monkeypatch, secret)
    assert environment_of_a_dispatcher(secret) == secret
