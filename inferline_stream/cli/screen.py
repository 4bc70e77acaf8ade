"""What people see of a run: steps, decisions as they are made, a live table, the report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from inferline_stream.cli.output import logs_as_json
from inferline_stream.controlplane.run_inputs import RunDisplay
from inferline_stream.observability.pipeline_state import (
    BackgroundState,
    ClassState,
    DecisionRecord,
    IsolationState,
    PipelineState,
    StageState,
)
from inferline_stream.pipeline.event_classes import BACKGROUND_MARGIN, BACKLOG_S
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.runs.report import RunReport

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 5.0
"""Without a terminal, how often a line tells how the run goes."""

_COUNTS = ("hardware", "replicas", "records/s", "queued", "wait", "lag")
_FIGURES = ("batch", "service", "utilization", "dispatcher", "isolation")
"""Columns of a stage's pool. Batch is the mean over the limit; utilization is the replicas'."""

_ANY_WIDTH = 1000
"""Columns of a console on which any table fits."""

_ACTION_STYLE = {"scale_up": "bold yellow", "scale_down": "bold green", "hold": "dim"}


class Screen(RunDisplay):
    """Shows a run on a console: a table that lives on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._began_s = time.monotonic()
        self._line_s = 0.0
        self._step = ""

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def step(self, text: str) -> None:
        """The run has come to its next step."""
        self.close()  # what is on the screen was of the step before
        self._step = text
        self._say(Text(f"{text} …", style="dim"))

    def progress(self, done: int, of: int, left_s: float) -> None:
        """How far the step is, and about how much longer it takes, 0 where nobody can tell."""
        left = f", about {format_duration(math.ceil(left_s))} left" if left_s else ""
        text = Text(f"{self._step}: {done} of {of}{left}", style="dim")
        if self._console.is_terminal:
            self._show(text)
        elif self._line_is_due():
            self._say(text)

    def note(self, text: str) -> None:
        """Something to keep on the screen."""
        self._say(Text(text))

    def decided(self, record: DecisionRecord) -> None:
        """One line per decision; the control loop logs it too, so JSON lines have it from there."""
        if logs_as_json():
            return
        line = Text(f"{self._elapsed_s():6.1f} s  ")
        line.append(record.action, style=_ACTION_STYLE.get(record.action, "bold"))
        if not record.applied and record.action != "hold":
            line.append(" (advised)", style="italic")
        replicas = ", ".join(f"{stage} {count}" for stage, count in record.by_stage.items())
        line.append(f"  {record.reason}: {record.detail} → {replicas}")
        self._say(line)

    def now(self, state: PipelineState) -> None:
        """The newest picture."""
        if self._console.is_terminal:
            self._show(Group(headline(state, self._elapsed_s()), StagesTable(state)))
        elif self._line_is_due():
            if logs_as_json():
                logger.info("state", extra=_as_fields(state))
                return
            self._say(headline(state, self._elapsed_s()))

    def report(self, report: RunReport) -> None:
        """The end of the run."""
        self.close()
        self._console.print(_report(report))
        for line in report.exits:
            self._say(Text(f"process ended: {line}", style="yellow"))
        for event in report.lost_ids:
            self._say(Text(f"lost: {event}", style="bold red"))

    def _show(self, what: RenderableType) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(what, refresh=True)

    def _line_is_due(self) -> bool:
        if time.monotonic() - self._line_s < _LINE_EVERY_S:
            return False
        self._line_s = time.monotonic()
        return True

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    def _say(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def headline(state: PipelineState, elapsed_s: float | None = None) -> Text:
    """The pipeline in one line, behind the time of the run where there is one."""
    replicas = " ".join(f"{s.name} {sum(k.ready for k in s.replicas)}" for s in state.stages)
    lag = sum(s.lag_records for s in state.stages)
    line = Text(f"λ {state.arrival_rate:.1f}/s  ")
    if elapsed_s is not None:  # only who has been there from the start can tell how many there were
        line = Text(f"{elapsed_s:6.1f} s  {line}in {state.events_in}  out {state.events_out}  ")
    line.append(f"lag {lag}  P50 {_duration(state.recent_p50_s)}  ")
    late = (state.recent_late_share or 0.0) > 1 - state.objective
    line.append(f"P99 {'≈ ' * state.estimated}{_duration(state.recent_p99_s)}", style="bold red" if late else "green")
    line.append(f" of {format_duration(state.slo_s)}  late {_share(state.recent_late_share)}  ")
    line.append(f"${state.cost_per_hour:.4f}/h  replicas {replicas}")
    return line


def _as_fields(state: PipelineState) -> dict[str, object]:
    return {
        "pipeline": state.pipeline,
        "arrival_rate": round(state.arrival_rate, 3),
        "events_in": state.events_in,
        "events_out": state.events_out,
        "lag": sum(s.lag_records for s in state.stages),
        "p99_s": state.recent_p99_s,
        "slo_s": state.slo_s,
        "late_share": state.recent_late_share,
        "oldest_wait_s": round(state.oldest_wait_s, 3),
        "cost_per_hour": state.cost_per_hour,
        "replicas": {s.name: sum(k.ready for k in s.replicas) for s in state.stages},
    }


class StagesTable:
    """A row for each stage and hardware kind. Where the console is too narrow for it, figures follow in a second table.

    Rich would cut headings and numbers off.
    """

    def __init__(self, state: PipelineState) -> None:
        self._state = state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one table or two, and below them what is wrong and where replicas are."""
        whole = self._table(_COUNTS + _FIGURES)
        if Measurement.get(console, options.update(max_width=_ANY_WIDTH), whole).minimum <= options.max_width:
            yield whole
        else:
            yield from (self._table(_COUNTS), self._table(_FIGURES))
        for of_live in self._state.classes:
            yield Text(class_words(of_live), style="dim")
        for of_class in self._state.backgrounds:
            yield Text(background_words(of_class), style="dim")
        for stage in self._state.stages:
            if stage.trouble:
                yield Text(f"{stage.name}: {stage.trouble}", style="bold yellow")
            yield from (Text(f"{stage.name}: {words}", style="yellow") for words in late_words(stage))
        for device in self._state.devices:
            if device.trouble:
                yield Text(device.trouble, style="bold yellow")
        for stage in self._state.stages:
            if stage.nodes:
                yield Text(f"{stage.name}: {nodes_words(stage)}", style="dim")

    def _table(self, columns: tuple[str, ...]) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("stage", min_width=12, overflow="fold")
        for name in columns:
            words = name in ("hardware", "isolation")
            table.add_column(name, justify="left" if words else "right", no_wrap=name != "isolation", overflow="fold")
        for stage in self._state.stages:
            shown = _figures(stage)
            for row, kind in enumerate(stage.replicas):
                replicas = f"{kind.ready}/{kind.wanted}" if kind.ready != kind.wanted else str(kind.ready)
                own = {"hardware": kind.hardware, "replicas": replicas}
                if row == 0 or "hardware" in columns:
                    cells = own | shown if row == 0 else own
                    table.add_row(stage.name if row == 0 else "", *(cells.get(name, "") for name in columns))
        return table


def class_words(of_class: ClassState) -> str:
    """How one of several live classes fares."""
    p99, slo = _duration(of_class.recent_p99_s), format_duration(of_class.slo_s)
    return f"class {of_class.topic}: P99 {p99} of {slo}, late {_share(of_class.recent_late_share)}"


def background_words(of_class: BackgroundState) -> str:
    """How far a class of background events has come."""
    rate = "–" if of_class.rate is None else f"{of_class.rate:.1f}/s"
    left = f"{of_class.left} left" if of_class.left else "done"
    done = f", done in {format_duration(of_class.done_in_s)}" if of_class.left and of_class.done_in_s else ""
    needed = f", {of_class.needed_rate:.1f}/s needed" if of_class.needed_rate else ""
    slow = of_class.rate is not None and of_class.needed_rate > BACKGROUND_MARGIN * of_class.rate
    if slow and of_class.left > BACKLOG_S * of_class.needed_rate:
        needed += ": too slow"
    return f"background {of_class.topic}: {rate}{needed}, {left}{done}"


def nodes_words(stage: StageState) -> str:
    """What a stage has on each node of a cluster."""
    found = []
    for node, of in stage.nodes.items():
        parts = ["dispatcher"] * of.dispatchers + ([f"{of.replicas} ready"] if of.replicas else [])
        found.append(f"{node} ({', '.join(parts)})")
    return "; ".join(found)


_NOTEWORTHY_S = 5.0
"""Clocks that are kept in step may differ by less."""


def late_words(stage: StageState) -> Iterator[str]:
    """What of a stage is late before it is served."""
    if stage.degraded_share:
        yield f"its fallback makes {stage.degraded_share:.1%} of the events"
    if stage.hopeless:
        age = _duration(stage.oldest_wait_s)
        yield f"{count_of(stage.hopeless, 'event')} can no longer be on time; the oldest entered {age} ago"
    if stage.clock_lag_s > _NOTEWORTHY_S:
        by = _duration(stage.clock_lag_s)
        yield f"records are up to {by} older than others before them, and go last: a producer's clock is behind"


def isolation_words(held: IsolationState | None) -> str:
    """What really keeps a stage's replicas in, in a few words."""
    if held is None:
        return "–"
    if held.level == "none":
        return "none"
    calls = "all calls" if held.system_calls is None else f"{held.system_calls} calls"
    sealed = "sealed" if held.sealed == held.replicas else f"{held.sealed}/{held.replicas} sealed"
    words = f"{sealed}, {calls}"
    return f"[bold yellow]{words}: {'; '.join(held.missing)}[/]" if held.missing else words


def _figures(stage: StageState) -> dict[str, str]:
    """Of a stage, by column."""
    return {
        "records/s": f"{stage.arrival_rate:.1f}",
        "queued": str(stage.queued),
        "wait": _duration(stage.wait_s),
        "lag": str(stage.lag_records),
        "batch": _batch(stage),
        "service": _duration(stage.service_time_s),
        "utilization": _share(stage.utilization),
        "dispatcher": _share(stage.dispatcher_utilization),
        "isolation": isolation_words(stage.isolation),
    }


def _batch(stage: StageState) -> str:
    """Mean batch of the largest allowed, and for how long a free replica waits for a fuller one."""
    fill = "–" if stage.mean_batch_size is None else f"{stage.mean_batch_size:.1f}/{stage.max_batch_size}"
    return f"{fill} held {format_duration(stage.hold_s)}" if stage.hold_s else fill


def _report(report: RunReport) -> Table:
    table = Table("figure", title=f"Run of {report.pipeline}", show_header=False, min_width=50)
    table.add_column("value", justify="right")
    table.add_row("events in", str(report.events_in))
    table.add_row("events out", str(report.events_out))
    for reason, count in sorted(report.completed.items()):
        table.add_row(Text(f"ended without output: {reason}"), str(count))
    for stage, count in report.degraded.items():
        table.add_row(Text(f"made by the fallback of {stage}"), str(count))
    for stage, mean in report.results_each.items():
        table.add_row(Text(f"results of an event of {stage}"), f"{mean:.2f}")
    if report.backlog:
        done = f"worked off after {_duration(report.backlog_done_s)}; not in the latencies below"
        table.add_row("of them there before", f"{report.backlog}, {done}")
    if report.not_read:
        table.add_row("lost, duplicated, left", "not known: Kafka did not answer", style="bold red")
    else:
        table.add_row("lost", str(report.lost), style="bold red" if report.lost else "bold green")
        table.add_row("duplicated", str(report.duplicated))
    if report.verified < report.events_in and not report.not_read:
        table.add_row("of them looked up by id", f"the last {report.verified}; the others are counted")
        table.add_row("counted without an end", str(report.unaccounted), style="bold red" if report.unaccounted else "")
    for topic, of_live in report.classes.items():
        late = "–" if of_live.slo_miss_rate is None else f"{of_live.slo_miss_rate:.2%}"
        figures = f"{_duration(of_live.p99_s)} of {_duration(of_live.slo_s)}, {late} missed"
        table.add_row(Text(f"class {topic}: P99"), figures)
    for topic, of in report.backgrounds.items():
        table.add_row(Text(f"background {topic}"), f"{of.events_out} of {of.events_in}, {of.left} left")
    table.add_section()
    table.add_row("P50 / P95 / P99", " / ".join(_duration(q) for q in (report.p50_s, report.p95_s, report.p99_s)))
    table.add_row("SLO (predicted P99)", f"{_duration(report.slo_s)} ({_duration(report.predicted_p99_s)})")
    table.add_row("miss rate", "–" if report.slo_miss_rate is None else f"{report.slo_miss_rate:.2%}")
    table.add_section()
    table.add_row("cost", f"${report.cost:.6f}")
    most = ", ".join(f"{stage} {count}" for stage, count in report.replicas_most.items())
    table.add_row("most replicas", most)
    ups, downs = (sum(d.action == action for d in report.decisions) for action in ("scale_up", "scale_down"))
    table.add_row("decisions", f"{ups} up, {downs} down, {len(report.decisions) - ups - downs} other")
    if not report.not_read:
        table.add_row("lag left", str(sum(report.lag.values())))
    table.add_row("duration", _duration(report.duration_s))
    if report.lateness_p99_s is not None:
        table.add_row("replay late by (P99)", _duration(report.lateness_p99_s))
    if report.emulated:
        table.caption = "emulated hardware slept its declared service times and computed nothing"
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)
