"""Numbers of replicas, and which of them is cheapest by odds and price. `docs/explanation/reserve.md` derives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats
from inferline_stream.tuner.error_budget import most_risked
from inferline_stream.tuner.late_shares import RATES, LateShares
from inferline_stream.tuner.odds import TrafficRecord

BILLED_S = 60.0
"""Clouds bill a machine for a minute at least: Amazon EC2 and Google Compute Engine do."""

_STEP = math.log(RATES[1] / RATES[0])


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars of a late event, as the plan shows them by what it does not do.

    Args:
        least: at which no fewer replicas would have been cheaper for the sample.
        most: at which no more would have been; the smaller of the two where, with whole replicas, no price makes the
            plan the cheapest.
        late: of the sample with the plan, as a share of its events: it is not asked to do better.
        objective: share of events that must meet the SLO.
    """

    least: float
    most: float
    late: float
    objective: float

    @property
    def usual(self) -> float:
        """In the middle of the two; the smaller one where no price makes the plan the cheapest.

        So traffic like the sample costs no more than the plan.
        """
        return math.sqrt(self.least * self.most) if self.least <= self.most else self.most

    def allowed(self, share: float) -> float:
        """Of one that the plan makes late of its sample, too: the dearer the smaller the share left, within the two."""
        low, high = sorted((self.least, self.most))
        return min(max(self.usual * (1 - self.objective) / share, low), high)

    def risked(self, share: float) -> float:
        """Of one more that is risked on purpose: the dearer the smaller the share left, beyond the two as well."""
        return max(self.usual * self._times(share), self.allowed(share))

    def beyond(self, share: float) -> float:
        """Of one beyond what is risked on purpose."""
        return max(self.least, self.most) * max(self._times(share), 1.0)

    def of(self, late: Floats, share: float) -> Floats:
        """Dollars of so many late events, as shares of the planned ones, per planned event."""
        planned, risked = (np.minimum(late, most) for most in (self.late, max(most_risked(self.objective), self.late)))
        known = self.allowed(share) * planned + self.risked(share) * (risked - planned)
        return known + self.beyond(share) * (late - risked)

    def _times(self, share: float) -> float:
        return min((1 - self.objective) / share, most_risked(self.objective) / (1 - self.objective))


@dataclass(frozen=True, slots=True)
class Level:
    """A number of replicas.

    Args:
        multiple: most that it carries, of the sample's traffic.
        cost_per_hour: dollars.
        late: what share of the events is late with it.
    """

    multiple: float
    cost_per_hour: float
    late: LateShares


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Numbers of replicas, each with what it carries, costs and makes late.

    Args:
        multiples: ascending, of the sample's traffic.
        cost_per_hour: dollars of each.
        late: (levels, `RATES`): events late at each rate, as shares of the planned ones.
        rate: planned events per second, of which all these are multiples.
        price: of a late event.
    """

    multiples: Floats
    cost_per_hour: Floats
    late: Floats
    rate: float
    price: Price

    def late_share(self, came: Floats) -> Floats:
        """Events that are late with each level, as shares of the planned ones, where such rates come."""
        return self.late @ (np.bincount(_nearest(came), minlength=RATES.size) / came.size)

    def shown(self, planned: int, came: Floats) -> Price:
        """The price that a plan shows.

        One replica fewer would have saved dollars and made more events late. The planner kept it: a late event is worth
        at least their ratio. One replica more would have cost dollars and made fewer late. The planner left it out.

        Args:
            planned: which level is the plan's.
            came: rates of its sample.
        """
        late = self.late_share(came)
        dollars, more = (self.cost_per_hour[planned] - self.cost_per_hour) / (3600 * self.rate), late - late[planned]
        fewer, others = np.flatnonzero(more[:planned] > 0), planned + np.flatnonzero(more[planned:] < 0)
        least = max([0.0, *(dollars[fewer] / more[fewer]).tolist()])
        most = min([math.inf, *(dollars[others] / more[others]).tolist()])
        least, most = (min(max(price, self.price.least), self.price.most) for price in (least, most))
        return replace(self.price, least=least, most=most, late=float(late[planned]))

    def late_with(self, held: NDArray[np.intp], came: Floats) -> float:
        """Events that are late where each rate comes while that level is held, as a share of all that come."""
        return float(self.late[held, _nearest(came)].sum() / came.sum())


def levels_of(found: Sequence[Level], planned: int, record: TrafficRecord, objective: float) -> Levels:
    """Levels with the price that the plan among them shows on the record of its sample.

    Args:
        found: ascending.
        planned: which of them is the plan's.
        record: of the sample.
        objective: share of events that must meet the SLO.
    """
    event_cost = found[planned].cost_per_hour / (3600 * record.rate)
    levels = Levels(
        np.array([level.multiple for level in found]),
        np.array([level.cost_per_hour for level in found]),
        np.array([level.late.at(RATES) * RATES for level in found]),
        record.rate,
        # To serve none must not be cheaper. And the plan's whole cost buys the right to what may be late, so that no
        # late event can be worth more.
        Price(event_cost, event_cost / (1 - objective), 0.0, objective),
    )
    return replace(levels, price=levels.shown(planned, record.came))


@dataclass(frozen=True, slots=True)
class LevelChoice:
    """A level, and what was weighed.

    Args:
        multiple: what it carries, of the planned traffic.
        least: what asks for it at least: more than the level below carries, or what is expected where that is more.
        expected: what it was chosen for.
        late: share of the planned events that would be late with it.
        share: of the events to come that may be late.
        price: dollars of one that may be, and would not be with more replicas.
        lead_s: from asking for a replica to its working.
        growth: how much more comes back at this time of the week.
        waived: (levels,): dollars per hour that each would have saved, times seconds, since a dearer level was last
            chosen; 0 where it would have cost more.
    """

    multiple: float
    least: float
    expected: float
    late: float
    share: float
    price: float
    lead_s: float
    growth: float
    waived: Floats = field(repr=False, compare=False)
    words: str = field(init=False)

    def __post_init__(self) -> None:
        back = f", {self.growth:.2f} of them come back at this time of the week" if self.growth else ""
        words = (
            f"{self.expected:.2f} times the planned traffic expected within {self.lead_s:.1f} s{back}; of what came "
            f"after moments like this one {self.late:.2%} is late with replicas for {self.multiple:.2f} times it, at "
            f"${self.price:.2g} each, as {self.share:.2%} of the events to come in the SLO's window may be late: more "
            f"replicas do not pay"
        )
        object.__setattr__(self, "words", words)


def cheapest(
    levels: Levels,
    record: TrafficRecord,
    expected: float,
    lead_s: float,
    share: float,
    *,
    growth: float = 0.0,
    held: LevelChoice | None = None,
    held_s: float = 0.0,
    fallen: bool = False,
) -> LevelChoice:
    """The level whose replicas, and late events at their odds and price, cost least together, once it pays to change.

    The rule is that of renting skis: what comes and goes by chance is not followed, and what stays is followed after it
    has cost about as much as the change (Lin et al., Dynamic right-sizing for power-proportional data centers, 2011).

    Args:
        levels: to choose from.
        record: of what came after moments like this one.
        expected: now, in the record's unit.
        lead_s: from asking for a replica to its working.
        share: of the events to come that may be late.
        growth: how much more comes back at this time of the week (`tuner.calendar`), in the record's unit.
        held: what was chosen last; None to begin with what is cheapest now.
        held_s: how long ago.
        fallen: whether traffic has surely fallen, so that no chance brings it back within the minute.
    """
    came = record.alike(expected, lead_s)
    late = levels.late_share(np.maximum(came, expected + growth) if growth else came)
    spent = levels.cost_per_hour + 3600 * levels.rate * levels.price.of(late, share)
    chosen, waived = int(np.argmin(spent)), np.zeros_like(spent)
    if held is not None:
        now = int(np.searchsorted(levels.multiples, held.multiple))
        saved, dearer = spent[now] - spent, levels.cost_per_hour - levels.cost_per_hour[now]
        waived = held.waived + saved * held_s
        # More replicas have one lead to earn what starting them costs. Fewer would have to start again.
        again_s = lead_s if fallen else lead_s + BILLED_S
        change = np.where(dearer > 0, (dearer - saved) * lead_s, -dearer * again_s)
        pays = np.flatnonzero(waived >= change)
        chosen = int(pays[np.argmin(spent[pays])])
        waived = np.zeros_like(spent) if dearer[chosen] > 0 else np.maximum(waived - waived[chosen], 0.0)
    multiple, price = float(levels.multiples[chosen]), levels.price
    least = max(expected + growth, float(levels.multiples[chosen - 1]) if chosen else 0.0)
    dollars = price.risked(share) if late[chosen] > price.late else price.allowed(share)
    return LevelChoice(
        multiple, min(least, multiple), expected + growth, float(late[chosen]), share, dollars, lead_s, growth, waived
    )


def _nearest(rates: Floats) -> NDArray[np.intp]:
    """Which of `RATES` is nearest to each rate."""
    steps = np.log(np.maximum(rates, RATES[0]) / RATES[0]) / _STEP
    nearest: NDArray[np.intp] = np.minimum(np.rint(steps), RATES.size - 1).astype(np.intp)
    return nearest
