"""A consumer group that a team runs already, declared to be planned for and scaled as it is, in whatever language."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.declared_at import declared_at


@dataclass(frozen=True, slots=True)
class Deployment:
    """Workers of a group are the replicas of a Kubernetes Deployment, which `run` scales.

    Args:
        name: ``"namespace/name"``, or the name alone for the namespace that `run` works in.
    """

    name: str


@dataclass(frozen=True, slots=True)
class KedaScaler:
    """A ScaledObject asks for the number of workers, by KEDA's external scaler protocol.

    Args:
        deployment: that the ScaledObject scales, ``"namespace/name"`` or the name alone; by default one of the group's
            declared name.
        tolerance: share by which a HorizontalPodAutoscaler of the cluster lets the number of pods be wrong. 0 where it
            has ``behavior.*.tolerance`` (Kubernetes 1.35 and later).
    """

    deployment: str = ""
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the user's sets the number of workers.

    Args:
        run: what is run on each change, with ``{replicas}`` for the number wanted; without a shell.
    """

    run: str


@dataclass(frozen=True, slots=True)
class FaustApp:
    """Workers are processes of a Faust app, which `run` starts and stops on this host.

    Args:
        app: where it is defined, ``"module:attribute"``, as `faust -A` takes it.
    """

    app: str


Workers = Deployment | KedaScaler | Command | FaustApp
"""Who changes the number of a group's workers."""


@dataclass(frozen=True, slots=True)
class PromQL:
    """A query of Prometheus for the seconds that an event takes a busy worker.

    Args:
        url: of Prometheus, ``http://host:9090``.
        query: gives one number, such as
            ``sum(rate(work_seconds_sum[1m])) / sum(rate(work_seconds_count[1m]))``.
    """

    url: str
    query: str


class ConsumerGroup:
    """A consumer group in the place of a stage: its workers stay what they are, and their number is planned.

    Args:
        name: unique in the pipeline; names the group in plans, metrics and decisions.
        group: the group's id as Kafka knows it.
        topic: that it reads.
        after: the group that writes what it reads; none for one that reads what enters the pipeline.
        workers: who changes their number; None where it is only advised.
        hardware: kind that a worker runs on, for its price.
        service_time: asked in place of what Kafka shows of it; needed where workers commit on a timer.
    """

    def __init__(
        self,
        name: str,
        *,
        group: str,
        topic: str,
        after: Iterable[ConsumerGroup] = (),
        workers: Workers | None = None,
        hardware: str = "cpu-1",
        service_time: PromQL | None = None,
    ) -> None:
        self.name = name
        self.group = group
        self.topic = topic
        self.after = tuple(after)
        self.workers = workers
        self.hardware = hardware
        self.service_time = service_time
        self.declared = declared_at()

    def __repr__(self) -> str:
        return f"ConsumerGroup({self.name!r})"


def faust_group(app: Any, topic: str | None = None) -> ConsumerGroup:
    """Return the declaration of a Faust app: all its agents share one group, its workers are `faust worker` processes.

    Args:
        app: a ``faust.App`` with agents, an attribute of the module that defines them.
        topic: that its events enter by; by default the topic of the first agent that no other agent writes to.

    Raises:
        InvalidTopology: it has no agent that reads a named topic, or is no attribute of its agents' module.
    """
    agents = list(app.agents.values())
    written = {name for agent in agents for sink in agent._sinks for name in getattr(sink, "topics", ())}
    read = list(dict.fromkeys(name for agent in agents for name in getattr(agent.channel, "topics", None) or ()))
    entering = [name for name in read if name not in written] or read
    if topic is None and not entering:
        raise InvalidTopology(f"Faust app {app.conf.id!r} has no agent that reads a named topic; give topic=")
    modules = dict.fromkeys(agent.fun.__module__ for agent in agents)
    places = [
        f"{module}:{attribute}"
        for module in modules
        for attribute, value in vars(sys.modules[module]).items()
        if value is app
    ]
    if not places:
        raise InvalidTopology(
            f"Faust app {app.conf.id!r} is no attribute of {', '.join(modules) or 'a module with its agents'}; write "
            'ConsumerGroup(..., workers=FaustApp("module:attribute"))'
        )
    name = re.sub(r"[^A-Za-z0-9_-]", "-", app.conf.id)
    return ConsumerGroup(name, group=app.conf.id, topic=topic or entering[0], workers=FaustApp(places[0]))
