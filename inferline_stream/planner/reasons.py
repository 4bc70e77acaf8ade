"""Why a stage has its hardware, batch limit, hold and number of replicas: sentences for people, from simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from inferline_stream.estimator.evaluation import StageStatistics, evaluate
from inferline_stream.pipeline.plan import Allocation, counts_by_kind, hold_of
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.key_bounds import key_bound, without_order
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    batch_limits,
    hardware_kinds,
    replaced,
    replica_forms,
    slots,
)


class Reasons:
    """Why each stage of a plan has what it has, on the trace that decides.

    Args:
        evaluator: of the whole traces; the candidate is its base.
        candidate: the plan.
        trace: position of the trace.
    """

    def __init__(self, evaluator: Evaluator, candidate: Candidate, trace: int) -> None:
        self._evaluator, self._candidate, self._trace = evaluator, candidate, trace
        self._problem = evaluator.problem
        self._statistics = self._simulated(candidate)

    def _simulated(self, candidate: Candidate) -> Mapping[int, StageStatistics]:
        workload = self._evaluator.workloads[self._trace]
        return evaluate(workload, self._evaluator.stations(candidate), latencies=False).statistics

    def _p99(self, stage: int, option: Option) -> str:
        """P99 with another option for a stage, in words."""
        return format_duration(self._evaluator.quantile_s(replaced(self._candidate, stage, option)))

    def of_stage(self, stage: int) -> Iterator[str]:
        """Yield why a stage has what it has."""
        for place, part in enumerate(self._candidate[stage]):
            yield self._hardware(stage, part)
            products = self._problem.measured.profiles[self._problem.shape.stages[stage], part.hardware].products
            if len(products) > 1:
                yield f"{part.hardware} is {' or '.join(products)} here, and its times are the longest of any of them"
            yield from self._share(stage, part)
            yield self._batch(stage, place)
        if len(self._candidate[stage]) > 1:
            yield self._mixture(stage)
        for part in self._candidate[stage]:
            if part.concurrency > 1:
                yield self._concurrency(stage, part)
        if hold_of(self._candidate[stage]):
            yield self._hold(stage)
        yield self._count(stage)
        yield from self._dispatchers(stage)
        yield from self._key(stage)

    def _hardware(self, stage: int, part: Allocation) -> str:
        name = self._problem.shape.stages[stage]
        costs = {kind: self._per_million(name, kind) for kind in hardware_kinds(self._problem, name)}
        own, cheapest = costs[part.hardware], min(costs, key=lambda kind: costs[kind])
        if len(costs) == 1:
            return f"{part.hardware} is the only hardware in stock that it was profiled on"
        if own <= costs[cheapest]:
            return f"{part.hardware} serves events for the least money, ${own:.3g} per million in full batches"
        times = (self._problem.measured.profiles[name, kind].service_time_s(1) for kind in (part.hardware, cheapest))
        fast, slow = map(format_duration, times)
        return (
            f"{part.hardware} serves a batch of 1 in {fast}, {cheapest} in {slow}, though for less money: "
            f"${costs[cheapest]:.3g} per million events in full batches against ${own:.3g}"
        )

    def _per_million(self, name: str, kind: str) -> float:
        """Dollars per million events in full batches of the best size."""
        profile = self._problem.measured.profiles[name, kind]
        forms = replica_forms(self._problem, name, kind)
        fastest = max(profile.throughput(form.max_batch_size, form.concurrency) for form in forms)
        return self._problem.catalogue[kind].price_per_hour / 3600 / fastest * 1e6

    def _batch(self, stage: int, place: int) -> str:
        name, option = self._problem.shape.stages[stage], self._candidate[stage]
        part = option[place]
        profile, limit = self._problem.measured.profiles[name, part.hardware], part.max_batch_size
        gain = profile.throughput(limit) / profile.throughput(1)
        words = f"a full batch of {limit} takes {format_duration(profile.service_time_s(limit))}"
        if limit > 1:
            words += f" and {gain:.2g} × as many events are served per second as in batches of 1"
        larger = next((b for b in batch_limits(self._problem, name, part.hardware) if b > limit), None)
        if larger is None:
            return f"{words}; larger ones serve no more, were not profiled, or are not allowed"
        changed = (*option[:place], replace(part, max_batch_size=larger), *option[place + 1 :])
        return f"{words}; with batches up to {larger} P99 would be {self._p99(stage, changed)}"

    def _share(self, stage: int, part: Allocation) -> Iterator[str]:
        """Say who shares a device, what its times stand for, and what of the devices nobody uses."""
        kind = self._problem.catalogue[part.hardware]
        if kind.parts == 1:
            return
        profile = self._problem.measured.profiles[self._problem.shape.stages[stage], kind.name]
        by = f", by {profile.shared_by}" if profile.shared_by else ""
        held = counts_by_kind(self._candidate)[kind.name]
        devices = math.ceil(held / kind.parts)
        stages = [
            name
            for name, option in zip(self._problem.shape.stages, self._candidate, strict=True)
            if any(a.hardware == kind.name for a in option)
        ]
        whose = f"{' and '.join(stages)} have {held} on {devices} {'device' if devices == 1 else 'devices'}"
        yield (
            f"{kind.name} is one of {kind.parts} replicas on a device{by}, and its times are those beside others that "
            f"are always busy; {whose}"
        )
        if free := devices * kind.parts - held:
            yield f"{free} of the {devices * kind.parts} places on {kind.name} are free, and paid"

    def _concurrency(self, stage: int, part: Allocation) -> str:
        profile = self._problem.measured.profiles[self._problem.shape.stages[stage], part.hardware]
        limit, at_once = part.max_batch_size, part.concurrency
        gain = profile.throughput(limit, at_once) / profile.throughput(limit)
        words = (
            f"with {at_once} batches at once each takes {profile.slowed(limit, at_once):.2g} × as long as alone, and "
            f"{gain:.2g} × as many events are served per second"
        )
        if at_once == profile.concurrencies[-1]:
            return f"{words}; more at once serve no more, were not profiled, or are not allowed"
        return words

    def _dispatchers(self, stage: int) -> Iterator[str]:
        count, overheads = slots(self._problem)[stage], self._problem.measured.overheads
        if count > 1 and overheads is not None:
            yield (
                f"{count} dispatchers, since one is planned for {overheads.slot_rate:.4g} records a second: each has "
                "its share of the replicas, and a queue of its own"
            )

    def _mixture(self, stage: int) -> str:
        option = self._candidate[stage]
        without = (
            f"without its {part.hardware} P99 would be {self._p99(stage, (*option[:place], *option[place + 1 :]))}"
            for place, part in enumerate(option)
        )
        return f"the free replica that would finish first takes the next batch; {', '.join(without)}"

    def _hold(self, stage: int) -> str:
        option = self._candidate[stage]
        eager = tuple(replace(part, hold_s=0.0) for part in option)
        before = self._simulated(replaced(self._candidate, stage, eager))[stage].mean_batch_size
        now = self._statistics[stage].mean_batch_size
        return (
            "a free replica waits for a fuller batch until the oldest event has been at the stage for "
            f"{format_duration(hold_of(option))}: batches are of {now:.1f} events on average; without that they would "
            f"be of {before:.1f}, and P99 would be {self._p99(stage, eager)}"
        )

    def _key(self, stage: int) -> Iterator[str]:
        found = key_bound(self._problem, self._evaluator.bounds, stage, self._candidate[stage])
        if found is not None:
            lifted = Evaluator(without_order(self._problem, stage)).quantile_s(self._candidate)
            yield f"{found}, and P99 would be {format_duration(lifted)}"

    def _count(self, stage: int) -> str:
        option, busy = self._candidate[stage], self._statistics[stage].utilization
        replicas = sum(part.replicas for part in option)
        words = f"{count_of(replicas, 'replica')} {'is' if replicas == 1 else 'are'} busy {busy:.0%} of the time"
        if replicas == 1:
            return words
        *others, last = option
        fewer = (*others, replace(last, replicas=last.replicas - 1)) if last.replicas > 1 else tuple(others)
        return f"{words}; with one {last.hardware} less P99 would be {self._p99(stage, fewer)}"
