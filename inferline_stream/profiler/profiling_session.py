"""What measures stages of a pipeline: benches on this host, and in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from inferline_stream.actuators.mps import shared_by
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.errors import InvalidTopology, StageFailed, Unreachable
from inferline_stream.pipeline.emulation import Emulated, emulated_s, fallback_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.profile import Contention, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, shape_of
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.units import format_duration
from inferline_stream.profiler.bench_messages import EventOutcome, Measure
from inferline_stream.profiler.benches import Bench, Benches, benches_here
from inferline_stream.profiler.machine import Machine, models_of
from inferline_stream.profiler.profile_store import Known, ProfileStore
from inferline_stream.profiler.profiling_options import Options, Steps, apart, is_measured_here
from inferline_stream.profiler.replica_failures import NoPlace, ReplicaFailed, blame
from inferline_stream.profiler.sample_run import FIRST_CHUNK, LARGEST_CHUNK, SampleRun, run_sample, within_bytes
from inferline_stream.profiler.service_times import (
    FEWEST_BATCHES,
    longest,
    measure,
    measure_contention,
    measure_emulated,
    measure_fallback,
    measure_wake,
    powers_of_two,
)
from inferline_stream.profiler.this_host import NEIGHBOURS_LOAD, HeldDevice, ThisHost, device_for, sample_spec
from inferline_stream.settings import Settings

OpenBenches = Callable[[], AbstractAsyncContextManager[Benches]]
"""Begins to measure in a cluster."""

DISTURBED = 0.1
"""Share of the service time without a core, beyond what a neighbour may take, from which on it is said. On two quiet
cores, stages on a quarter of one had none for .16 to .22 of it; beside busy programs .51. On a whole one 0, and .03."""

WARM_UP_BATCHES, BATCHES = 10, 50
"""Of one event each, to measure the network: the first open connections and fill caches."""

_NETWORK_S = 30.0
"""A stage that takes seconds for an event is measured by fewer of them."""

_FORKS = 3
"""Of which the median counts: the first touches pages that the fork server shares with nobody yet."""


class ProfilingSession:
    """One replica per stage for its sample, kept until the end, and one at a time that is timed, here or in a cluster.

    Where there are too few devices for all samples, the one that has had its own longest ends for the next.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        file: Path,
        settings: Settings,
        options: Options,
        steps: Steps,
        *,
        machine: Machine,
        open_benches: OpenBenches | None,
    ) -> None:
        self._pipeline = pipeline
        self._machine = machine
        self._file = file
        self._settings = settings
        self._options = options
        self._steps = steps
        self._stack = AsyncExitStack()
        self._kinds = catalogue(pipeline.hardware)
        self._samples = {
            stage.name: sample_spec(stage, file, [self._kinds[name] for name in stage.hardware])
            for stage in pipeline.stages
        }
        self._running: dict[str, tuple[Bench, AsyncExitStack]] = {}
        """Samples' replicas, by stage."""
        self._host = ThisHost(make_room=self._make_room)
        self._here: Benches | None = None
        self._takes_turns = False
        self._open_benches = open_benches
        self._there: Benches | None = None
        """In the cluster, once they are needed."""
        self._built_there: dict[str, Bench] = {}
        """By stage that cannot be built here, what ran its sample."""
        self._network_s: dict[tuple[float, str, str], float] = {}
        """Beside each kind of an entry stage that was timed there, by its price, the stage and the kind."""
        self._inputs: dict[str, list[StageInput]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def measure(
        self,
        events: Sequence[bytes],
        pairs: Sequence[tuple[Stage, Hardware]],
        known: Known,
        store: ProfileStore,
        sources: Sequence[int] = (),
    ) -> None:
        """Run the sample, then time each stage on each kind; what is found is written down at once."""
        run = await self._sample(shape_of(self._pipeline), events, sources)
        known.paths = run.paths
        known.failed = {stage: count for stage, (count, _) in run.failed.items()}
        known.samples = run.samples
        store.save_paths(known)
        self._inputs = {stage: within_bytes(inputs) for stage, inputs in run.inputs.items()}
        nowhere: dict[str, list[str]] = {}
        for stage, kind in pairs:
            try:
                known.profiles[stage.name, kind.name] = await self._timed_and_saved(stage, kind, store)
            except NoPlace as error:
                nowhere.setdefault(stage.name, []).append(str(error))
                self._steps.note(f"{error}. Plans leave it out until it is profiled")
        without = [why for stage, why in nowhere.items() if not any(of == stage for of, _ in known.profiles)]
        if without:
            raise StageFailed("\n".join(itertools.chain.from_iterable(without)))

    async def measure_network(self, known: Known) -> None:
        """Measure what the platform's network adds to a batch of one event, unless that was done with an entry stage.

        The cheapest kind of an entry stage that the cluster has room for counts: dear kinds may be on faster networks.

        Raises:
            NoPlace: the cluster has none for any kind of an entry stage.
            StageFailed: no replica was ready in time.
        """
        platform = self._options.platform
        self._steps.begin(f"time between hosts on {platform}")
        if self._network_s:
            known.network_s[platform] = self._network_s[min(self._network_s)]
            return
        entries = [
            (each, self._kinds[name]) for each in self._pipeline.stages if not each.after for name in each.hardware
        ]
        nowhere, benches = [], await self._cluster()
        for stage, kind in sorted(entries, key=lambda entry: entry[1].price_per_hour):
            inputs = self._inputs.get(stage.name) or [known.samples[stage.name]]
            try:
                async with benches.bench(stage, replica_spec(self._file, stage, kind)) as bench:
                    for least, most in ((1, WARM_UP_BATCHES), (FEWEST_BATCHES, BATCHES)):
                        found = await bench.timed(inputs, Measure(1, _NETWORK_S, least, most))
                known.network_s[platform] = statistics.fmean(found.network_s)
                return
            except NoPlace as error:
                nowhere.append(str(error))
        raise NoPlace("\n".join(nowhere))

    async def _cluster(self) -> Benches:
        assert self._open_benches is not None
        if self._there is None:
            self._there = await self._stack.enter_async_context(self._open_benches())
        return self._there

    async def _local(self) -> Benches:
        if self._here is None:
            timed = [
                replica_spec(self._file, each, self._kinds[n]) for each in self._pipeline.stages for n in each.hardware
            ]
            specs = [*self._samples.values(), *timed]
            self._here = await self._stack.enter_async_context(benches_here(specs, self._settings, self._host))
        return self._here

    # The sample

    async def _sample(self, shape: Shape, events: Sequence[bytes], sources: Sequence[int]) -> SampleRun:
        """Build every stage, one after the other since that is timed, and run the sample through them."""
        problems = []
        async with AsyncExitStack() as there:
            for name in shape.stages:
                self._steps.begin(f"{name}: starting")
                try:
                    try:
                        await self._sample_bench(name)
                    except ReplicaFailed as error:
                        await self._build_there(self._pipeline.stage(name), error, there)
                except ReplicaFailed as error:
                    if isinstance(failure := _translated(error, self._pipeline.stage(name)), Unreachable):
                        raise failure from error
                    problems.append(str(failure))
            if problems:
                raise InvalidTopology(*problems)
            self._steps.begin("sample: running its events through the pipeline")
            stages = {name: functools.partial(self._run, self._pipeline.stage(name)) for name in shape.stages}
            chunk = LARGEST_CHUNK if self._takes_turns else FIRST_CHUNK
            seconds, within = self._options.sample_s, self._steps.within
            run = await run_sample(shape, stages, events, seconds, within, sources=sources, chunk=chunk)
        for name, (count, message) in run.failed.items():
            self._steps.note(f"{message}; stage {name!r} raised on {count} of {run.events} sample events")
        return run

    async def _build_there(self, stage: Stage, failure: ReplicaFailed, away: AsyncExitStack) -> None:
        """Have the sample run through a stage in the cluster, which cannot be built here: it may need the hardware.

        Raises:
            ReplicaFailed: nor there, or no cluster measures it.
            NoPlace: the cluster has none for any kind of it.
        """
        there = [self._kinds[name] for name in stage.hardware if not is_measured_here(self._kinds[name])]
        if self._open_benches is None or not there:
            raise failure
        what = f"stage {stage.name!r} cannot be built here ({failure})"
        self._steps.note(f"{what}: its sample runs on {self._options.platform}")
        benches, nowhere = await self._cluster(), list[str]()
        for kind in there:
            spec = replica_spec(self._file, stage, kind)
            try:
                self._built_there[stage.name] = await away.enter_async_context(benches.bench(stage, spec))
            except NoPlace as error:
                nowhere.append(str(error))
            else:
                return
        raise NoPlace("\n".join(nowhere))

    async def _run(self, stage: Stage, inputs: Sequence[StageInput]) -> list[EventOutcome]:
        """Run events of the sample.

        Raises:
            InvalidTopology: the replica ended on them, or could not be started again.
            Unreachable: what the stage asks does not answer.
        """
        try:
            return await (self._built_there.get(stage.name) or await self._sample_bench(stage.name)).run(inputs)
        except ReplicaFailed as error:
            raise _translated(error, stage, "on the sample's events") from error

    async def _sample_bench(self, stage: str) -> Bench:
        """Return what runs a stage's sample, which may have had to leave its device to another one."""
        if stage not in self._running:
            benches, own = await self._local(), AsyncExitStack()
            bench = await own.enter_async_context(benches.bench(self._pipeline.stage(stage), self._samples[stage]))
            self._stack.push_async_exit(own)
            self._running[stage] = bench, own
        return self._running[stage][0]

    async def _make_room(self) -> bool:
        """End the sample's replica that has had its device longest; return whether there was one."""
        for stage in [each for each in self._running if self._samples[each].hardware.gpus]:
            await self._running.pop(stage)[1].aclose()
            self._takes_turns = True
            return True
        return False

    # Times

    async def _timed_and_saved(self, stage: Stage, kind: Hardware, store: ProfileStore) -> Profile:
        """Time a stage on a kind, here or in the cluster, and write it down.

        Raises:
            NoPlace: the cluster has none for it, or the stage cannot be built here, where the kind is measured.
        """
        there = self._open_benches is not None and not is_measured_here(kind)
        if stage.name in self._built_there and not there:
            raise NoPlace(
                f"stage {stage.name!r} on {kind.name!r}: it is measured here, where the stage cannot be built"
            )
        self._steps.begin(f"{stage.name} on {kind.name}" + (f", on {self._options.platform}" if there else ""))
        with _blamed(stage, kind):
            if kind.emulated:
                profile, note, node = await self._emulated(stage, kind), "", ""
            else:
                profile, note, node = await self._of_products(stage, kind, there=there)
            if not there and stage.confined.sandboxed and stage.confined.forked and not kind.gpus:
                start_up_s = await self._forked_start_up_s(stage, kind) or profile.start_up_s
                profile = replace(profile, start_up_s=start_up_s)
        for why in (note, useless(profile), "" if there else disturbance(kind, profile.waited_share)):
            if why:
                self._steps.note(f"stage {stage.name!r} on {kind.name!r}: {why}")
        machine = Machine(f"{self._options.platform}, {node}", math.ceil(kind.cores), profile.products or _gpus(kind))
        store.save(profile, note=note, there=machine if there else None)
        return profile

    async def _of_products(self, stage: Stage, kind: Hardware, *, there: bool) -> tuple[Profile, str, str]:
        """Time a stage on each product that a kind's devices are of, one after the other; see `_timed`."""
        products = self._options.products.get(kind.name, ()) if there else models_of(kind, self._machine)
        found = []
        for one in apart(kind, products):
            opened = self._bench_there(stage, one) if there else self._bench_here(stage, one)
            async with opened as (bench, device):
                found.append(await self._timed(stage, one, bench, device))
        profiles, notes, nodes = zip(*found, strict=True)
        profile = replace(longest(profiles), products=products)
        return profile, "; ".join(filter(None, notes)), ", ".join(nodes)

    @asynccontextmanager
    async def _bench_there(self, stage: Stage, kind: Hardware) -> AsyncIterator[tuple[Bench, None]]:
        benches = await self._cluster()
        async with benches.bench(stage, replica_spec(self._file, stage, kind)) as bench:
            yield bench, None
        if not stage.after:
            self._network_s[kind.price_per_hour, stage.name, kind.name] = bench.network_s

    @asynccontextmanager
    async def _bench_here(self, stage: Stage, kind: Hardware) -> AsyncIterator[tuple[Bench, HeldDevice | None]]:
        spec = replica_spec(self._file, stage, kind)
        if not kind.gpus:
            async with (await self._local()).bench(stage, spec, crowded=True) as bench:
                yield bench, None
            return
        while await self._make_room():  # what others hold of a device's memory must neither count nor lack
            pass
        device = await device_for(kind)
        async with (
            benches_here([spec], self._settings, ThisHost(devices=device.devices)) as benches,
            benches.bench(stage, spec, crowded=True) as bench,
        ):
            yield bench, device

    async def _emulated(self, stage: Stage, kind: Hardware) -> Profile:
        """Emulated hardware only waits: nothing is slower beside others."""
        bench, table_s = await self._sample_bench(stage.name), emulated_s(stage.emulated, kind.name)
        varies = stage.emulated if isinstance(stage.emulated, Emulated) else None
        others_s = fallback_s(stage.emulated, kind.name) if stage.fallback is not None else None
        times, variation, fallback = await measure_emulated(
            bench, self._inputs[stage.name], stage.max_batch_size, table_s, fallback_s=others_s, varies=varies
        )
        steady = tuple(1.0 for _ in times)
        contention = tuple(Contention(c, steady) for c in powers_of_two(stage.most_at_once)[1:])
        most = stage.most_replicas
        share = stage.degraded_share
        return Profile(
            stage.name, kind.name, times, bench.start_up_s, variation, 0.0, contention, most, "", fallback, share
        )

    async def _timed(
        self, stage: Stage, kind: Hardware, bench: Bench, device: HeldDevice | None
    ) -> tuple[Profile, str, str]:
        """Time a stage on a bench, alone and beside others; say why larger batches are missing, and on which node."""
        sizes = stage.max_batch_size.bit_length()
        passes = (3 if stage.fallback is not None else 2) * sizes + stage.most_at_once.bit_length() - 1
        passed = itertools.count()

        def begun(batch_size: int) -> None:
            self._steps.within(min(1.0, next(passed) / passes), f": batches of {batch_size}")

        def crowded(concurrency: int) -> None:
            self._steps.within(min(1.0, next(passed) / passes), f": {concurrency} batches at once")

        seconds, inputs = self._options.stage_s, self._inputs[stage.name]
        times, variation, note = await measure(
            bench, inputs, stage.max_batch_size, seconds=seconds, device=device, progress=begun
        )
        fallback = tuple[ServiceTime, ...]()
        if stage.fallback is not None:
            times, fallback = await measure_fallback(
                bench, inputs, times, seconds=seconds, device=device, progress=begun
            )
        contention = tuple[Contention, ...]()
        if stage.most_at_once > 1:
            contention, refused = await measure_contention(
                bench, inputs, times, stage.most_at_once, seconds=seconds, progress=crowded
            )
            note = "; ".join(filter(None, (note, refused)))
        node = "" if bench.seen is None else bench.seen.node
        start_up_s, waited, most = bench.start_up_s, bench.waited_share, stage.most_replicas
        shared = "" if device is None else shared_by(kind, stage.confined)
        share = stage.degraded_share
        wake_s = None if stage.server is None or not stage.server.sleep else await measure_wake(bench, inputs, times)
        profile = Profile(
            stage.name,
            kind.name,
            times,
            start_up_s,
            variation,
            waited,
            contention,
            most,
            shared,
            fallback,
            share,
            wake_s,
        )
        return profile, note, node

    async def _forked_start_up_s(self, stage: Stage, kind: Hardware) -> float | None:
        """Return how long the next replica takes where a fork server forks it; None where none can."""
        benches, spec, took_s = await self._local(), replica_spec(self._file, stage, kind), list[float]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.start_timeout_s):
                while len(took_s) < _FORKS:
                    async with benches.bench(stage, spec) as bench:
                        if bench.seen is not None and bench.seen.way == "fork":
                            took_s.append(bench.start_up_s)
                        while (forks := self._host.forks(spec)) is None:  # noqa: ASYNC110  asked for
                            await asyncio.sleep(0.01)
                    if not forks:
                        return None
                return statistics.median(took_s)
        return None


def replica_spec(topology: Path, stage: Stage, kind: Hardware) -> ReplicaSpec:
    """Return the replica of a stage that is timed on a kind."""
    emulated = emulated_s(stage.emulated, kind.name) if kind.emulated else None
    other = fallback_s(stage.emulated, kind.name) if kind.emulated and stage.fallback is not None else None
    path = str(topology.resolve())
    return ReplicaSpec(
        "", stage.name, path, kind, emulated, isolation=stage.confined, purpose="profile", fallback_s=other
    )


def useless(profile: Profile) -> str:
    """Why a stage's fallback makes no event in time that the stage does not, in words; empty where it does."""
    pairs = zip(profile.service_times, profile.fallback, strict=False)
    if not profile.fallback or any(fast.mean_s < own.mean_s for own, fast in pairs):
        return ""
    own, fast = profile.service_times[0].mean_s, profile.fallback[0].mean_s
    return (
        f"its fallback is useless: it takes {format_duration(fast)} for an event, the stage {format_duration(own)}; "
        "give a faster one, or leave it out"
    )


def disturbance(kind: Hardware, waited_share: float) -> str:
    """Why service times say more of a busy machine than of the stage, in words; empty where they do not.

    Args:
        kind: that was measured, a share of a core beside a neighbour that takes some of the rest.
        waited_share: see `Profile`.
    """
    if waited_share <= NEIGHBOURS_LOAD * max(0.0, 1 - kind.cores) + DISTURBED:
        return ""
    return (
        f"it had no core for {waited_share:.0%} of its service time, because other programs kept the machine busy; "
        "once they do not, measure it again with `inferline-stream profile --again`"
    )


@contextmanager
def _blamed(stage: Stage, kind: Hardware) -> Iterator[None]:
    """Translate a replica's failure.

    Raises:
        InvalidTopology: names the stage, where it is declared, and the kind.
        Unreachable: likewise, where what the stage asks does not answer.
    """
    try:
        yield
    except ReplicaFailed as error:
        raise _translated(error, stage, f"on {kind.name!r}") from error


def _translated(error: ReplicaFailed, stage: Stage, where: str = "") -> InvalidTopology | Unreachable:
    """Return the error that names the stage, where it is declared, and on what it failed, if not as it was built."""
    said = blame(error, stage.declared, f"stage {stage.name!r} {where}".rstrip())
    return Unreachable(said) if error.unavailable else InvalidTopology(said)


def _gpus(kind: Hardware) -> tuple[str, ...]:
    """Models of a replica's GPUs, as far as the catalogue names them."""
    return (kind.gpu_model,) * math.ceil(kind.gpus) if kind.gpu_model is not None else ()
