"""What people have set in place of decisions: pauses, replica counts, limits, SLO, prices, stock, newer code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.tuner.observation import Limits


@dataclass(frozen=True, slots=True)
class Overrides:
    """The newest override of each key. Times are seconds since the epoch."""

    by_key: Mapping[str, Override] = field(default_factory=dict)

    def with_record(self, key: str, override: Override | None) -> Overrides:
        """After one record of the control topic; None takes the key's override back."""
        left = {k: o for k, o in self.by_key.items() if k != key}
        return Overrides(left if override is None else {**left, key: override})

    def _valid(self, kind: str, now_s: float) -> dict[str, Override]:
        return {
            o.subject: o for o in self.by_key.values() if o.kind == kind and (o.until_s is None or now_s < o.until_s)
        }

    def paused(self, now_s: float) -> bool:
        """Whether scaling decisions are held."""
        return bool(self._valid("pause", now_s))

    def limits(self, now_s: float) -> dict[str, Limits]:
        """Fewest and most replicas by stage; a stage scaled by hand has both at that number."""
        limits = {
            stage: Limits(1 if o.minimum is None else o.minimum, o.maximum)
            for stage, o in self._valid("limits", now_s).items()
        }
        for stage, o in self._valid("scale", now_s).items():
            if o.value is not None:
                limits[stage] = Limits(int(o.value), int(o.value))
        return limits

    def standby(self, now_s: float) -> dict[str, int]:
        """Replicas that stand by, by stage, where it was set."""
        return {stage: int(o.value) for stage, o in self._valid("standby", now_s).items() if o.value is not None}

    @property
    def code_s(self) -> float | None:
        """When newer code of the stages was given last, where it was."""
        override = self.by_key.get("code")
        return None if override is None else override.value

    def stock(self, now_s: float) -> dict[str, int]:
        """Most replicas of a hardware kind, where it was set."""
        return {kind: int(o.value) for kind, o in self._valid("stock", now_s).items() if o.value is not None}

    def prices(self, now_s: float) -> dict[str, float]:
        """Dollars per hour of a hardware kind, where it was set."""
        return {kind: o.value for kind, o in self._valid("price", now_s).items() if o.value is not None}

    def slo_s(self, now_s: float) -> float | None:
        """The SLO in seconds, where it was set."""
        override = self._valid("slo", now_s).get("")
        return None if override is None else override.value
