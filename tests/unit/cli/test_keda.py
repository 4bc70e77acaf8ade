"""ScaledObjects: what they hold against the server that they ask, and against Kubernetes' own schema."""

import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from inferline_stream.actuators.external_scaler import GROUP_KEY, METRIC, messages
from inferline_stream.cli.main import app

TOPOLOGY = """
from inferline_stream import Command, ConsumerGroup, KedaScaler, Pipeline

clean = ConsumerGroup("clean", group="clean-1", topic="posts", workers=Command("scale {replicas}"))
enrich = ConsumerGroup("enrich", group="e-2", topic="cleaned", after=[clean], workers=KedaScaler("ml/enrich-v2", 0))
rank = ConsumerGroup("rank", group="r-1", topic="enriched", after=[enrich], workers=KedaScaler())
pipeline = Pipeline("shop", slo="5s", stages=[clean, enrich, rank])
"""


def printed(folder: Path, *options: str) -> list[dict]:
    (folder / "topology.py").write_text(TOPOLOGY)
    result = CliRunner().invoke(app, ["keda", str(folder), "--address", "inferline.ml:9465", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "json" in options else list(yaml.safe_load_all(result.stdout))


def test_each_group_that_keda_scales_has_a_scaled_object_which_follows_our_number_at_once(tmp_path: Path) -> None:
    found = printed(tmp_path, "--most", "24")
    assert printed(tmp_path, "--most", "24", "--output", "json") == found
    enrich, rank = found
    assert [each["spec"]["scaleTargetRef"]["name"] for each in found] == ["enrich-v2", "rank"]
    assert (enrich["metadata"]["namespace"], "namespace" in rank["metadata"]) == ("ml", False)
    for each, name, tolerance in ((enrich, "enrich", "0"), (rank, "rank", None)):
        (trigger,) = each["spec"]["triggers"]
        assert trigger["metadata"] == {"scalerAddress": "inferline.ml:9465", GROUP_KEY: name}
        assert trigger["type"] == "external-push"
        assert "authenticationRef" not in trigger
        assert (each["spec"]["minReplicaCount"], each["spec"]["maxReplicaCount"]) == (1, 24)
        assert each["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
        behavior = each["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert {rules.get("tolerance") for rules in behavior.values()} == {tolerance}
        assert {rules["stabilizationWindowSeconds"] for rules in behavior.values()} == {0}
        metric = {"type": "External", "external": {"metric": {"name": METRIC}, "target": {"type": "AverageValue"}}}
        scaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "x"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
                "maxReplicas": 24,
                "metrics": [metric],
                "behavior": behavior,
            },
        }
        kubernetes_validate.validate(scaler, kubernetes_validate.latest_version(), strict=True)


def test_with_tls_the_certificates_come_from_a_secret(tmp_path: Path) -> None:
    found = printed(tmp_path, "--secret", "keda-tls")
    assert [each["kind"] for each in found] == ["TriggerAuthentication", "ScaledObject"] * 2
    for authentication, scaled in zip(found[::2], found[1::2], strict=True):
        (trigger,) = scaled["spec"]["triggers"]
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert authentication["metadata"].get("namespace") == scaled["metadata"].get("namespace")
        keys = {each["parameter"]: (each["name"], each["key"]) for each in authentication["spec"]["secretTargetRef"]}
        files = {"caCert": "ca.crt", "tlsClientCert": "tls.crt", "tlsClientKey": "tls.key"}
        assert keys == {parameter: ("keda-tls", file) for parameter, file in files.items()}


def test_a_topology_without_such_a_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "topology.py").write_text(re.sub(r"KedaScaler\(.*?\)", "None", TOPOLOGY))
    result = CliRunner().invoke(app, ["keda", str(tmp_path), "--address", "x:1"])
    assert result.exit_code == 2
    assert "workers=KedaScaler()" in result.output


@pytest.mark.parametrize(
    ("name", "fields", "encoded"),
    [
        (
            "ScaledObjectRef",
            {"name": "n", "namespace": "s", "scalerMetadata": [("group", "g")]},
            "0a016e 120173 1a0a 0a0567726f7570 120167",
        ),
        ("IsActiveResponse", {"result": True}, "0801"),
        (
            "MetricSpec",
            {"metricName": "w", "targetSize": 1, "targetSizeFloat": 1.0},
            "0a0177 1001 19000000000000f03f",
        ),
        (
            "MetricValue",
            {"metricName": "w", "metricValue": 3, "metricValueFloat": 3.0},
            "0a0177 1003 190000000000000840",
        ),
        ("GetMetricsRequest", {"metricName": "w"}, "120177"),
    ],
)
def test_messages_have_the_bytes_that_kedas_own_have(name: str, fields: dict, encoded: str) -> None:
    """By hand from `externalscaler.proto` and protobuf's encoding; a map is its entries, key 1 and value 2."""
    if "scalerMetadata" in fields:
        entry = messages()["Metadata"]
        fields = {**fields, "scalerMetadata": [entry(key=k, value=v) for k, v in fields["scalerMetadata"]]}
    assert messages()[name](**fields).SerializeToString().hex() == encoded.replace(" ", "")


@pytest.mark.parametrize(
    "address", ["inferline.ml", "inferline.ml:", ":9465", "inferline.ml:grpc", "http://ml:80", "ml:0", "ml:99999"]
)
def test_an_address_without_a_host_or_a_port_is_refused(tmp_path: Path, address: str) -> None:
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    result = CliRunner().invoke(app, ["keda", str(tmp_path), "--address", address])
    assert result.exit_code == 2
    assert f"--address {address!r} is not host:port; write e.g. inferline.shop:9465" in result.output
