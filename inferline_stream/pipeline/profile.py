"""What was measured of each stage: service time by hardware and batch size, start-up time, visit ratios."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.spot import is_spot, on_demand

LEVELS = 256
"""Equally probable values by which the Estimator knows a distribution: the highest is that of the top 0.4 %."""

STEADY = 0.05
"""Standard deviation over mean below which the mean stands for a distribution."""

NOISE_PROBABILITIES = (
    *(0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0),
)
"""Levels at which `Variation.noise` holds its distribution; between them it is linear."""


@dataclass(frozen=True, slots=True)
class Variation:
    """What makes batches of one size take different times.

    A batch of b takes ``(fixed_s(b) + (S(b) − fixed_s(b)) · x / E[x]) · factor``, where ``fixed_s`` and ``spread`` are
    those of its `ServiceTime`:

    - x is the mean, or the largest, of what its events ask for (their *units*); the largest where a model pads a batch
      to its longest event;
    - the factor has a mean of 1 and the logarithm ``spread(b) · noise`` plus a constant.

    Args:
        units: (unit, count) ascending: what events of the sample ask for, in `LEVELS` equal shares; empty where
            events do not differ. Only ratios count.
        largest: whether x is the largest unit of the batch, rather than the mean.
        noise: distribution of the standardized logarithm at `NOISE_PROBABILITIES`, ascending; empty without.

    Raises:
        ValueError: units or noise that are no distribution.
    """

    units: tuple[tuple[float, int], ...] = ()
    largest: bool = False
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values, counts = [unit for unit, _ in self.units], [count for _, count in self.units]
        if self.units:
            if sum(counts) != LEVELS or min(counts) < 1:
                raise ValueError(f"counts {counts} of units must be 1 or more, and {LEVELS} together")
            if not all(map(math.isfinite, values)) or values[0] < 0 or values[-1] <= 0:
                raise ValueError(f"units {values} must be finite, 0 or more, and not all 0")
            if any(a >= b for a, b in itertools.pairwise(values)):
                raise ValueError(f"units {values} must ascend without repeats")
        if self.noise:
            if len(self.noise) != len(NOISE_PROBABILITIES):
                raise ValueError(f"{len(self.noise)} levels of noise, need {len(NOISE_PROBABILITIES)}")
            if not all(map(math.isfinite, self.noise)) or list(self.noise) != sorted(self.noise):
                raise ValueError(f"noise {self.noise} must be finite and ascend")


_LEAST_S, _MOST_S = 1e-9, 1e9
"""Of a service time: no batch takes less or more, and rates of what does would not be finite."""

PROBABILITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""Levels at which `ServiceTime.quantiles_s` holds the measured times."""

HOP_PROBABILITIES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
"""Levels of `PipelineProfile.hop_spread_s`; between them it is linear, and the last one stands for what is above: there
a machine that stood still for a moment was measured."""


def check_hop(overhead_s: float, spread_s: Sequence[float]) -> None:
    """Refuse what is no time between two stages; see `PipelineProfile`.

    Raises:
        ValueError: a time that is not finite, or a spread that is no ascending list of so many.
    """
    if spread_s and (len(spread_s) != len(HOP_PROBABILITIES) or list(spread_s) != sorted(spread_s)):
        raise ValueError(f"spread {spread_s} of a hop must ascend, and have {len(HOP_PROBABILITIES)} levels")
    if not all(map(math.isfinite, (overhead_s, *spread_s))):
        raise ValueError(f"a hop of {overhead_s} s and its spread {spread_s} must be finite")


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Service time S(b) of one batch size.

    Args:
        batch_size: events in the batch.
        mean_s: mean time from handing the batch to the stage to having its results.
        quantiles_s: the times measured at `PROBABILITIES`, ascending; empty means always `mean_s`.
        fixed_s: part of the mean that does not depend on what the events ask for, see `Variation`.
        spread: standard deviation of the logarithm of the time, what its events ask for aside.
        device_bytes: memory of its GPU that the stage took for batches of up to this size; 0 where it has none.

    Raises:
        ValueError: a batch size below 1, a time that no batch takes, unordered quantiles, a fixed part
            beyond the mean, or a spread below 0.
    """

    batch_size: int
    mean_s: float
    quantiles_s: tuple[float, ...] = ()
    fixed_s: float = 0.0
    spread: float = 0.0
    device_bytes: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size} must be 1 or more")
        if not _LEAST_S <= self.mean_s <= _MOST_S:
            raise ValueError(
                f"batch size {self.batch_size}: service time {self.mean_s} s must be {_LEAST_S:g} to {_MOST_S:g} s"
            )
        if not 0 <= self.fixed_s <= self.mean_s:
            raise ValueError(
                f"batch size {self.batch_size}: fixed part {self.fixed_s} s must be within the mean of {self.mean_s} s"
            )
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"batch size {self.batch_size}: spread {self.spread} must be 0 or more")
        if self.quantiles_s:
            if len(self.quantiles_s) != len(PROBABILITIES):
                raise ValueError(f"{len(self.quantiles_s)} quantiles, need {len(PROBABILITIES)}")
            if any(not _LEAST_S <= q <= _MOST_S for q in self.quantiles_s):
                raise ValueError(
                    f"batch size {self.batch_size}: quantiles {self.quantiles_s} must be {_LEAST_S:g} to {_MOST_S:g} s"
                )
            if list(self.quantiles_s) != sorted(self.quantiles_s):
                raise ValueError(f"batch size {self.batch_size}: quantiles {self.quantiles_s} must ascend")

    @property
    def p50_s(self) -> float:
        """Median service time."""
        return self.quantiles_s[PROBABILITIES.index(0.5)] if self.quantiles_s else self.mean_s

    @property
    def p99_s(self) -> float:
        """99th percentile of the service time."""
        return self.quantiles_s[PROBABILITIES.index(0.99)] if self.quantiles_s else self.mean_s

    def longer(self, factor: float) -> ServiceTime:
        """The same where batches of this size take so many times longer."""
        return replace(
            self,
            mean_s=self.mean_s * factor,
            fixed_s=self.fixed_s * factor,
            quantiles_s=tuple(q * factor for q in self.quantiles_s),
        )

    @property
    def throughput(self) -> float:
        """µ = b / S(b), events per second of one replica that always runs this batch size."""
        return self.batch_size / self.mean_s


@dataclass(frozen=True, slots=True)
class Contention:
    """How much longer batches take that a replica runs beside others, at one concurrency.

    Args:
        concurrency: batches in hand at a batch's start, itself included.
        factors: time of such a batch over that of one alone, by ascending measured batch size.

    Raises:
        ValueError: a concurrency below 2, or a factor that is not finite, or below 1.
    """

    concurrency: int
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.concurrency < 2:
            raise ValueError(f"concurrency {self.concurrency} must be 2 or more: with 1 nothing contends")
        if not all(math.isfinite(factor) and factor >= 1 for factor in self.factors):
            raise ValueError(f"concurrency {self.concurrency}: factors {self.factors} must be finite and 1 or more")


@dataclass(frozen=True, slots=True)
class Profile:
    """One stage on one kind of hardware.

    Args:
        stage: the stage's name.
        hardware: the hardware kind's name.
        service_times: by ascending batch size, starting at batch size 1.
        start_up_s: from asking for a replica to its READY.
        variation: how batches of one size differ; None where all take S(b).
        waited_share: share of the service time in which a replica could have run and had no core, because it shared
            one; stops by its control group are no part of it.
        contention: by ascending concurrency, what was measured of batches beside others; empty where a replica runs
            one batch at a time.
        most_replicas: replicas that are of use; None for any number.
        shared_by: how its device was shared as it was measured, in words; empty where it had it alone.
        fallback: service times of the stage's fallback, up to the same batch size; empty without one.
        fallback_share: of the events that it may make.
        wake_s: from the first batch after it has slept to the server that it asks serving again; None of one that
            cannot sleep.
        products: that its devices are of, as they report themselves; each time is the longest of all of them.

    Raises:
        ValueError: no service time for batch size 1, unordered batch sizes or concurrencies, a bad start-up time.
    """

    stage: str
    hardware: str
    service_times: tuple[ServiceTime, ...]
    start_up_s: float = 0.0
    variation: Variation | None = None
    waited_share: float = 0.0
    contention: tuple[Contention, ...] = ()
    most_replicas: int | None = None
    shared_by: str = ""
    fallback: tuple[ServiceTime, ...] = ()
    fallback_share: float = 0.0
    wake_s: float | None = None
    products: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = [entry.batch_size for entry in self.service_times]
        where = f"profile of stage {self.stage!r} on {self.hardware!r}"
        if not sizes or sizes[0] != 1:
            raise ValueError(f"{where}: batch size 1 is missing (has {sizes}); run `inferline-stream profile`")
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"{where}: batch sizes {sizes} must ascend without repeats")
        if not (math.isfinite(self.start_up_s) and self.start_up_s >= 0):
            raise ValueError(f"{where}: start-up time {self.start_up_s} s must be 0 or more")
        if any(a >= b for a, b in itertools.pairwise(self.concurrencies)):
            raise ValueError(f"{where}: concurrencies {self.concurrencies} must ascend without repeats")
        if any(len(entry.factors) != len(sizes) for entry in self.contention):
            raise ValueError(f"{where}: a concurrency has other batch sizes than {sizes}")
        others = [entry.batch_size for entry in self.fallback]
        if others and (others[0] != 1 or others[-1] < sizes[-1]):
            raise ValueError(
                f"{where}: its fallback has times of batches of {others}, and needs those up to {sizes[-1]}"
            )
        if not 0 <= self.fallback_share <= 1:
            raise ValueError(f"{where}: share {self.fallback_share} of its fallback must be between 0 and 1")

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Concurrencies that were measured, ascending from 1."""
        return (1, *(entry.concurrency for entry in self.contention))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that were measured, ascending."""
        return tuple(entry.batch_size for entry in self.service_times)

    @property
    def useful_batch_sizes(self) -> tuple[int, ...]:
        """Measured batch sizes that raise throughput over every smaller one (InferLine §4.1 prunes the rest)."""
        useful: list[int] = []
        best = 0.0
        for entry in self.service_times:
            if entry.throughput > best:
                best = entry.throughput
                useful.append(entry.batch_size)
        return tuple(useful)

    def of_fallback(self) -> Profile | None:
        """Return the profile of the fallback; None without one. Beside others its batches slow down as the stage's."""
        if not self.fallback:
            return None
        return replace(self, service_times=self.fallback, variation=None, fallback=(), fallback_share=0.0)

    def without_fallback(self) -> Profile:
        """Return the profile of the stage alone."""
        return replace(self, fallback=(), fallback_share=0.0)

    def beside(self, concurrency: int) -> Profile:
        """Return the profile of batches at whose start a replica has so many in hand, themselves included."""
        times = (entry.longer(self.slowed(entry.batch_size, concurrency)) for entry in self.service_times)
        return replace(self, service_times=tuple(times), contention=(), fallback=())

    def scaled(self, factor: float) -> Profile:
        """Return the profile in which batches of every size take so many times longer."""
        own, fallback = (tuple(e.longer(factor) for e in times) for times in (self.service_times, self.fallback))
        return replace(self, service_times=own, fallback=fallback)

    def slowed(self, batch_size: int, concurrency: float) -> float:
        """Return how many times as long a batch takes beside others, linear between what was measured.

        Args:
            batch_size: b, within those measured.
            concurrency: batches in hand at its start, itself included; a mean need not be whole.

        Raises:
            ValueError: a concurrency below 1 or above the largest measured.
        """
        if concurrency == 1:
            return 1.0
        known = self.concurrencies
        if not 1 <= concurrency <= known[-1]:
            raise ValueError(
                f"stage {self.stage!r} on {self.hardware!r}: concurrency {concurrency:g} was never profiled "
                f"(1 to {known[-1]} were); run `inferline-stream profile`"
            )
        factors = [1.0]
        factors += [_interpolated(self.batch_sizes, entry.factors, batch_size) for entry in self.contention]
        return _interpolated(known, factors, concurrency)

    def service_time_s(self, batch_size: int, concurrency: float = 1) -> float:
        """Mean S(b), linear between measured batch sizes, and between measured concurrencies.

        Args:
            batch_size: b.
            concurrency: batches that the replica has in hand at its start, itself included.

        Raises:
            ValueError: a batch size or a concurrency below 1 or above the largest measured.
        """
        sizes = self.batch_sizes
        if not 1 <= batch_size <= sizes[-1]:
            raise ValueError(
                f"stage {self.stage!r} on {self.hardware!r}: batch size {batch_size} was never profiled "
                f"(1 to {sizes[-1]} were); run `inferline-stream profile`"
            )
        alone_s = _interpolated(sizes, [entry.mean_s for entry in self.service_times], batch_size)
        return alone_s if concurrency == 1 else alone_s * self.slowed(batch_size, concurrency)

    def fixed_s(self, batch_size: int) -> float:
        """Part of S(b) that does not depend on what the events ask for, linear between measured batch sizes."""
        return _interpolated(self.batch_sizes, [entry.fixed_s for entry in self.service_times], batch_size)

    def spread(self, batch_size: int) -> float:
        """See `ServiceTime`; linear between measured batch sizes."""
        return _interpolated(self.batch_sizes, [entry.spread for entry in self.service_times], batch_size)

    def steady(self) -> Profile:
        """The same profile where every batch takes the mean of its size, as in the paper."""
        return replace(self, variation=None)

    def throughput(self, batch_size: int, concurrency: int = 1) -> float:
        """µ = c·b / S(b), events per second of one replica that always runs c batches of this size."""
        return concurrency * batch_size / self.service_time_s(batch_size, concurrency)


def _interpolated(sizes: Sequence[int], values: Sequence[float], size: float) -> float:
    right = bisect.bisect_left(sizes, size)
    if sizes[right] == size:
        return values[right]
    share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


@dataclass(frozen=True, slots=True)
class Overheads:
    """What runs around replicas on one machine.

    Args:
        slot_rate: records per second that one slot's dispatcher is planned for.
        cores: by rate of records, ascending from 0: what the dispatcher of a stage takes, with the broker's and the
            feed's part where these run here, too.
    """

    slot_rate: float
    cores: tuple[tuple[float, float], ...] = ()

    def slots(self, rate: float) -> int:
        """Return how many dispatchers a stage needs that gets so many records a second."""
        return max(1, math.ceil(rate / self.slot_rate))

    def stage_cores(self, rate: float) -> float:
        """Cores taken for one stage that gets so many records a second: linear between measured rates and beyond."""
        if len(self.cores) < 2:
            return 0.0
        right = min(max(1, bisect.bisect_left([known for known, _ in self.cores], rate)), len(self.cores) - 1)
        (below, least), (above, most) = self.cores[right - 1], self.cores[right]
        return max(0.0, least + (most - least) * (rate - below) / (above - below))


@dataclass(frozen=True, slots=True)
class PipelineProfile:
    """Everything that was measured of a pipeline.

    Args:
        profiles: by (stage, hardware).
        paths: which arrows the sample's events took.
        hop_overhead_s: time a record spends between two stages beyond queueing and service (produce, fetch); once per
            arrow taken, once into the entry stages and once into the sink. Handing it to a replica is service.
        samples: by stage, an input that it has processed, encoded as in its topic; at a join by parent. A dispatcher
            probes replicas with it. Stages without a small enough one are missing.
        overheads: None where they were never measured.
        keys: busy keys of the sample's events, and where their order is kept.
        network_s: the part of ``hop_overhead_s`` that carrying a batch to a replica on another host takes, as measured
            while the pipeline runs.
        hop_spread_s: how far the time between two stages lies from ``hop_overhead_s`` at `HOP_PROBABILITIES`, under
            load; empty where it is always the same.
        classes: live classes beside that of the pipeline's own SLO.

    Raises:
        ValueError: a spread that is no ascending list of so many finite numbers.
    """

    profiles: Mapping[tuple[str, str], Profile]
    paths: Paths
    hop_overhead_s: float = 0.0
    samples: Mapping[str, bytes | dict[str, bytes] | list[bytes | None]] = field(default_factory=dict)
    overheads: Overheads | None = None
    keys: Keys = field(default_factory=Keys)
    network_s: float = 0.0
    hop_spread_s: tuple[float, ...] = ()
    classes: tuple[LiveClass, ...] = ()

    def __post_init__(self) -> None:
        check_hop(self.hop_overhead_s, self.hop_spread_s)

    @property
    def least_hop_s(self) -> float:
        """The shortest time between two stages."""
        return max(0.0, self.hop_overhead_s + min(self.hop_spread_s, default=0.0))

    def throughput(self, stage: str, allocations: Sequence[Allocation]) -> float:
        """Return how many events per second replicas of a stage serve in full batches."""
        return sum(
            a.replicas * self.profiles[stage, a.hardware].throughput(a.max_batch_size, a.concurrency)
            for a in allocations
        )

    def carries(self, stage: str, allocations: Sequence[Allocation]) -> float:
        """Return how many times as many events replicas of a stage serve in full batches of its fallback.

        1 without one, with one that is not faster, and where another kind has none.
        """
        fallbacks = {a.hardware: self.profiles[stage, a.hardware].of_fallback() for a in allocations}
        if any(profile is None for profile in fallbacks.values()):
            return 1.0
        own = [(a, self.profiles[stage, a.hardware]) for a in allocations]
        return max(
            1.0,
            min(
                fast.throughput(a.max_batch_size, a.concurrency) / slow.throughput(a.max_batch_size, a.concurrency)
                for a, slow in own
                if (fast := fallbacks[a.hardware]) is not None
            ),
        )

    def steady(self) -> PipelineProfile:
        """The same where every batch takes the mean of its size, as in the paper."""
        return replace(self, profiles={key: profile.steady() for key, profile in self.profiles.items()})

    def without_fallbacks(self) -> PipelineProfile:
        """The same where no stage has a fallback."""
        if not any(profile.fallback for profile in self.profiles.values()):
            return self
        return replace(self, profiles={key: profile.without_fallback() for key, profile in self.profiles.items()})

    def with_spot(self, kinds: Mapping[str, Collection[str]]) -> PipelineProfile:
        """Return the same with spot kinds, which are as fast as what they are lent from.

        Args:
            kinds: hardware kinds by stage.
        """
        pairs = [(stage, kind) for stage, names in kinds.items() for kind in names if is_spot(kind)]
        lent = {
            (stage, kind): replace(self.profiles[stage, on_demand(kind)], hardware=kind)
            for stage, kind in pairs
            if (stage, on_demand(kind)) in self.profiles
        }
        return replace(self, profiles={**self.profiles, **lent})

    def hardware_of(self, stage: str) -> tuple[str, ...]:
        """Hardware kinds on which the stage was profiled."""
        return tuple(kind for name, kind in self.profiles if name == stage)
