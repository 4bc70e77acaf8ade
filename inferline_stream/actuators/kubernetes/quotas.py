"""What the ResourceQuotas of a namespace leave to more replicas. Plain values."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping
from typing import Any


def left_by_quotas(wanted: Mapping[str, Mapping[str, str]], quotas: Iterable[Mapping[str, Any]]) -> list[int]:
    """How many more replicas each quota of a namespace has room for, for each resource that it limits.

    Args:
        wanted: of one replica, as `manifests.resources` gives it.
        quotas: ResourceQuotas as in the API server's JSON; those for some pods only are left out.
    """
    asked = {f"{verb}.{name}": value for verb in ("requests", "limits") for name, value in wanted.get(verb, {}).items()}
    asked |= {name: asked[f"requests.{name}"] for name in ("cpu", "memory") if f"requests.{name}" in asked}
    asked |= {"pods": "1"}
    found = []
    for quota in quotas:
        if any(quota.get("spec", {}).get(name) for name in ("scopes", "scopeSelector")):
            continue
        hard, used = (quota.get("status", {}).get(name) or {} for name in ("hard", "used"))
        for name, most in hard.items():
            if (each := _quantity(asked.get(name, "0"))) > 0:
                found.append(max(0, math.floor((_quantity(most) - _quantity(used.get(name, "0"))) / each + 1e-9)))
    return found


_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIXES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}


def _quantity(text: str) -> float:
    """A quantity as Kubernetes writes it, e.g. ``250m`` or ``2Gi``."""
    number = text.rstrip(string.ascii_letters)
    suffix = text.removeprefix(number)
    return float(number) * _SUFFIXES[suffix]
