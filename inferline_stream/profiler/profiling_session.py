"""What measures stages: a process for each, and benches here or in a cluster."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.errors import InvalidTopology, StageFailed, Unreachable
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.emulation import Emulated, emulated_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.profile import Contention, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, shape_of
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.variation import Variation
from inferline_stream.profiler.bench import NEIGHBOURS_LOAD, ReplicaBench
from inferline_stream.profiler.cluster_bench import (
    ClusterBench,
    ClusterBenches,
    NoPlace,
    within_bytes,
)
from inferline_stream.profiler.device_turns import DeviceTurns
from inferline_stream.profiler.fork_times import forked_start_up_s
from inferline_stream.profiler.handover import handover_s
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.missing_profiles import is_measured_here
from inferline_stream.profiler.profile_store import Known, ProfileStore
from inferline_stream.profiler.profiling_options import Options
from inferline_stream.profiler.profiling_progress import Steps
from inferline_stream.profiler.sample_run import FIRST_CHUNK, LARGEST_CHUNK, RunsEvents, SampleRun, run_sample
from inferline_stream.profiler.service_times import (
    HoldsDevice,
    Measures,
    measure,
    measure_contention,
    measure_emulated,
    powers_of_two,
)
from inferline_stream.profiler.worker_messages import Outcomes, ProcessEvents
from inferline_stream.profiler.worker_process import WorkerFailed, WorkerProcess, blame
from inferline_stream.settings import Settings

OpenBenches = Callable[[], AbstractAsyncContextManager[ClusterBenches]]
"""Begins to measure in a cluster."""

DISTURBED = 0.1
"""Share of the service time without a core, beyond what a neighbour may take, from which on it is said. On two quiet
cores, stages on a quarter of one had none for .16 to .22 of it; beside busy programs .51. On a whole one 0, and .03."""


class ProfilingSession:
    """One process per stage, started when first needed and kept until the end, and benches, here or in a cluster."""

    def __init__(
        self,
        pipeline: Pipeline,
        file: Path,
        settings: Settings,
        options: Options,
        steps: Steps,
        *,
        open_benches: OpenBenches | None,
    ) -> None:
        self._pipeline = pipeline
        self._file = file
        self._settings = settings
        self._options = options
        self._steps = steps
        self._stack = AsyncExitStack()
        self._running: dict[str, WorkerProcess] = {}
        self._turns = DeviceTurns()
        self._handed_s: float | None = None
        self._open_benches = open_benches
        self._benches: ClusterBenches | None = None
        """In the cluster, once they are needed."""
        self._built_there: dict[str, ClusterBench] = {}
        """By stage that cannot be built here, what ran its sample."""
        self._network_s: dict[tuple[float, str, str], float] = {}
        """Beside each kind of an entry stage that was timed there, by its price, the stage and the kind."""
        self._inputs: dict[str, list[StageInput]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def measure(
        self, events: Sequence[bytes], pairs: Sequence[tuple[Stage, Hardware]], known: Known, store: ProfileStore
    ) -> None:
        """Run the sample, then time each stage on each kind; what is found is written down at once."""
        run = await self._sample(shape_of(self._pipeline), events)
        known.paths = run.paths
        known.failed = {stage: count for stage, (count, _) in run.failed.items()}
        known.samples = run.samples
        store.save_paths(known)
        self._inputs = run.inputs
        nowhere: dict[str, list[str]] = {}
        for stage, kind in pairs:
            try:
                known.profiles[stage.name, kind.name] = await self._timed_and_saved(
                    stage, kind, run.inputs[stage.name], store
                )
            except NoPlace as error:
                nowhere.setdefault(stage.name, []).append(str(error))
                self._steps.note(f"{error}. Plans leave it out until it is profiled")
        without = [why for stage, why in nowhere.items() if not any(of == stage for of, _ in known.profiles)]
        if without:
            raise StageFailed("\n".join(itertools.chain.from_iterable(without)))

    async def measure_network(self, known: Known) -> None:
        """Measure what the platform's network adds to a batch, unless that was done with an entry stage.

        The cheapest kind timed in this session counts, or that of `ClusterBenches.network_s`: dear kinds may be on
        faster networks.
        """
        platform = self._options.platform
        self._steps.begin(f"time between hosts on {platform}")
        if self._network_s:
            known.network_s[platform] = self._network_s[min(self._network_s)]
            return
        inputs = self._inputs or {stage: [sample] for stage, sample in known.samples.items()}
        known.network_s[platform] = await (await self._cluster()).network_s(inputs)

    async def _cluster(self) -> ClusterBenches:
        assert self._open_benches is not None
        if self._benches is None:
            self._benches = await self._stack.enter_async_context(self._open_benches())
        return self._benches

    async def _sample(self, shape: Shape, events: Sequence[bytes]) -> SampleRun:
        """Build every stage, one after the other since that is timed, and run the sample through them."""
        problems = []
        async with AsyncExitStack() as there:
            for name in shape.stages:
                self._steps.begin(f"{name}: starting")
                try:
                    try:
                        await self._worker(name)
                    except WorkerFailed as error:
                        await self._build_there(self._pipeline.stage(name), error, there)
                except WorkerFailed as error:
                    if isinstance(failure := _translated(error, self._pipeline.stage(name)), Unreachable):
                        raise failure from error
                    problems.append(str(failure))
            if problems:
                raise InvalidTopology(*problems)
            self._steps.begin("sample: running its events through the pipeline")
            workers = {name: _InTurn(self._runner, self._pipeline.stage(name)) for name in shape.stages}
            chunk = LARGEST_CHUNK if self._turns.taken_back else FIRST_CHUNK
            run = await run_sample(shape, workers, events, self._options.sample_s, self._steps.within, chunk=chunk)
        for name, (count, message) in run.failed.items():
            self._steps.note(f"{message}; stage {name!r} raised on {count} of {run.events} sample events")
        return run

    async def _build_there(self, stage: Stage, failure: WorkerFailed, away: AsyncExitStack) -> None:
        """Have the sample run through a stage in the cluster, which cannot be built here: it may need the hardware.

        Raises:
            WorkerFailed: nor there, or no cluster measures it.
            NoPlace: the cluster has none for any kind of it.
        """
        kinds = catalogue(self._pipeline.hardware)
        there = [kinds[name] for name in stage.hardware if not is_measured_here(kinds[name])]
        if self._open_benches is None or not there:
            raise failure
        what = f"stage {stage.name!r} cannot be built here ({failure})"
        self._steps.note(f"{what}: its sample runs on {self._options.platform}, where nothing says what an event costs")
        benches, nowhere = await self._cluster(), list[str]()
        for kind in there:
            try:
                self._built_there[stage.name] = await away.enter_async_context(benches.bench(stage, kind, []))
            except NoPlace as error:
                nowhere.append(str(error))
            else:
                return
        raise NoPlace("\n".join(nowhere))

    async def _runner(self, stage: str) -> RunsEvents:
        return self._built_there[stage] if stage in self._built_there else await self._worker(stage)

    async def _timed_and_saved(
        self, stage: Stage, kind: Hardware, inputs: Sequence[StageInput], store: ProfileStore
    ) -> Profile:
        """Time a stage on a kind, here or in the cluster, and write it down.

        Raises:
            NoPlace: the cluster has none for it, or the stage cannot be built here, where the kind is measured.
        """
        if self._open_benches is not None and not is_measured_here(kind):
            profile, note, there = await self._profile_there(stage, kind, inputs)
            store.save(profile, note=note, there=there)
            return profile
        if stage.name in self._built_there:
            raise NoPlace(
                f"stage {stage.name!r} on {kind.name!r}: it is measured here, where the stage cannot be built"
            )
        profile, note = await self._profile(stage, kind, inputs)
        store.save(profile, note=note)
        return profile

    async def _profile(self, stage: Stage, kind: Hardware, inputs: Sequence[StageInput]) -> tuple[Profile, str]:
        """One stage on one kind of hardware, and why larger batches are missing, if so."""
        self._steps.begin(f"{stage.name} on {kind.name}")
        found = _Measured()
        if kind.gpus:
            await self._turns.end_all()  # what others hold of a device's memory must neither count nor lack
        with _blamed(stage, kind):
            worker = await self._worker(stage.name)
            start_up_s, waited_share = worker.start_up_s, 0.0
            if kind.emulated:
                table_s = emulated_s(stage.emulated, kind.name)
                varies = stage.emulated if isinstance(stage.emulated, Emulated) else None
                if self._handed_s is None:
                    self._handed_s = await handover_s()
                times, variation = await measure_emulated(
                    worker, kind, inputs, stage.max_batch_size, table_s, handed_s=self._handed_s, varies=varies
                )
                # Emulated hardware only waits: nothing is slower beside others.
                steady = tuple(1.0 for _ in times)
                contention = tuple(Contention(c, steady) for c in powers_of_two(stage.most_at_once)[1:])
                found = _Measured(times, variation, contention)
            else:
                async with self._bench(stage, kind, worker) as bench:
                    found = await self._timed(stage, kind, inputs, bench, bench if kind.gpus else None)
                    start_up_s, waited_share = bench.start_up_s, bench.waited_share
        if why := disturbance(kind, waited_share):
            self._steps.note(f"stage {stage.name!r} on {kind.name!r}: {why}")
        start_up_s = await self._start_up_s(stage, kind, start_up_s)
        return found.profile(stage, kind, start_up_s, waited_share), self._noted(stage, kind, found)

    async def _profile_there(
        self, stage: Stage, kind: Hardware, inputs: Sequence[StageInput]
    ) -> tuple[Profile, str, Machine]:
        """One stage on one kind of hardware in the cluster; why larger batches are missing, if so; and where."""
        self._steps.begin(f"{stage.name} on {kind.name}, on {self._options.platform}")
        given = within_bytes(inputs)
        with _blamed(stage, kind):
            worker = None if stage.name in self._built_there else await self._worker(stage.name)
            async with (await self._cluster()).bench(stage, kind, given, worker) as bench:
                found = await self._timed(stage, kind, given, bench, None)
        if not stage.after:
            self._network_s[kind.price_per_hour, stage.name, kind.name] = bench.network_s
        there = Machine(f"{self._options.platform}, {bench.node}", math.ceil(kind.cores), _gpus(kind))
        return found.profile(stage, kind, bench.start_up_s, 0.0), self._noted(stage, kind, found), there

    async def _timed(
        self,
        stage: Stage,
        kind: Hardware,
        inputs: Sequence[StageInput],
        bench: Measures,
        device: HoldsDevice | None,
    ) -> _Measured:
        """Time a stage on a bench, alone and beside others."""
        passes = 2 * stage.max_batch_size.bit_length() + stage.most_at_once.bit_length() - 1
        passed = itertools.count()

        def begun(batch_size: int) -> None:
            self._steps.within(min(1.0, next(passed) / passes), f": batches of {batch_size}")

        def crowded(concurrency: int) -> None:
            self._steps.within(min(1.0, next(passed) / passes), f": {concurrency} batches at once")

        seconds = self._options.stage_s
        times, variation, note = await measure(
            bench, kind, inputs, stage.max_batch_size, seconds=seconds, device=device, progress=begun
        )
        contention = tuple[Contention, ...]()
        if stage.most_at_once > 1:
            contention, refused = await measure_contention(
                bench, kind, inputs, times, stage.most_at_once, seconds=seconds, progress=crowded
            )
            note = "; ".join(filter(None, (note, refused)))
        return _Measured(times, variation, contention, note)

    def _noted(self, stage: Stage, kind: Hardware, found: _Measured) -> str:
        if found.note:
            self._steps.note(f"stage {stage.name!r} on {kind.name!r}: {found.note}")
        return found.note

    def _bench(self, stage: Stage, kind: Hardware, worker: WorkerProcess) -> ReplicaBench:
        spec = ReplicaSpec("", stage.name, str(self._file), kind, isolation=stage.confined)
        routes = routes_of(self._pipeline, stage.name)
        limit_s = self._settings.start_limit_s(gpu=kind.gpus > 0)
        return ReplicaBench(spec, routes, worker, start_timeout_s=limit_s)

    async def _start_up_s(self, stage: Stage, kind: Hardware, alone_s: float) -> float:
        """Of the next replica: forked where the stage asks for that and can be, else as the first one started."""
        isolation = stage.confined
        if isolation.level == "sandbox" and isolation.forked:
            confinement = confined(isolation, self._file, kind, "")
            timeout_s = self._settings.start_timeout_s
            forked_s = await forked_start_up_s(self._file, stage.name, kind, confinement, timeout_s=timeout_s)
            if forked_s is not None:
                return forked_s
        return alone_s

    async def _worker(self, stage: str) -> WorkerProcess:
        """The process that runs a stage's sample, and says what its events cost."""
        worker = self._running.get(stage)
        if worker is None or worker.ended:
            declared = self._pipeline.stage(stage)
            kinds = catalogue(self._pipeline.hardware)
            may = [kinds[name] for name in declared.hardware]
            like = Hardware("worker", 0.0, gpus=max(kind.gpus for kind in may))
            confinement = confined(declared.confined, self._file, like, "")
            try:
                given = await self._turns.take(stage, may, lambda: self._end(stage))
            except NoDevice as error:
                raise WorkerFailed(str(error)) from None
            limit_s = self._settings.start_limit_s(gpu=like.gpus > 0)
            starting = WorkerProcess(self._file, stage, confinement, start_timeout_s=limit_s, devices=given)
            worker = self._running[stage] = await self._stack.enter_async_context(starting)
        return worker

    async def _end(self, stage: str) -> None:
        """End the process of a stage, which another one needs the device of; it is started again when it is needed."""
        worker = self._running.pop(stage, None)
        if worker is not None:
            await worker.close()


@dataclass(frozen=True, slots=True)
class _Measured:
    """What timing a stage on a kind came to, and why larger batches are missing, if so."""

    times: tuple[ServiceTime, ...] = ()
    variation: Variation | None = None
    contention: tuple[Contention, ...] = ()
    note: str = ""

    def profile(self, stage: Stage, kind: Hardware, start_up_s: float, waited_share: float) -> Profile:
        return Profile(
            stage.name,
            kind.name,
            self.times,
            start_up_s,
            self.variation,
            waited_share,
            self.contention,
            stage.most_replicas,
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
    """Translate a worker's failure.

    Raises:
        InvalidTopology: names the stage, where it is declared, and the kind.
        Unreachable: likewise, where what the stage asks does not answer.
    """
    try:
        yield
    except WorkerFailed as error:
        raise _translated(error, stage, f"on {kind.name!r}") from error


def _translated(error: WorkerFailed, stage: Stage, where: str = "") -> InvalidTopology | Unreachable:
    """Return the error that names the stage, where it is declared, and on what it failed, if not as it was built."""
    said = blame(error, stage.declared, f"stage {stage.name!r} {where}".rstrip())
    return Unreachable(said) if error.unavailable else InvalidTopology(said)


def _gpus(kind: Hardware) -> tuple[str, ...]:
    """Models of a replica's GPUs, as far as the catalogue names them."""
    return (kind.gpu_model,) * math.ceil(kind.gpus) if kind.gpu_model is not None else ()


class _InTurn:
    """A stage's worker, started again where it had to leave its device to another one."""

    def __init__(self, worker: Callable[[str], Awaitable[RunsEvents]], stage: Stage) -> None:
        self._worker = worker
        self._stage = stage

    async def ask(self, request: ProcessEvents, answer: type[Outcomes]) -> Outcomes:
        """Run events.

        Raises:
            InvalidTopology: the worker ended on them, or could not be started again.
            Unreachable: what the stage asks does not answer.
        """
        try:
            return await (await self._worker(self._stage.name)).ask(request, answer)
        except WorkerFailed as error:
            raise _translated(error, self._stage, "on the sample's events") from error
