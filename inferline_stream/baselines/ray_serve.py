"""Ray Serve's request-based autoscaling: ongoing requests per replica against a target, with delays.

Ray 2.60, `python/ray/serve/autoscaling_policy.py`; a test runs both on random steps where ray is installed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inferline_stream.baselines.rule_inputs import StageSeen

_EPSILON_S = 1e-6
"""Ray's tolerance on a delay that has passed."""


@dataclass(frozen=True, slots=True)
class RayServeMemory:
    """Which way the last decisions went (+1, 0, −1) and since when; and recent (time, ongoing requests)."""

    way: int = 0
    since_s: float | None = None
    ongoing: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RayServe:
    """An autoscaling deployment.

    Args:
        target_ongoing: requests in flight or queued per replica.
        upscaling_factor: share of the way up that is gone at once.
        downscaling_factor: share of the way down.
        upscale_delay_s: how long more replicas must be wanted.
        downscale_delay_s: how long fewer replicas must be wanted.
        look_back_s: span of the mean of ongoing requests.
        minimum: fewest replicas.
        maximum: most replicas.
        period_s: how often it decides; Serve's own is 0.1 s.
    """

    target_ongoing: float = 2.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_s: float = 30.0
    minimum: int = 1
    maximum: int = 100
    period_s: float = 1.0

    def begin(self, replicas: int) -> RayServeMemory:
        """No decision yet."""
        return RayServeMemory()

    def desired(self, ongoing: float, running: int) -> int:
        """Replicas that the ongoing requests ask for of those that run, at least one of which does."""
        wanted = running * (ongoing / (self.target_ongoing * running))
        way = wanted - running
        scaled = math.ceil(running + (self.upscaling_factor if way > 0 else self.downscaling_factor) * way)
        if math.ceil(wanted) < running and scaled == running:
            return running - 1  # a small factor does not keep it from ever going down
        return scaled

    def decided(
        self, memory: RayServeMemory, time_s: float, ongoing: float, running: int, target: int
    ) -> tuple[RayServeMemory, int]:
        """One decision of the policy, before the bounds.

        Args:
            memory: of the decision before.
            time_s: now.
            ongoing: requests in flight and queued, their recent mean.
            running: replicas that run.
            target: replicas asked for.
        """
        if running == 0:
            if ongoing > 0:
                return memory, max(math.ceil(self.upscaling_factor), target)
            if target > 0:
                return memory, target
        wanted = max(0, self.desired(ongoing, running)) if running else target
        way = (wanted > target) - (wanted < target)
        if way == 0:
            return replace(memory, way=0, since_s=None), target
        since_s = memory.since_s if memory.way == way and memory.since_s is not None else time_s
        delay_s = self.upscale_delay_s if way > 0 else self.downscale_delay_s
        if way < 0 and target != 1:
            wanted = max(1, wanted)  # the last replica goes by a decision of its own
        if time_s - since_s + _EPSILON_S >= delay_s:
            return replace(memory, way=0, since_s=None), wanted
        return replace(memory, way=way, since_s=since_s), target

    def step(self, memory: RayServeMemory, seen: StageSeen) -> tuple[RayServeMemory, int]:
        """One interval."""
        recent = tuple(look for look in memory.ongoing if look[0] > seen.time_s - self.look_back_s)
        recent = (*recent, (seen.time_s, seen.lag))
        ongoing = sum(n for _, n in recent) / len(recent)
        memory, wanted = self.decided(
            replace(memory, ongoing=recent), seen.time_s, ongoing, running=seen.ready, target=seen.replicas
        )
        return memory, min(max(wanted, self.minimum), self.maximum)
