"""The Helm chart's templates, made from the manifests of `deploy`: each value that the chart has in place of one there.

python -m tests.contracts.chart          writes them; a test fails where they are not what this writes
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from inferline_stream.actuators.kubernetes.inference_pipeline import definition
from inferline_stream.actuators.kubernetes.installation import Installation, chart_values, manifests
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.observability.alert_rules import Target

CHART = Path(__file__).parents[2] / "docker/helm/inferline-stream"

MARKED = Installation(
    target=Target("zpipelinez", 0.5, 0.99),
    topology="/zfolderz/zfilez",
    stages=("zstagez",),
    cluster=Cluster("znamespacez", "zimagez", service_account="zaccountz", secret="zsecretz", kafka_ports=(65001,)),
    bootstrap_servers="zserversz",
    profiles={"zprofilez": "ztextz"},
    stock={"zkindz": 65002},
    prefix="zprefixz",
    delivery="zdeliveryz",
    reserve=65003.5,
)
"""Values that no line of the manifests has by itself."""

_NAMES = chart_values(MARKED)["names"]

_CREDENTIAL = """- {{ . }}
{{- else }}
{{- fail "names.credentials is empty, which would allow every Secret: take it from `deploy --save`" }}"""

_BLOCKS = [
    (rf"(?:^ *- (?:{'|'.join(_NAMES['credentials'])})\n)+", _CREDENTIAL, "range .Values.names.credentials"),
    (r"^ *- protocol: TCP\n *port: 65001\n", None, "range .Values.kafka.ports"),
    (r"^ *- --stock\n *- zkindz=65002\n", None, "range $kind, $most := .Values.stock"),
    (r"^ *- --prefix\n *- zprefixz\n", None, "with .Values.prefix"),
    (r"^ *- --reserve\n *- '65003.5'\n", None, "with .Values.reserve"),
    (r"^ *- --delivery\n *- zdeliveryz\n", None, 'if ne .Values.delivery "at_least_once"'),
    (r"^ *- --secret\n *- zsecretz\n", None, "with .Values.kafka.secret"),
    (r"^ *envFrom:\n *- secretRef:\n *name: zsecretz\n", None, "with .Values.kafka.secret"),
    (r"^ *zprofilez: ztextz\n", None, "range $path, $text := .Values.profiles"),
    (r"^ *- key: zprofilez\n *path: zprofilez\n", None, "range $path, $text := .Values.profiles"),
]
"""Lines that are there once per value, or where there is one, and what of the chart's language says so."""

_WORDS = {
    "port: 65001": "port: {{ . }}",
    "zkindz=65002": "{{ $kind }}={{ $most }}",
    "'{\"zkindz\":65002}'": "{{ toJson .Values.stock | quote }}",
    "zprofilez: ztextz": '{{ $path | replace "/" "--" }}: {{ $text | quote }}',
    "key: zprofilez": 'key: {{ $path | replace "/" "--" }}',
    "path: zprofilez": "path: {{ $path }}",
    "'65003.5'": "{{ . | quote }}",
    "zprefixz": "{{ . }}",
    "- zsecretz": "- {{ . }}",
    "name: zsecretz": "name: {{ . }}",
    "/zfolderz/.inferline": "{{ dir .Values.topology }}/.inferline",
    "/zfolderz/zfilez": "{{ .Values.topology }}",
    _NAMES["controller"]: "{{ .Values.names.controller }}",
    _NAMES["profiles"]: "{{ .Values.names.profiles }}",
    "zpipelinez": "{{ .Values.pipeline }}",
    "znamespacez": "{{ .Release.Namespace }}",
    "zimagez": "{{ .Values.image }}",
    "zaccountz": "{{ .Values.serviceAccount }}",
    "zserversz": "{{ .Values.kafka.bootstrapServers }}",
    "zdeliveryz": "{{ .Values.delivery }}",
}

_SWITCHES = {
    "ServiceAccount": "rbac",
    "Role": "rbac",
    "RoleBinding": "rbac",
    "NetworkPolicy": "networkPolicies",
    "ServiceMonitor": "monitor",
    "PrometheusRule": "rules",
}


def _block(line: str | None, condition: str, found: re.Match[str]) -> str:
    """Return lines within a condition, or one in their place."""
    indent = found[0][: len(found[0]) - len(found[0].lstrip())]
    lines = found[0] if line is None else f"{indent}{line}\n"
    return f"{{{{- {condition} }}}}\n{lines}{{{{- end }}}}\n"


def template(manifest: dict[str, Any]) -> str:
    """Return one manifest in the chart's language."""
    kind = manifest["kind"]
    if kind == "PrometheusRule":
        manifest = manifest | {"spec": {"groups": "zgroupsz"}}
    text = yaml.safe_dump(json.loads(json.dumps(manifest)), sort_keys=False, width=1000)  # without aliases
    for pattern, line, condition in _BLOCKS:
        text = re.sub(pattern, partial(_block, line, condition), text, flags=re.MULTILINE)
    for mark, words in _WORDS.items():
        text = text.replace(mark, words)
    text = re.sub(r"((?:: |- ){{ \.Values\.[\w.]+) }}$", r"\1 | quote }}", text, flags=re.MULTILINE)
    text = text.replace(" zgroupsz", "\n{{ toYaml .Values.rules.groups | indent 4 }}")
    assert not re.search(r"z[a-z]+z\b|6500\d", text), text
    return f"{{{{- if .Values.{_SWITCHES[kind]}.enabled }}}}\n{text}{{{{- end }}}}\n" if kind in _SWITCHES else text


def files() -> dict[str, str]:
    """Return the chart's files that follow from the code, by their paths in it."""
    found: dict[str, str] = {}
    for manifest in manifests(MARKED)[:-1]:  # the last is the InferencePipeline, whose specification is people's
        name = "pod-serviceaccount" if manifest["metadata"]["name"] == "zaccountz" else manifest["kind"].lower()
        found[f"templates/{name}.yaml"] = template(manifest)
    found["crds/inferencepipelines.yaml"] = yaml.safe_dump(definition(), sort_keys=False, width=1000)
    return found


if __name__ == "__main__":
    for path, text in files().items():
        (CHART / path).parent.mkdir(exist_ok=True)
        (CHART / path).write_text(text)
