"""A Faust app as the consumer group that it is: all its agents share one, whose id is the app's."""

from __future__ import annotations

import re
import sys
from typing import Any

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.consumer_group import ConsumerGroup, FaustApp


def faust_group(app: Any, topic: str | None = None) -> ConsumerGroup:
    """Return the declaration of an app's group, its workers `faust worker` processes.

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
