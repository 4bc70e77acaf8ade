"""A policy whose wishes KEDA carries out: a HorizontalPodAutoscaler follows its number, at its own times.

It looks each 15 s, and leaves a change within its tolerance alone. So our scaler asks for more than is wanted where
that would leave too few (`baselines.hpa.beyond_tolerance`), and the autoscaler does what it does with a metric whose
target is 1. The rest of its behavior is switched off in the ScaledObjects that `keda` writes.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferline_stream.baselines.hpa import Behavior, beyond_tolerance
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Scaler, Wish

SYNC_S = Behavior().period_s


class ThroughKeda:
    """A policy between which and some groups stands a HorizontalPodAutoscaler; a `Scaler`.

    Args:
        policy: whose wishes they are.
        held: members by hardware kind, by group, at the beginning.
        tolerances: of the autoscaler, by the groups that it scales; of others wishes are carried out at once.
    """

    def __init__(self, policy: Scaler, held: Mapping[str, Mapping[str, int]], tolerances: Mapping[str, float]) -> None:
        self.name, self.period_s = policy.name, policy.period_s
        self._policy, self._tolerances = policy, tolerances
        self._held = {group: dict(kinds) for group, kinds in held.items()}
        self._newest = Wish(self._held)
        self._wanted = {group: dict(kinds) for group, kinds in held.items()}
        self._sync_s = SYNC_S

    def decide(self, view: View) -> Wish | None:
        """What is carried out now."""
        wish = self._policy.decide(view)
        if wish is not None:
            self._newest = wish
            self._wanted |= {group: dict(kinds) for group, kinds in wish.replicas.items()}
        syncs = view.time_s >= self._sync_s
        if syncs:
            self._sync_s += SYNC_S
        due = [group for group in self._wanted if syncs or group not in self._tolerances]
        changed = {group: after for group in due if (after := self._followed(group)) != self._held[group]}
        self._held |= changed
        newest = self._newest
        return Wish(changed, newest.action, newest.reason, newest.detail) if changed else None

    def _followed(self, group: str) -> dict[str, int]:
        """What becomes of a group's number now."""
        if (tolerance := self._tolerances.get(group)) is None:
            return self._wanted[group]
        held = self._held[group]
        pods, (hardware, wanted) = sum(held.values()), next(iter(self._wanted[group].items()))
        asked = beyond_tolerance(wanted, pods, tolerance)
        return held if pods and abs(asked / pods - 1) <= tolerance else {hardware: asked}
