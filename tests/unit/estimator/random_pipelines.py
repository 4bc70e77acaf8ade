"""Random pipelines with everything the estimator models, small enough for the event heap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Varying
from inferline_stream.estimator.station import STEADY, Station
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.profile import HOP_PROBABILITIES, LEVELS, PipelineProfile
from inferline_stream.pipeline.shape import Arrow, FanOut, Paths, Shape, independent_paths, visited
from inferline_stream.pipeline.trace import Trace


@dataclass(frozen=True)
class RandomPipeline:
    workload: Workload
    stations: list[Station]


def random_pipeline(seed: int, *, events: int = 120, code: Any = None, many: bool = False) -> RandomPipeline:
    """Half of them live on a grid of exact binary fractions, where nearly everything happens at the same instants.

    With ``many``, some stages give an event many results, and others gather them.
    """
    rng = np.random.default_rng(seed)
    shape = with_sources(with_sinks(random_tree(seed) if many else random_shape(rng), seed), seed)
    conditional = {
        (shape.stages[w.parent], shape.stages[w.child]): rng.choice([0.0, 0.3, 0.5, 0.9])
        for w in shape.arrows
        if w.conditional
    }
    grid = 2.0 ** -rng.integers(3, 7) if rng.random() < 0.5 else 0.0
    hop_s = rng.choice([0.0, 0.01, 0.3]) if not grid else grid * rng.integers(0, 3)
    paths, keys = independent_paths(shape, conditional), random_keys(shape, seed)
    paths = with_fan_outs(shape, seed) if many else paths
    measured = PipelineProfile(
        {},
        paths,
        float(hop_s),
        keys=keys,
        hop_spread_s=random_spread_s(seed, grid),
        classes=() if shape.sources else random_classes(seed, grid),
    )
    n = int(rng.integers(1, events))
    times = np.cumsum(rng.gamma(1 / 4, 4.0, n)) * rng.choice([0.02, 0.1, 0.5])
    if grid:
        times = np.floor(times / grid) * grid
    if rng.random() < 0.2:
        times = times + 1.7e9
    known = np.random.default_rng([seed, 9]).integers(0, max(1, len(shape.sources)), n if seed % 2 else 0)
    workload = prepare(shape, measured, Trace(times, known.astype(np.uint8)), seed=seed, code=code)
    stations = [with_concurrency(random_station(rng, grid), seed + s) for s, _ in enumerate(shape.stages)]
    stations = [with_slots(station, seed + s) for s, station in enumerate(stations)]
    return RandomPipeline(workload, [with_deadline(station, seed + s) for s, station in enumerate(stations)])


def random_tree(seed: int) -> Shape:
    """Stages one after another, side by side and joined, some of which give many results, gathered or left apart."""
    rng = np.random.default_rng([seed, 6])
    names, arrows, many = ["s0"], list[Arrow](), list[int]()
    scopes: list[tuple[int, ...]] = [()]

    def add(scope: tuple[int, ...], *parents: int, gathers: bool = False) -> int:
        at = len(names)
        names.append(f"s{at}")
        scopes.append(scope)
        several = len(parents) > 1
        arrows.extend(
            Arrow(p, at, not gathers and bool(rng.random() < (0.6 if several else 0.3)), gathers) for p in parents
        )
        return at

    last, scope = 0, tuple[int, ...]()
    if rng.random() < 0.3:  # ways of two sources meet, or of one that enters twice
        names.append("s1")
        scopes.append(())
        last = add((), 0, 1)
    for _ in range(int(rng.integers(2, 6))):
        what = rng.random()
        if rng.random() < 0.4 and len(scope) < 2 and last not in many:
            many.append(last)
            scope = (*scope, last)
        if what < 0.3 and scope:
            last, scope = add(scope[:-1], last, gathers=True), scope[:-1]
        elif what > 0.75:
            left, right = add(scope, last), add(scope, last)
            last = add(scope, left, right)
        else:
            last = add(scope, last)
    return Shape(tuple(names), tuple(arrows), tuple(sorted(many)))


def with_sinks(shape: Shape, seed: int) -> Shape:
    """Half of the shapes with stages before others that feed a sink as well, of whole events or of their results."""
    rng = np.random.default_rng([seed, 8])
    if rng.random() < 0.5:
        return shape
    inner = (at for at in range(len(shape.stages)) if shape.children(at))
    return replace(shape, beside=tuple(at for at in inner if rng.random() < 0.3))


def with_sources(shape: Shape, seed: int) -> Shape:
    """Most of the shapes with several first stages with two sources or more, each of which leads to some of these."""
    rng, entries = np.random.default_rng([seed, 10]), shape.entries()
    if len(entries) < 2 or rng.random() < 0.3:
        return shape
    own = rng.integers(0, min(3, len(entries)), len(entries)).tolist()
    own[:2] = [0, 1]
    sources = [tuple(e for e, of in zip(entries, own, strict=True) if of == each) for each in sorted(set(own))]
    return replace(shape, sources=tuple(sources))


def with_fan_outs(shape: Shape, seed: int) -> Paths:
    """Paths of each scope, as they are drawn in `independent_paths`, and how many results there are: often none."""
    rng = np.random.default_rng([seed, 7])

    def ways(scope: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        found = set[int]()
        sources = 1 if scope else max(1, len(shape.sources))
        for source in list(range(sources)) * 8:
            mask = shape.source_bit(source)
            for bit, arrow in enumerate(shape.arrows):
                seen = visited(shape, mask, scope)[arrow.parent] or arrow.parent in scope[-1:]
                if shape.scope_after(arrow.parent) == scope and seen and not (arrow.conditional and rng.random() < 0.5):
                    mask |= 1 << bit
            found.add(mask)
        weights = rng.dirichlet(np.ones(len(found)))
        return tuple(sorted(found)), tuple(float(weight) for weight in weights / weights.sum())

    fan_outs = []
    for stage in shape.many:
        counts = tuple(sorted({int(count) for count in rng.integers(0, 6, int(rng.integers(1, 4)))}))
        shares = tuple(float(share) for share in rng.dirichlet(np.ones(len(counts))))
        fan_outs.append(FanOut(stage, counts, shares, *ways(shape.scope_after(stage))))
    return Paths(*ways(()), tuple(fan_outs))


def with_deadline(station: Station, seed: int) -> Station:
    """Most stations that have an SLO with hopeless events last; half of them of one kind, with a kernel of its own."""
    rng = np.random.default_rng([seed, 5])
    if station.partitions or not 0 < station.order_slo_s < np.inf or rng.random() < 0.4:
        return station
    slo_s = station.order_slo_s * float(rng.choice([1.0, 4.0, 16.0]))
    rest_s = slo_s * float(rng.choice([0.0, 0.125, 0.5, 1.5]))
    if rng.random() < 0.5:
        table, varying = station.table[: station.width], station.varying
        if station.varies:
            fixed_s, per_unit_s, factors = (rows[: station.width] for rows in varying[:3])
            varying = Varying(fixed_s, per_unit_s, factors, varying.units[:1], varying.largest[:1])
        limits = np.array([station.width - 1])
        kinds, hold_s = np.zeros_like(station.kinds), station.hold_s * int(rng.integers(2))
        station = replace(
            station, limits=limits, table=table, varying=varying, kinds=kinds, hold_s=hold_s, concurrency=None
        )
    return with_fallback(replace(station, order_slo_s=slo_s, rest_s=rest_s), seed)


def with_fallback(station: Station, seed: int) -> Station:
    """Most of those with a fallback, which need not be faster, and a share that now and then is spent."""
    rng = np.random.default_rng([seed, 6])
    if rng.random() < 0.3:
        return station
    table = station.table * np.repeat(2.0 ** -rng.integers(-1, 7, station.table.size // station.width), station.width)
    share = float(rng.choice([0.0625, 0.25, 1.0, 1.0]))
    return replace(station, fallback=table, fallback_share=share, served_before=int(rng.choice([0, 20, 1000])))


def with_concurrency(station: Station, seed: int) -> Station:
    """Some of the stations with replicas that run up to four batches at once, the more the slower."""
    rng = np.random.default_rng([seed, 4])
    if station.partitions or rng.random() < 0.7:
        return station
    concurrency = rng.integers(1, 5, station.limits.size)
    levels = int(concurrency.max())
    longer = 2.0 ** rng.integers(0, 3, (station.limits.size, levels, 1))  # on the grid, if there is one
    spread = {"table": station.table, "fixed_s": station.varying.fixed_s, "per_unit_s": station.varying.per_unit_s}
    by_level = {
        name: (rows.reshape(station.limits.size, 1, -1) * longer).ravel() for name, rows in spread.items() if rows.size
    }
    factors = station.varying.factors.reshape(station.limits.size, -1, LEVELS) if station.varies else None
    varying = station.varying
    if factors is not None:
        varying = varying._replace(
            fixed_s=by_level["fixed_s"],
            per_unit_s=by_level["per_unit_s"],
            factors=np.repeat(factors[:, None], levels, axis=1).reshape(-1, LEVELS),
        )
    return replace(station, table=by_level["table"], varying=varying, concurrency=concurrency)


def with_slots(station: Station, seed: int) -> Station:
    """A third of the stations with two dispatchers or three."""
    rng = np.random.default_rng([seed, 3])
    if station.partitions or rng.random() < 0.67:
        return station
    return replace(station, slots=int(rng.integers(1, min(3, station.replicas) + 1)))


def random_keys(shape: Shape, seed: int) -> Keys:
    """In half of the pipelines, some busy keys and stages that keep their order; of randomness of its own."""
    rng = np.random.default_rng([seed, 1])
    if rng.random() < 0.5:
        return Keys()
    shares = rng.dirichlet(np.full(int(rng.integers(1, 9)), 0.7)) * rng.choice([0.4, 1.0])
    named = tuple((f"k{i}", float(share)) for i, share in enumerate(shares) if share > 1e-9)
    return Keys(named, tuple(name for name in shape.stages if rng.random() < 0.7))


def random_classes(seed: int, grid: float) -> tuple[LiveClass, ...]:
    """In a third of the pipelines, one or two more live classes, of shorter and longer SLOs."""
    rng = np.random.default_rng([seed, 6])
    if rng.random() < 0.67:
        return ()
    unit = grid or 0.1
    return tuple(
        LiveClass(f"c{i}", float(rng.choice([0.1, 0.4])), float(unit * rng.integers(-3, 9)))
        for i in range(int(rng.integers(1, 3)))
    )


def random_spread_s(seed: int, grid: float) -> tuple[float, ...]:
    """In half of the pipelines, hops that differ, on the grid if there is one."""
    rng = np.random.default_rng([seed, 2])
    if rng.random() < 0.5:
        return ()
    if grid:
        return tuple(sorted(grid * rng.integers(-1, 4, len(HOP_PROBABILITIES)).astype(float)))
    return tuple(np.sort(rng.gamma(1.0, float(rng.choice([0.005, 0.1])), len(HOP_PROBABILITIES)) - 0.005).tolist())


def random_shape(rng: np.random.Generator) -> Shape:
    stages = int(rng.integers(1, 8))
    arrows = []
    for child in range(1, stages):
        for parent in range(child):
            if rng.random() < 0.4 or (parent == child - 1 and rng.random() < 0.5):
                arrows.append(Arrow(parent, child, bool(rng.random() < 0.5)))
    return Shape(tuple(f"s{i}" for i in range(stages)), tuple(arrows))


def random_station(rng: np.random.Generator, grid: float) -> Station:
    kinds = int(rng.integers(1, 4))
    limits = rng.choice([1, 2, 3, 5, 8], kinds)
    width = int(limits.max()) + 1
    # Not monotone in the batch size on purpose.
    table = rng.gamma(2.0, 0.05, kinds * width)
    if grid:
        table = np.ceil(table / grid) * grid
    held = rng.integers(1, 3, kinds)
    grouped = rng.random() < 0.3
    partitions = int(held.sum() + rng.integers(0, 5)) if grouped else 0
    wait = rng.random() < 0.4 and not grouped
    return Station(
        limits=limits.astype(np.int64),
        table=table,
        kinds=rng.permutation(np.repeat(np.arange(kinds, dtype=np.int64), held)),
        hold_s=float((grid or 0.1) * rng.integers(1, 4)) if wait else 0.0,
        order_slo_s=float(rng.choice([0.0, grid or 0.1, 4 * (grid or 0.1), np.inf])),
        varying=random_variation(rng, table, kinds) if rng.random() < 0.5 else STEADY,
        slots=int(held.sum()) if grouped else 1,
        partitions=partitions,
    )


def random_variation(rng: np.random.Generator, table: np.ndarray, kinds: int) -> Varying:
    """Events that differ, batches that differ, or both; sometimes only in some kinds."""
    units, factors = np.ones((kinds, LEVELS)), np.ones((table.size, LEVELS))
    fixed_s = table * rng.choice([0.0, 0.5, 1.0])
    if rng.random() < 0.7:
        classes = rng.random() < 0.5
        units = np.sort(rng.choice([1.0, 5.0], units.shape) if classes else rng.gamma(0.5, 2.0, units.shape))
    if rng.random() < 0.7:
        factors = np.sort(rng.lognormal(-0.2, 0.6, factors.shape))
    return Varying(fixed_s + 1e-4, table - fixed_s, factors, units, rng.integers(0, 2, kinds).astype(np.uint8))
