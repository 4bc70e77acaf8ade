"""What another SLO, other traffic, other prices would come to: plans and replays for the page of `plan --ui`."""

from __future__ import annotations

import contextlib
import math
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from msgspec import UNSET, Meta, UnsetType

from inferline_stream.cli.options import Platform, SearchOptions, as_words
from inferline_stream.cli.plan_steps import PlanInputs, planned
from inferline_stream.cli.plan_text import CURVE_FACTORS
from inferline_stream.errors import Infeasible, UsageError
from inferline_stream.observability.page.what_if_server import Answer, Answers, serve_what_if
from inferline_stream.pipeline.hardware import Catalogue, at_prices, divided, dollars_per_hour
from inferline_stream.pipeline.plan import Allocations, Plan, counts_by_kind, in_words
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.spot import is_spot
from inferline_stream.pipeline.trace import busiest
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.evaluator import Stopped
from inferline_stream.planner.plan_explanation import latency_shares
from inferline_stream.replay.loop import Conditions
from inferline_stream.runs.replay_inputs import ReplayInputs
from inferline_stream.runs.trust import trust_of

_Positive = Annotated[float, Meta(gt=0, le=1e6)]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is other than declared; what is left out is as it is.

    Args:
        slo_s: SLO in seconds.
        traffic: multiple of the sample's rate.
        start_up_s: of every replica, in seconds.
        reserve: multiple of the planned traffic for which replicas are always held; null for as many as the odds are
            worth.
        order: of the queues.
        prices: by hardware kind, dollars per hour.
        spot: whether stages may run on spot capacity.
        fallback: whether stages have their fallbacks.
    """

    slo_s: _Positive | None = None
    traffic: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    start_up_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    reserve: Annotated[float, Meta(ge=0, le=100)] | UnsetType | None = UNSET
    order: Literal["deadline", "entry"] | None = None
    prices: dict[str, _Positive] = {}
    spot: bool = True
    fallback: bool = True

    @property
    def plans(self) -> bytes:
        """All that the search for a plan depends on, as a key."""
        return msgspec.json.encode(msgspec.structs.replace(self, start_up_s=None, reserve=UNSET), order="sorted")


PATHS = ("/declared", "/glance", "/plan", "/replay", "/curve", "/trust")
"""Of what the page asks."""

GLANCE_S = 0.7
"""CPU time of a search before a plan is shown: people wait for it with a hand on a slider. By CPU time, since a search
that has found something has worked for it, however busy the machine is."""

TRUSTED_RUNS = 3
"""Finished runs that the page shows, the newest ones."""

GLANCE_SPAN_S = 45.0
"""Of the busiest arrivals, which are replayed before all of them are."""


class Superseded(LookupError):
    """A newer question has come before this one's answer was there."""


@dataclass(slots=True)
class WhatIf:
    """Answers questions about one pipeline, one at a time; a newer plan that is asked for ends the work on older ones.

    Args:
        inputs: as declared.
        measured: profiles.
        first: the plan for them.
        command: words of the command that made it.
    """

    inputs: PlanInputs
    measured: PipelineProfile
    first: Plan
    command: tuple[str, ...]
    _plans: dict[bytes, Plan | Infeasible] = field(default_factory=dict)
    _replays: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    _trust: list[dict[str, Any]] | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _newest: int = 0

    def __post_init__(self) -> None:
        self._plans[Question().plans] = self.first

    def answers(self) -> Answers:
        """Return what the page asks for, by path: each takes a `Question` as JSON."""
        read = msgspec.json.Decoder(Question).decode
        found: tuple[Answer, ...] = (
            lambda _: self.declared(),
            lambda asked: self.glance(read(asked)),
            lambda asked: self.plan(read(asked)),
            lambda asked: self.replay(read(asked)),
            lambda asked: self.curve(read(asked)),
            lambda _: self.trust(),
        )
        return dict(zip(PATHS, found, strict=True))

    def declared(self) -> dict[str, Any]:
        """Return what the page begins with: name, SLO, traffic, start-up time, kinds with prices."""
        used = {a.hardware for held in self.first.allocations.values() for a in held}
        names = dict.fromkeys(name for stage in self.inputs.what.pipeline.stages for name in stage.hardware)
        return {
            "pipeline": self.first.pipeline,
            "slo_s": self.first.slo_s,
            "arrival_rate": self.first.arrival_rate,
            "objective": self.inputs.what.pipeline.objective,
            "start_up_s": max(p.start_up_s for (_, kind), p in self.measured.profiles.items() if kind in used),
            "order": self.first.order,
            "spot": any(map(is_spot, names)),
            "fallback": any(stage.fallback is not None for stage in self.inputs.what.pipeline.stages),
            "reserve": self.first.reserve,
            "prices": {
                name: self.inputs.kinds[name].price_per_hour
                for name in names
                if (whole := divided(name)[0]) == name or whole not in names  # a share costs its part of that
            },
        }

    def plan(self, question: Question) -> dict[str, Any]:
        """Return the cheapest plan, or the sentence that says why there is none, and the command that prints it.

        Raises:
            Superseded: a newer question has come.
        """
        self._newest += 1
        return self._shown(question, self._found(question, self._newest))

    def glance(self, question: Question) -> dict[str, Any]:
        """Return the same after a short search: the cheapest plan so far, with the busiest arrivals replayed.

        Returns:
            As `plan`, with ``searching``, whether a longer search may find a cheaper one, and ``replay``, as `replay`;
            ``searching`` alone where none was found so far.

        Raises:
            Superseded: a newer question has come.
        """
        self._newest += 1
        number, searching = self._newest, False
        found = self._plans.get(question.plans)
        with self._turn(number):
            if found is None:
                until_s = time.process_time() + GLANCE_S
                try:
                    found = self._searched(question, lambda: number != self._newest or time.process_time() > until_s)
                except Stopped:
                    return {"searching": True}
                self._check(number)
                searching = time.process_time() > until_s
                if not searching:
                    self._plans[question.plans] = found
            shown = self._shown(question, found) | {"searching": searching}
            if not isinstance(found, Infeasible):
                shown["replay"] = self._replayed(question, found, number, brief=True)
            return shown

    def _shown(self, question: Question, found: Plan | Infeasible) -> dict[str, Any]:
        answer: dict[str, Any] = {"command": self._command(question)}
        if isinstance(found, Infeasible):
            return answer | {"infeasible": str(found)}
        inputs = self._inputs(question)
        costs = _stage_costs(found.allocations, inputs.kinds)
        shares = latency_shares(found, inputs.problem(self._profiles(question), found.slo_s))
        return answer | {
            "cost_per_hour": found.cost_per_hour,
            "predicted_p99_s": found.predicted_p99_s,
            "stages": [
                {
                    "stage": stage,
                    "held": in_words(held),
                    "replicas": sum(a.replicas for a in held),
                    "cost_per_hour": costs[stage],
                    "utilization": found.utilization.get(stage, 0.0),
                    "latency_share": shares[stage],
                }
                for stage, held in found.allocations.items()
            ],
        }

    def replay(self, question: Question) -> dict[str, Any]:
        """Return what the policy makes of that plan on the sample's arrivals: cost and late events.

        Raises:
            Superseded: a newer question has come.
        """
        key = msgspec.json.encode(question, order="sorted")
        if key not in self._replays:
            number = self._newest
            found = self._found(question, number)
            with self._turn(number):
                self._replays[key] = {} if isinstance(found, Infeasible) else self._replayed(question, found, number)
        return self._replays[key]

    def curve(self, question: Question) -> dict[str, Any]:
        """Return what multiples of the declared SLO would cost; null where no plan meets one.

        Raises:
            Superseded: a newer question has come.
        """
        number, cheapest, points = self._newest, math.inf, []
        for factor in CURVE_FACTORS:
            slo_s = self.first.slo_s * factor
            found = self._found(msgspec.structs.replace(question, slo_s=slo_s), number)
            if not isinstance(found, Infeasible):  # a plan for a tighter SLO is one for every looser SLO, too
                cheapest = min(cheapest, found.cost_per_hour)
            points.append({"slo_s": slo_s, "cost_per_hour": cheapest if math.isfinite(cheapest) else None})
        return {"points": points}

    def trust(self) -> dict[str, Any]:
        """Return what was predicted of the newest finished runs beside what was measured, as `trust` does.

        Raises:
            Superseded: a question has come.
        """
        number, what = self._newest, self.inputs.what
        if self._trust is None:
            with self._turn(number):
                try:
                    found = trust_of(what.file.parent, what.pipeline.name, TRUSTED_RUNS, lambda *_: self._check(number))
                    self._trust = [msgspec.to_builtins(run) for run in found.runs]
                except UsageError:  # there is none yet
                    self._trust = []
        return {"runs": self._trust}

    def leave(self) -> None:
        """End the work on every question."""
        self._newest += 1

    def _found(self, question: Question, number: int) -> Plan | Infeasible:
        key = question.plans
        if key not in self._plans:
            with self._turn(number):
                if key not in self._plans:
                    self._plans[key] = self._planned(question, number)
        return self._plans[key]

    @contextlib.contextmanager
    def _turn(self, number: int) -> Iterator[None]:
        """Work, once nobody else does; what was stopped meanwhile is no answer."""
        with self._busy:
            self._check(number)
            yield

    def _check(self, number: int) -> None:
        if number != self._newest:
            raise Superseded

    def _planned(self, question: Question, number: int) -> Plan | Infeasible:
        try:
            found = self._searched(question, lambda: number != self._newest)
        except Stopped:
            raise Superseded from None
        self._check(number)  # else it is the best so far
        return found

    def _searched(self, question: Question, stop: Callable[[], bool]) -> Plan | Infeasible:
        try:
            return planned(replace(self._inputs(question), stop=stop), self._profiles(question))
        except Infeasible as error:
            return error

    def _replayed(self, question: Question, plan: Plan, number: int, *, brief: bool = False) -> dict[str, Any]:
        inputs = self._inputs(question)
        sample = inputs.all_traces[0]
        outcome = ReplayInputs(
            plan.pipeline,
            shape_of(inputs.what.pipeline),
            replace(plan, reserve=self._reserve(question)),
            self._profiles(question),
            sample,
            busiest(sample, math.ceil(sample.arrival_rate * GLANCE_SPAN_S)) if brief else sample,
            inputs.kinds,
            inputs.what.pipeline.objective,
            inputs.what.pipeline.slo_window_s,
            partitions=inputs.what.pipeline.entry_partitions,
        ).replayed(
            conditions=Conditions(start_up_s=question.start_up_s),
            seed=inputs.search.seed,
            progress=lambda *_: self._check(number),
        )
        return {"cost_per_hour": outcome.cost_per_hour, "miss_rate": outcome.miss_rate, "changes": outcome.changes}

    def _profiles(self, question: Question) -> PipelineProfile:
        return self.measured if question.fallback else self.measured.without_fallbacks()

    def _reserve(self, question: Question) -> float | None:
        return self.first.reserve if question.reserve is UNSET else question.reserve

    def _inputs(self, question: Question) -> PlanInputs:
        """What is declared, with what the question says."""
        kinds, pipeline = self.inputs.kinds, copy(self.inputs.what.pipeline)
        unknown = sorted(question.prices.keys() - kinds.keys())
        if unknown:
            raise UsageError(f"no hardware {unknown[0]!r}; there are {', '.join(sorted(kinds))}")
        pipeline.order = question.order or pipeline.order
        pipeline.hardware = tuple(
            replace(kind, stock=0) if is_spot(kind.name) and not question.spot else kind
            for kind in at_prices(kinds, question.prices).values()
        )
        return replace(
            self.inputs,
            what=replace(self.inputs.what, pipeline=pipeline),
            slo_s=question.slo_s or self.first.slo_s,
            traces=tuple(trace.sped_up(question.traffic) for trace in self.inputs.all_traces),
        )

    def _command(self, question: Question) -> str:
        """The command that prints the plan, as far as options say what the question does."""
        words = [*self.command, "--slo", format_duration(question.slo_s or self.first.slo_s)]
        if (reserve := self._reserve(question)) is not None:
            words += ["--reserve", f"{reserve:g}"]
        others = [f"traffic × {question.traffic:g}"] if question.traffic != 1 else []
        others += [f"{name} at ${price:g}/h" for name, price in sorted(question.prices.items())]
        others += [f'order="{question.order}"'] if question.order not in (None, self.first.order) else []
        others += ([] if question.spot else ["no spot kind"]) + ([] if question.fallback else ["no fallback"])
        return shlex.join(words) + (f"  # with {', '.join(others)} declared" if others else "")


def _stage_costs(allocations: Allocations, kinds: Catalogue) -> dict[str, float]:
    """Return what each stage takes of the plan's cost: of a kind, as large a part as of its replicas."""
    counts = counts_by_kind(allocations.values())
    each = {kind: dollars_per_hour({kind: count}, kinds) / count for kind, count in counts.items() if count}
    return {stage: sum(a.replicas * each.get(a.hardware, 0.0) for a in held) for stage, held in allocations.items()}


def plan_command(
    topology: Path, search: SearchOptions, platform: Platform, further: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the words that make such a plan, but for SLO and reserve, which are the page's.

    Args:
        topology: as it was given.
        search: which search.
        platform: where replicas run.
        further: options.
    """
    words = [*as_words(replace(search, reserve=None)), *as_words(platform), *further]
    return ("inferline-stream", "plan", str(topology), *words)


def serve(what_if: WhatIf, port: int) -> None:
    """Serve the page until Ctrl-C, and say where.

    Raises:
        UsageError: the port is taken or may not be used.
    """
    server = serve_what_if(what_if.answers(), port)
    try:
        typer.echo(f"what if: {server.url} (Ctrl-C ends it)", err=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        what_if.leave()
        server.close()
