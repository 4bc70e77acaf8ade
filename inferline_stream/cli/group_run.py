"""`run` on a topology of consumer groups that run already: their workers, KEDA's scaler, the run, its report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from inferline_stream.actuators.faust_workers import FaustWorkers
from inferline_stream.actuators.group_workers import CommandWorkers, GroupWorkers
from inferline_stream.cli.options import RunOptions, duration_of
from inferline_stream.cli.output import print_json
from inferline_stream.cli.platform import grpc_door, kubernetes_door
from inferline_stream.cli.screen import Screen
from inferline_stream.cli.stop_signals import Stopping
from inferline_stream.errors import UsageError
from inferline_stream.kafka.connection import wait_for_kafka
from inferline_stream.pipeline.consumer_group import Command, Deployment, FaustApp, KedaScaler
from inferline_stream.pipeline.group_profile import Learned
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.profiler.service_time_query import ServiceTimeQueries
from inferline_stream.runs.archive import new_run
from inferline_stream.runs.group_run import GroupReport, GroupRun, run_groups
from inferline_stream.settings import from_environment


def run_and_print(wanted: RunOptions, pipeline: Pipeline, file: Path, people: Console, stopping: Stopping) -> None:
    """Lead until stopped, then print what came of it: a table, or one JSON object on standard output.

    Raises:
        UsageError: an option is for stages alone, no Kafka is given, or a library is not installed.
    """
    _check(wanted)
    with closing(Screen(people)) as screen:
        try:
            report = uvloop.run(_run(wanted, pipeline, file, screen, stopping))
        except asyncio.CancelledError:
            raise stopping.forced() from None
    if wanted.output == "json":
        print_json(report)
    else:
        people.print(_table(report))


def _check(wanted: RunOptions) -> None:
    usual = RunOptions(topology=wanted.topology)
    names = ("replay", "arrivals", "speed_up", "search", "policy", "platform", "hand_over", "stock", "profiles", "gate")
    if given := [name for name in names if getattr(wanted, name) != getattr(usual, name)]:
        what = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{what}: of stages whose code runs here; this topology declares groups, so leave it out")
    if wanted.bootstrap_servers is None:
        raise UsageError("consumer groups that run already have a Kafka: give it with --bootstrap-servers")


@dataclass(slots=True)
class _Workers:
    """Who changes the numbers of the groups' workers, by declared name."""

    every: dict[str, GroupWorkers] = field(default_factory=dict)
    faust: dict[str, FaustWorkers] = field(default_factory=dict)
    keda: dict[str, Any] = field(default_factory=dict)
    """`KedaWorkers`."""
    queries: ServiceTimeQueries = field(default_factory=lambda: ServiceTimeQueries(()))

    def metric(self, group: str) -> Learned | None:
        """The throughput that a group's workers report."""
        return self.faust[group].throughput() if group in self.faust else self.queries.throughput(group)

    def seen(self, group: str, lag: int, members: int) -> None:
        """How a group is, for KEDA."""
        if group in self.keda:
            self.keda[group].seen(lag=lag, members=members)


async def _run(wanted: RunOptions, pipeline: Pipeline, file: Path, screen: Screen, stopping: Stopping) -> GroupReport:
    stopping.watch()
    settings, servers = from_environment(), wanted.bootstrap_servers or ""
    await wait_for_kafka(servers, settings.connect_timeout_s)
    logs = file.parent / ".inferline" / "logs" / pipeline.name
    async with _workers(wanted, pipeline, file, logs, screen) as workers:
        run = GroupRun(
            pipeline=pipeline,
            topology=file,
            bootstrap_servers=servers,
            workers=workers.every,
            metric=workers.metric,
            seen=workers.seen,
            log_folder=logs,
            records=wanted.records,
            display=screen,
            endpoints=wanted.endpoints,
            settings=settings,
            advisory=wanted.advisory,
            duration_s=None if wanted.duration is None else duration_of("--duration", wanted.duration),
            run_folder=new_run(file.parent, pipeline.name, time.time()),
        )
        return await run_groups(run, stopping.stop)


@asynccontextmanager
async def _workers(
    wanted: RunOptions, pipeline: Pipeline, file: Path, logs: Path, screen: Screen
) -> AsyncIterator[_Workers]:
    found = _Workers()
    client: Any = None
    async with AsyncExitStack() as stack:
        found.queries = await stack.enter_async_context(ServiceTimeQueries(pipeline.groups))
        for group in pipeline.groups:
            match group.workers:
                case Command(run):
                    found.every[group.name] = CommandWorkers(run, file.parent)
                case FaustApp(app):
                    data = file.parent / ".inferline" / "faust" / pipeline.name
                    faust = FaustWorkers(app, file.parent, group.name, group.topic, logs=logs, data=data)
                    found.every[group.name] = found.faust[group.name] = await stack.enter_async_context(faust)
                case Deployment(name):
                    door = kubernetes_door()
                    from inferline_stream.actuators.kubernetes.deployment_scale import DeploymentWorkers

                    if client is None:
                        client = await stack.enter_async_context(door.cluster_client())
                    found.every[group.name] = DeploymentWorkers(client, name)
                case KedaScaler(tolerance=tolerance):
                    found.every[group.name] = found.keda[group.name] = grpc_door().KedaWorkers(group.name, tolerance)
        if found.keda:
            where, tls = wanted.endpoints, wanted.endpoints.keda_tls
            files = (Path(tls) / "tls.crt", Path(tls) / "tls.key") if tls else None
            clients = Path(tls) / "ca.crt" if tls and (Path(tls) / "ca.crt").exists() else None
            address = f"{where.metrics_host}:{where.keda_port}"
            scaler = grpc_door().ExternalScaler(found.keda, address, files, clients)
            await stack.enter_async_context(scaler)
            screen.note(f"KEDA's scaler: {where.metrics_host}:{scaler.port}, of {', '.join(found.keda)}")
        yield found


def _table(report: GroupReport) -> Table:
    title = f"{report.pipeline}: {report.duration_s:.0f} s, {count_of(report.events_in, 'record')}, ${report.cost:.4f}"
    if report.p99_s is not None and report.miss_rate is not None:
        title += f", P99 ≈ {format_duration(report.p99_s)}, {report.miss_rate:.2%} late"
    table = Table(title=title)
    for name in ("group", "members", "wanted", "lag", "a worker's throughput"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for profile in report.groups:
        group, known = profile.group, profile.throughput
        rate = "not known yet" if known is None else f"{known.value:.3g}/s ± {known.error:.0%} ({profile.source})"
        wanted, lag = (str(values[group]) if group in values else "–" for values in (report.wanted, report.lags))
        table.add_row(group, str(report.members[group]), wanted, lag, rate)
    return table
