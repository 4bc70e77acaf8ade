"""What a search is given: stages with their possible hardware and batch limits, traffic, target and prices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from inferline_stream.errors import Infeasible, InvalidInput
from inferline_stream.pipeline.hardware import Catalogue, dollars_per_hour, share_gpus
from inferline_stream.pipeline.plan import Allocation, counts_by_kind
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.shape import Shape, records_per_event, visit_ratios
from inferline_stream.pipeline.trace import Trace

Option = tuple[Allocation, ...]
"""One stage's part of a candidate; several allocations are several hardware kinds, cheapest first."""

Candidate = tuple[Option, ...]
"""An option per stage, by position in `Shape.stages`."""

_ROUNDING = 1e-9

COST_EPSILON = 1e-9
"""Dollars per hour below which two costs count as equal: far below any price, above rounding."""

CONTROLLER_CORES = 0.15
"""Controller, supervisor, page and metrics. They hardly grow with the rate, so a constant will do: 0.08 to 0.1 while
the loop watches three stages, 0.14 as they drain. Planning runs at the lowest priority, and takes what is idle."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One planning problem; everything in it is fixed while plans are searched.

    Args:
        shape: the DAG.
        measured: profiles and paths.
        traces: sample traces; a plan has to meet the target on each of them.
        target_s: latency that ``objective`` of the events must not pass.
        catalogue: hardware kinds with prices and stock.
        partitions: by stage, partitions of its input topic, where replicas own partitions as in a consumer group;
            empty for one queue per stage.
        max_batch_sizes: by stage, largest batch limit to consider; stages left out may use all profiled.
        objective: share of events that must meet the target.
        seed: the estimator's seed.
        order_slo_s: SLO by which queues are ordered, see `simulation.simulate`; None is the target.
        cores: most that all replicas together may have.
        order: of the queues, as in `Pipeline`; where replicas own partitions it is that of entry.

    Raises:
        Infeasible: a stage all of whose hardware is out of stock.
        InvalidInput: a stage that was profiled on no hardware of the catalogue.
        ValueError: no trace, an empty one, or a target or objective that cannot be.
    """

    shape: Shape
    measured: PipelineProfile
    traces: tuple[Trace, ...]
    target_s: float
    catalogue: Catalogue
    partitions: Mapping[str, int] = field(default_factory=dict)
    max_batch_sizes: Mapping[str, int] = field(default_factory=dict)
    objective: float = 0.99
    seed: int = 0
    order_slo_s: float | None = None
    cores: float = math.inf
    order: str = "deadline"

    def __post_init__(self) -> None:
        if not self.traces or not all(len(trace) for trace in self.traces):
            raise ValueError("a plan needs a sample trace with at least one arrival")
        if not (math.isfinite(self.target_s) and self.target_s > 0):
            raise ValueError(f"SLO {self.target_s} s must be finite and above 0")
        if not 0 < self.objective <= 1:
            raise ValueError(f"objective {self.objective} must be a share above 0, at most 1")
        missing = [stage for stage in self.shape.stages if not hardware_kinds(self, stage)]
        unknown = [stage for stage in missing if not _priced(self, stage)]
        if unknown:
            raise InvalidInput(
                *(
                    f"stage {stage!r} was profiled on none of the catalogue's hardware; run `inferline-stream profile`"
                    for stage in unknown
                )
            )
        if missing:
            kinds = ", ".join(_priced(self, missing[0]))
            raise Infeasible(
                f"stage {missing[0]!r}: none of {kinds} is in stock; free some, or let it run on another kind"
            )

    @property
    def queue_slo_s(self) -> float:
        """SLO by which queues are ordered."""
        return self.target_s if self.order_slo_s is None else self.order_slo_s


def _priced(problem: Problem, stage: str) -> list[str]:
    return [kind for kind in problem.measured.hardware_of(stage) if kind in problem.catalogue]


def hardware_kinds(problem: Problem, stage: str) -> tuple[str, ...]:
    """Kinds that the stage may run on, cheapest first: profiled, priced, and not out of stock."""
    in_stock = [kind for kind in _priced(problem, stage) if problem.catalogue[kind].stock != 0]
    return tuple(sorted(in_stock, key=lambda kind: (problem.catalogue[kind].price_per_hour, kind)))


def batch_limits(problem: Problem, stage: str, hardware: str) -> tuple[int, ...]:
    """Batch limits worth considering: profiled sizes that raise throughput, up to the stage's own limit."""
    return _limits(problem.measured.profiles[stage, hardware], problem.max_batch_sizes.get(stage, math.inf))


@lru_cache(maxsize=4096)
def _limits(profile: Profile, largest: float) -> tuple[int, ...]:
    return tuple(size for size in profile.useful_batch_sizes if size <= largest)


def replica_forms(problem: Problem, stage: str, hardware: str) -> tuple[Allocation, ...]:
    """One replica of a kind in every form worth considering, by ascending batch limit and concurrency.

    A form has a batch limit of `batch_limits` and a profiled concurrency, and serves more events per second than every
    form with no more of both.
    """
    return _forms(problem.measured.profiles[stage, hardware], problem.max_batch_sizes.get(stage, math.inf))


@lru_cache(maxsize=4096)
def _forms(profile: Profile, largest: float) -> tuple[Allocation, ...]:
    found: dict[tuple[int, int], float] = {}
    for limit, concurrency in itertools.product(_limits(profile, largest), profile.concurrencies):
        throughput = profile.throughput(limit, concurrency)
        if all(throughput > known for (b, c), known in found.items() if b <= limit and c <= concurrency):
            found[limit, concurrency] = throughput
    return tuple(Allocation(profile.hardware, limit, 1, concurrency=concurrency) for limit, concurrency in found)


def replica_cap(problem: Problem, stage: str, hardware: str) -> float:
    """Most replicas of one kind that the stage can use: as its partitions, its server, stock and all cores bound it."""
    kind = problem.catalogue[hardware]
    stock = math.inf if kind.stock is None else kind.stock
    if kind.cores > 0 and math.isfinite(problem.cores):
        stock = min(stock, math.floor(problem.cores / kind.cores + _ROUNDING))
    if kind.gpu_stock is not None:
        stock = min(stock, math.floor(kind.gpu_stock / kind.gpus_of(1) + _ROUNDING) * kind.parts)
    return min(stock, _most_in_all(problem, stage, (Allocation(hardware, 1, 1),)))


def _most_in_all(problem: Problem, stage: str, option: Option) -> float:
    """Replicas of a stage that are of use: one for each partition, and one that asks a server."""
    bounds = [problem.measured.profiles[stage, a.hardware].most_replicas for a in option]
    known = [most for most in bounds if most is not None]
    return min([problem.partitions.get(stage, math.inf), *known])


def cores_of(catalogue: Catalogue, option: Option) -> float:
    """Cores that an option's replicas have together."""
    return sum(a.replicas * catalogue[a.hardware].cores for a in option)


def is_scarce(problem: Problem, hardware: str) -> bool:
    """Whether another stage may lack what one takes of a kind: its stock, or the cores or GPUs that all share."""
    kind = problem.catalogue[hardware]
    limited = kind.stock is not None or kind.gpu_stock is not None
    return limited or (kind.cores > 0 and math.isfinite(problem.cores))


def price_of(problem: Problem, option: Option) -> float:
    """Dollars per hour of one stage's option."""
    return sum(a.replicas * problem.catalogue[a.hardware].price_per_hour for a in option)


def cost_of(problem: Problem, candidate: Candidate) -> float:
    """Dollars per hour of a candidate, shares of devices counted as such: what a search goes down in."""
    return math.fsum(price_of(problem, option) for option in candidate)


def paid_of(problem: Problem, candidate: Candidate) -> float:
    """Dollars per hour of a candidate and of all that it leaves of shared devices: no less than `cost_of`."""
    return dollars_per_hour(counts_by_kind(candidate), problem.catalogue)


def shares_devices(problem: Problem) -> bool:
    """Whether some stage may have a share of a device."""
    kinds = {kind for stage in problem.shape.stages for kind in hardware_kinds(problem, stage)}
    return any(problem.catalogue[kind].parts > 1 for kind in kinds)


def with_whole_devices(problem: Problem) -> Problem:
    """Return the problem without shares of devices.

    Raises:
        Infeasible: what some stage has left is out of stock.
        InvalidInput: some stage may have nothing else.
    """
    whole = {name: kind for name, kind in problem.catalogue.items() if kind.parts == 1}
    return replace(problem, catalogue=whole)


def in_stock(problem: Problem, candidate: Candidate) -> bool:
    """Whether stock, cores and GPUs suffice for all stages together, and no stage has idle replicas by design.

    Of the beginning of a candidate, too: then for its stages.
    """
    held: dict[str, int] = {}
    for stage, option in zip(problem.shape.stages, candidate, strict=False):
        if sum(a.replicas for a in option) > _most_in_all(problem, stage, option):
            return False
        for a in option:
            held[a.hardware] = held.get(a.hardware, 0) + a.replicas
    if not in_machine(problem, candidate):
        return False
    stocks = ((problem.catalogue[kind].stock, count) for kind, count in held.items())
    return all(stock is None or count <= stock for stock, count in stocks)


def in_machine(problem: Problem, candidate: Candidate) -> bool:
    """Whether cores, and GPUs that several kinds share, suffice for a candidate, or for its beginning."""
    counts = counts_by_kind(candidate)
    held = [(kind, kind.gpus_of(counts[name])) for name in counts if (kind := problem.catalogue[name]).gpus]
    for kind, _ in held:
        gpus = sum(n for other, n in held if share_gpus(other.gpu_model, kind.gpu_model))
        if kind.gpu_stock is not None and gpus > kind.gpu_stock + _ROUNDING:
            return False
    return sum(cores_of(problem.catalogue, option) for option in candidate) <= problem.cores + _ROUNDING


def replaced(candidate: Candidate, stage: int, option: Option) -> Candidate:
    """The candidate with another option for one stage."""
    return (*candidate[:stage], option, *candidate[stage + 1 :])


def arrival_rates(problem: Problem) -> tuple[float, ...]:
    """Mean λ·s of each stage, the largest over the traces."""
    ratios = visit_ratios(problem.shape, problem.measured.paths)
    rate = max(trace.arrival_rate for trace in problem.traces)
    return tuple(rate * ratios[stage] for stage in problem.shape.stages)


def slots(problem: Problem) -> tuple[int, ...]:
    """Dispatchers of each stage, no more than replicas are of use; 1 where replicas own partitions."""
    overheads, bound = problem.measured.overheads, problem.partitions
    if overheads is None:
        return (1,) * len(problem.shape.stages)
    found = []
    busiest = max(trace.arrival_rate for trace in problem.traces)
    for name, records in records_per_event(problem.shape, problem.measured.paths).items():
        profiles = (problem.measured.profiles[name, kind] for kind in hardware_kinds(problem, name))
        known = [profile.most_replicas for profile in profiles if profile.most_replicas is not None]
        found.append(1 if name in bound else min([overheads.slots(busiest * records), *known]))
    return tuple(found)


def fastest_path_s(problem: Problem) -> float:
    """T_s on the fastest hardware, hops included; infinite stock of it assumed."""
    return rest_s(problem, [fastest_s(problem, stage) for stage in problem.shape.stages])


def fastest_s(problem: Problem, stage: str) -> float:
    """Least service time of a batch of 1 on any of a stage's hardware kinds."""
    return min(problem.measured.profiles[stage, kind].service_time_s(1) for kind in hardware_kinds(problem, stage))


def rest_s(problem: Problem, service_time_s: Sequence[float]) -> float:
    """Longest path through stages with these service times: a hop into each stage and one into the sink."""
    hop_s = problem.measured.least_hop_s
    return problem.shape.longest_path_s([time_s + hop_s for time_s in service_time_s]) + hop_s


def replica_cores(machine_cores: float, shape: Shape, measured: PipelineProfile, rate: float) -> float:
    """Return the cores that all replicas together may have; 0 where the rest of a run takes all of them.

    Args:
        machine_cores: cores that this run may use.
        shape: the DAG.
        measured: with overheads; without them only the controller's part is known.
        rate: events per second.
    """
    left = machine_cores - CONTROLLER_CORES
    if measured.overheads is not None:
        per_event = records_per_event(shape, measured.paths)
        for at, stage in enumerate(shape.stages):
            parents = [shape.stages[shape.arrows[bit].parent] for bit in shape.parents(at)]
            # A join gets a record of each parent, and one where a branch was skipped.
            records = len(parents) if len(parents) > 1 else per_event[stage]
            left -= measured.overheads.stage_cores(rate * records)
    return max(0.0, left)
