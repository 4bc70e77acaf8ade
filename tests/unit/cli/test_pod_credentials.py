"""What `run --on kubernetes` gives its pods."""

from __future__ import annotations

from typing import Any

import pytest

from inferline_stream.actuators.kubernetes.manifests import dispatchers
from inferline_stream.cli.platform import Platform, _cluster
from inferline_stream.settings import kafka_security

ALICE = {"INFERLINE_KAFKA_SASL_USERNAME": "alice", "INFERLINE_KAFKA_SASL_PASSWORD": "decides"}
BOB = {"INFERLINE_DISPATCHER_KAFKA_SASL_USERNAME": "bob", "INFERLINE_DISPATCHER_KAFKA_SASL_PASSWORD": "moves"}
SPANS = {"OTEL_EXPORTER_OTLP_HEADERS": "key=value"}


def environment_of_a_dispatcher(secret: dict[str, str], tracing: str = "") -> dict[str, str]:
    """What a pod's process sees of a Secret, by the rules of Kubernetes' API reference."""
    cluster = _cluster(Platform("kubernetes", "image", secret="kafka"), "ml", "kafka:9092", tracing)
    made = dispatchers("shop", "rank", "kafka:9092", "shop.assignments", cluster, grace_s=1.0)
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
