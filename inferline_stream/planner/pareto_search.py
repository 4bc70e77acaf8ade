"""Where refinement starts: stage by stage, the cheapest ways to have spent any share of the target so far.

Stages are taken in topological order. A *part* has options for the stages so far and the departures that follow. How
late it is, is the latency at the objective if all that is left took its fastest time: a bound no completion is below.
Of parts with the same stages one is better if it is cheaper and no later. Only the best are kept, a few along the
whole front, from cheap and late to dear and early, since nobody knows yet what a second is worth further down.

Exact only as far as lateness says all there is to know of the departures: every result is verified by simulation.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.evaluation import Departures, arrivals_at, evaluate, fastest_rest_s, simulate_stage
from inferline_stream.planner.batch_holds import holds
from inferline_stream.planner.bounds import Bounds, service_rate
from inferline_stream.planner.evaluator import SLICE_EVENTS, Evaluator
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    arrival_rates,
    hardware_kinds,
    in_machine,
    price_of,
    replica_cap,
    replica_forms,
    rest_s,
)
from inferline_stream.planner.stage_options import OptionCache, stage_options

WIDTH = 120
"""Parts kept after all stages together: after each its share, one for each stretch of lateness up to the target."""

LEAST_WIDTH = 12
"""Parts kept after each stage at least."""

RESULTS = 8
"""Candidates given, cheapest first, no two of one price."""

DEAREST = 512
"""A stage is not looked at above this many times its least possible price."""

CROWDED = 4
"""Options with which this many times the allowance of events is late at the stage alone are left out."""

_SAME = 1e-3
"""Lateness that differs by less counts as the same."""

BETTER = 0.998
"""A dearer option has to be earlier by this ratio, or near to the best."""

NEAR, DEARER = 1.1, 2.0
"""Options that take and cost at most this many times what the best one does are kept beside it: alone they seem no
better, but below a stage that sends batches they may be."""

IDLE = 3
"""After so many replica counts of a kind that are no earlier, no more of it are looked at."""

LIKE = 1.03
"""Of batch limits whose latency differs by less than this ratio, the largest is kept too."""

SHARES = (0.4, 0.8)
"""Of the longest hold of use, what is tried here. Refinement tries more."""

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Options for the first stages, and what is known of every event then: the least latency it can have."""

    chosen: Candidate
    price: float
    departures: dict[int, Departures]
    least_s: Times
    late_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """An option for a part, and the price of both."""

    price: float
    part: _Part
    option: Option


@dataclass(frozen=True, slots=True, eq=False)
class _Served:
    """What came of an offer, and the events simulated."""

    part: _Part | None
    events: int


class ParetoSearch:
    """Candidates for one piece of traffic, from nothing.

    Args:
        evaluator: of the piece; its first trace counts.
        bounds: of the whole traces, which options have to keep to.
    """

    def __init__(self, evaluator: Evaluator, bounds: Bounds) -> None:
        self.evaluator = evaluator
        self.bounds = bounds
        self._problem = evaluator.problem
        self._workload = evaluator.workloads[0]
        self._rest_s = fastest_rest_s(self._workload, dict(enumerate(evaluator.bounds.fastest_s)))
        self._rates = arrival_rates(self._problem)
        self._path_s = rest_s(self._problem, evaluator.bounds.fastest_s)
        self._least = [bounds.least_stage_price(s) for s in range(len(self._problem.shape.stages))]
        self._allowed = evaluator.bounds.allowed[0]
        self._due_s = self._workload.due_s

    def candidates(self) -> list[Candidate]:
        """Candidates whose events are late no more often than allowed, cheapest first."""
        if any(math.isinf(price) for price in self._least):
            return []
        *menus, last = self._all_menus()
        parts = [_Part((), 0.0, {}, np.full(len(self._workload), -np.inf), 0.0)]
        for stage, menu in enumerate(menus):
            parts = self._front(list(self._extended(parts, stage, menu)))
        by_price: dict[float, Candidate] = {}
        for part in self._extended(parts, len(menus), last):
            by_price.setdefault(round(part.price, 9), part.chosen)
            if len(by_price) == RESULTS:
                break
        return list(by_price.values())

    def _extended(self, parts: Sequence[_Part], stage: int, menu: Sequence[Option]) -> Iterator[_Part]:
        """The parts with options of the next stage, by ascending price; each earlier than all before it.

        After the last stage nothing has to be early any more: then all that are in time.
        """
        last = stage + 1 == len(self._least)
        prices = [price_of(self._problem, option) for option in menu]
        offers = [(part.price + price, i, o) for i, part in enumerate(parts) for o, price in enumerate(prices)]
        earliest = math.inf

        def worth(offer: _Offer) -> bool:
            # What is decided makes the part late already: no option makes it earlier than one that is cheaper.
            return earliest > offer.part.late_s * (1 + _SAME)

        needs = sorted(self._workload.needs(stage))

        @cache
        def arrivals(before: tuple[Departures, ...]) -> Departures:
            return arrivals_at(self._workload, stage, dict(zip(needs, before, strict=True)))

        @cache  # parts often differ only where this stage is not fed from
        def gone(before: tuple[Departures, ...], option: Option) -> tuple[Departures | None, int]:
            return self._served(stage, option, arrivals(before), self._allowed)[:2]

        def joined(offer: _Offer) -> _Served:
            return self._joined(offer, stage, *gone(tuple(offer.part.departures[s] for s in needs), offer.option))

        offered = (_Offer(price, parts[i], menu[o]) for price, i, o in sorted(offers))
        left = (offer for offer in offered if worth(offer) and self._left(offer.part.chosen, offer.option))
        for offer, served in self._ahead(left, joined):
            if not worth(offer):  # since what was simulated beside it
                continue
            self.evaluator.count(served.events)
            if served.part is not None and (last or served.part.late_s < earliest):
                earliest = earliest if last else served.part.late_s
                yield served.part

    def _ahead(self, offers: Iterable[_Offer], serve: Callable[[_Offer], _Served]) -> Iterator[tuple[_Offer, _Served]]:
        """Offers and what comes of them, as many at once as the spread is wide."""
        spread, waiting = self.evaluator.spread, iter(offers)
        while batch := list(itertools.islice(waiting, spread.width)):
            yield from zip(batch, spread.map(serve, batch), strict=True)

    def _joined(self, offer: _Offer, stage: int, gone: Departures | None, events: int) -> _Served:
        """A part with one option more; nothing where too many events are late."""
        part = offer.part
        if gone is None:
            return _Served(None, events)
        least_s = self._with(part.least_s, stage, gone)
        chosen, departures = (*part.chosen, offer.option), {**part.departures, stage: gone}
        return _Served(_Part(chosen, offer.price, departures, least_s, self._late_s(least_s)), events)

    def _front(self, parts: list[_Part]) -> list[_Part]:
        """The cheapest part of each stretch of lateness."""
        width = max(LEAST_WIDTH, WIDTH // len(self._least))
        if len(parts) <= width:
            return parts
        earliest, target_s = parts[-1].late_s, self._problem.target_s
        kept: dict[int, _Part] = {}
        for part in parts:
            place = int((part.late_s - earliest) / max(target_s - earliest, 1e-12) * (width - 1) + 0.5)
            kept.setdefault(place, part)
        return list(kept.values())

    def _left(self, chosen: Candidate, option: Option) -> bool:
        """Whether stock, cores and GPUs suffice for one stage more."""
        if not in_machine(self._problem, (*chosen, option)):
            return False
        for a in option:
            stock = self._problem.catalogue[a.hardware].stock
            if stock is not None:
                held = sum(b.replicas for other in chosen for b in other if b.hardware == a.hardware)
                if held + a.replicas > stock:
                    return False
        return True

    def _served(
        self, stage: int, option: Option, arrivals: Departures, allowed: int
    ) -> tuple[Departures | None, int, int]:
        """Departures, or None where too many events are late; events simulated; and the largest batch."""
        self.evaluator.check()
        reported: list[int] = []
        gone = simulate_stage(
            self._workload,
            stage,
            arrivals,
            self.evaluator.station(stage, option),
            late_s=self._problem.target_s,
            rest_s=self._rest_s[stage],
            allowed=allowed,
            slice_events=SLICE_EVENTS,
            report=lambda _arrived, largest: reported.append(largest),
        )
        (largest,) = reported
        return gone, len(self._workload) if gone is None else gone.events.size, largest

    def _with(self, least_s: Times, stage: int, gone: Departures) -> Times:
        """Least latencies, now that a stage's departures are known too."""
        here_s = gone.times_s - self._due_s[gone.events] + self._rest_s[stage][self._workload.masks[gone.events]]
        known = least_s.copy()
        np.maximum.at(known, self._workload.as_last(stage, gone.events), here_s)
        return known

    def _late_s(self, least_s: Times) -> float:
        """The latency that only as many events as allowed exceed."""
        place = max(least_s.size - 1 - self._allowed, 0)
        return float(np.partition(least_s, place)[place])

    def _all_menus(self) -> list[list[Option]]:
        """Per stage, options of which no cheaper one is clearly faster, if nothing waits elsewhere."""
        stages = range(len(self._problem.shape.stages))
        plenty = [plentiful(self.evaluator, stage) for stage in stages]
        stations = self.evaluator.stations(tuple(plenty))
        upstream = dict(evaluate(self._workload, stations, keep=stages, latencies=False).departures)
        return list(
            self.evaluator.spread.map(lambda s: self._menu(s, arrivals_at(self._workload, s, upstream)), stages)
        )

    def _menu(self, stage: int, arrivals: Departures) -> list[Option]:
        kept: list[Option] = []
        best, price_of_best, above, idle = math.inf, 0.0, -math.inf, 0
        idle_of: defaultdict[tuple[str, ...], int] = defaultdict(int)
        best_of: dict[tuple[str, ...], float] = {}
        for dearest in (max(self._least[stage], 1e-9) * 2.0**i for i in range(1, DEAREST.bit_length())):
            before = best
            listed = stage_options(self.bounds, stage, dearest, thinned=True, mixed=True)
            for (price, kinds), alike in itertools.groupby(listed, key=self._price_and_kinds):
                if price <= above or idle_of[kinds] >= IDLE:
                    continue
                late_s, options = self._best_limits(stage, list(alike), arrivals)
                if late_s < best * BETTER or (late_s <= best * NEAR and price <= price_of_best * DEARER):
                    kept += options
                if late_s < best * BETTER:
                    best, price_of_best = late_s, price
                best_of_kinds = best_of.get(kinds, math.inf)
                # Too few replicas to be in time at all say nothing of more.
                helped = late_s < best_of_kinds * BETTER or math.isinf(best_of_kinds)
                idle_of[kinds] = 0 if helped else idle_of[kinds] + 1
                best_of[kinds] = min(late_s, best_of_kinds)
            above = dearest
            idle = idle + 1 if kept and best > before * BETTER else 0
            if idle == 2:
                break
        return kept

    def _price_and_kinds(self, option: Option) -> tuple[float, tuple[str, ...]]:
        return price_of(self._problem, option), tuple(a.hardware for a in option)

    def _best_limits(self, stage: int, options: Sequence[Option], arrivals: Departures) -> tuple[float, list[Option]]:
        """Of options that differ in their batch limits the earliest and, if hardly later, the one with the largest.

        Where all of them are later than the stage's share of the target, batches that are held are tried, too.
        """
        found = self._in_time(stage, options, arrivals)
        late_s = min((late for late, _ in found), default=math.inf)
        if late_s > self._share_s(stage):
            found += self._in_time(stage, self._held(stage, options), arrivals)
        late_s, earliest = min(found, key=lambda f: f[0], default=(math.inf, ()))
        largest = next((option for late, option in found if late <= late_s * LIKE), earliest)
        return late_s, list(dict.fromkeys((largest, earliest))) if found else []

    def _in_time(self, stage: int, options: Sequence[Option], arrivals: Departures) -> list[tuple[float, Option]]:
        """How late each option is, those left out with which the stage alone makes far too many events late."""
        known = np.full(len(self._workload), -np.inf)
        alike: OptionCache[float | None] = OptionCache()
        for option in options:
            if option not in alike:
                gone, events, largest = self._served(stage, option, arrivals, CROWDED * self._allowed)
                self.evaluator.count(events)
                late_s = None if gone is None else self._late_s(self._with(known, stage, gone))
                alike.add(option, late_s, largest)
        return [(late_s, option) for option in options if (late_s := alike[option]) is not None]

    def _held(self, stage: int, options: Sequence[Option]) -> list[Option]:
        """The options of one kind with holds that leave a full batch within the stage's share of the target."""
        within_s = self._share_s(stage) - self._path_s + self.evaluator.bounds.fastest_s[stage]
        found: list[Option] = []
        for kind in dict.fromkeys(option[0].hardware for option in options if len(option) == 1):
            pairs = holds(self._problem, stage, kind, rate=self._rates[stage], within_s=within_s, shares=SHARES)
            for option in options:
                if len(option) == 1 and option[0].hardware == kind:
                    found += [
                        (replace(option[0], hold_s=s),) for limit, s in pairs if limit == option[0].max_batch_size
                    ]
        return found

    def _share_s(self, stage: int) -> float:
        """Latency if nothing waits elsewhere and a stage spends of the slack what its service time is of all of it."""
        fastest_s = self.evaluator.bounds.fastest_s
        longest_s = self._problem.shape.longest_path_s(fastest_s)
        return self._path_s + (self._problem.target_s - self._path_s) * fastest_s[stage] / longest_s


def plentiful(evaluator: Evaluator, stage: int) -> Option:
    """An option with which events hardly wait at the stage: the fastest that keeps up with half as much again."""
    problem, name = evaluator.problem, evaluator.problem.shape.stages[stage]
    required = evaluator.bounds.required_rate[stage]
    found: list[tuple[bool, float, Option]] = []
    for kind in hardware_kinds(problem, name):
        for form in replica_forms(problem, name, kind):
            one: Option = (form,)
            wanted = math.ceil(4 * required / service_rate(problem, stage, one)) + 8
            count = max(1, int(min(wanted, replica_cap(problem, name, kind))))
            option: Option = (replace(form, replicas=count),)
            rate = service_rate(problem, stage, option)
            slow = rate <= 1.5 * required
            time_s = problem.measured.profiles[name, kind].service_time_s(form.max_batch_size, form.concurrency)
            found.append((slow, -rate if slow else time_s, option))
    return min(found, key=lambda entry: entry[:2])[2]
