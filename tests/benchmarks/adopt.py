"""Consumer groups that run already, in replay with the holes of rebalances: our policy for groups beside others' rules.

Grounds, each with its SLO and the protocol by which the groups share their partitions:

- ``hour_…``: the hour of `peers`, ten draws; KEDA and Flink's rule of seconds are tuned on another draw under the same
  protocol, their defaults among what is tried. The sample is `peers`' five minutes, but where the SLO is below the hole
  of eager groups: there it is the hour that rules are tuned on, as recorded traffic, from which a held number comes.
- ``swing6_…``: `swing` with six times its rates, ten draws.
- ``families_…``: judging families, each with its SLO and no hole, or with five seconds more by KIP-848, and KEDA as it
  comes.

``kept`` counts draws in which 99 % were in time, ``late`` is the mean share that was not, ``cost`` the mean in dollars
per hour, ``changes`` the mean number of changes of members over all groups. ``fixed_cost`` is the smallest fixed number
that keeps the SLO on the draw, found afterwards. ``NAME_cost_ratio`` is our cost over that rule's. ``through_keda`` is
our policy with the delays of KEDA's autoscaler. On the hours our policy knows what it has learned itself from ten
minutes of looks at such a group, but for the holes of KIP-848; else it is given the true profile. All begin with the
plan for groups, and ours plans again as `run` does.
`python -m tests.benchmarks.adopt GROUND… [--draws N]` runs some of them. What became of each draw goes to standard
error as it comes.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream import ConsumerGroup, Pipeline
from inferline_stream.baselines.hpa import TOLERANCE
from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.group_model import GroupModel, group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned, Rebalance, Sharing
from inferline_stream.pipeline.hardware import Catalogue, catalogue
from inferline_stream.pipeline.plan import Allocations, Plan, replicas_of
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, shape_of
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.profiler.group_learner import GroupLearner
from inferline_stream.replay.contenders import FAMILIES, Contest, Setting
from inferline_stream.replay.group_tuner import GroupTuner
from inferline_stream.replay.hpa_follower import AT_ONCE, HpaFollower
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Ruled, Scaler
from inferline_stream.tuner.group_plan import plan_groups
from inferline_stream.tuner.group_replan import GroupPlanning, planned
from tests.benchmarks import swing
from tests.benchmarks._families import JUDGING, Case, case
from tests.benchmarks._figures import Figures
from tests.benchmarks.peers import RATE, START_UP_S, traffic
from tests.support.emulated_runs import declared_profile, provisioned
from tests.support.group_profiles import learned_group
from tests.support.simulated_group import Worker, arrivals, looks

OBJECTIVE, STEP_S, PARTITIONS, MOST_PARTITIONS = 0.99, 0.5, 24, 384

NONE = Rebalance("cooperative", Learned(0.0, 0.0, 1), 0.0)
EAGER = Rebalance("eager", Learned(3.0, 0.0, 1), 3.0)
KIP848 = Rebalance("kip848", Learned(2.5, 0.0, 1), 5.0)
"""As clients do by default: heartbeats of 3 s, and of 5 s."""

TUNED = ("keda", "flink-fast")

LEARNED_S = 600.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What all contenders meet.

    Args:
        model: the groups.
        believed: the same as our policy knows them.
        sample: what the plan and the table are made for.
        draws: what is judged by.
        tuning: what others' rules are tuned on; None to run them as they come.
        start_up_s: of every member.
        recorded: whether the sample was recorded some other time; else it came just before.
    """

    model: GroupModel
    believed: GroupModel
    sample: Trace
    draws: Sequence[Trace]
    tuning: Trace | None
    start_up_s: float
    recorded: bool = False


def measure(quick: bool) -> Figures:
    """Figures of all grounds; with ``quick`` of ten minutes of two of them."""
    names = ("hour_5s_eager", "hour_400ms_kip848") if quick else tuple(GROUNDS)
    figures: Figures = {}
    for name in names:
        figures |= figures_of(name, 2 if quick else None, 600.0 if quick else 3600.0)
    return figures


def figures_of(name: str, draws: int | None = None, length_s: float = 3600.0) -> Figures:
    """Figures of one ground; families count as many runs as ``draws``."""
    return {f"{name}_{figure}": value for figure, value in GROUNDS[name](draws, length_s).items()}


def _hour(slo: str, rebalance: Rebalance, *, recorded: bool = False) -> Callable[[int | None, float], Figures]:
    def figures(draws: int | None, length_s: float) -> Figures:
        read = ConsumerGroup("read", group="read", topic="in", hardware="emulated-cpu")
        rank = ConsumerGroup("rank", group="rank", topic="read", after=[read], hardware="emulated-cpu")
        times = {"read": 0.03, "rank": 0.02}  # as `peers` declares them
        pipeline = Pipeline("peers", slo=slo, stages=[read, rank])
        model = group_model(pipeline, [learned_group(n, each_s, rebalance, workers=1) for n, each_s in times.items()])
        believed = group_model(pipeline, [_learned(n, each_s, rebalance) for n, each_s in times.items()])
        tuning = traffic(length_s, np.random.default_rng(2))
        sample = tuning if recorded else gamma_trace(RATE, 1.0, 300.0, np.random.default_rng(1))
        judged = [traffic(length_s, np.random.default_rng(seed)) for seed in range(11, 11 + (draws or 10))]
        return _compared(Ground(model, believed, sample, judged, tuning, START_UP_S, recorded))

    return figures


def _learned(name: str, each_s: float, rebalance: Rebalance) -> GroupProfile:
    """What is known of a group after ten minutes in which its members change each two minutes."""
    rng, learner, eager = np.random.default_rng(5), GroupLearner(name), rebalance.protocol == "eager"
    came_s = arrivals(lambda _: RATE, LEARNED_S, rng)
    changes = [(120.0 * k, 2 + k % 2) for k in range(round(LEARNED_S / 120.0))]
    pause_s = rebalance.pause_s.value if eager else 0.0
    worker = Worker(each_s, each_s, 0.0, 4)
    for look in looks(
        worker, came_s, LEARNED_S, rng, members=changes, pause_s=pause_s, start_up_s=START_UP_S, partitions=PARTITIONS
    ):
        learner.take(look)
    found = learner.profile(came_s.size)
    return found if eager else replace(found, rebalance=rebalance)


def _swing6(draws: int | None, length_s: float) -> Figures:
    generate = swing._generator()
    vars(generate)["SWING"] = [(time_s, 6 * rate) for time_s, rate in generate.SWING]
    pipeline = load_topology(swing.EXAMPLE)
    measured = declared_profile(pipeline, {("read", "search"): 0.6}, swing.START_UP_S)
    sample = gamma_trace(6 * generate.SAMPLE_RATE, 1.0, generate.SAMPLE_S, np.random.default_rng(1))
    kinds, shape = catalogue(pipeline.hardware), shape_of(pipeline)
    plan = provisioned(pipeline, measured, sample)
    model = _model_of(shape, measured, plan, kinds, slo_s=5.0, rebalance=KIP848)
    judged = [generate.swing(np.random.default_rng(seed)) for seed in range(11, 11 + (draws or 10))]
    tuning = generate.swing(np.random.default_rng(generate.TUNING_SEED))
    return _compared(Ground(model, model, sample, judged, tuning, swing.START_UP_S))


def _families(more_s: float, rebalance: Rebalance, runs: int) -> Callable[[int | None, float], Figures]:
    def figures(draws: int | None, length_s: float) -> Figures:
        kept, of_keda, over_plan, over_keda, infeasible = 0, 0, [], [], 0
        for seed in range(draws or runs):
            drawn, plan = _run_of(seed, length_s)
            try:
                ground = _ground_of(drawn, plan, more_s, rebalance)
                (ours,) = _judged(drawn.name, ground, _ours(ground, planned(ground.believed, ground.sample)))
                begun = plan_groups(ground.model, ground.sample)
                (keda,) = _judged(f"{drawn.name} keda", ground, _rule(ground, begun, "keda", {}))
            except Infeasible:
                infeasible += 1
                continue
            kept, of_keda = kept + _keeps(ours), of_keda + _keeps(keda)
            over_plan.append(ours.cost_per_hour / plan.cost_per_hour)
            over_keda.append(ours.cost / keda.cost)
        return {
            "runs": draws or runs,
            "infeasible": infeasible,
            "kept": kept,
            "over_plan": round(statistics.median(over_plan), 3) if over_plan else None,
            "keda_kept": of_keda,
            "keda_cost_ratio": round(statistics.median(over_keda), 3) if over_keda else None,
        }

    return figures


@functools.cache
def _run_of(seed: int, length_s: float) -> tuple[Case, Plan]:
    """A judging run and its plan for our pools, which takes longer than all else that is done with it."""
    drawn = case(seed, JUDGING, most_s=length_s)
    return drawn, drawn.plan()


def _ground_of(drawn: Case, plan: Plan, more_s: float, rebalance: Rebalance) -> Ground:
    through = drawn.pipeline
    slo_s, kinds = through.slo_s + more_s, through.catalogue
    model = _model_of(through.shape, through.measured, plan, kinds, slo_s=slo_s, rebalance=rebalance)
    return Ground(model, model, drawn.sample, [drawn.trace], None, drawn.start_up_s)


def _model_of(
    shape: Shape, measured: PipelineProfile, plan: Plan, kinds: Catalogue, *, slo_s: float, rebalance: Rebalance
) -> GroupModel:
    """Groups in the place of a plan's stages, on its first kind of hardware and with its batch limits.

    Topics have four times as many partitions as the plan has replicas of its largest stage, 24 at least.
    """
    first = {name: held[0] for name, held in plan.allocations.items()}
    profiles = {}
    for name, held in first.items():
        profile = measured.profiles[name, held.hardware]
        times = tuple(t for t in profile.service_times if t.batch_size <= held.max_batch_size)
        profiles[name, held.hardware] = replace(profile, service_times=times, contention=(), fallback=())
    most = max(replicas_of(held) for held in plan.allocations.values())
    partitions = min(MOST_PARTITIONS, PARTITIONS * 2 ** max(0, math.ceil(math.log2(4 * most / PARTITIONS))))
    sharing = dict.fromkeys(shape.stages, Sharing(partitions, rebalance))
    return GroupModel("groups", slo_s, OBJECTIVE, shape, replace(measured, profiles=profiles), sharing, kinds)


Run = Callable[[Trace], Outcome]


def _compared(ground: Ground) -> Figures:
    found = planned(ground.believed, ground.sample)
    ours = _judged("ours", ground, _ours(ground, found))
    figures: Figures = {"draws": len(ground.draws), **_means(ours, "")}
    fixed = [plan_groups(ground.model, draw).cost_per_hour for draw in ground.draws]
    figures["fixed_cost"] = round(statistics.mean(fixed), 4)
    figures["fixed_cost_ratio"] = round(_cost(ours) / statistics.mean(fixed), 3)
    begun = plan_groups(ground.model, ground.sample)
    for name in TUNED:
        assert ground.tuning is not None
        settings: dict[str, Setting] = {"default": {}, "tuned": _tuned(ground, begun, name, ground.tuning)}
        for how, setting in settings.items():
            theirs = _judged(f"{name} {how}", ground, _rule(ground, begun, name, setting))
            figures |= _means(theirs, f"{name}_{how}_")
            figures[f"{name}_{how}_cost_ratio"] = round(_cost(ours) / _cost(theirs), 3)
        figures[f"{name}_setting"] = json.dumps(settings["tuned"])
    return figures | _means(_judged("through KEDA", ground, _ours(ground, found, through_keda=True)), "through_keda_")


def _judged(who: str, ground: Ground, run: Run) -> list[Outcome]:
    """What becomes of each draw, which is shown as it comes: all of them take long."""
    outcomes = []
    for number, draw in enumerate(ground.draws):
        outcomes.append(outcome := run(draw))
        sys.stderr.write(
            f"{who}, draw {number}: {outcome.cost_per_hour:.4f} $/h, {outcome.miss_rate:.3%} late, "
            f"{outcome.changes} changes\n"
        )
        sys.stderr.flush()
    return outcomes


def _means(outcomes: Sequence[Outcome], name: str) -> Figures:
    return {
        f"{name}kept": sum(map(_keeps, outcomes)),
        f"{name}late": round(statistics.mean(outcome.miss_rate for outcome in outcomes), 5),
        f"{name}late_worst": round(max(outcome.miss_rate for outcome in outcomes), 5),
        f"{name}cost": round(_cost(outcomes), 4),
        f"{name}changes": round(statistics.mean(outcome.changes for outcome in outcomes), 1),
    }


def _keeps(outcome: Outcome) -> bool:
    return outcome.miss_rate <= 1 - OBJECTIVE


def _cost(outcomes: Sequence[Outcome]) -> float:
    return statistics.mean(outcome.cost_per_hour for outcome in outcomes)


def _tuned(ground: Ground, begun: Plan, name: str, tuning: Trace) -> Setting:
    """The cheapest setting that keeps the objective on another draw; the one that misses least if none does."""
    (family,) = (family for family in FAMILIES if family.name == name)
    return min(({}, *family.settings()), key=lambda s: _rule(ground, begun, name, s)(tuning).rank(1 - OBJECTIVE))


def _ours(ground: Ground, found: GroupPlanning, *, through_keda: bool = False) -> Run:
    tolerances = dict.fromkeys(found.members, TOLERANCE)

    def run(trace: Trace) -> Outcome:
        made_s = None if ground.recorded else 0.0
        scaler: Scaler = GroupTuner(found, found.members, period_s=STEP_S, made_s=made_s, kernel=compiled_kernel())
        if through_keda:
            scaler = HpaFollower(scaler, found.members, ground.model.hardware, tolerances, AT_ONCE)
        return _replayed(ground, found.plan.allocations, trace, scaler)

    return run


def _rule(ground: Ground, plan: Plan, name: str, setting: Mapping[str, float]) -> Run:
    model = ground.model
    (family,) = (family for family in FAMILIES if family.name == name)
    contest = Contest(model.shape, plan, model.measured, ground.sample, ground.start_up_s)

    def run(trace: Trace) -> Outcome:
        ruled = Ruled(
            name,
            family.make(contest, setting),
            model.shape,
            replicas={stage: replicas_of(held) for stage, held in plan.allocations.items()},
            hardware=model.hardware,
            partitions=max(model.partitions.values()),
        )
        return _replayed(ground, plan.allocations, trace, ruled)

    return run


def _replayed(ground: Ground, allocations: Allocations, trace: Trace, scaler: Scaler) -> Outcome:
    model = ground.model
    return replay(
        model.shape,
        allocations,
        model.measured,
        trace,
        scaler,
        catalogue=model.catalogue,
        slo_s=model.slo_s,
        slots={},
        sharing=model.sharing,
        conditions=Conditions(step_s=STEP_S),
    )


GROUNDS: Mapping[str, Callable[[int | None, float], Figures]] = {
    "hour_5s_eager": _hour("5s", EAGER),
    "hour_5s_kip848": _hour("5s", KIP848),
    "hour_400ms_none": _hour("400ms", NONE),
    "hour_400ms_kip848": _hour("400ms", KIP848),
    "hour_400ms_eager": _hour("400ms", EAGER, recorded=True),
    "swing6_5s_kip848": _swing6,
    "families_none": _families(0.0, NONE, 40),
    "families_5s_kip848": _families(5.0, KIP848, 24),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adopt")
    parser.add_argument("ground", nargs="+", choices=GROUNDS)
    parser.add_argument("--draws", type=int)
    chosen = parser.parse_args()
    for each in chosen.ground:
        sys.stdout.write(json.dumps(figures_of(each, chosen.draws), indent=1) + "\n")
        sys.stdout.flush()
