"""Named kinds of places where a replica can run, each with its price."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

EMULATED_PREFIX = "emulated-"

SLICE = re.compile(r"(?:\d+c\.)?\d+g\.\d+gb(?:\+\w+(?:\.all)?|-me\b)?")
"""A MIG profile: ``1g.10gb``, with media engines (``1g.10gb+me``, ``+me.all``), without (``-me``), with graphics
(``+gfx``), or a part of an instance's cores (``1c.3g.40gb``)."""

_VENDOR = frozenset(("nvidia", "tesla"))
_FORM = re.compile(r"sxm\d*|pcie|nvl|hbm\d*e?|\d+gb")
"""What a device adds to the name of its model: how it is mounted, and its memory."""


def is_model(reported: str, model: str) -> bool:
    """Whether the name that a device reports is that of a model, in whichever form it comes.

    ``NVIDIA H100 80GB HBM3`` and ``NVIDIA H100 PCIe`` are an ``NVIDIA H100``; ``NVIDIA L40S`` is no ``NVIDIA L4``.
    """
    words, wanted = _words(reported), _words(model)
    return words[: len(wanted)] == wanted and all(map(_FORM.fullmatch, words[len(wanted) :]))


@cache
def share_gpus(model: str | None, other: str | None) -> bool:
    """Whether kinds of two models may be given the same GPUs; None is any model."""
    return model is None or other is None or is_model(model, other) or is_model(other, model)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s-]+", name.lower()) if word and word not in _VENDOR]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of hardware. A replica occupies exactly one unit of it.

    Args:
        name: how stages refer to it, e.g. ``"cpu-1"``. A name starting with ``emulated-`` holds one
            slot and sleeps the profiled service time: it uses no core.
        price_per_hour: dollars per replica and hour, the CPU beside a GPU included.
        cores: CPU cores one replica may use; below 1 a control group holds it to that share of a core.
        gpus: share of a GPU one replica holds, or how many. On a share it is profiled beside copies that use the rest
            of the device, and with no more memory than its share: nothing holds it to either later.
        gpu_model: name by which the device reports itself, e.g. ``"Tesla T4"``, its form left out or not.
        stock: most replicas of this kind at once, over all stages; None for no limit.
        gpu_stock: GPUs of this model, which all kinds that name it share; None for no limit.
        node_labels: on Kubernetes, labels of the nodes that have it, in the place of those of NVIDIA's GPU feature
            discovery: clouds have labels of their own, e.g. ``{"cloud.google.com/gke-accelerator": "nvidia-l4"}``.
        device_class: on Kubernetes, the DeviceClass whose devices a replica claims (dynamic resource allocation), in
            the place of NVIDIA's device plugin; empty for that.
        runtime_class: on Kubernetes, the RuntimeClass of its pods, where nodes need one for GPUs, e.g. ``"nvidia"``.

    Raises:
        ValueError: a price, number of cores, share, stock or device class that cannot be.
    """

    name: str
    price_per_hour: float
    cores: float = 1.0
    gpus: float = 0.0
    gpu_model: str | None = None
    stock: int | None = None
    gpu_stock: float | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    device_class: str = ""
    runtime_class: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("hardware needs a name")
        if not (math.isfinite(self.price_per_hour) and self.price_per_hour >= 0):
            raise ValueError(f"hardware {self.name!r}: price {self.price_per_hour} $/h must be 0 or more")
        if not (math.isfinite(self.cores) and self.cores >= 0 and math.isfinite(self.gpus) and self.gpus >= 0):
            raise ValueError(f"hardware {self.name!r}: cores {self.cores} and gpus {self.gpus} must be 0 or more")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"hardware {self.name!r}: gpus {self.gpus} must be a share up to 1, or a whole number")
        if self.stock is not None and self.stock < 0:
            raise ValueError(f"hardware {self.name!r}: stock {self.stock} must be 0 or more")

        if self.gpu_stock is not None and not (math.isfinite(self.gpu_stock) and self.gpu_stock >= 0 and self.gpus > 0):
            raise ValueError(
                f"hardware {self.name!r}: gpu_stock {self.gpu_stock} must be 0 or more, and its gpus above 0"
            )

        if self.device_class and (not self.gpus or self.shares_gpu):
            raise ValueError(
                f"hardware {self.name!r}: device_class {self.device_class!r} gives whole devices, and gpus is "
                f"{self.gpus:g}; write gpus=1, or a MIG profile into the name"
            )

    @property
    def emulated(self) -> bool:
        """Whether replicas sleep the profiled service time instead of computing."""
        return self.name.startswith(EMULATED_PREFIX)

    @property
    def slice(self) -> str:
        """The MIG profile that the name asks for, e.g. ``1g.10gb+me``; empty for whole GPUs and shares of them."""
        found = SLICE.search(self.name)
        return found.group() if found and self.gpus else ""

    @property
    def shares_gpu(self) -> bool:
        """Whether a replica shares its device with others."""
        return 0 < self.gpus < 1 and not self.slice


Catalogue = Mapping[str, Hardware]
"""Hardware kinds by name."""

_CPU_PER_HOUR = 0.0665  # InferLine's price of a CPU replica; a GPU replica is a GPU and one CPU

_DEFAULTS = (
    Hardware("cpu-0.1", _CPU_PER_HOUR * 0.1, cores=0.1),
    Hardware("cpu-0.25", _CPU_PER_HOUR * 0.25, cores=0.25),
    Hardware("cpu-0.5", _CPU_PER_HOUR * 0.5, cores=0.5),
    Hardware("cpu-1", _CPU_PER_HOUR, cores=1),
    Hardware("cpu-2", _CPU_PER_HOUR * 2, cores=2),
    Hardware("cpu-4", _CPU_PER_HOUR * 4, cores=4),
    # Paper era (InferLine, SoCC 2020).
    Hardware("k80", 0.634 + _CPU_PER_HOUR, gpus=1, gpu_model="Tesla K80"),
    Hardware("v100-2019", 2.528 + _CPU_PER_HOUR, gpus=1, gpu_model="Tesla V100"),
    # AWS's on-demand list prices of 2025-11-30 in us-east-1 (github.com/tsaol/aws-gpu, from instances.vantage.sh): the
    # smallest instance with one such GPU, or that part of the smallest with several.
    Hardware("t4", 0.526, gpus=1, gpu_model="Tesla T4"),  # g4dn.xlarge
    Hardware("v100", 3.06, gpus=1, gpu_model="Tesla V100"),  # p3.2xlarge
    Hardware("l4", 0.8048, gpus=1, gpu_model="NVIDIA L4"),  # g6.xlarge
    Hardware("l40s", 1.861, gpus=1, gpu_model="NVIDIA L40S"),  # g6e.xlarge
    Hardware("a10g", 1.006, gpus=1, gpu_model="NVIDIA A10G"),  # g5.xlarge
    Hardware("a100", 2.74, gpus=1, gpu_model="NVIDIA A100"),  # p4d.24xlarge / 8, of 40 GB
    Hardware("h100", 6.88, gpus=1, gpu_model="NVIDIA H100"),  # p5.4xlarge, of 80 GB
    Hardware("h200", 7.912, gpus=1, gpu_model="NVIDIA H200"),  # p5en.48xlarge / 8, of 141 GB
    # Emulated kinds sleep instead of computing: for trying out plans larger than this machine.
    Hardware("emulated-cpu", _CPU_PER_HOUR, cores=0),
    Hardware("emulated-gpu-small", 0.526, cores=0),
    Hardware("emulated-gpu-large", 2.74, cores=0),
)


def catalogue(extra: Iterable[Hardware] = ()) -> Catalogue:
    """The default kinds, extended and overridden by name with ``extra``."""
    kinds = {kind.name: kind for kind in _DEFAULTS}
    kinds.update({kind.name: kind for kind in extra})
    return MappingProxyType(kinds)
