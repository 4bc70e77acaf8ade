"""How many replicas each stage needs for a multiple of the planned traffic, found by simulation before it comes.

The plan says what the sample traffic needs. For more or less of the same traffic the number is not proportional: fewer
replicas share bursts worse, and a stage with room to spare needs no more for a while. The Estimator knows;
the table that it gives is looked up at each step.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from inferline_stream.estimator.simulation import Simulation, simulate
from inferline_stream.pipeline.fallback import UNMET_SHARE
from inferline_stream.pipeline.group_profile import Sharing, owned_queues
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace, busiest
from inferline_stream.tuner.forecast import index_of_dispersion
from inferline_stream.tuner.late_shares import LateShares, late_shares, without_waiting
from inferline_stream.tuner.mixture import mixture
from inferline_stream.tuner.odds import TrafficRecord, record_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.traffic import RATE_WINDOW_S

MULTIPLES = (
    *(0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15),
    *(1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.75, 1.9, 2.1, 2.3, 2.6, 3.0, 3.5, 4.0, 4.5, 5.0, 5.7, 6.4, 7.2, 8.0),
)
"""Of the sample's traffic: in steps of 5 % where a replica more or less is a large step. Beyond the
last one, stages with room to spare get more replicas, too."""

BRIEF_MULTIPLE = 1.2
"""Multiples beyond 1 and up to this one are reached by steady traffic, for seconds at a time: about twice as many
events may be late there (the square of the objective), as at other times fewer are late than may be. Steady traffic
costs 4 % less for it, and keeps its objective."""

MOST_EVENTS = 40_000
"""Events of the sample that are simulated, its busiest stretch: enough for 400 of them to be the slowest percent."""


@dataclass(frozen=True, slots=True)
class Staffing:
    """Supply needed, by stage and multiple of the sample's traffic.

    Args:
        multiples: ascending.
        supply: by stage, events per second that the replicas found give at full batches, one per multiple,
            never falling.
        carried_rate: events per second that the plan carries: the mean of the stretch that was simulated or, if that is
            more, the highest rate that the sample kept up for all but the seconds that may be late.
        record: of the sample, what was expected and what came; None where it is too short for one.
        late: by multiple, what share of the events is late with its replicas; of equal ones the last has it. Where
            nothing is known, replicas serve what they carry and no event more.
    """

    multiples: tuple[float, ...]
    supply: Mapping[str, tuple[float, ...]]
    carried_rate: float
    record: TrafficRecord | None = None
    late: Mapping[float, LateShares] = field(default_factory=dict)

    def needed(self, stage: str, multiple: float) -> float:
        """Supply for a multiple of the traffic; beyond the table in proportion."""
        row = self.supply[stage]
        last = self.multiples[-1]
        if multiple > last:
            return row[-1] * multiple / last
        return row[bisect.bisect_left(self.multiples, multiple * (1 - 1e-9))]

    def late_share(self, multiple: float) -> LateShares:
        """What share is late with replicas for at most this multiple; beyond the table in proportion to the last."""
        if multiple in self.late:
            return self.late[multiple]
        if not self.late or multiple < self.multiples[-1]:
            return without_waiting(multiple)
        last = self.late[self.multiples[-1]]
        return LateShares(last.rates * multiple / self.multiples[-1], last.shares)


def staffing(
    shape: Shape,
    plan: Plan,
    measured: PipelineProfile,
    sample: Trace,
    prices: Mapping[str, float],
    *,
    multiples: Sequence[float] = MULTIPLES,
    objective: float = 0.99,
    sharing: Mapping[str, Sharing] | None = None,
    history: Trace | None = None,
    within_s: float | None = None,
    seed: int = 0,
) -> Staffing:
    """Simulate the sample at each multiple of its rate and take away what is not needed.

    At multiple 1 it is the plan itself. From there the search goes down, giving back what the SLO is met without, and
    up, adding what shortens the latency most for the money: no stage ever needs fewer replicas for more traffic.

    Args:
        shape: the DAG.
        plan: hardware, batch limits and dispatchers that stay; stages of several kinds keep their mixture.
        measured: profiles and paths.
        sample: what was planned for.
        prices: dollars per hour by hardware kind.
        multiples: ascending.
        objective: share of events that must meet the SLO.
        sharing: of stages that are ordinary consumer groups, which have a useful number of members (`Sharing.useful`).
        history: what the odds are read off; the sample unless given.
        within_s: latency that more or less traffic than the plan's has to meet; the plan's SLO unless given.
        seed: of the paths drawn.
    """
    known = sample if history is None else history
    stretch = busiest(sample, MOST_EVENTS)
    met = plan if within_s is None else replace(plan, slo_s=within_s)
    search = StaffingSearch(shape, met, measured, prices, sharing=sharing, seed=seed)
    found: dict[float, dict[str, int]] = {}
    now = search.planned
    for multiple in sorted((m for m in multiples if m < 1), reverse=True):
        found[multiple] = now = search.below(stretch, multiple, now, objective=objective)
    now = search.planned
    for multiple in sorted(m for m in multiples if m >= 1):
        share = objective**2 if multiple <= BRIEF_MULTIPLE else objective
        found[multiple] = now = now if multiple == 1 else search.above(stretch, multiple, now, objective=share)
    supply = {
        name: tuple(found[multiple][name] * throughput for multiple in multiples)
        for name, throughput in search.throughput.items()
    }
    start_up_s = max(
        measured.profiles[name, a.hardware].start_up_s for name in shape.stages for a in plan.allocations[name]
    )
    lead_s = start_up_s + PolicySettings().reaction_s
    record = record_of(known, stretch.arrival_rate, lead_s, objective)
    if record is None:
        return Staffing(tuple(multiples), supply, stretch.arrival_rate)
    more = dict(itertools.pairwise(multiples))
    last = [multiple for multiple in multiples if multiple not in more or found[more[multiple]] != found[multiple]]
    late = {multiple: search.late(stretch, multiple, found[multiple]) for multiple in last}
    carried_rate = max(stretch.arrival_rate, surely_kept_up(known, objective))
    return Staffing(tuple(multiples), supply, carried_rate, record, late)


def surely_kept_up(sample: Trace, objective: float) -> float:
    """Return the rate of a few seconds that a sample is not above for a share of them, without what it has by chance.

    Args:
        sample: of more than a few seconds.
        objective: that share.
    """
    length, window = int(sample.arrivals_s[-1]), int(RATE_WINDOW_S)
    seconds = np.bincount(sample.arrivals_s.astype(np.int64), minlength=length)[:length]
    rates = np.convolve(seconds, np.full(window, 1 / window), mode="valid")
    rate = float(np.quantile(rates, objective, method="higher"))
    dispersion = index_of_dispersion(seconds.tolist())
    return rate - NormalDist().inv_cdf(objective) * math.sqrt(rate * dispersion / RATE_WINDOW_S)


class StaffingSearch:
    """Replicas with which the SLO is met at a multiple of a sample's rate, from replicas that are known.

    Args:
        shape: see `staffing`, as all of these.
        plan: likewise.
        measured: likewise.
        prices: likewise.
        sharing: likewise.
        seed: likewise.
    """

    def __init__(
        self,
        shape: Shape,
        plan: Plan,
        measured: PipelineProfile,
        prices: Mapping[str, float],
        *,
        sharing: Mapping[str, Sharing] | None = None,
        seed: int,
    ) -> None:
        self._shape, self._plan, self._measured = shape, plan, measured
        self._seed, self._sharing = seed, sharing or {}
        planned = {name: sum(a.replicas for a in plan.allocations[name]) for name in shape.stages}
        self.throughput: dict[str, float] = {}
        self._price: dict[str, float] = {}
        for name in shape.stages:
            held = plan.allocations[name]
            self.throughput[name] = measured.throughput(name, held) / planned[name]
            self._price[name] = sum(a.replicas * prices[a.hardware] for a in held) / planned[name]
        self.planned = planned
        self._load = {name: plan.arrival_rate * plan.visit_ratios[name] for name in shape.stages}

    def below(self, sample: Trace, multiple: float, enough: Mapping[str, int], *, objective: float) -> dict[str, int]:
        """What the SLO is met without is given back, dearest first, from replicas that carry more traffic."""
        faster, least, now = sample.sped_up(multiple), self.least(multiple), dict(enough)
        shrinking = [name for name in now if now[name] > least[name]]
        while shrinking:
            name = max(shrinking, key=lambda n: (self._price[n], n))
            after = {**now, name: self._fewer(name, now[name])}
            if self.quantile_s(faster, after, objective) <= self._plan.slo_s:
                now = after
                if now[name] > least[name]:
                    continue
            shrinking.remove(name)
        return now

    def above(
        self,
        sample: Trace,
        multiple: float,
        enough: Mapping[str, int],
        *,
        objective: float,
        most: int | None = None,
    ) -> dict[str, int]:
        """Replicas that carry less traffic and those without which the SLO is not met, one after another.

        Where even so many more (``most``, by default as many as there are) do not meet it, as where the plan did not on
        this sample, the plan in proportion.
        """
        faster, least = sample.sped_up(multiple), self.least(multiple)
        begun = {name: max(count, least[name]) for name, count in enough.items()}
        now, latency_s = dict(begun), self.quantile_s(faster, begun, objective)
        for _ in range(sum(begun.values()) if most is None else most):
            if latency_s <= self._plan.slo_s:
                return now
            if (found := self._next(faster, now, latency_s, objective)) is None:
                return now  # a member for each partition
            name, latency_s = found
            now[name] = self._more(name, now[name])
        return {
            name: max(count, self._useful(name, math.ceil(self.planned[name] * multiple)))
            for name, count in begun.items()
        }

    def _next(
        self, faster: Trace, now: Mapping[str, int], latency_s: float, objective: float
    ) -> tuple[str, float] | None:
        """The stage whose next replica meets the SLO for the least money, else shortens most for the money.

        Where none shortens by a tenth of what is missing, the busiest stage's: queues of all stages may have to shrink.
        None where no group has a partition for another member.
        """
        slo_s = self._plan.slo_s
        raised = {name: more for name, count in now.items() if (more := self._more(name, count)) > count}
        if not raised:
            return None
        after_s = {name: self.quantile_s(faster, {**now, name: more}, objective) for name, more in raised.items()}
        price = {name: (more - now[name]) * self._price[name] for name, more in raised.items()}
        meeting = [name for name, s in after_s.items() if s <= slo_s]
        if meeting:
            name = min(meeting, key=lambda n: (price[n], after_s[n]))
            return name, after_s[name]
        helping = [name for name, s in after_s.items() if latency_s - s > (latency_s - slo_s) / 10]
        if helping:
            name = max(helping, key=lambda n: (latency_s - after_s[n]) / max(price[n], 1e-9))
        else:
            name = max(raised, key=lambda n: self._load[n] / (now[n] * self.throughput[n]))
        return name, after_s[name]

    def least(self, multiple: float) -> dict[str, int]:
        """Replicas below which a queue grows without end."""
        return {
            name: self._useful(name, max(1, math.ceil(load * multiple / self.throughput[name] * 1.0001)))
            for name, load in self._load.items()
        }

    def _useful(self, name: str, count: int) -> int:
        return self._sharing[name].useful(count) if name in self._sharing else count

    def _more(self, name: str, count: int) -> int:
        return self._useful(name, count + 1)

    def _fewer(self, name: str, count: int) -> int:
        if name not in self._sharing:
            return count - 1
        return next(fewer for fewer in range(count - 1, 0, -1) if self._sharing[name].useful(fewer) == fewer)

    def quantile_s(self, sample: Trace, replicas: Mapping[str, int], objective: float) -> float:
        """The latency within which that share of the sample's events stays."""
        found = self._simulated(sample, replicas)
        # More than that of the fallback is demand that is not met, as the policy sees it.
        return math.inf if found.degraded > UNMET_SHARE else found.judged_quantile_s(objective)

    def late(self, sample: Trace, multiple: float, replicas: Mapping[str, int]) -> LateShares:
        """What share is late with replicas that carry a multiple of the sample."""
        loads = {name: load for name, load in self._load.items() if load}
        served = min((replicas[name] * self.throughput[name] / load for name, load in loads.items()), default=math.inf)
        carried = min(multiple, served)  # a member for each partition may serve less than it is the most for
        return late_shares(sample, carried, served, self._plan.slo_s, lambda trace: self._simulated(trace, replicas))

    def _simulated(self, sample: Trace, replicas: Mapping[str, int]) -> Simulation:
        return simulate(
            self._shape,
            {name: self._mixed(name, count) for name, count in replicas.items()},
            self._measured,
            sample,
            order_slo_s=0.0 if self._sharing else self._plan.slo_s,  # members take what comes in its order
            order=self._plan.order,
            slots=self._plan.slots,
            partitions=owned_queues(self._sharing, replicas),
            seed=self._seed,
        )

    def _mixed(self, name: str, replicas: int) -> tuple[Allocation, ...]:
        """That many replicas in the plan's mixture of kinds."""
        held = self._plan.allocations[name]
        counts = mixture({a.hardware: a.replicas for a in held}, replicas)
        return tuple(replace(a, replicas=counts[a.hardware]) for a in held)
