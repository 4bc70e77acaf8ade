"""Who competes: our policies and the rules of others, each with its defaults and with a space to be tuned in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from inferline_stream.baselines.coarse import Coarse, mean_rate, peak_rate, unit, units_for
from inferline_stream.baselines.ds2 import Ds2
from inferline_stream.baselines.flink import Flink
from inferline_stream.baselines.hpa import Behavior, HpaCpu, Keda
from inferline_stream.baselines.platform_rules import Dataflow, Numaflow, Seldon
from inferline_stream.baselines.ray_serve import RayServe
from inferline_stream.baselines.rule_inputs import Each, PipelineRule, StageRule
from inferline_stream.pipeline.plan import Allocation, Allocations, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace

Space = Mapping[str, tuple[float, ...]]
"""Values of each parameter that tuning tries: all their combinations."""

Setting = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Contest:
    """What a rule is given: our hardware and batch limits, the sample, the delays.

    Args:
        shape: the DAG.
        plan: ours.
        measured: profiles.
        sample: what the plan was made for; what is provisioned for a mean or a peak has it from there.
        start_up_s: the longest start-up time, which some rules are given.
    """

    shape: Shape
    plan: Plan
    measured: PipelineProfile
    sample: Trace
    start_up_s: float

    def in_hand(self, stage: str) -> int:
        """Most events that a replica has in hand by the plan, in one batch or several."""
        first = self.plan.allocations[stage][0]
        return first.max_batch_size * first.concurrency

    def at_once(self) -> dict[str, int]:
        """Most batches that a replica has in hand by the plan, of the first kind where it mixes."""
        return {stage: held[0].concurrency for stage, held in self.plan.allocations.items()}

    def most_replicas(self) -> dict[str, int]:
        """Replicas that are of use, of the stages where that has a limit."""
        profiles = {stage: self.measured.profiles[stage, kind] for stage, kind in self.hardware().items()}
        return {stage: p.most_replicas for stage, p in profiles.items() if p.most_replicas is not None}

    def hardware(self) -> dict[str, str]:
        """The plan's hardware, the first kind where it mixes."""
        return {stage: held[0].hardware for stage, held in self.plan.allocations.items()}


@dataclass(frozen=True, slots=True)
class Family:
    """A rule with its parameters.

    Args:
        name: how tables call it.
        make: the rule for a setting; values missing from it are the rule's defaults.
        space: what tuning tries.
        allocations: replicas to begin with; the plan's unless given.
    """

    name: str
    make: Callable[[Contest, Setting], PipelineRule]
    space: Space
    allocations: Callable[[Contest], Allocations] | None = None

    def settings(self) -> Iterable[dict[str, float]]:
        """Every setting of the space."""
        for values in itertools.product(*self.space.values()):
            yield dict(zip(self.space, values, strict=True))


def _each(rule: Callable[..., StageRule], **names: str) -> Callable[[Contest, Setting], PipelineRule]:
    """Return what makes a rule of a setting, for every stage: its values by the rule's own names, or by these."""
    return lambda contest, setting: Each(rule(**{names.get(name, name): value for name, value in setting.items()}))


def _behavior(setting: Setting) -> Behavior:
    return Behavior(down_window_s=setting.get("down_window_s", 300.0))


def _keda(contest: Contest, setting: Setting) -> PipelineRule:
    per_batch = setting.get("lag_per_batch")
    if per_batch is None:
        return Each(Keda(behavior=_behavior(setting)))
    rules = {
        name: Keda(lag_threshold=max(1, round(per_batch * contest.in_hand(name))), behavior=_behavior(setting))
        for name in contest.shape.stages
    }
    return Each(next(iter(rules.values())), rules)


def _hpa(contest: Contest, setting: Setting, *, busy: bool) -> PipelineRule:
    return Each(HpaCpu(setting.get("target", 0.8), _behavior(setting), busy=busy))


def _ray(contest: Contest, setting: Setting) -> PipelineRule:
    delays: dict[str, Any] = {name: value for name, value in setting.items() if name != "ongoing_per_batch"}
    base, per_batch = RayServe(**delays), setting.get("ongoing_per_batch")
    if per_batch is None:
        return Each(base)
    return Each(
        base, {name: replace(base, target_ongoing=per_batch * contest.in_hand(name)) for name in contest.shape.stages}
    )


def _flink_fast(contest: Contest, setting: Setting) -> PipelineRule:
    tried: dict[str, Any] = {"scale_down_s": 300.0, **setting}
    return Flink(period_s=15.0, stabilization_s=15.0, window_s=60.0, restart_s=contest.start_up_s, **tried)


def _unit_rule(contest: Contest, setting: Setting, *, peak: bool) -> PipelineRule:
    found = unit(contest.shape, contest.measured, contest.hardware(), contest.plan.slo_s, contest.at_once())
    return Coarse(
        found.throughput,
        _loaded(contest),
        window_s=contest.plan.slo_s if peak else None,
        span_s=setting.get("span_s", 30.0),
        period_s=setting.get("interval_s", 10.0),
        wait_s=setting.get("wait_s", 120.0),
    )


def _units(contest: Contest, *, peak: bool) -> Allocations:
    """The pipeline as so many units; a stage that costs nothing stays as planned."""
    hardware, at_once = contest.hardware(), contest.at_once()
    found = unit(contest.shape, contest.measured, hardware, contest.plan.slo_s, at_once)
    rate = peak_rate(contest.sample, contest.plan.slo_s) if peak else mean_rate(contest.sample)
    count = units_for(rate, found.throughput)
    largest = {name: contest.measured.profiles[name, hardware[name]].batch_sizes[-1] for name in hardware}
    loaded = _loaded(contest)
    return {
        name: (Allocation(hardware[name], min(found.batch_size, largest[name]), count, concurrency=at_once[name]),)
        if name in loaded
        else held
        for name, held in contest.plan.allocations.items()
    }


def _loaded(contest: Contest) -> tuple[str, ...]:
    """Stages whose replicas are a matter of throughput: one of them cannot carry a hundred times the traffic."""
    bounded = contest.most_replicas()
    return tuple(
        name
        for name, held in contest.plan.allocations.items()
        if name not in bounded
        and contest.measured.throughput(name, (replace(held[0], replicas=1),)) < 100 * contest.plan.arrival_rate
    )


def ordinary(allocations: Allocations, measured: PipelineProfile) -> dict[str, tuple[Allocation, ...]]:
    """The same for consumer groups, whose members are all of one kind and take what they are given at once.

    Where kinds are mixed it is the first one, with as many replicas as serve the same.
    """
    found: dict[str, tuple[Allocation, ...]] = {}
    for stage, held in allocations.items():
        one = replace(held[0], replicas=1, hold_s=0.0)
        wanted = measured.throughput(stage, held) / measured.throughput(stage, (one,))
        found[stage] = (replace(one, replicas=math.ceil(wanted - 1e-9)),)
    return found


def dispatched(allocations: Allocations, plan: Plan) -> dict[str, tuple[Allocation, ...]]:
    """The same for our pools: where it would be fewer, a replica for each of the plan's dispatchers."""
    found = {}
    for stage, (first, *others) in allocations.items():
        missing = plan.slots.get(stage, 1) - first.replicas - sum(a.replicas for a in others)
        found[stage] = (replace(first, replicas=first.replicas + max(missing, 0)), *others)
    return found


_HPA_SPACE = {"target": (0.3, 0.4, 0.5, 0.6, 0.7), "down_window_s": (60.0, 300.0)}
_UNIT_SPACE = {"span_s": (10.0, 30.0), "interval_s": (5.0, 10.0), "wait_s": (30.0, 120.0)}

FAMILIES = (
    Family("keda", _keda, {"lag_per_batch": (0.5, 1.0, 2.0, 4.0), "down_window_s": (60.0, 300.0)}),
    Family("hpa-cpu", partial(_hpa, busy=False), _HPA_SPACE),
    Family("hpa-busy", partial(_hpa, busy=True), _HPA_SPACE),
    Family("flink", lambda contest, setting: Flink(), {}),
    Family("flink-fast", _flink_fast, {"utilization": (0.4, 0.5, 0.6, 0.7), "scale_down_s": (60.0, 300.0)}),
    Family("ds2", _each(Ds2), {"headroom": (1.2, 1.4, 1.7, 2.0)}),
    Family(
        "ray",
        _ray,
        {
            "ongoing_per_batch": (0.5, 1.0, 2.0),
            "upscale_delay_s": (0.0, 10.0),
            "downscale_delay_s": (60.0, 300.0),
            "look_back_s": (5.0, 30.0),
        },
    ),
    Family("dataflow", _each(Dataflow), {"behind_s": (0.2, 1.0, 15.0), "patience_s": (10.0, 30.0)}),
    Family(
        "numaflow",
        _each(Numaflow, interval_s="period_s"),
        {"interval_s": (10.0,), "target_s": (0.1, 0.2, 0.5), "up_cooldown_s": (10.0,), "look_back_s": (30.0, 120.0)},
    ),
    Family("seldon", _each(Seldon), {"lag_threshold": (10.0, 20.0, 60.0), "stable_s": (60.0, 300.0)}),
    Family("cg-mean", partial(_unit_rule, peak=False), _UNIT_SPACE, partial(_units, peak=False)),
    Family("cg-peak", partial(_unit_rule, peak=True), _UNIT_SPACE, partial(_units, peak=True)),
)
"""Every rule of `baselines`. KEDA's and Ray's thresholds are tuned in multiples of what our replicas have in hand."""
