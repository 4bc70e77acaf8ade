"""What to advise for consumer groups that run already: what was seen, what it costs, and what other numbers would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.consumer_group import KedaScaler
from inferline_stream.pipeline.group_model import group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.profiler.group_learner import GroupLearner
from inferline_stream.replay.group_contest import LEAST_S, GroupContest, GroupRow, Way, contest, replayed_p99_s

WAYS: Mapping[Way, str] = {
    "now": "what runs now",
    "ours": "inferline-stream",
    "ours_keda": "inferline-stream through KEDA",
    "ours_hpa": "the same, behavior of the HPA not set",
    "fixed": "smallest fixed number, in hindsight",
    "keda": "KEDA's Kafka scaler, default",
    "hpa": "HPA on CPU, default",
    "hindsight": "hindsight",
}
"""How people know each way to choose members."""

_DRAWS = 20_000
"""Of latencies along the groups, which are summed as if they were independent."""

_CREDIBLE = 0.25
"""A replayed P99 may be so far off the one that was seen."""

_BETTER = 0.95
"""Ours is worth a change where it costs less than this share of what keeps the SLO, too."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen of a pipeline of groups, and how each way to choose members would have done.

    Args:
        pipeline: its name.
        slo_s: latency target.
        objective: share of events that must meet it.
        watched_s: how long the groups were watched.
        events: that entered meanwhile.
        arrival_rate: of what was judged, per second.
        profiles: what was learned, by group.
        p99_s: end to end, as it was; None where too little was seen.
        miss_rate: likewise the share of events above the SLO.
        contest: None where some group's throughput is not known.
        notes: what else people should know.
    """

    pipeline: str
    slo_s: float
    objective: float
    watched_s: float
    events: int
    arrival_rate: float
    profiles: Mapping[str, GroupProfile]
    p99_s: float | None
    miss_rate: float | None
    contest: GroupContest | None
    notes: tuple[str, ...]


def advise(
    pipeline: Pipeline,
    learners: Mapping[str, GroupLearner],
    arrivals: Trace,
    *,
    watched_s: float,
    judged_on: Trace | None = None,
    reported: Mapping[str, Learned] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Advice:
    """Judge what was seen of groups.

    Args:
        pipeline: a valid one, of groups.
        learners: by group, with everything that was seen.
        arrivals: that entered meanwhile, from 0 on.
        watched_s: how long.
        judged_on: other arrivals, such as a recorded week; by default those that were seen.
        reported: throughputs that groups' workers report, where they do.
        notes: what else people should know, in words.
        progress: called with each way that is being judged.
    """
    profiles = {name: each.profile(len(arrivals)).reporting(reported.get(name)) for name, each in learners.items()}
    judged, found = arrivals if judged_on is None else judged_on, None
    notes = (*notes, *_doubts(profiles))
    if len(judged) < 2:
        notes = (*notes, "fewer than two events came: nothing is judged; watch longer, or give recorded --arrivals")
    elif all(profile.throughput is not None for profile in profiles.values()):
        try:
            model = group_model(pipeline, profiles.values())
            now = {name: max(1, profile.workers) for name, profile in profiles.items()}
            scaled = [(group.name, group.workers) for group in pipeline.groups]
            tolerances = {name: by.tolerance for name, by in scaled if isinstance(by, KedaScaler)}
            kernel = compiled_kernel()
            found = contest(model, judged, now, tolerances=tolerances, kernel=kernel, progress=progress)
        except InvalidInput as error:
            notes = (*notes, *error.problems)
    latency_s = _end_to_end_s(pipeline, learners)
    if found is not None:
        notes = (*notes, *_in_hindsight(found))
        if latency_s is not None and judged_on is None:
            replayed_s = replayed_p99_s(model, judged, now)
            notes = (*notes, *_misjudged(float(np.quantile(latency_s, 0.99)), replayed_s))
    return Advice(
        pipeline.name,
        pipeline.slo_s,
        pipeline.objective,
        watched_s,
        len(arrivals),
        judged.arrival_rate,
        profiles,
        None if latency_s is None else float(np.quantile(latency_s, 0.99)),
        None if latency_s is None else float(np.mean(latency_s > pipeline.slo_s)),
        found,
        notes,
    )


def _end_to_end_s(pipeline: Pipeline, learners: Mapping[str, GroupLearner]) -> NDArray[np.float64] | None:
    """Latencies from the entry to the slowest last group, drawn; None where a group has committed too little."""
    rng, drawn = np.random.default_rng(0), {}
    for name, learner in learners.items():
        latency_s, weights = learner.latencies_s()
        if latency_s.size < 100:
            return None
        drawn[name] = rng.choice(latency_s, _DRAWS, p=weights / weights.sum())
    parents = {parent.name for group in pipeline.groups for parent in group.after}
    slowest = np.zeros(_DRAWS)
    for group in pipeline.groups:
        if group.name not in parents:
            total, at = drawn[group.name].copy(), group
            while at.after:
                at = at.after[0]
                total += drawn[at.name]
            slowest = np.maximum(slowest, total)
    return slowest


def _in_hindsight(found: GroupContest) -> Iterator[str]:
    if found.planned_from_s is None:
        yield (
            "ours was planned for the arrivals that it is judged on, and will be worse on others: to keep some apart "
            f"takes {format_duration(2 * LEAST_S)} of traffic. Watch longer, or give recorded --arrivals"
        )


def _misjudged(seen_s: float, replayed_s: float) -> Iterator[str]:
    """What runs now was both seen and replayed: where the two differ, the other ways are off as well."""
    if not abs(replayed_s / seen_s - 1) <= _CREDIBLE:
        yield (
            f"the replay of what runs now has a P99 of {format_duration(min(replayed_s, 1e6))}, and "
            f"{format_duration(seen_s)} were seen: latencies of the other ways may be off as far"
        )


def _doubts(profiles: Mapping[str, GroupProfile]) -> Iterator[str]:
    if len(profiles) > 1:
        yield "latency is of each group from append to commit, and summed along the groups as if they were independent"
    for name, profile in profiles.items():
        if profile.throughput is None:
            yield (
                f"group {name!r}: its throughput is not known yet. Watch it longer, have its workers commit after each "
                "batch, watch it while it is overloaded, or declare its service_time"
            )
        if not profile.workers:
            yield f"group {name!r}: no members were seen; what runs now is taken to be one"
        shares = profile.rebalance is not None and profile.rebalance.protocol == "share"
        if profile.rebalance is None:
            yield f"group {name!r}: no change of its members was seen; it is taken to stop as a whole for 3 s"
        elif not profile.rebalance.pause_s.count:
            yield (
                f"group {name!r}: no change of its members was seen; one is taken to hear of its partitions within "
                f"{format_duration(profile.rebalance.longest_s)}"
            )
        if profile.workers > profile.partitions and not shares:
            shared = count_of(profile.partitions, "partition")
            yield f"group {name!r}: {profile.workers} members share {shared}; the rest are idle"


def verdict(advice: Advice) -> Iterator[str]:
    """Yield what to do, in sentences."""
    found = advice.contest
    if found is None:
        yield "Nothing is advised yet: what one worker can do is not known of every group."
        return
    if found.too_few is not None:
        yield f"{found.too_few[0].upper()}{found.too_few[1:]}."
        return
    ours, fixed, now = found.row("ours_keda") or found.row("ours"), found.row("fixed"), found.row("now")
    assert ours is not None
    assert fixed is not None
    assert now is not None
    counts = f"{_counts(fixed)} (the smallest number in hindsight)"
    if not now.keeps_objective:
        yield f"What runs now misses the SLO of {format_duration(advice.slo_s)} for {now.miss_rate:.2%} of the events."
    if found.holds:
        yield (
            f"The traffic's levels need more changes than the SLO allows rebalances: hold {counts} at "
            f"${fixed.cost_per_hour:.3f}/h, or use a looser SLO, or members that rebalance by KIP-848."
        )
    elif not ours.keeps_objective:
        yield f"Scaling would miss the SLO on this traffic: hold {counts} at ${fixed.cost_per_hour:.3f}/h."
    elif ours.cost_per_hour > _BETTER * min(r.cost_per_hour for r in (fixed, now) if r.keeps_objective):
        cheaper = now if now.keeps_objective and now.cost_per_hour <= fixed.cost_per_hour else fixed
        counts = counts if cheaper is fixed else _counts(now)
        yield f"Scaling is no better on this traffic than holding {counts}, at ${cheaper.cost_per_hour:.3f}/h."
    else:
        less = 1 - ours.cost_per_hour / now.cost_per_hour
        yield f"Scaling keeps the SLO at ${ours.cost_per_hour:.3f}/h" + (
            f", {less:.0%} less than what runs now." if less > 0 else "; no smaller number that is held does."
        )
    for row in found.rows:
        if row.way in ("keda", "hpa") and row.keeps_objective and row.cost_per_hour < ours.cost_per_hour:
            yield f"{WAYS[row.way]} would keep it for less: ${row.cost_per_hour:.3f}/h."


def _counts(row: GroupRow) -> str:
    return ", ".join(f"{name} {count}" for name, count in (row.members or {}).items())


def advice_document(advice: Advice) -> dict[str, Any]:
    """Return the advice for `--output json`."""
    found = advice.contest
    return {
        "pipeline": advice.pipeline,
        "slo_s": advice.slo_s,
        "objective": advice.objective,
        "watched_s": advice.watched_s,
        "events": advice.events,
        "arrival_rate": advice.arrival_rate,
        "p99_s": advice.p99_s,
        "miss_rate": advice.miss_rate,
        "groups": [_known(asdict(profile)) for profile in advice.profiles.values()],
        "ways": [] if found is None else [_known(asdict(row)) for row in found.rows],
        "too_few": None if found is None else found.too_few,
        "judged_s": None if found is None else found.judged_s,
        "planned_from_s": None if found is None else found.planned_from_s,
        "verdict": list(verdict(advice)),
        "notes": list(advice.notes),
    }


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def seen_rows(advice: Advice) -> list[tuple[str, ...]]:
    """Return what was learned of each group, in words; see `SEEN`."""
    return [
        (
            name,
            str(profile.workers),
            str(profile.partitions),
            "not known yet"
            if profile.throughput is None
            else f"{_doubtful(profile.throughput, '/s')} ({profile.source})",
            _time(profile.latency_p99_s),
            _time(profile.start_up_s),
            "–" if profile.rebalance is None else f"{_time(profile.rebalance.pause_s)} {profile.rebalance.protocol}",
            "–" if profile.visit_ratio is None else f"{profile.visit_ratio.value:.2f}",
        )
        for name, profile in advice.profiles.items()
    ]


SEEN = ("group", "members", "partitions", "throughput", "P99 to commit", "start-up", "a change's pause", "per event")
"""Heads of `seen_rows`."""


def way_rows(found: GroupContest) -> list[tuple[str, ...]]:
    """Return each way, cheapest first, in words."""
    rows = sorted(found.rows, key=lambda row: row.cost_per_hour)
    return [
        (
            WAYS[row.way],
            f"${row.cost_per_hour:.3f}" + ("" if row.cost_error is None else f" ± {row.cost_error:.3f}"),
            f"{row.miss_rate:.2%}" + ("" if row.miss_error is None else f" ± {row.miss_error:.2%}"),
            "yes" if row.keeps_objective else "no",
            "never" if row.p99_s == float("inf") else format_duration(row.p99_s),
            f"{row.changes_per_hour:.0f}",
            _counts(row),
        )
        for row in rows
    ]


WAY_HEADS = ("members by", "$/h", "late", "keeps the SLO", "P99", "changes/h", "members")
"""Heads of `way_rows`."""


def way_title(found: GroupContest) -> str:
    """Return what is above `way_rows`."""
    if found.planned_from_s is None:
        return "On the same arrivals, which ours was planned for, cheapest first"
    return (
        "On the same arrivals, cheapest first; ours was planned for what came before, "
        f"{format_duration(found.planned_from_s)} at most"
    )


def _doubtful(figure: Learned, unit: str) -> str:
    return f"{figure.value:.4g}{unit} ± {figure.error:.1%}"


def _time(figure: Learned | None) -> str:
    if figure is None:
        return "–"
    return format_duration(figure.value) + (
        f" ± {figure.error:.0%}" if figure.count > 1 else " (seen once)" if figure.count else " (not seen)"
    )
