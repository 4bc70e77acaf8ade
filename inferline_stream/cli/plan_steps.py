"""Steps that `profile`, `plan` and `run` share: load, sample, profile with a bar, plan, show the plan."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inferline_stream.actuators.devices import Device, carries, with_stock_of
from inferline_stream.actuators.nvml import devices
from inferline_stream.cli.options import Platform, SearchOptions, pipeline_of, topology_file
from inferline_stream.cli.output import Bar
from inferline_stream.cli.platform import products_there
from inferline_stream.dataplane.sample_files import free_memory_bytes, read_arrivals, read_events
from inferline_stream.dataplane.source_sample import recent_sample
from inferline_stream.errors import InvalidFile, InvalidInput, InvalidTopology, UsageError
from inferline_stream.isolation.limits import cores_here, shares_held
from inferline_stream.pipeline.hardware import Catalogue, at_prices, catalogue, divided
from inferline_stream.pipeline.idle import idle_of
from inferline_stream.pipeline.plan import Plan, hold_of
from inferline_stream.pipeline.profile import Overheads, PipelineProfile
from inferline_stream.pipeline.shape import shape_of, with_rates
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace, merged, simulation_bytes
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.planner.problem import COST_EPSILON, Problem, replica_cores
from inferline_stream.profiler.benches import MakeActuator
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.overheads import keep_overheads, measure_overheads, needs_overheads, overheads_file
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profile_store import ProfileStore
from inferline_stream.profiler.profiling_options import EMBEDDED, Options, Progress
from inferline_stream.runs.broker_process import embedded_broker_process
from inferline_stream.settings import from_environment

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Declared:
    """A valid pipeline with the file that declares it and its sample.

    Args:
        pipeline: the pipeline.
        file: the topology file, absolute.
        events: the sample's events, as they stand in the source topic.
        trace: the sample's arrivals.
        keys: of the events, where they were read from a topic.
    """

    pipeline: Pipeline
    file: Path
    events: list[bytes]
    trace: Trace
    keys: list[bytes | None] | None = None
    sources: list[int] = field(default_factory=list)


def declared(topology: Path, bootstrap_servers: str | None = None, prefix: str = "") -> Declared:
    """Load and validate a topology and read its sample: the files declared, else the source topic's last hour.

    Args:
        topology: the file or its folder.
        bootstrap_servers: where the source topic is.
        prefix: of the pipeline's names.

    Raises:
        InvalidTopology: everything that is wrong with any of them; no sample at all.
        Unreachable: Kafka does not answer.
    """
    file, pipeline = topology_file(topology), pipeline_of(topology)
    samples = [sample for sample in pipeline.samples.values() if sample is not None]
    if samples:
        of_each = [read_events(file.parent / sample.events) for sample in samples]
        trace = merged([read_arrivals(file.parent / sample.arrivals) for sample in samples])
        sources = [number for number, events in enumerate(of_each) for _ in events]
        return Declared(pipeline, file, list(itertools.chain.from_iterable(of_each)), trace, None, sources)
    if bootstrap_servers is None:
        raise InvalidTopology(
            f"{pipeline.declared}: declares no sample; add "
            'sample=Sample(arrivals="arrivals.csv", events="events.jsonl"), or give --bootstrap-servers to take '
            "the source topic's last hour"
        )
    timeout_s = from_environment().connect_timeout_s
    recent = recent_sample(bootstrap_servers, pipeline, prefix, connect_timeout_s=timeout_s)
    trace, events, keys, sources = asyncio.run(recent)
    return Declared(pipeline, file, events, trace, keys, sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What a plan is made from, for one platform.

    Args:
        what: pipeline and sample.
        platform: where it will run.
        search: which search, its seed, and the reserve of the plan.
        slo_s: in place of the pipeline's.
        stock: most replicas of hardware kinds, in place of theirs.
        prices: dollars per hour of hardware kinds, in place of theirs.
        traces: to plan for in place of the sample.
        stop: asked before every simulation, where no Ctrl-C reaches the search.
    """

    what: Declared
    platform: Platform = field(default_factory=Platform)
    search: SearchOptions = field(default_factory=SearchOptions)
    slo_s: float | None = None
    stock: Mapping[str, int] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    stop: Callable[[], bool] | None = None

    @property
    def all_traces(self) -> tuple[Trace, ...]:
        """Those given, or the sample."""
        return self.traces or (self.what.trace,)

    @property
    def kinds(self) -> Catalogue:
        """Hardware kinds known to the pipeline."""
        kinds = at_prices(catalogue(self.what.pipeline.hardware), self.prices)
        return {name: replace(kind, stock=self.stock.get(name, kind.stock)) for name, kind in kinds.items()}

    def problem(self, measured: PipelineProfile, slo_s: float | None = None) -> Problem:
        """What a plan is searched for, and explained by.

        Args:
            measured: profiles.
            slo_s: another SLO than that of the inputs.
        """
        pipeline = self.what.pipeline
        unbounded = self.platform.oversubscribe or self.platform.elsewhere
        return Problem(
            shape_of(pipeline),
            measured,
            self.all_traces,
            slo_s or self.slo_s or pipeline.slo_s,
            self.kinds,
            max_batch_sizes={stage.name: stage.max_batch_size for stage in pipeline.stages},
            objective=pipeline.objective,
            seed=self.search.seed,
            order_slo_s=pipeline.slo_s,
            order=pipeline.order,
            cores=math.inf if unbounded else cores_for_replicas(self, measured),
        )

    def limited(self, stock: Sequence[str] = (), *, absent: bool) -> PlanInputs:
        """The same with no more replicas of each hardware kind than this pipeline's share, and this machine's devices.

        Args:
            stock: shares, ``kind=replicas`` each.
            absent: see `with_devices`.

        Raises:
            UsageError: see `with_stock`.
        """
        pipeline = with_stock(self.what.pipeline, stock)
        if not self.platform.elsewhere:
            pipeline = with_devices(pipeline, devices(), absent=absent)
        return replace(self, what=replace(self.what, pipeline=pipeline))


def profiling_options(platform: Platform, bootstrap_servers: str | None, **chosen: Any) -> Options:
    """What to profile for a platform, and how thoroughly: as much as is usual, and what was chosen."""
    return Options(
        broker=bootstrap_servers or EMBEDDED,
        oversubscribe=platform.oversubscribe,
        elsewhere=platform.elsewhere,
        platform=platform.on,
        **chosen,
    )


async def profiled(
    what: Declared, options: Options, bootstrap_servers: str | None = None, cluster: MakeActuator | None = None
) -> PipelineProfile:
    """Profiles of every stage, measured where missing, with a bar on standard error.

    An embedded broker is started where the time between stages is not known yet and there are no bootstrap servers, and
    once per machine for what runs around replicas.

    Args:
        what: the pipeline.
        options: what to measure.
        bootstrap_servers: of Kafka.
        cluster: starts processes on the platform that stages are measured on.
    """

    if cluster is not None and options.platform == "kubernetes":
        kinds = catalogue(what.pipeline.hardware)
        named = {name for stage in what.pipeline.stages for name in stage.hardware}
        if on_gpus := [kinds[name] for name in named if kinds[name].gpus]:
            options = replace(options, products=await products_there(on_gpus))

    async def profile(servers: str | None) -> PipelineProfile:
        with Bar("profiling") as bar:

            def show(progress: Progress) -> None:
                if progress.note:
                    bar.note(progress.note)
                bar.show(progress.done, progress.total, progress.doing)

            return await profile_pipeline(
                what.pipeline,
                what.file,
                what.events,
                keys=what.keys,
                sources=what.sources,
                bootstrap_servers=servers,
                options=options,
                settings=from_environment(),
                cluster=cluster,
                progress=show,
            )

    measured = await profile(bootstrap_servers)
    if what.trace.source_of.size:
        shares = np.bincount(what.trace.source_of, minlength=len(what.pipeline.samples)) / len(what.trace)
        measured = replace(measured, paths=with_rates(shape_of(what.pipeline), measured.paths, shares.tolist()))
    lacks_hop = bootstrap_servers is None and measured.hop_overhead_s <= measured.network_s
    lacks_overheads = measured.overheads is None and needs_overheads(what.pipeline)
    if lacks_hop or lacks_overheads:
        # On nobody's Kafka: a user who may run a pipeline there need not be allowed topics of other names.
        async with embedded_broker_process() as servers:
            if lacks_hop:
                options, cluster = replace(options, again=False), None
                measured = await profile(servers)
            if lacks_overheads:
                measured = replace(measured, overheads=await _overheads(servers))
    return measured


async def _overheads(bootstrap_servers: str) -> Overheads:
    """Measure what runs around replicas takes, and keep it for every pipeline on this machine."""
    with Bar("profiling") as bar:
        bar.show(0, 1, "what dispatchers carry and take")
        found = await measure_overheads(bootstrap_servers)
        bar.show(1, 1, "done")
    keep_overheads(overheads_file(this_machine()), found)
    return found


def with_stock(pipeline: Pipeline, shares: Sequence[str]) -> Pipeline:
    """A pipeline that holds no more of a hardware kind than its share.

    Args:
        pipeline: the pipeline.
        shares: ``kind=replicas`` each.

    Raises:
        UsageError: a kind that none of its stages runs on, or no number.
    """
    kinds = catalogue(pipeline.hardware)
    used = {name for stage in pipeline.stages for name in stage.hardware}
    shared = []
    for share in shares:
        name, _, count = share.partition("=")
        if name not in used or not count.isdecimal():
            known = ", ".join(sorted(used))
            raise UsageError(f"--stock {share!r}: give KIND=REPLICAS, with a kind of {pipeline.name!r}: {known}")
        shared.append(replace(kinds[name], stock=int(count)))
    found = copy(pipeline)
    found.hardware = (*pipeline.hardware, *shared)
    return found


def with_devices(pipeline: Pipeline, machine: Sequence[Device], *, absent: bool) -> Pipeline:
    """A pipeline that holds no more of each kind with a GPU than this machine's devices have room for.

    Args:
        pipeline: the pipeline.
        machine: this machine's devices, and what others use of them.
        absent: whether that goes for kinds of which the machine has no device: none of them can run here.
    """
    kinds = catalogue(pipeline.hardware)
    used = dict.fromkeys(name for stage in pipeline.stages for name in stage.hardware if kinds[name].gpus)
    there = [name for name in used if absent or any(carries(device, kinds[name]) for device in machine)]
    found = copy(pipeline)
    found.hardware = (*pipeline.hardware, *(with_stock_of(kinds[name], machine) for name in there))
    return found


def take_profiles(what: Declared, folder: Path, platform: str) -> None:
    """Keep profiles that were measured elsewhere, as if they had been measured on the platform that replicas run on.

    Args:
        what: the pipeline.
        folder: that holds ``paths.json`` and the profiles, in a folder of their own.
        platform: that replicas run on.

    Raises:
        InvalidFile: a file that cannot be read, or is no profile of the pipeline.
    """
    store = ProfileStore(what.pipeline, what.file.parent, what.events, this_machine(), platform=platform)
    found: dict[str, str] = {}
    for file in _profile_files(folder):
        try:
            found[str(file.relative_to(folder))] = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidFile(f"{file}: cannot be read as a profile ({error}); profile again") from None
    store.take(found)


def _profile_files(folder: Path) -> list[Path]:
    """Files of profiles below a folder; what Kubernetes keeps beside a volume's files is none."""
    return [file for file in sorted(folder.rglob("*.json")) if ".." not in str(file.relative_to(folder))]


def planned(
    inputs: PlanInputs, measured: PipelineProfile, *, slo_s: float | None = None, known: Sequence[Plan] = ()
) -> Plan:
    """The cheapest plan for the sample that meets the SLO; its cost so far is shown on the way.

    Ctrl-C, or `PlanInputs.stop`, ends the search with the best plan so far.

    Args:
        inputs: what it is made from.
        measured: profiles.
        slo_s: another SLO than that of the inputs.
        known: earlier plans, so that a looser SLO never costs more.

    Raises:
        Infeasible: there is none, or none that fits on this machine.
        Stopped: it was stopped before there was one.
        InvalidInput: traces that do not fit in memory.
    """
    from inferline_stream.estimator.warmup import compile_kernels
    from inferline_stream.planner.evaluator import Spread
    from inferline_stream.planner.provision import SearchProgress as Searching
    from inferline_stream.planner.provision import SearchSettings, provision
    from inferline_stream.replay.spot_mix import spot_mix

    with Bar("getting the estimator ready, once per installation") as bar:
        compile_kernels(bar.show)
    pipeline, search = inputs.what.pipeline, inputs.search
    check_memory(sum(map(len, inputs.all_traces)), len(pipeline.stages))
    problem = inputs.problem(measured, slo_s)
    with Bar("planning") as bar:

        def show(progress: Searching) -> None:
            cost = "" if progress.cost_per_hour is None else f"${progress.cost_per_hour:.4f}/h so far, "
            tried = count_of(progress.evaluations, "plan")
            bar.show(0, None, f"{cost}{tried} simulated, {progress.phase} (Ctrl-C takes the best)")

        with ThreadPoolExecutor(threads := len(os.sched_getaffinity(0))) as pool:
            found = provision(
                problem,
                SearchSettings(
                    search.algorithm,
                    progress=show,
                    stop=inputs.stop or (lambda: False),
                    spread=Spread(pool.map, threads),
                ),
                known=known,
                pipeline=pipeline.name,
            )
    found = replace(found, reserve=search.reserve, idle=idle_of(pipeline))
    mix = spot_mix(
        found, problem.shape, measured, problem.catalogue, trace=problem.traces[0], objective=problem.objective
    )
    return found if mix is None else mix.plan


def cores_for_replicas(inputs: PlanInputs, measured: PipelineProfile) -> float:
    """Cores of this machine that replicas may have, beside all that runs around them."""
    rate = max(trace.arrival_rate for trace in inputs.all_traces)
    return replica_cores(cores_here(), shape_of(inputs.what.pipeline), measured, rate)


def short_of_cores(plan: Plan, inputs: PlanInputs, measured: PipelineProfile) -> str:
    """How many cores more a plan's replicas take than this machine has for them, in words; empty if they fit."""
    kinds = inputs.kinds
    needed = sum(a.replicas * kinds[a.hardware].cores for options in plan.allocations.values() for a in options)
    there = cores_for_replicas(inputs, measured)
    return (
        f"replicas take {needed:.2f} cores, and this machine has {there:.2f} for them" if needed > there + 1e-9 else ""
    )


def not_credible(plan: Plan, inputs: PlanInputs, measured: PipelineProfile) -> str:
    """Why nobody should believe the plan's P99 on this machine, in words; empty if somebody may."""
    if inputs.platform.elsewhere:
        return ""
    kinds = inputs.kinds
    held = [(a.replicas, kinds[a.hardware]) for options in plan.allocations.values() for a in options]
    if short := short_of_cores(plan, inputs, measured):
        return f"the P99 is not credible: {short}"
    gone = {kind.name for n, kind in held if n and kind.gpus and not any(carries(device, kind) for device in devices())}
    if gone:
        return f"the P99 is not credible: this machine has no device that is {' or '.join(sorted(gone))}"
    if any(0 < kind.cores < 1 for _, kind in held) and not shares_held():
        return "the P99 is not credible: nothing here holds replicas to their shares of a core"
    return ""


def planned_without(inputs: PlanInputs, measured: PipelineProfile) -> str:
    """Which kinds of its stages a plan leaves out, since nothing was measured on them, in words; empty for none.

    Shares are left out with their device, without a word of their own.
    """
    stages, kinds = inputs.what.pipeline.stages, inputs.kinds
    lacking = dict.fromkeys(
        name for stage in stages for name in stage.hardware if (stage.name, name) not in measured.profiles
    )
    named = dict.fromkeys(whole if (whole := divided(name)[0]) in lacking else name for name in lacking)
    no_gpu = not inputs.platform.elsewhere and any(kinds[name].gpus for name in named) and not devices()
    return (
        f"planned without {', '.join(named)}: not profiled{', and this machine has no GPU' * no_gpu}" if named else ""
    )


def remarks(plan: Plan, inputs: PlanInputs, measured: PipelineProfile) -> str:
    """What stands below a plan: what it was made without, and why nobody should believe its P99; each may be empty."""
    return "\n".join(filter(None, (planned_without(inputs, measured), not_credible(plan, inputs, measured))))


def check_memory(events: int, stages: int) -> None:
    """Refuse traces whose simulation would not fit in what memory is free.

    Raises:
        InvalidInput: says how much it would need.
    """
    needed, free = simulation_bytes(events, stages), free_memory_bytes()
    if free is not None and needed > free:
        raise InvalidInput(
            f"planning for {events:,} events needs about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; give a part of the trace, such as its busiest hour"
        )


def plan_table(plan: Plan, kinds: Catalogue, remarks: str = "") -> Table:
    """The plan for people: stage, hardware, limits, replicas, utilization, $/h; the whole below, and remarks."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # Without lines between the columns, all of them fit on 80 characters.
    title = f"Plan for {plan.pipeline}"
    table = Table("stage", "hardware", title=title, min_width=60, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    holds = any(hold_of(allocations) for allocations in plan.allocations.values())
    several = any(a.concurrency > 1 for allocations in plan.allocations.values() for a in allocations)
    columns = ["batch", *(["at once"] if several else []), *(["hold"] if holds else [])]
    for name in (*columns, "replicas", "utilization", "$/h"):
        table.add_column(name, justify="right")
    for stage, allocations in plan.allocations.items():
        for allocation in allocations:
            cost = allocation.replicas * kinds[allocation.hardware].price_per_hour
            utilization = f"{plan.utilization[stage]:.0%}"
            table.add_row(
                stage,
                allocation.hardware,
                str(allocation.max_batch_size),
                *([str(allocation.concurrency)] if several else []),
                *([format_duration(allocation.hold_s) if allocation.hold_s else "–"] if holds else []),
                str(allocation.replicas),
                utilization,
                f"{cost:.4f}",
            )
    replicas = sum(a.replicas for allocations in plan.allocations.values() for a in allocations)
    table.add_section()
    table.add_row("all", "", *[""] * len(columns), str(replicas), "", f"{plan.cost_per_hour:.4f}", style="bold")
    table.caption = (
        f"SLO {format_duration(plan.slo_s)}, predicted P99 {format_duration(plan.predicted_p99_s)}, "
        f"{plan.arrival_rate:.1f} events/s on average"
    )
    for stage, bound in plan.key_bound.items():
        table.caption += f"\n{stage}: {bound}"
    shared = sum(
        a.replicas * kinds[a.hardware].price_per_hour for options in plan.allocations.values() for a in options
    )
    if plan.cost_per_hour > shared + COST_EPSILON:
        table.caption += f"\n${plan.cost_per_hour - shared:.4f} of it is for places on shared devices that nobody has"
    if any(kinds[a.hardware].emulated for allocations in plan.allocations.values() for a in allocations):
        table.caption += "\nemulated hardware sleeps its declared service times and computes nothing"
    if remarks:
        table.caption += f"\n{remarks}"
    return table
