"""Policies side by side on one trace: cost, misses, steps, peak, and what hindsight would have saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations, Plan, replicas_of
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.clairvoyant import cheapest, work_bound
from inferline_stream.replay.contenders import FAMILIES, Contest, Family, Setting, dispatched, ordinary
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Ruled, Scaler, Tuner
from inferline_stream.tuner.error_budget import DAY_S
from inferline_stream.tuner.policy import POLICIES
from inferline_stream.tuner.staffing_table import staffing
from inferline_stream.tuner.tuner_state import initial_state

NO_TUNER, CLAIRVOYANT, INSTANT = "no tuner", "clairvoyant", "instant clairvoyant"

PARTITIONS = 24
"""Of each stage's input topic, where a rule scales ordinary consumer groups: more than any of them has replicas."""

AS_DEFAULT = "the defaults"
"""The tuned setting of a rule that nothing in its space is better for."""

NAMES = (*POLICIES, NO_TUNER, *(family.name for family in FAMILIES), CLAIRVOYANT, INSTANT)
"""Everything that can be compared."""

_RULES = {family.name for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class Row:
    """One policy with one setting.

    Args:
        policy: its name.
        setting: ``default``, or the tuned values in words, `AS_DEFAULT` where those are the defaults.
        outcome: the replay.
        keeps_objective: whether the share of misses is within what the objective allows.
        on_our_pool: whether dispatchers have one queue each, as we run them, or replicas own partitions, as in ordinary
            consumer groups.
        regret: cost over the clairvoyant's, less 1; None without one.
        regret_instant: the same over the instant clairvoyant's.
    """

    policy: str
    setting: str
    outcome: Outcome
    keeps_objective: bool
    on_our_pool: bool = True
    regret: float | None = None
    regret_instant: float | None = None

    @property
    def label(self) -> str:
        """The policy, and of a rule of others whether it runs on our pool."""
        return f"{self.policy} on our pool" if self.on_our_pool and self.policy in _RULES else self.policy


Tuned = Mapping[tuple[str, bool], Setting]
"""By a rule's name, and whether it scales our pools: the setting found for it. An empty one is its defaults."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies side by side.

    Args:
        rows: all of them.
        work_bound: dollars below which no policy could have served the trace.
        tuned: the settings that tuning found.
        without_groups: a stage that runs several batches at once. A member of an ordinary consumer group runs one, so
            rules of others are not tried there. None if there is no such stage, or no such rule was asked for.
    """

    rows: tuple[Row, ...]
    work_bound: float
    tuned: Tuned
    without_groups: str | None = None

    @property
    def shown(self) -> tuple[Row, ...]:
        """Rows for people, cheapest first: where no setting is better, that of the defaults stands for both."""
        unlike = (row for row in self.rows if row.setting != AS_DEFAULT)
        return tuple(sorted(unlike, key=lambda row: (row.outcome.cost, row.outcome.miss_rate)))

    def row(self, policy: str, setting: str = "default", *, on_our_pool: bool = True) -> Row:
        """The row of that policy and setting.

        Raises:
            KeyError: it was not compared.
        """
        for row in self.rows:
            alike = row.policy == policy and row.on_our_pool == on_our_pool
            if alike and (row.setting == "default") == (setting == "default"):
                return row
        raise KeyError(f"{policy} ({setting})")

    def cheaper(self, policy: str = "default") -> tuple[Row, ...]:
        """Rows of others, hindsight left out, that keep the objective for less money than this policy."""
        ours = self.row(policy).outcome.cost
        return tuple(
            row for row in self.rows if row.policy in _RULES and row.keeps_objective and row.outcome.cost < ours
        )


def compare(
    shape: Shape,
    plan: Plan,
    measured: PipelineProfile,
    sample: Trace,
    trace: Trace,
    *,
    catalogue: Catalogue,
    partitions: Mapping[str, int] | None = None,
    policies: Collection[str] = NAMES,
    tune: bool = True,
    tune_on: Trace | None = None,
    tuned: Tuned | None = None,
    conditions: Conditions | None = None,
    objective: float = 0.99,
    slo_window_s: float = DAY_S,
    seed: int = 0,
    kernel: EnvelopeKernel | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Replay every policy on the trace.

    Our policies run with their defaults. Each rule of others runs with its defaults, and with the setting that is
    cheapest within the objective on another trace (or misses least, if none keeps it), out of its space and its
    defaults. Rules of others scale ordinary consumer groups of `PARTITIONS` partitions, and once more our pools, so
    that rule and queues can be distinguished: there, each dispatcher of a stage keeps a replica, and queues are in the
    plan's order, as they are in hindsight; groups have that of entry. Where a stage runs several batches at once, they
    scale our pools only.

    Args:
        shape: the DAG.
        plan: hardware, batch limits and replicas that all begin with.
        measured: profiles.
        sample: what the plan was made for.
        trace: what is judged by.
        catalogue: prices and stock.
        partitions: see `replay`.
        policies: names from `NAMES`.
        tune: run the tuned settings too.
        tune_on: what settings are tuned on; the sample unless given. Another draw of what is judged by is the most
            that a rule could be given.
        tuned: settings found before, which are not searched again.
        conditions: delays, the same for all.
        objective: share of events that must meet the SLO.
        slo_window_s: for which the objective holds.
        seed: of the paths drawn.
        kernel: of the envelope.
        progress: called with what is being run.

    Raises:
        ValueError: a policy that is not in `NAMES`.
    """
    unknown = [name for name in policies if name not in NAMES]
    if unknown:
        raise ValueError(f"unknown policies {unknown}; there are {', '.join(NAMES)}")
    prices = {name: kind.price_per_hour for name, kind in catalogue.items()}
    table = staffing(shape, plan, measured, sample, prices, objective=objective, seed=seed)
    state = initial_state(plan, measured, catalogue, objective=objective, staffing=table)
    arena = _Arena(shape, plan, measured, catalogue, conditions or Conditions(), partitions or {}, seed)
    arena.judged, on = arena.workload(trace), arena.workload(sample if tune_on is None else tune_on)
    report = progress or (lambda _: None)
    rows: list[Row] = []

    def add(policy: str, setting: str, outcome: Outcome, *, on_our_pool: bool = True) -> None:
        rows.append(Row(policy, setting, outcome, outcome.miss_rate <= 1 - objective, on_our_pool))

    for name, step in POLICIES.items():
        if name in policies:
            report(name)
            tuner = Tuner(
                name, step, state, shape,
                period_s=arena.conditions.step_s, slo_window_s=slo_window_s, kernel=kernel,
            )  # fmt: skip
            add(name, "default", arena.run(tuner))
    if NO_TUNER in policies:
        add(NO_TUNER, "default", arena.run(Fixed(NO_TUNER)))
    longest_s = max(profile.start_up_s for profile in measured.profiles.values())
    start_up_s = longest_s if arena.conditions.start_up_s is None else arena.conditions.start_up_s
    contest = Contest(shape, plan, measured, sample, start_up_s)
    settings = dict(tuned or {})
    several = next((name for name, held in plan.allocations.items() if any(a.concurrency > 1 for a in held)), None)
    for family in FAMILIES:
        if family.name in policies:
            report(family.name)
            for on_our_pool in (False, True) if several is None else (True,):
                rule = partial(arena.rule, family, contest, on_our_pool=on_our_pool)
                with_defaults = rule({})
                add(family.name, "default", with_defaults, on_our_pool=on_our_pool)
                if tune and family.space:
                    key = family.name, on_our_pool
                    if key not in settings:
                        settings[key] = _tuned(family, partial(rule, on=on), 1 - objective)
                    chosen = ", ".join(f"{name}={value:g}" for name, value in settings[key].items())
                    outcome = rule(settings[key]) if chosen else with_defaults
                    add(family.name, chosen or AS_DEFAULT, outcome, on_our_pool=on_our_pool)
    for name, instant in ((CLAIRVOYANT, False), (INSTANT, True)):
        if name in policies:
            report(name)
            how = replace(arena.conditions, start_up_s=0.0) if instant else arena.conditions
            run = partial(arena.run, conditions=how)
            add(name, "default", cheapest(state.basis, trace, run, start_up_s=how.start_up_s))
    without_groups = several if any(family.name in policies for family in FAMILIES) else None
    return Comparison(_with_regret(rows), arena.bound(objective), settings, without_groups)


def _with_regret(rows: Sequence[Row]) -> tuple[Row, ...]:
    costs = {row.policy: row.outcome.cost for row in rows if row.policy in (CLAIRVOYANT, INSTANT)}

    def regret(row: Row, to: str) -> float | None:
        return row.outcome.cost / costs[to] - 1 if costs.get(to) else None

    return tuple(replace(row, regret=regret(row, CLAIRVOYANT), regret_instant=regret(row, INSTANT)) for row in rows)


def _tuned(family: Family, run: Callable[[Setting], Outcome], allowed: float) -> dict[str, float]:
    """Return the cheapest setting that keeps the objective; the one that misses least if none does."""

    return min(({}, *family.settings()), key=lambda setting: run(setting).rank(allowed))


@dataclass
class _Arena:
    """Where all contenders meet the same traces under the same delays."""

    shape: Shape
    plan: Plan
    measured: PipelineProfile
    catalogue: Catalogue
    conditions: Conditions
    partitions: Mapping[str, int]
    seed: int
    judged: Workload = field(init=False)

    def workload(self, trace: Trace) -> Workload:
        """A trace with the paths of its events drawn."""
        return prepare(self.shape, self.measured, trace, seed=self.seed)

    def run(
        self,
        scaler: Scaler,
        conditions: Conditions | None = None,
        *,
        allocations: Allocations | None = None,
        on: Workload | None = None,
        sharing: Mapping[str, Sharing] | None = None,
    ) -> Outcome:
        """One replay."""
        workload = on or self.judged
        return replay(
            self.shape,
            allocations or self.plan.allocations,
            self.measured,
            Trace(workload.entering_s),
            scaler,
            catalogue=self.catalogue,
            slo_s=self.plan.slo_s,
            order=self.plan.order,
            planned_rate=self.plan.arrival_rate,
            conditions=conditions or self.conditions,
            slots=self.plan.slots,
            partitions=self.partitions,
            workload=workload,
            sharing=sharing,
        )

    def rule(
        self,
        family: Family,
        contest: Contest,
        setting: Setting,
        *,
        on_our_pool: bool,
        on: Workload | None = None,
    ) -> Outcome:
        """One rule with one setting."""
        allocations = family.allocations(contest) if family.allocations else self.plan.allocations
        allocations = dispatched(allocations, self.plan) if on_our_pool else ordinary(allocations, self.measured)
        partitions = None if on_our_pool else PARTITIONS
        scaler = Ruled(
            family.name,
            family.make(contest, setting),
            self.shape,
            replicas={name: replicas_of(held) for name, held in allocations.items()},
            hardware=contest.hardware(),
            most=contest.most_replicas(),
            least=self.plan.slots if on_our_pool else None,
            partitions=partitions,
        )
        sharing = None if partitions is None else dict.fromkeys(self.shape.stages, Sharing(partitions))
        return self.run(scaler, allocations=allocations, on=on, sharing=sharing)

    def bound(self, objective: float) -> float:
        """See `work_bound`."""
        paths = self.judged
        visits = {name: float(paths.feeds[s].visits[paths.masks].sum()) for s, name in enumerate(self.shape.stages)}
        return work_bound(self.plan.allocations, self.measured, visits, self.catalogue, objective=objective)
