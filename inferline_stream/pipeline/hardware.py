"""Named kinds of places where a replica can run, each with its price."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Real
from types import MappingProxyType
from typing import Any

from inferline_stream.pipeline.spot import Spot, is_spot, on_demand, spot_name

EMULATED_PREFIX = "emulated-"

SLICE = re.compile(r"(?:\d+c\.)?\d+g\.\d+gb(?:\+\w+(?:\.all)?|-me\b)?")
"""A MIG profile: ``1g.10gb``, with media engines (``1g.10gb+me``, ``+me.all``), without (``-me``), with graphics
(``+gfx``), or a part of an instance's cores (``1c.3g.40gb``)."""

MOST_REPLICAS = 1_000_000
"""Of a stage or a hardware kind; its dollars per hour and cores are no more either. More is a mistake, and no counter
can overflow below."""

MOST_PARTS = 8
"""Replicas among which the catalogue divides a device."""

SHARING_LABEL = "nvidia.com/gpu.sharing-strategy"
"""By which NVIDIA's GPU feature discovery says how a node's pods share a GPU."""

_SHARE = re.compile(r"-1of(\d+)$")

_PART_ERROR = 0.01
"""Of a device: 0.33 is a third of one."""

_VENDOR = frozenset(("nvidia", "tesla"))
_FORM = re.compile(r"sxm\d*|pcie|nvl|hbm\d*e?|\d+gb")
"""What a device adds to the name of its model: how it is mounted, and its memory."""


def is_model(reported: str, model: str) -> bool:
    """Whether the name that a device reports is that of a model, in whichever form it comes.

    ``NVIDIA H100 80GB HBM3`` and ``NVIDIA H100 PCIe`` are an ``NVIDIA H100``; ``NVIDIA L40S`` is no ``NVIDIA L4``.
    """
    words, wanted = _words(reported), _words(model)
    return words[: len(wanted)] == wanted and all(map(_FORM.fullmatch, words[len(wanted) :]))


def divided(name: str) -> tuple[str, int]:
    """Return of which kind one is a share, by its name, and of how many: ``t4`` and 2 of ``t4-1of2``; itself and 1."""
    found = _SHARE.search(name)
    return (name[: found.start()], int(found.group(1))) if found else (name, 1)


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
        gpus: how many GPUs one replica holds, or 1/2, 1/3, … of one, whose rest replicas with the same share get. It is
            profiled beside copies that use the rest of the device, and with no more memory than its share.
        gpu_model: name by which the device reports itself, e.g. ``"Tesla T4"``, its form left out or not.
        stock: most replicas of this kind at once, over all stages; None for no limit.
        gpu_stock: GPUs of this model, which all kinds that name it share; None for no limit.
        node_labels: on Kubernetes, labels of the nodes that have it, in the place of those of NVIDIA's GPU feature
            discovery: clouds have labels of their own, e.g. ``{"cloud.google.com/gke-accelerator": "nvidia-l4"}``.
        device_class: on Kubernetes, the DeviceClass whose devices a replica claims (dynamic resource allocation), in
            the place of NVIDIA's device plugin; empty for that.
        runtime_class: on Kubernetes, the RuntimeClass of its pods: ``"nvidia"`` where nodes need it for GPUs, or the
            one of gVisor or Kata Containers.
        spot: what it costs as spot capacity, which is a kind of its own: ``t4-spot`` of ``t4``.
        asleep_per_hour: dollars per replica and hour while the model server that it asks sleeps, and others have its
            device; None where it costs as much as awake.

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
    spot: Spot | None = None
    asleep_per_hour: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise ValueError(f"hardware {self.name!r} needs a name")
        for number in ("price_per_hour", "cores", "gpus", "stock", "gpu_stock", "asleep_per_hour"):
            value: Any = getattr(self, number)
            is_number = isinstance(value, Real) or (value is None and number not in ("price_per_hour", "cores", "gpus"))
            if not (is_number and 0 <= (value or 0) <= MOST_REPLICAS):
                raise ValueError(f"hardware {self.name!r}: {number} {value!r} must be a number, 0 to {MOST_REPLICAS}")
        if not isinstance(self.node_labels, Mapping):
            raise ValueError(
                f"hardware {self.name!r}: node_labels {self.node_labels!r} must be a mapping; write "
                '{"label": "value"}'
            )
        if self.asleep_per_hour is not None and self.asleep_per_hour > self.price_per_hour:
            raise ValueError(
                f"hardware {self.name!r}: asleep_per_hour {self.asleep_per_hour} must be at most its price of "
                f"{self.price_per_hour:g} $/h"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"hardware {self.name!r}: gpus {self.gpus} must be a share up to 1, or a whole number")
        if self.shares_gpu and abs(self.parts * self.gpus - 1) > _PART_ERROR:
            raise ValueError(
                f"hardware {self.name!r}: a GPU gives all that share it as much of its time, and gpus={self.gpus:g} is "
                "no such part; write gpus=1/2, 1/3, …"
            )
        if self.gpu_stock is not None and not self.gpus:
            raise ValueError(f"hardware {self.name!r}: gpu_stock {self.gpu_stock} needs gpus above 0")

        if self.spot is not None and not is_spot(self.name) and self.spot.price > self.price_per_hour:
            raise ValueError(
                f"hardware {self.name!r}: spot price {self.spot.price:g} $/h is above {self.price_per_hour:g} $/h on "
                "demand, which nobody takes away: leave spot= out"
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
    def by_mps(self) -> bool:
        """Whether its nodes, of a cluster, share their GPUs by MPS."""
        return self.node_labels.get(SHARING_LABEL) == "mps"

    @property
    def shares_gpu(self) -> bool:
        """Whether a replica shares its device with others."""
        return 0 < self.gpus < 1 and not self.slice

    @property
    def parts(self) -> int:
        """Replicas that share one device; 1 where each has its own. An emulated kind's name says it."""
        if self.shares_gpu:
            return round(1 / self.gpus)
        return divided(self.name)[1] if self.emulated else 1

    def shared(self, parts: int) -> Hardware:
        """Return one of so many equal parts of a device of this kind: ``t4-1of2`` is half of a ``t4``."""
        places = None if self.stock is None else self.stock * parts
        return replace(
            self,
            name=f"{self.name}-1of{parts}",
            price_per_hour=self.price_per_hour / parts,
            cores=max(1.0, self.cores // parts) if self.cores >= 1 else self.cores,
            gpus=self.gpus / parts,
            stock=places if self.emulated else None,
            gpu_stock=self.stock if self.gpu_stock is None and not self.emulated else self.gpu_stock,
            spot=None,
            asleep_per_hour=None if self.asleep_per_hour is None else self.asleep_per_hour / parts,
        )

    def lent(self, spot: Spot) -> Hardware:
        """Return the same hardware as spot capacity."""
        labels = {**self.node_labels, **spot.node_labels}
        return replace(_at_price(self, spot.price), name=spot_name(self.name), node_labels=labels)

    def gpus_of(self, replicas: int) -> float:
        """Return the GPUs that so many replicas take: none but the same kind gets the rest of one that is shared."""
        return math.ceil(replicas / self.parts) * self.parts * self.gpus


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
    # smallest instance with one such GPU, or that part of the smallest with several. A replica has its vCPUs but one,
    # which is for the dispatcher and the system.
    Hardware("t4", 0.526, cores=3, gpus=1, gpu_model="Tesla T4"),  # g4dn.xlarge
    Hardware("v100", 3.06, cores=7, gpus=1, gpu_model="Tesla V100"),  # p3.2xlarge
    Hardware("l4", 0.8048, cores=3, gpus=1, gpu_model="NVIDIA L4"),  # g6.xlarge
    Hardware("l40s", 1.861, cores=3, gpus=1, gpu_model="NVIDIA L40S"),  # g6e.xlarge
    Hardware("a10g", 1.006, cores=3, gpus=1, gpu_model="NVIDIA A10G"),  # g5.xlarge
    Hardware("a100", 2.74, cores=11, gpus=1, gpu_model="NVIDIA A100"),  # p4d.24xlarge / 8, of 40 GB
    Hardware("h100", 6.88, cores=15, gpus=1, gpu_model="NVIDIA H100"),  # p5.4xlarge, of 80 GB
    Hardware("h200", 7.912, cores=23, gpus=1, gpu_model="NVIDIA H200"),  # p5en.48xlarge / 8, of 141 GB
    # Emulated kinds sleep instead of computing: for trying out plans larger than this machine.
    Hardware("emulated-cpu", _CPU_PER_HOUR, cores=0),
    Hardware("emulated-gpu-small", 0.526, cores=0),
    Hardware("emulated-gpu-large", 2.74, cores=0),
)


def catalogue(extra: Iterable[Hardware] = ()) -> Catalogue:
    """The default kinds, extended and overridden by name with ``extra``, and shares of each device among them.

    A share of ``t4`` is called ``t4-1of2``, up to ``t4-1of8``, and costs that part of its price.
    """
    kinds = {kind.name: kind for kind in _DEFAULTS}
    kinds.update({kind.name: kind for kind in extra})
    whole = [kind for kind in kinds.values() if _is_divisible(kind)]
    shares = (kind.shared(parts) for kind in whole for parts in range(2, MOST_PARTS + 1))
    lent = (kind.lent(kind.spot) for kind in kinds.values() if kind.spot is not None and not is_spot(kind.name))
    return MappingProxyType({kind.name: kind for kind in (*shares, *lent)} | kinds)


def at_prices(kinds: Catalogue, prices: Mapping[str, float]) -> Catalogue:
    """Return kinds at other prices; a share costs its part of a device's where it has none of its own.

    Args:
        kinds: every kind.
        prices: of some of them, in dollars per hour.
    """
    found = dict(prices)
    for name in kinds:
        whole, parts = divided(name)
        if whole in prices:
            found.setdefault(name, prices[whole] / parts)
        if is_spot(name) and on_demand(name) in prices:
            found.setdefault(name, min(kinds[name].price_per_hour, prices[on_demand(name)]))
    return {name: _at_price(kind, found[name]) if name in found else kind for name, kind in kinds.items()}


def _at_price(kind: Hardware, per_hour: float) -> Hardware:
    """Return the same hardware at another price, which caps its prices asleep and as spot capacity."""
    asleep = None if kind.asleep_per_hour is None else min(kind.asleep_per_hour, per_hour)
    spot = None if kind.spot is None else replace(kind.spot, price=min(kind.spot.price, per_hour))
    return replace(kind, price_per_hour=per_hour, asleep_per_hour=asleep, spot=spot)


def _is_divisible(kind: Hardware) -> bool:
    if is_spot(kind.name):
        return False
    if kind.emulated:
        return kind.parts == 1
    # Labels and classes of Kubernetes that name whole devices lend no part of one.
    return kind.gpus == 1 and not (kind.slice or kind.device_class or kind.node_labels)


def dollars_per_hour(counts: Mapping[str, int], catalogue: Catalogue) -> float:
    """Return what replicas cost: a device that replicas of a kind share is paid as a whole, by however few.

    Args:
        counts: replicas by kind, over all stages.
        catalogue: kinds with their prices.
    """
    return math.fsum(
        math.ceil(count / kind.parts) * kind.parts * kind.price_per_hour
        for kind, count in ((catalogue[name], count) for name, count in counts.items())
    )
