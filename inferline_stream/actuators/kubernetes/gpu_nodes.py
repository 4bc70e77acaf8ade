"""Which nodes have the GPU, or the share of one, that a hardware kind pays for, and how a pod claims it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from inferline_stream.pipeline.hardware import Hardware

_PRODUCTS = {
    "Tesla V100": tuple(f"Tesla-V100-{form}" for form in ("SXM2-16GB", "SXM2-32GB", "PCIE-16GB", "PCIE-32GB")),
    "NVIDIA A100": tuple(f"NVIDIA-A100-{form}" for form in ("SXM4-40GB", "SXM4-80GB", "PCIE-40GB", "80GB-PCIe")),
    "NVIDIA H100": tuple(f"NVIDIA-H100-{form}" for form in ("80GB-HBM3", "PCIe", "NVL")),
    "NVIDIA H200": ("NVIDIA-H200", "NVIDIA-H200-NVL"),
}
"""What NVIDIA's feature discovery labels nodes with, of models that come in several forms."""


PRODUCT_LABEL = "nvidia.com/gpu.product"

_SHARED = "-SHARED"


def written(profile: str) -> str:
    """Return a MIG profile as NVIDIA's device plugin writes it in names of resources and labels: ``1g.10gb.me``."""
    return profile.replace("+", ".")


def products(hardware: Hardware) -> tuple[str, ...]:
    """Values of `PRODUCT_LABEL` that nodes of the kind carry; none where any node will do.

    Nodes that lend a GPU to several pods at once say ``-SHARED``. Nodes with slices (MIG) keep the name of the GPU with
    the strategy ``mixed``, and only there is a slice a resource of its own name.
    """
    if not hardware.gpus or hardware.gpu_model is None:
        return ()
    found = _PRODUCTS.get(hardware.gpu_model, (hardware.gpu_model.replace(" ", "-"),))
    return tuple(product + _SHARED for product in found) if hardware.shares_gpu else found


def products_of(hardware: Hardware, nodes: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Return those products of a kind that nodes have, by their labels, without what those say of shares."""
    if hardware.node_labels or hardware.device_class:  # whatever those name: their nodes may have no such label
        return ()
    found = {labels.get(PRODUCT_LABEL, "") for labels in nodes} & set(products(hardware))
    return tuple(sorted(product.removesuffix(_SHARED) if hardware.shares_gpu else product for product in found))


def node_requirements(hardware: Hardware) -> list[dict[str, Any]]:
    """What the labels of a node have to say so that a replica may run there; nothing where any will do."""

    def says(label: str, operator: str, *values: str) -> dict[str, Any]:
        return {"key": f"nvidia.com/gpu.{label}", "operator": operator, "values": list(values)}

    if hardware.node_labels:
        named = sorted(hardware.node_labels.items())
        return [{"key": label, "operator": "In", "values": [value]} for label, value in named]
    if not hardware.gpus or hardware.device_class:  # devices of a class are found wherever they are
        return []
    wanted = [says("product", "In", *found)] if (found := products(hardware)) else []
    if hardware.shares_gpu:
        # A node that shares by MPS takes no sealed replica: only a kind that names such nodes runs there.
        return [*wanted, says("replicas", "In", str(hardware.parts)), says("sharing-strategy", "NotIn", "mps")]
    # Without a model nothing else keeps a whole GPU's replica from a node that lends only a part.
    return wanted or [says("sharing-strategy", "NotIn", "time-slicing", "mps")]


def claim_spec(hardware: Hardware) -> dict[str, Any]:
    """Return what each pod claims of the kind's device class, as a ResourceClaimTemplate has it."""
    wanted = {"deviceClassName": hardware.device_class, "count": math.ceil(hardware.gpus)}
    return {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": wanted}]}}}
