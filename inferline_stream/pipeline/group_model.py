"""Consumer groups as the Estimator, the Planner and the policy know stages: a shape, profiles and paths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.group_profile import UNSEEN, GroupProfile, Sharing
from inferline_stream.pipeline.hardware import Catalogue, Hardware, catalogue
from inferline_stream.pipeline.profile import NOISE_PROBABILITIES, PipelineProfile, Profile, ServiceTime, Variation
from inferline_stream.pipeline.shape import FanOut, Paths, Shape, independent_paths, shape_of
from inferline_stream.pipeline.topology import Pipeline

HOP_S = 0.005
"""From an append to its being fetched: no committed offset shows it."""

START_UP_S = 10.0
"""Of a worker, where none has joined yet: what a container takes."""

_LEAST_LEVEL = 0.002
_NOISE = tuple(NormalDist().inv_cdf(min(max(p, _LEAST_LEVEL), 1 - _LEAST_LEVEL)) for p in NOISE_PROBABILITIES)
"""The standard normal's levels: times of a batch are taken to be lognormal, and cut off where nobody has seen them."""


@dataclass(frozen=True, slots=True)
class GroupModel:
    """What plans, replays and the policy of consumer groups are made of.

    Args:
        pipeline: its name.
        slo_s: latency target.
        objective: share of events that must meet it.
        shape: the groups, parents first.
        measured: a profile of each group on its hardware, and how many records of each topic an event causes.
        sharing: by group.
        catalogue: prices.
    """

    pipeline: str
    slo_s: float
    objective: float
    shape: Shape
    measured: PipelineProfile
    sharing: Mapping[str, Sharing]
    catalogue: Catalogue

    @property
    def partitions(self) -> dict[str, int]:
        """Of each group's topic."""
        return {name: sharing.partitions for name, sharing in self.sharing.items()}

    @property
    def most(self) -> dict[str, int]:
        """Members of each group that can have something to do."""
        return {name: sharing.most for name, sharing in self.sharing.items()}

    @property
    def hardware(self) -> dict[str, str]:
        """The kind that each group's workers run on."""
        return {name: kind for name, kind in self.measured.profiles}


def group_model(pipeline: Pipeline, learned: Iterable[GroupProfile]) -> GroupModel:
    """Return the model of a pipeline's groups.

    Args:
        pipeline: a valid one, of groups.
        learned: of each group; a change of members that was never seen costs what `UNSEEN` says.

    Raises:
        InvalidInput: a group of which nothing was learned, or whose throughput is not known yet; branches of which one
            has several records per event.
    """
    profiles = {profile.group: profile for profile in learned}
    unknown = [
        f"group {group.name!r}: its throughput is not known yet; watch it longer, or under more load"
        for group in pipeline.groups
        if group.name not in profiles or profiles[group.name].throughput is None
    ]
    if unknown:
        raise InvalidInput(*unknown)
    hardware = {group.name: group.hardware for group in pipeline.groups}
    shape, paths = _paths(shape_of(pipeline), profiles)
    return GroupModel(
        pipeline.name,
        pipeline.slo_s,
        pipeline.objective,
        shape,
        PipelineProfile(
            {(name, hardware[name]): _profile(profiles[name], hardware[name]) for name in shape.stages}, paths, HOP_S
        ),
        {name: Sharing(profiles[name].partitions, profiles[name].rebalance or UNSEEN) for name in shape.stages},
        catalogue(kind for kind in pipeline.hardware if isinstance(kind, Hardware)),
    )


def _profile(seen: GroupProfile, hardware: str) -> Profile:
    """S(b) = fixed + per event · b, with lognormal noise, at powers of two and at the largest batch."""
    largest = max(1, seen.max_batch_size)
    sizes = sorted({*(1 << bit for bit in range(largest.bit_length())), largest})
    spread = math.sqrt(math.log1p(seen.spread**2))
    times = tuple(ServiceTime(size, seen.fixed_s + seen.per_event_s * size, spread=spread) for size in sizes)
    return Profile(
        seen.group,
        hardware,
        times,
        START_UP_S if seen.start_up_s is None else seen.start_up_s.value,
        Variation(noise=_NOISE) if spread else None,
    )


def _paths(shape: Shape, profiles: Mapping[str, GroupProfile]) -> tuple[Shape, Paths]:
    """The shape with the groups that write several records per event, and which arrows events take."""
    visits = {name: 1.0 if (known := profiles[name].visit_ratio) is None else known.value for name in shape.stages}
    visits |= {shape.stages[entry]: 1.0 for entry in shape.entries()}
    edges = [(shape.stages[arrow.parent], shape.stages[arrow.child]) for arrow in shape.arrows]
    ratio = {(parent, child): visits[child] / visits[parent] if visits[parent] > 0 else 0.0 for parent, child in edges}
    most = {parent: max(r for (p, _), r in ratio.items() if p == parent) for parent, _ in ratio}
    many = {shape.stages.index(parent): mean for parent, mean in most.items() if mean > 1}
    if many and len(shape.finals()) > 1:
        raise InvalidInput(
            f"groups {', '.join(repr(shape.stages[s]) for s in many)} write several records per event, and "
            f"{len(shape.finals())} groups have no child: latencies are of events in one and of records in the other; "
            "declare a pipeline for each branch"
        )
    shape = replace(shape, many=tuple(sorted(many)))
    taken = {(parent, child): min(r / max(most[parent], 1.0), 1.0) for (parent, child), r in ratio.items()}
    whole = independent_paths(shape, taken)
    fan_outs = [
        _fan_out(stage, many[stage], independent_paths(shape, taken, shape.scope_after(stage))) for stage in shape.many
    ]
    return shape, replace(whole, fan_outs=tuple(fan_outs))


def _fan_out(stage: int, mean: float, paths: Paths) -> FanOut:
    """As many results as the two whole numbers beside the mean."""
    fewer, share = math.floor(mean), mean - math.floor(mean)
    counts, shares = ((fewer, fewer + 1), (1 - share, share)) if share > 1e-9 else ((fewer,), (1.0,))
    return FanOut(stage, counts, shares, paths.masks, paths.weights)
