"""Has the workers of consumer groups follow what is wanted, each by the one who changes their number."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inferline_stream.actuators.group_workers import GroupWorkers
from inferline_stream.controlplane.loop_steps import woken
from inferline_stream.controlplane.replica_counts import copied
from inferline_stream.errors import InferlineError
from inferline_stream.tuner.plan_basis import Replicas

logger = logging.getLogger(__name__)

_LOOK_S = 10.0
"""How often it is looked whether somebody else has changed a number; and how soon a refusal is tried again."""


@dataclass(slots=True)
class GroupFleet:
    """In the place of a `Fleet`, for groups whose workers start and stop elsewhere.

    Args:
        workers: who changes the number of a group's workers, by group; a group without is only advised.
        wanted: workers by group and hardware kind; the newest are kept here.
        leads: whether this controller may act.
    """

    workers: Mapping[str, GroupWorkers]
    wanted: dict[str, dict[str, int]]
    leads: Callable[[], bool]
    trouble: dict[str, str] = field(default_factory=dict)
    """By group, why the number that is wanted could not be set, in words."""
    decided: set[str] = field(default_factory=set)
    """Groups whose number was decided on here: until then it is left as somebody has set it."""
    _wakes: dict[str, asyncio.Event] = field(init=False)

    def __post_init__(self) -> None:
        self._wakes = {group: asyncio.Event() for group in self.workers}

    async def want(self, wanted: Replicas) -> None:
        """These workers from now on; a step asks for them, since a command may take its time."""
        self.decided |= {group for group, kinds in wanted.items() if kinds != self.wanted.get(group)}
        found = copied(wanted)
        self.wanted.clear()
        self.wanted.update(found)
        self.changed()

    def changed(self) -> None:
        """What is wanted has changed."""
        for wake in self._wakes.values():
            wake.set()

    async def step(self, group: str) -> None:
        """Wait for a change, or a while, and have a group's number as it is wanted; no group waits for another's."""
        await woken(self._wakes[group], _LOOK_S)
        if not self.leads():
            return
        workers, wanted = self.workers[group], sum(self.wanted.get(group, {}).values())
        try:
            asked = await workers.wanted()
            if group in self.decided and asked != wanted and self.leads():
                await workers.scale(wanted)
                logger.info("group %s: asked for %d workers, %s before", group, wanted, asked)
            trouble = ""
        except InferlineError as error:
            trouble = str(error)
        if trouble and trouble != self.trouble.get(group):
            logger.error("group %s: the number of its workers stays as it is: %s", group, trouble)
        self.trouble[group] = trouble
