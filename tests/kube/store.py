"""What a Kubernetes API server keeps: objects, a version for each change, and the latest changes for watches."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(slots=True)
class Store:
    """Objects by plural and name; changes of pods are remembered, so many of them.

    Args:
        keep_events: changes remembered; a watch from before them learns that they are forgotten.
    """

    keep_events: int = 1000
    objects: dict[str, dict[str, Json]] = field(default_factory=dict)
    version: int = 2
    """Of the latest change."""
    _versions: itertools.count[int] = field(default_factory=lambda: itertools.count(3))
    _forgotten: int = 2
    _events: list[tuple[int, str, Json]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, plural: str) -> dict[str, Json]:
        """Objects of a kind by name, oldest first."""
        return self.objects.setdefault(plural, {})

    def stamp(self, item: Json) -> Json:
        """An object has changed."""
        self.version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(self.version)
        return item

    async def tell(self, change: str, pod: Json) -> None:
        """Pass on to every watch that a pod was ADDED, MODIFIED or DELETED."""
        self.stamp(pod)
        async with self._news:
            self._events.append((self.version, change, copy.deepcopy(pod)))
            dropped = self._events[: -self.keep_events]
            del self._events[: len(dropped)]
            self._forgotten = dropped[-1][0] if dropped else self._forgotten
            self._news.notify_all()

    async def after(self, version: int) -> list[tuple[int, str, Json]] | None:
        """Changes since a version, once there are any; None where they are forgotten."""
        async with self._news:
            while version >= self._forgotten:
                if news := [event for event in self._events if event[0] > version]:
                    return news
                await self._news.wait()
        return None

    def forget(self) -> None:
        """Forget every change: a watch that resumes from before now learns that its version is gone."""
        self._events.clear()
        self._forgotten = self.version


def merged(current: Json, wanted: Json) -> Json:
    """Fields that are applied win; the others stay."""
    found = dict(current)
    for key, value in wanted.items():
        both = isinstance(value, dict) and isinstance(current.get(key), dict)
        found[key] = merged(current[key], value) if both else value
    return found


def selected(item: Json, selector: Mapping[str, str]) -> bool:
    """Whether an object has these labels."""
    labels = item["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def belongs(pod: Json, deployment: Json) -> bool:
    """Whether a pod is one of a Deployment's."""
    return selected(pod, deployment["spec"]["selector"]["matchLabels"])


def placed(pod: Json) -> bool:
    """Whether a node was found for a pod."""
    return any(c["type"] == "PodScheduled" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def ready(pod: Json) -> bool:
    """Whether a pod's container runs and is ready."""
    return any(status["ready"] for status in pod["status"].get("containerStatuses", ()))
