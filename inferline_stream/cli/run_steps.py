"""The run that the command `run` asks for: broker, profiles, plan, run, report."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop
from rich.console import Console
from rich.logging import RichHandler

from inferline_stream.cli.options import RunOptions, duration_of, kafka_words, pipeline_of, topology_file
from inferline_stream.cli.output import console, log_to_people, print_json
from inferline_stream.cli.plan_steps import (
    Declared,
    PlanInputs,
    declared,
    plan_table,
    planned,
    profiled,
    profiling_options,
    remarks,
    take_profiles,
)
from inferline_stream.cli.platform import actuator_of, check, reach
from inferline_stream.cli.rehearsal_steps import rehearsed
from inferline_stream.cli.screen import Screen
from inferline_stream.cli.stop_signals import Stopping
from inferline_stream.cli.what_if_process import WhatIfOrder, WhatIfProcess
from inferline_stream.connectors.sources.replay_process import replayed, together
from inferline_stream.controlplane.observe.recovery import recover
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_inputs import FeedTo, NewestState, Run
from inferline_stream.controlplane.run_options import Endpoints
from inferline_stream.dataplane.dispatcher.tracing import check_exporter
from inferline_stream.dataplane.sample_files import read_arrivals
from inferline_stream.dataplane.start_offsets import check_start
from inferline_stream.errors import GateFailed, Infeasible, InferlineError, Unreachable, UsageError
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.connection import refused, wait_for_kafka
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import REPLICATION, ready_topics, topics_of
from inferline_stream.observability.page.what_if_server import Answers
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.trace import Trace, merged
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.runs.archive import new_run
from inferline_stream.runs.broker_process import embedded_broker_process
from inferline_stream.runs.http_endpoints import served
from inferline_stream.runs.lifecycle import run_and_hand_over, run_to_report
from inferline_stream.runs.report import RunReport
from inferline_stream.settings import (
    DISPATCHER_KAFKA_VARIABLES,
    dispatcher_environment,
    from_environment,
    given,
    kafka_security,
    runtime_folder,
)
from inferline_stream.tuner.policy import POLICIES


def run_and_report(wanted: RunOptions) -> None:
    """Run to the end, then print the report: a table, or one JSON object on standard output."""
    _check(wanted)
    as_json = wanted.output == "json"
    people = console(error=as_json)
    log_to_people(RichHandler(console=people, show_time=False, show_path=False, markup=False, highlighter=None))
    stopping = Stopping()
    if (pipeline := pipeline_of(wanted.topology, groups=True)).groups:
        from inferline_stream.cli.group_run import run_and_print

        run_and_print(wanted, pipeline, topology_file(wanted.topology), people, stopping)
        return
    what = declared(wanted.topology, wanted.bootstrap_servers, wanted.records.prefix)
    what = replace(what, trace=what.trace.sped_up(wanted.speed_up))
    with closing(Screen(people)) as screen:
        try:
            report = uvloop.run(_run(wanted, what, people, screen, stopping))
        except asyncio.CancelledError:
            raise stopping.forced() from None
        if report is None:
            people.print("Left dispatchers and replicas at work: the next run leads them.")
            return
        if as_json:
            print_json(report)
        else:
            screen.report(report)
    judge(report, what.pipeline.objective if wanted.gate else None, _logs(what))


def judge(report: RunReport, objective: float | None, logs: Path) -> None:
    """Fail a run that is no success although it came to its end.

    Args:
        report: of the run.
        objective: share of events that must meet the SLO; None where no gate was asked for.
        logs: where its processes wrote.

    Raises:
        Unreachable: Kafka did not answer at the end, so that this is not known.
        GateFailed: the objective did not hold, or events were lost.
        InferlineError: events were lost, and no gate was asked for.
    """
    if report.not_read:
        raise Unreachable(
            f"{report.not_read}. No event was accounted for. What was not finished is in Kafka still: the next run "
            "goes on with it"
        )
    if objective is not None and (miss := gate_miss(report, objective)):
        raise GateFailed(miss)
    if report.lost or report.unaccounted:
        raise InferlineError(f"{_lost(report)}. See what dispatchers and replicas wrote in {logs}")


def _lost(report: RunReport) -> str:
    """What was lost, in words; empty if nothing was."""
    if report.lost:
        lost = f"{count_of(report.lost, 'event')} lost, with neither a result nor a reason why there is none"
        left = ", ".join(f"{count} in group {group}" for group, count in report.lag.items() if count)
        if left:
            lost += f". Kafka still has records that were not finished ({left}): the next run goes on with them"
        return lost
    if report.unaccounted:
        return (
            f"{count_of(report.unaccounted, 'event')} lost before the last {report.verified}, which are all accounted "
            "for: so many more entered than have a result or a reason why there is none (a source that is written in "
            'transactions declares `arrivals="timestamps"`)'
        )
    return ""


def _check(wanted: RunOptions) -> None:
    """Refuse what cannot be done before minutes are spent on profiles and a plan."""
    check(wanted.platform, wanted.bootstrap_servers, hand_over=wanted.hand_over)
    if not wanted.speed_up > 0:
        raise UsageError(f"--speed-up {wanted.speed_up:g} must be above 0")
    if wanted.replay is False and wanted.arrivals is not None:
        raise UsageError("--arrivals is what is replayed, and --no-replay replays nothing: leave one of them out")
    if wanted.gate and wanted.hand_over:
        raise UsageError("--gate judges a run that has ended, and --hand-over leaves it at work: leave one of them out")
    if wanted.search.reserve is not None and wanted.policy != "default":
        raise UsageError(
            "--reserve is held by the default policy, and the paper's Tuner knows none: leave one of them out"
        )
    _seconds(wanted.duration)
    check_start(wanted.records.start)
    if wanted.records.tracing:
        check_exporter(wanted.records.tracing)


def gate_miss(report: RunReport, objective: float) -> str:
    """In what the SLO gate did not hold, in words; empty if it did."""
    if lost := _lost(report):
        return f"the SLO gate did not hold: {lost}"
    if report.slo_miss_rate is None:
        return "the SLO gate did not hold: no event came through, so nothing is known"
    if report.slo_miss_rate > 1 - objective + 1e-9:
        return (
            f"the SLO gate did not hold: {report.slo_miss_rate:.2%} of {count_of(report.events_in, 'event')} missed "
            f"the SLO of {report.slo_s:g} s, the objective allows {1 - objective:.2%}"
        )
    return ""


async def _dispatchers_known(bootstrap_servers: str) -> None:
    """Try the dispatchers' credentials: the supervisor would start dispatchers that are refused again and again.

    Raises:
        UsageError: the environment asks for what cannot be.
        Unreachable: Kafka refuses them.
    """
    if bootstrap_servers.startswith("PLAINTEXT://") or not given(DISPATCHER_KAFKA_VARIABLES):
        return
    if why := await refused(bootstrap_servers, kafka_security(dispatcher_environment())):
        raise Unreachable(f"of the dispatchers: {why}")


async def _run(
    wanted: RunOptions, what: Declared, people: Console, screen: Screen, stopping: Stopping
) -> RunReport | None:
    feed, arrivals = replay_of(wanted, what)
    async with AsyncExitStack() as stack:
        newest_state, what_if = NewestState(), stack.enter_context(closing(WhatIfProcess()))
        servers, endpoints = await _kafka(
            stack, wanted, what, screen, newest_state=newest_state, what_if=what_if.answers()
        )
        await reach(wanted.platform)
        inputs, measured, plan = await _planned(wanted, what, servers, screen)
        stopping.watch()  # until now nothing ran that has to be drained: Ctrl-C ended the command
        what = inputs.what
        what_if.order = WhatIfOrder(
            topology=wanted.topology,
            trace=what.trace,
            platform=wanted.platform,
            search=wanted.search,
            stock=tuple(wanted.stock or ()),
            measured=measured,
            plan=plan,
            kafka=kafka_words(wanted.bootstrap_servers, wanted.records.prefix),
        )
        people.print(plan_table(plan, inputs.kinds, remarks(plan, inputs, measured)))
        run = Run(
            pipeline=what.pipeline,
            topology=what.file,
            bootstrap_servers=servers,
            plan=plan,
            measured=measured,
            log_folder=_logs(what),
            supervisor_folder=_supervisor_folder(wanted, what) if wanted.bootstrap_servers else None,
            run_folder=new_run(what.file.parent, what.pipeline.name, time.time()),
            records=wanted.records,
            display=screen,
            feed=feed,
            arrivals=arrivals,
            replication=REPLICATION if wanted.bootstrap_servers else 1,
            policy=POLICIES[wanted.policy],
            advisory=wanted.advisory,
            duration_s=_seconds(wanted.duration),
            endpoints=endpoints,
            what_if=what_if.answers(),
            newest_state=newest_state,
            settings=from_environment(),
            sample=what.trace,
            # Dispatchers that outlive a controller count what their next one would count otherwise.
            live_since_s=0.0 if wanted.hand_over else time.time(),
            hands_over=wanted.hand_over,
            cores=inputs.problem(measured).cores,
        )
        actuator = await stack.enter_async_context(actuator_of(wanted.platform, run))
        if actuator is not None and run.hands_over:
            await run_and_hand_over(run, stopping.stop, actuator)
            return None
        return await run_to_report(run, stopping.stop, actuator)


async def _kafka(
    stack: AsyncExitStack,
    wanted: RunOptions,
    what: Declared,
    screen: Screen,
    *,
    newest_state: NewestState,
    what_if: Answers,
) -> tuple[str, Endpoints]:
    """Kafka's addresses, once it answers, and what the run has to serve yet: the page of an embedded broker is open."""
    servers, limits = wanted.bootstrap_servers, from_environment()
    if servers is not None:
        await wait_for_kafka(servers, limits.connect_timeout_s)
        await _dispatchers_known(servers)
        if not wanted.records.create_topics:  # what is missing stays missing: say so before profiles take their time
            await ready_topics(servers, topics_of(what.pipeline, wanted.records.prefix), create=False)
        return servers, wanted.endpoints
    screen.step("starting the embedded broker: in memory, it keeps nothing")
    servers = await stack.enter_async_context(embedded_broker_process())
    # No other controller can lead here: the page may be open before this one does.
    context = PipelineContext(what.pipeline, KafkaCluster(servers), limits, wanted.records)
    early = replace(wanted.endpoints, metrics_port=None)
    stack.enter_context(served(newest_state, context, early, screen.note, what_if))
    return servers, replace(wanted.endpoints, ui=False)


async def _planned(
    wanted: RunOptions, what: Declared, servers: str, screen: Screen
) -> tuple[PlanInputs, PipelineProfile, Plan]:
    """Profile what has no profile yet, plan, and rehearse the plan where it runs on this machine."""
    screen.step("looking at profiles")
    if wanted.profiles is not None:
        take_profiles(what, wanted.profiles, wanted.platform.on)
    measured = await profiled(what, profiling_options(wanted.platform, wanted.bootstrap_servers), servers)
    cancelled = threading.Event()  # no cancellation reaches the thread that plans
    now_s, people = time.time(), await _set_by_people(wanted, what)
    inputs = PlanInputs(
        what=what,
        platform=wanted.platform,
        search=wanted.search,
        slo_s=people.slo_s(now_s),
        stock=people.stock(now_s),
        prices=people.prices(now_s),
        stop=cancelled.is_set,
    )
    inputs = inputs.limited(wanted.stock or (), absent=True)
    screen.step("planning")
    try:
        inputs, plan = await _planned_as_set(inputs, measured, screen)
        if not wanted.platform.elsewhere:
            measured, plan = await rehearsed(
                inputs,
                measured,
                plan,
                partial(planned, inputs),
                note=screen.note,
                speed_up=wanted.speed_up,
                begins=lambda: screen.step("rehearsing"),
            )
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return inputs, measured, plan


async def _set_by_people(wanted: RunOptions, what: Declared) -> Overrides:
    """Return what people have set in place of the topology's."""
    if wanted.bootstrap_servers is None:
        return Overrides()
    names = Names(what.pipeline.name, wanted.records.prefix)
    async with Offsets(wanted.bootstrap_servers) as offsets:
        if len(await offsets.existing([names.decisions, names.control])) < 2:  # it has never run there
            return Overrides()
    return (await recover(wanted.bootstrap_servers, names)).overrides


async def _planned_as_set(inputs: PlanInputs, measured: PipelineProfile, screen: Screen) -> tuple[PlanInputs, Plan]:
    """Plan for the SLO, prices and stock that people have set, and without those that no plan meets."""
    declared = inputs.what.pipeline
    set_ = [] if inputs.slo_s is None else [f"an SLO of {format_duration(inputs.slo_s)}"]
    set_ += [f"at most {count_of(most, 'replica')} on {kind}" for kind, most in inputs.stock.items()]
    set_ += [f"${dollars:g}/h for {kind}" for kind, dollars in inputs.prices.items()]
    if set_:
        screen.note(
            f"planning for what people have set in place of the topology's: {', '.join(set_)}; "
            "`inferline-stream resume --all` takes it back"
        )
    try:
        return inputs, await asyncio.to_thread(planned, inputs, measured)
    except Infeasible as error:
        if inputs.slo_s is not None:
            less, of = replace(inputs, slo_s=None), f"SLO of {format_duration(declared.slo_s)}"
        elif inputs.stock:
            less, of = replace(inputs, stock={}), "stock"
        else:
            raise
        screen.note(f"{error}: planning for the topology's {of}, until a plan meets what people have set")
        return await _planned_as_set(less, measured, screen)


def _logs(what: Declared) -> Path:
    """Where the run's processes write."""
    return what.file.parent / ".inferline" / "logs" / what.pipeline.name


def _supervisor_folder(wanted: RunOptions, what: Declared) -> Path:
    """Return the private folder where a run that follows this one on the same Kafka finds its supervisor.

    Raises:
        UsageError: it cannot be written, or is another user's, so that its sockets cannot be trusted.
    """
    names = f"{what.pipeline.name} {wanted.records.prefix} {wanted.bootstrap_servers}"
    root = runtime_folder()
    folder = root / hashlib.blake2s(names.encode(), digest_size=8).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; set XDG_RUNTIME_DIR to a folder that can be written") from None
    for each in (root, folder):
        if each.stat().st_uid != os.getuid():
            raise UsageError(f"{each} belongs to another user; set XDG_RUNTIME_DIR to a folder of your own")
        each.chmod(0o700)
    return folder


def replay_of(wanted: RunOptions, what: Declared) -> tuple[FeedTo | None, Trace | None]:
    """What feeds the source topic, and the arrivals that it brings; neither where events come from elsewhere.

    Raises:
        UsageError: there are no events to replay.
    """
    asked = wanted.bootstrap_servers is None if wanted.replay is None else wanted.replay
    if not asked and wanted.arrivals is None:
        return None, None
    pipeline, folder = what.pipeline, what.file.parent
    samples = {topic: sample for topic, sample in pipeline.samples.items() if sample is not None}
    if not samples:
        raise UsageError(
            f"{what.pipeline.declared} declares no sample, so there are no events to replay: add "
            'sample=Sample(arrivals="arrivals.csv", events="events.jsonl"), or leave --replay and --arrivals out'
        )
    if wanted.arrivals is not None and len(samples) > 1:
        raise UsageError(
            f"--arrivals is of one source topic, and events come from {len(samples)}: leave it out; each sample has "
            "arrivals of its own, and replay= others"
        )
    arrivals = {topic: wanted.arrivals or folder / (each.replay or each.arrivals) for topic, each in samples.items()}
    feeds = {
        topic: replayed(arrivals[topic], folder / each.events, speed_up=wanted.speed_up, key_field=each.key)
        for topic, each in samples.items()
    }
    return together(feeds), merged([read_arrivals(file) for file in arrivals.values()]).sped_up(wanted.speed_up)


def _seconds(duration: str | None) -> float | None:
    return None if duration is None else duration_of("--duration", duration)
