"""How what a pipeline has in a cluster is named and labelled."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

FIELD_MANAGER = "inferline-stream"
PIPELINE_LABEL = "inferline-stream.dev/pipeline"
STAGE_LABEL = "inferline-stream.dev/stage"
HARDWARE_LABEL = "inferline-stream.dev/hardware"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
DISPATCHER, REPLICA = "dispatcher", "replica"
"""Values of `COMPONENT_LABEL`, and names of containers."""

_PLUS = ".."
"""Stands for the plus of slices, ``1g.10gb+me``: Kubernetes takes none in a label."""

_AT = "..."
"""Stands for the at sign before a version, ``cpu-1@5fa2``."""

_LONGEST_NAME = 52  # a pod's name adds two suffixes, and its host name may have 63 characters


def replicas_name(pipeline: str, stage: str, hardware: str) -> str:
    """Name of the Deployment of a stage's replicas on a hardware kind."""
    return dns_label(f"{pipeline}-{stage}-{hardware}")


def dispatchers_name(pipeline: str, stage: str) -> str:
    """Name of a stage's Deployment of dispatchers, and of what belongs to it."""
    return dns_label(f"{pipeline}-{stage}-dispatcher")


def credential_name(pipeline: str, stage: str, component: str) -> str:
    """Name of the Secret with one side's credential."""
    return dns_label(f"{pipeline}-{stage}-{component}-tls")


def dns_label(whole: str) -> str:
    """Return a name that Kubernetes takes; a hash keeps those apart that differ in other characters only."""
    plain = re.sub(r"[^a-z0-9-]+", "-", whole.lower()).strip("-")
    if plain == whole and len(plain) <= _LONGEST_NAME:
        return plain
    digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
    return f"{plain[: _LONGEST_NAME - 7].strip('-')}-{digest}"


def labels(pipeline: str, stage: str, component: str, hardware: str = "") -> dict[str, str]:
    """By which pods are found."""
    found = {PIPELINE_LABEL: pipeline, STAGE_LABEL: stage, COMPONENT_LABEL: component, **MANAGED_BY}
    return found | ({HARDWARE_LABEL: hardware.replace("+", _PLUS).replace("@", _AT)} if hardware else {})


def hardware_of(labelled: Mapping[str, str]) -> str:
    """Name of the hardware kind that a pod's labels say."""
    return labelled[HARDWARE_LABEL].replace(_AT, "@").replace(_PLUS, "+")
