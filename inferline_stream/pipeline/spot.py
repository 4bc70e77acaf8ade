"""Spot capacity: the same hardware for less, which its owner may take away at short notice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

from inferline_stream.pipeline.units import duration_s

_SPOT = "-spot"


def spot_name(hardware: str) -> str:
    """Return what a kind's spot capacity is called: ``t4-spot`` of ``t4``."""
    return hardware + _SPOT


def on_demand(hardware: str) -> str:
    """Return the kind that a spot kind is lent from, by its name; itself where it is none."""
    return hardware.removesuffix(_SPOT)


def is_spot(hardware: str) -> bool:
    """Whether a kind is spot capacity, by its name."""
    return hardware.endswith(_SPOT)


@dataclass(frozen=True, slots=True)
class Spot:
    """What a hardware kind costs where it may be taken away, and how that happens.

    Args:
        price: dollars per replica and hour.
        notice: how long before a replica is taken it is known, such as ``"2m"``; ``"0s"`` for none.
        losses_per_hour: how often an hour the whole kind goes at once, in the mean: 0.1 is every ten hours.
        most: dollars per hour that on-demand replicas of the kind may cost while its spot capacity is away; None for
            any. Events may be late then.
        node_labels: on Kubernetes, labels of the nodes that are spot capacity, beside the kind's own.
        notice_at: a file that appears, or an ``http://`` address that answers, once the host that `run` is on will be
            taken; empty for none.

    Raises:
        ValueError: a price, notice, rate or bound that cannot be.
    """

    price: float
    notice: str = "2m"
    losses_per_hour: float = 0.1
    most: float | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    notice_at: str = ""

    def __post_init__(self) -> None:
        for name, number in (("price", self.price), ("losses_per_hour", self.losses_per_hour), ("most", self.most)):
            if name == "most" and number is None:
                continue
            if not (isinstance(number, Real) and math.isfinite(number) and number >= 0):
                raise ValueError(f"spot {name} {number!r} must be 0 or more")
        if not isinstance(self.node_labels, Mapping):
            raise ValueError(f'spot node_labels {self.node_labels!r} must be a mapping; write {{"label": "value"}}')
        try:
            duration_s(self.notice)
        except ValueError as error:
            raise ValueError(f"spot notice {error}") from None

    @property
    def notice_s(self) -> float:
        """The notice in seconds."""
        return duration_s(self.notice)
