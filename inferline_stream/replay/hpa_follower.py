"""Our policy of groups where a HorizontalPodAutoscaler brings its numbers about: as KEDA's external scaler it is asked.

The autoscaler looks each 15 s, leaves what is within its tolerance alone, and follows in so far as its behavior allows.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferline_stream.baselines.hpa import Behavior, Recommended, beyond_tolerance, followed
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Scaler, Wish

AT_ONCE = Behavior(up_pods=1_000_000, down_window_s=0.0, maximum=1_000_000)
"""Of the ScaledObjects that the command `keda` writes."""

UNSET = Behavior(maximum=1_000_000)
"""Of one whose behavior nobody has set: down after 300 s, up by at most as many or four each 15 s."""


class HpaFollower:
    """The members that a policy wants, with the delays of an autoscaler.

    Args:
        scaler: the policy.
        members: to begin with, by group.
        hardware: by group, what its members run on.
        tolerances: of the autoscaler, by group that it scales; others follow at once.
        behavior: how fast it follows.
    """

    def __init__(
        self,
        scaler: Scaler,
        members: Mapping[str, int],
        hardware: Mapping[str, str],
        tolerances: Mapping[str, float],
        behavior: Behavior,
    ) -> None:
        self.name, self.period_s = scaler.name, scaler.period_s
        self._scaler, self._hardware, self._tolerances, self._behavior = scaler, hardware, tolerances, behavior
        self._asked, self._pods = dict(members), dict(members)
        self._memory = dict.fromkeys(tolerances, Recommended())
        self._sync_s = behavior.period_s

    def decide(self, view: View) -> Wish | None:
        """One step of the policy, and a sync of the autoscaler where it is due."""
        wish = self._scaler.decide(view)
        if wish is not None:
            self._asked |= {name: sum(kinds.values()) for name, kinds in wish.replicas.items()}
        due = view.time_s >= self._sync_s
        if due:
            self._sync_s += self._behavior.period_s
        changed = {}
        for name, before in self._pods.items():
            now = self._asked[name]
            if name in self._tolerances:
                now = self._synced(name, view.time_s) if due else before
            if now != before:
                self._pods[name] = now
                changed[name] = {self._hardware[name]: now}
        return Wish(changed, "scale", "hpa") if changed else None

    def _synced(self, name: str, now_s: float) -> int:
        pods, tolerance = self._pods[name], self._tolerances[name]
        asked = beyond_tolerance(self._asked[name], pods, tolerance)
        recommended = pods if abs(asked / max(pods, 1) - 1) <= tolerance + 1e-9 else asked
        self._memory[name], wanted = followed(self._behavior, self._memory[name], now_s, pods, recommended)
        return wanted
