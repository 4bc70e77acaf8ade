"""What the control plane keeps in Kafka: arrivals, plans, decisions, overrides. JSON, each with a version.

The decoders raise ValueError (of a plan `InvalidFile`) for what no release up to this one writes, so that what they
return can be used without another look. `RecordDecoder` is the door through which everything goes that is read back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING, Literal

import msgspec

from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.hardware import MOST_REPLICAS
from inferline_stream.pipeline.names import WIRE_VERSION, check_version
from inferline_stream.pipeline.schedule import On, TrafficSchedule, check_amounts
from inferline_stream.planner.plan_document import PLAN_VERSION, check_plan
from inferline_stream.tuner.error_budget import ErrorBudget
from inferline_stream.tuner.hour_ahead import HourAhead
from inferline_stream.tuner.observation import Limits

if TYPE_CHECKING:
    from inferline_stream.tuner.calendar import PastWeeks


class ArrivalTicks(msgspec.Struct, frozen=True):
    """How the source topic's log grew. Key: the topic.

    Offsets, not counts: ticks of a second writer, or ticks read twice, add nothing.
    """

    times_ms: list[float]
    """Milliseconds since the epoch, ascending, one per tick."""
    ends: list[list[int]]
    """End offset of each partition at each tick."""
    previous: list[int]
    """End offsets at the tick before the first."""
    previous_ms: float
    asked_ms: list[float] = []
    """When the policy was asked since the record before, likewise."""
    figures: list[tuple[float, str, float | None]] = []
    """Figures that it then saw for the first time: (ms since the epoch, name, figure); see `live_observations`."""
    gaps_ms: list[tuple[float, float]] = []
    """Where ticks were read from the records: since when no look was answered, and when they were known, likewise."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        if len(self.times_ms) != len(self.ends):
            raise ValueError(f"{len(self.times_ms)} times, {len(self.ends)} rows of end offsets")
        if any(not 0 <= end < _MOST for row in (self.previous, *self.ends) for end in row):
            raise ValueError("an end offset is out of range")
        times_ms = (self.previous_ms, *self.times_ms, *self.asked_ms)
        figures_ms = (time_ms for time_ms, _, _ in self.figures)
        if any(not 0 <= t < _MOST for t in itertools.chain(times_ms, figures_ms, *self.gaps_ms)):
            raise ValueError("a time is out of range")


class Override(msgspec.Struct, frozen=True):
    """What people set in place of a decision. Key: `key` of it, so that the newest of each kind counts.

    A record without a value takes the override back.
    """

    kind: Literal[
        "pause", "scale", "limits", "standby", "slo", "price", "stock", "notice", "reserve", "traffic", "code"
    ]
    subject: str = ""
    """A stage for scale, limits and standby, a hardware kind for price, stock and notice, ``node/NAME`` for a notice of
    a node, a window (`On`) for reserve and traffic."""
    value: float | None = None
    """Replicas, seconds of the SLO, dollars per hour, replicas in stock, seconds until a spot kind is taken, times the
    traffic, or when newer code was given, in seconds since the epoch: replicas started before are replaced."""
    minimum: int | None = None
    maximum: int | None = None
    until_s: float | None = None
    """Seconds since the epoch at which it lapses; None for good."""
    who: str = ""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        whole = self.kind in ("scale", "standby", "stock")
        for count in (self.minimum, self.maximum, self.value if whole else None):
            if count is not None and not (0 <= count <= MOST_REPLICAS and count == int(count)):
                raise ValueError(f"{count} is no number of replicas")
        if self.kind not in ("pause", "limits") and self.value is None:
            raise ValueError(f"{self.kind} has no value")
        if self.value is not None and not (0 if self.kind != "slo" else 1e-6) <= self.value < _MOST:
            raise ValueError(f"{self.kind} is {self.value:g}")
        if self.kind in ("reserve", "traffic"):
            check_amounts(self.window)
            TrafficSchedule((self.window,))
        if self.until_s is not None:
            check_time(self.until_s)
        if self.kind == "notice" and self.until_s is None:
            raise ValueError(f"a notice of {self.subject} has no time at which it is taken")

    def heard(self, late_s: float) -> Override:
        """Return it by the clock of the one who has just heard of it, whose time is so much later than its writer's."""
        return msgspec.structs.replace(
            self,
            value=self.value + late_s if self.kind == "code" and self.value is not None else self.value,
            until_s=None if self.until_s is None else self.until_s + late_s,
        )

    @property
    def window(self) -> On:
        """The entry of a schedule that a reserve or a traffic is."""
        reserve = self.kind == "reserve"
        return On(self.subject, self.value if reserve else None, None if reserve else self.value)

    @property
    def key(self) -> str:
        """The override that this one replaces."""
        return f"{self.kind}/{self.subject}" if self.subject else self.kind


class SloRecord(msgspec.Struct, frozen=True):
    """The SLO's window so far, for the next term. Key: `SLO_KEY`."""

    time_s: float
    """When that was, seconds since the epoch."""
    budget: ErrorBudget
    version: int = WIRE_VERSION

    def at(self, time_s: float) -> ErrorBudget:
        """The budget at a later time, if no event was due since."""
        return msgspec.structs.replace(self.budget, passed_s=self.budget.passed_s + max(0.0, time_s - self.time_s))


class CalendarRecord(msgspec.Struct, frozen=True):
    """The weeks that were learned, for the next term, and the hours ahead. Key: `CALENDAR_KEY`."""

    time_s: float
    """When that was, seconds since the epoch."""
    first: int = 0
    """See `PastWeeks`."""
    rates: bytes = b""
    """See `PastWeeks.to_bytes`."""
    hours: tuple[HourAhead, ...] = ()
    """From that time on."""
    version: int = WIRE_VERSION

    @property
    def weeks(self) -> PastWeeks:
        """The weeks themselves."""
        from inferline_stream.tuner.calendar import PastWeeks  # most who read other records compute nothing

        return PastWeeks.from_bytes(self.first, self.rates)


_MOST = 2**53
"""Offsets, times and numbers stay below this, so that a float holds each exactly."""

_LAST_S = 250_000_000_000
"""Seconds since the epoch: the calendar of Python ends soon after."""

_LONGEST_S = 2 * 86_400.0
"""Between two ticks that are kept at the same time; Kafka keeps them for a day."""
_TICKS_TOGETHER, _MOST_ARRIVALS = 1000, 50_000_000
"""Ticks of about the same time, and arrivals between two of them: more do not come within a quarter of an hour."""

DECISIONS_KEPT = 500
"""Decisions that stay in the compacted topic; older ones are taken out as new ones come."""

PLANS_KEPT = 100
"""Plans that stay there."""

PLAN_KEY = "plan"
WANTED_KEY = "wanted"
SLO_KEY = "slo-window"
CALENDAR_KEY = "calendar"


def decision_key(number: int) -> str:
    """Key of a decision; a number so far back that it is no longer kept has the key that is deleted."""
    return f"decision-{number}"


def plan_key(number: int) -> str:
    """Key of a plan that came into force; likewise."""
    return f"{PLAN_KEY}-{number}"


def encode(record: ArrivalTicks | StoredPlan | DecisionRecord | SloRecord | CalendarRecord | Override) -> bytes:
    """One record as JSON."""
    return msgspec.json.encode(record)


_ticks = msgspec.json.Decoder(ArrivalTicks)
_plan = msgspec.json.Decoder(StoredPlan)
_decision = msgspec.json.Decoder(DecisionRecord)
_slo = msgspec.json.Decoder(SloRecord)
_calendar = msgspec.json.Decoder(CalendarRecord)
_override = msgspec.json.Decoder(Override)


def decode_ticks(value: bytes) -> ArrivalTicks:
    """A record of the arrivals topic."""
    ticks = _ticks.decode(value)
    check_version(ticks.version)
    return ticks


def decode_stored(key: str, value: bytes) -> StoredPlan | DecisionRecord | SloRecord | CalendarRecord:
    """A record of the decisions topic: a plan that fits together, a decision, the SLO's window, or the calendar."""
    if key == CALENDAR_KEY:
        calendar = _calendar.decode(value)
        check_version(calendar.version)
        check_time(calendar.time_s)
        _in_range(calendar.first)
        assert calendar.weeks is not None  # which raises where they are none
        return calendar
    if key == SLO_KEY:
        slo = _slo.decode(value)
        check_version(slo.version)
        check_time(slo.time_s)
        _in_range(slo.budget.window_s, slo.budget.passed_s, slo.budget.events, slo.budget.late)
        return slo
    if key.startswith(PLAN_KEY):
        stored = _plan.decode(value)
        check_version(stored.version)
        _in_range(stored.number, stored.term)
        check_time(stored.time_s)
        if stored.document.version != PLAN_VERSION:
            raise ValueError(f"plan version {stored.document.version}, this release reads version {PLAN_VERSION}")
        check_plan(stored.plan, "a stored plan")
        return stored
    decision = _decision.decode(value)
    check_version(decision.version)
    _in_range(decision.number, decision.term)
    if any(not 0 <= count <= MOST_REPLICAS for kinds in decision.replicas.values() for count in kinds.values()):
        raise ValueError(f"{decision.by_stage} are no numbers of replicas")
    check_time(decision.time_s)
    if key not in (WANTED_KEY, decision_key(decision.number)):
        raise ValueError(f"the key {key!r} is not its own")
    return decision


def decode_override(key: str, value: bytes) -> Override:
    """A record of the control topic."""
    override = _override.decode(value)
    check_version(override.version)
    if key != override.key:
        raise ValueError(f"the key {key!r} is not its own, {override.key!r}")
    return override


def check_time(time_s: float) -> None:
    """Refuse what are no seconds since the epoch.

    Raises:
        ValueError: for those.
    """
    if not 0 <= time_s < _LAST_S:
        raise ValueError(f"{time_s:g} is no time")


def _in_range(*numbers: float) -> None:
    if any(not 0 <= number < _MOST for number in numbers):
        raise ValueError("a number is out of range")


Tick = tuple[float, list[int]]
"""Seconds since the epoch, and the end offset of each partition then."""


def merged(records: Iterable[ArrivalTicks], partitions: int) -> list[Tick]:
    """Ticks of so many partitions, of any writers, as one growing log, ascending in times and end offsets.

    A tick that holds nothing new in any partition is kept (it shows that somebody watched), one from
    before the newest is not.
    """
    ticks: list[Tick] = []
    for record in records:
        own = [(record.previous_ms, record.previous), *zip(record.times_ms, record.ends, strict=True)]
        ticks += [(time_ms / 1e3, list(ends)) for time_ms, ends in own if len(ends) <= partitions]
    grown: list[Tick] = []
    for time_s, ends in _credible(ticks, partitions):
        if not grown:
            grown.append((time_s, ends))
        elif time_s > grown[-1][0]:
            grown.append((time_s, highest(grown[-1][1], ends)))
        else:
            grown[-1] = (time_s, highest(grown[-1][1], ends))
    return [tick for tick in grown if len(tick[1]) == partitions]


def _credible(ticks: Sequence[Tick], partitions: int) -> list[Tick]:
    """Return them by time, less those far from most about that time: what they claim to have come fills the memory."""
    usual_s = median_low(time_s for time_s, _ in ticks) if ticks else 0.0
    near = sorted((tick for tick in ticks if abs(tick[0] - usual_s) < _LONGEST_S), key=lambda tick: tick[0])
    parts, credible = max(1, len(near) // _TICKS_TOGETHER), list[Tick]()
    for part in range(parts):
        together = near[part * len(near) // parts : (part + 1) * len(near) // parts]
        usual = [median_low([ends[p] for _, ends in together if p < len(ends)] or [0]) for p in range(partitions)]
        credible += [
            (time_s, ends)
            for time_s, ends in together
            if sum(abs(end - at) for end, at in zip(ends, usual, strict=False)) < _MOST_ARRIVALS
        ]
    return credible


def highest(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The larger end offset of each partition, in whichever it is known."""
    longest = max(len(a), len(b))
    return [max(a[p] if p < len(a) else 0, b[p] if p < len(b) else 0) for p in range(longest)]


@dataclass(frozen=True, slots=True)
class Overrides:
    """The newest override of each key. Times are seconds since the epoch."""

    by_key: Mapping[str, Override] = field(default_factory=dict)

    def with_record(self, key: str, override: Override | None) -> Overrides:
        """After one record of the control topic; None takes the key's override back."""
        left = {k: o for k, o in self.by_key.items() if k != key}
        return Overrides(left if override is None else {**left, key: override})

    def without_code(self) -> Overrides:
        """The same, for a run with code of its own."""
        return Overrides({key: o for key, o in self.by_key.items() if o.kind != "code"})

    def _valid(self, kind: str, now_s: float) -> dict[str, Override]:
        return {
            o.subject: o for o in self.by_key.values() if o.kind == kind and (o.until_s is None or now_s < o.until_s)
        }

    def paused(self, now_s: float) -> bool:
        """Whether scaling decisions are held."""
        return bool(self._valid("pause", now_s))

    def _values(self, kind: str, now_s: float) -> dict[str, float]:
        return {subject: o.value for subject, o in self._valid(kind, now_s).items() if o.value is not None}

    def limits(self, now_s: float) -> dict[str, Limits]:
        """Fewest and most replicas by stage; a stage scaled by hand has both at that number."""
        limits = {
            stage: Limits(1 if o.minimum is None else o.minimum, o.maximum, awake=bool(o.minimum))
            for stage, o in self._valid("limits", now_s).items()
        }
        return limits | {
            stage: Limits(int(n), int(n), awake=n > 0) for stage, n in self._values("scale", now_s).items()
        }

    def standby(self, now_s: float) -> dict[str, int]:
        """Replicas that stand by, by stage, where it was set."""
        return {stage: int(n) for stage, n in self._values("standby", now_s).items()}

    @property
    def code_s(self) -> float | None:
        """When newer code of the stages was given last, where it was."""
        override = self.by_key.get("code")
        return None if override is None else override.value

    def windows(self, now_s: float) -> tuple[On, ...]:
        """What was set of traffic to come."""
        return tuple(o.window for kind in ("reserve", "traffic") for o in self._valid(kind, now_s).values())

    def stock(self, now_s: float) -> dict[str, int]:
        """Most replicas of a hardware kind, where it was set."""
        return {kind: int(n) for kind, n in self._values("stock", now_s).items()}

    def notices(self, now_s: float) -> dict[str, float]:
        """When each hardware kind of which there is a notice is taken away, in seconds since the epoch."""
        return {kind: o.until_s for kind, o in self._valid("notice", now_s).items() if o.until_s is not None}

    def prices(self, now_s: float) -> dict[str, float]:
        """Dollars per hour of a hardware kind, where it was set."""
        return self._values("price", now_s)

    def slo_s(self, now_s: float) -> float | None:
        """The SLO in seconds, where it was set."""
        return self._values("slo", now_s).get("")
