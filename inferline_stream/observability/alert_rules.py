"""Alert and recording rules on SLO risk, made from the same list of buckets as the metrics.

SLO burn follows the multi-window, multi-burn-rate method of Google's SRE workbook (chapter 5): an alert
fires while both a long and a short window burn the error budget faster than a factor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inferline_stream.observability.latency_histogram import bucket_label
from inferline_stream.pipeline.event_classes import BACKGROUND_MARGIN, BACKLOG_S
from inferline_stream.pipeline.fallback import UNMET_SHARE
from inferline_stream.tuner.error_budget import FAST_BURN, LARGEST_RATIO

PAGE, TICKET = "page", "ticket"

GUIDES = "https://inferline-stream.example/blob/main/docs"
"""Where the guides are published, as pyproject.toml's link to the documentation says, which a test compares."""

_BURNS = (("1h", "5m", FAST_BURN, PAGE), ("6h", "30m", 6.0, PAGE), ("1d", "2h", 3.0, TICKET), ("3d", "6h", 1.0, TICKET))
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

_BY_STAGE = "by (pipeline, stage)"

_LEAST_DRIFT = 0.01
"""Share of the SLO by which a batch must differ from its profile: less is the machine's noise, and harms no plan."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule.

    Args:
        name: in the field's CamelCase.
        expr: PromQL that has a result while the alert holds.
        summary: what is wrong, one line, may use labels.
        description: what follows and what to look at.
        hold: how long it must hold, as Prometheus writes it.
        severity: `page` or `ticket`.
        keep: how long it goes on firing once the trouble is away: trouble that comes back within that time is the same.
    """

    name: str
    expr: str
    summary: str
    description: str
    hold: str = "0s"
    severity: str = TICKET
    keep: str = "0s"

    @property
    def runbook(self) -> str:
        """Anchor of its section in the runbook page."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class BurnRate:
    """One burn-rate condition: the miss ratio exceeds ``threshold`` in both windows."""

    long: str
    short: str
    threshold: float
    severity: str


@dataclass(frozen=True, slots=True)
class Target:
    """What a pipeline promises, and how long its alerts look.

    Args:
        pipeline: its name.
        slo_s: the SLO in seconds.
        objective: share of events that must meet it.
        faster: divides every window and hold, to rehearse in minutes what takes days; 1 in earnest.

    Raises:
        ValueError: an objective outside (0, 1), or a rehearsal slower than life.
    """

    pipeline: str
    slo_s: float
    objective: float
    faster: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.objective < 1:
            raise ValueError(f"objective {self.objective} must be between 0 and 1, e.g. 0.99")
        if not self.faster >= 1:
            raise ValueError(f"{self.faster:g} must be 1 or more")

    @property
    def match(self) -> str:
        """Labels that select the pipeline's series."""
        return f'pipeline="{self.pipeline}"'

    def time(self, written: str) -> str:
        """A window or hold, e.g. ``10m``, as this target has it."""
        seconds = int(written[:-1]) * _SECONDS[written[-1]] / self.faster
        if seconds and seconds < 1:
            return f"{max(1, round(seconds * 1e3))}ms"
        whole = round(seconds)
        return next(f"{whole // size}{unit}" for unit, size in _SECONDS.items() if whole % size == 0)


def burns(target: Target) -> tuple[BurnRate, ...]:
    """Burn-rate conditions for an objective.

    Where the largest factor times the error budget passes 0.9 (an objective of 90 % with factor 14.4
    would need a miss ratio of 1.44) all factors shrink together, none below 1.
    """
    budget = 1 - target.objective
    scale = min(1.0, LARGEST_RATIO / (_BURNS[0][2] * budget))
    return tuple(
        BurnRate(target.time(long), target.time(short), float(f"{max(1.0, factor * scale) * budget:.6g}"), severity)
        for long, short, factor, severity in _BURNS
    )


def miss_ratio(window: str) -> str:
    """Name of the recording rule that holds the share of events that missed the SLO over a window."""
    return f"inferline:slo_miss:ratio_rate{window}"


def recordings(target: Target) -> Iterator[tuple[str, str]]:
    """(name, PromQL) of the miss ratio over each window in use."""
    windows = [target.time("1m"), *(w for burn in burns(target) for w in (burn.short, burn.long))]
    for window in dict.fromkeys(windows):
        missed = f"sum by (pipeline) (rate(inferline_slo_missed_total{{{target.match}}}[{window}]))"
        events = f"sum by (pipeline) (rate(inferline_slo_events_total{{{target.match}}}[{window}]))"
        yield miss_ratio(window), f"{missed} / ({events} > 0)"


def alerts(target: Target) -> Iterator[Alert]:
    """Every alert of a pipeline."""
    match, time = target.match, target.time
    yield from _burn_alerts(target)
    # One set of labels whichever of the two is the case: a loop that hangs and is then ended is one outage. One fresh
    # state is enough: a controller that was taken over from may answer for a while yet.
    yield Alert(
        "InferlineControllerDown",
        f"absent(inferline_slo_seconds{{{match}}}) or min by (pipeline) (inferline_state_age_seconds{{{match}}}) > 30",
        f"No controller of {target.pipeline} answers its scrape, or its loop stands still",
        "Nothing scales, and what dies on its host may not be replaced. Start a controller: it takes up the state that "
        "Kafka holds.",
        hold=time("30s"),
        severity=PAGE,
        keep=time("5m"),  # one that comes up misses scrapes while it imports, and one that crashes is started again
    )
    yield Alert(
        "InferlineStuckPartition",
        f"inferline_stage_stuck_partitions{{{match}}} > 0",
        "Stage {{ $labels.stage }}: {{ $value }} partitions stand still",
        "Records wait, replicas are ready, and commits do not move: a hung stage or a join that lacks parts, not load. "
        "More replicas will not help.",
        hold=time("1m"),
        severity=PAGE,
    )
    yield Alert(
        "InferlinePartitionHalted",
        f"inferline_stage_halted_partitions{{{match}}} > 0",
        "Stage {{ $labels.stage }}: {{ $value }} partitions are not read any more",
        "Their group has lost its offset, or records are gone before they were read. Nothing goes on there by itself: "
        "find out what is missing, then run with --start.",
        severity=PAGE,
    )
    yield Alert(
        "InferlineInnerTopicFills",
        f"inferline_stage_uncommitted_ratio{{{match}}} > 0.5 and inferline_stage_lag_seconds{{{match}}} > 60",
        "Stage {{ $labels.stage }}: {{ $value | humanizePercentage }} of what its input keeps is not processed",
        "Once a partition holds retention.bytes of it, Kafka deletes the oldest records unprocessed. Help the stage, "
        "or raise retention.bytes.",
        hold=time("5m"),
        severity=PAGE,
    )
    yield from _risk_alerts(target)
    yield from _replica_alerts(target)
    yield from _dispatcher_alerts(target)
    yield from _loss_alerts(target)


def _burn_alerts(target: Target) -> Iterator[Alert]:
    names = ("Fast", "Steady", "Slow", "Creeping")
    for name, burn in zip(names, burns(target), strict=True):
        conditions = (
            f"{miss_ratio(window)}{{{target.match}}} > {burn.threshold}" for window in (burn.long, burn.short)
        )
        yield Alert(
            f"InferlineSLOBurn{name}",
            " and ".join(conditions),
            f"{{{{ $value | humanizePercentage }}}} of events missed the SLO of {target.slo_s:g} s over {burn.long}",
            f"More than {burn.threshold:.4g} of the events missed the SLO over {burn.long} and over {burn.short}; "
            f"the objective allows {1 - target.objective:.4g}.",
            severity=burn.severity,
        )


def _risk_alerts(target: Target) -> Iterator[Alert]:
    match, time = target.match, target.time
    beyond = f"max by (pipeline) (inferline_envelope_excess_ratio{{{match}}}) > 1"
    behind = (
        f'sum by (pipeline) (inferline_replicas{{{match},state="wanted"}}) > '
        f'sum by (pipeline) (inferline_replicas{{{match},state="ready"}})'
    )
    held = f"max by (pipeline) (inferline_stage_at_limit{{{match}}}) == 1 or inferline_paused{{{match}}} == 1"
    yield Alert(
        "InferlineSLOAtRisk",
        f"({beyond} and on (pipeline) ({behind} or {held})) "
        f"or inferline_predicted_p99_seconds{{{match}}} > on (pipeline) inferline_slo_seconds{{{match}}}",
        "The SLO is at risk before any lag exists",
        "Traffic is beyond what the plan was made for, and the replicas that would carry it are not ready, not "
        "available or may not be asked for; or the plan in force is predicted to miss the SLO. While they start, "
        "nothing helps: if traffic leaps like this again, hold more with `run --reserve`.",
    )
    yield Alert(
        "InferlinePlanInfeasible",
        f"inferline_plan_feasible{{{match}}} == 0",
        "No plan meets the SLO",
        "The last planning run found no allocation that meets the SLO on recent traffic; the old plan stays. "
        "`inferline-stream plan` names the stage that makes it so and the smallest feasible SLO.",
    )
    yield Alert(
        "InferlineOversubscribed",
        f"inferline_oversubscribed{{{match}}} == 1",
        "Others take the cores that replicas were planned with",
        "Nothing is scaled up meanwhile: more replicas would only share what is left. `inferline-stream status` says "
        "how much is missing. End what takes the cores, or plan for fewer cores.",
    )
    yield Alert(
        "InferlineInputStale",
        f"inferline_input_age_seconds{{{match}}} > 10",
        "Input {{ $labels.input }} is {{ $value | humanizeDuration }} old",
        "The Tuner holds and never scales down on missing input. Look at the broker and at the dispatchers' reports.",
        hold=time("30s"),
    )
    yield Alert(
        "InferlineUnreadableRecords",
        f"inferline_unreadable_records_total{{{match}}} > 0",
        "Records of {{ $labels.topic }} that cannot be read and were skipped: {{ $value }}",
        "Another program, or a newer release, writes a topic that the pipeline keeps for itself. What it meant to set "
        "is not in force. The controller's log names the newest record.",
    )
    # Of more late events than the objective allows, the P99 is how long they were put last for; the SLO's alerts fire.
    yield Alert(
        "InferlineModelDrift",
        f"inferline_model_drift_ratio{{{match}}} < 0.67 and on (pipeline) "
        f"inferline_recent_p99_seconds{{{match}}} > on (pipeline) inferline_slo_seconds{{{match}}} / 2 "
        f"unless on (pipeline) inferline_recent_late_ratio{{{match}}} > {1 - target.objective:.4g}",
        "The predicted P99 is only {{ $value | humanizePercentage }} of the observed one",
        "Profiles no longer describe the stages: another machine, a noisy neighbour, other inputs. "
        "Profile again with `inferline-stream profile`.",
        hold=time("10m"),
    )
    bucket = f'inferline_latency_seconds_bucket{{{match},le="{bucket_label(target.slo_s)}"}}'
    yield Alert(
        "InferlineSLOBucketMissing",
        f"inferline_slo_seconds{{{match}}} != {target.slo_s!r} or "
        f"inferline_slo_seconds{{{match}}} unless on (pipeline) {bucket}",
        f"The rules are for an SLO of {target.slo_s:g} s with a latency bucket there, which the pipeline does not have",
        "These rules were made for another SLO than the one in force: make them again with `inferline-stream rules`.",
        hold=time("1m"),
    )


def _replica_alerts(target: Target) -> Iterator[Alert]:
    match, time = target.match, target.time
    yield Alert(
        "InferlineAtLimit",
        f"inferline_stage_at_limit{{{match}}} == 1",
        "Stage {{ $labels.stage }} may not grow further: {{ $labels.limit }}",
        "The stage needs more than the hardware stock, or its model server, gives. Add stock, or grow the server.",
        hold=time("1m"),
    )
    yield Alert(
        "InferlineDeviceFault",
        f"inferline_device_lost{{{match}}} == 1 or inferline_device_xid{{{match}}} > 0",
        "GPU {{ $labels.device }} of the replicas' host is lost, or has had an error of its own",
        "Replicas on it fail or wait for another one. `inferline-stream status` has its driver's words, and NVIDIA a "
        "list of Xids. This fires until the device answers; for an Xid, until the run is started again.",
        hold=time("10s"),
    )
    ratio = f"inferline_stage_service_time_ratio{{{match}}}"
    service_s = f"inferline_stage_service_time_seconds{{{match}}}"
    yield Alert(
        "InferlineServiceTimeDrift",
        f"({ratio} > 1.2 or {ratio} < {1 / 1.2:.3f}) and on (pipeline, stage) "
        f"abs({service_s} - {service_s} / on (pipeline, stage) {ratio}) > {_LEAST_DRIFT * target.slo_s:.6g}",
        "Stage {{ $labels.stage }}: batches take {{ $value | humanize }} times what its profile predicts",
        "The plan was made for other service times. The next planning run takes what replicas measure; if the stage "
        "stays so, profile it again with `inferline-stream profile --again`.",
        hold=time("5m"),
    )
    yield Alert(
        "InferlineReplicasMissing",
        f"{_replicas(target, 'wanted')} > {_replicas(target, 'ready')}",
        "Stage {{ $labels.stage }} lacks replicas: {{ $value }} are wanted",
        "Replicas that were asked for have not become ready for far longer than they take to start: there is no place "
        "for them, or they die as they start.",
        hold=time("2m"),
    )


def _dispatcher_alerts(target: Target) -> Iterator[Alert]:
    match, time = target.match, target.time
    yield Alert(
        "InferlineDispatcherSilent",
        f'max by (pipeline, input) (inferline_input_age_seconds{{{match},input=~"reports/.*"}}) > 5 and on (pipeline) '
        f'inferline_input_age_seconds{{{match},input="offsets"}} < 3',  # a broker that is away silences every one
        "{{ $labels.input }}: the dispatcher was last heard {{ $value | humanizeDuration }} ago",
        "It was replaced once already if its host lives. Nothing of its partitions is processed meanwhile. "
        "Look at its log and at the broker.",
        hold=time("10s"),
        severity=PAGE,
    )
    yield Alert(
        "InferlineDispatcherBusy",
        f"inferline_stage_dispatcher_utilization_ratio{{{match}}} > 0.8",
        "Stage {{ $labels.stage }}: its dispatcher takes {{ $value | humanizePercentage }} of a core",
        "A dispatcher cannot use more than one core: beyond it events wait there, and more replicas do not help. Allow "
        "larger batches, or plan for the higher rate, which gives the stage more slots.",
        hold=time("2m"),
    )
    yield Alert(
        "InferlinePoolInTrouble",
        f"inferline_stage_in_trouble{{{match}}} == 1",
        "Stage {{ $labels.stage }}: something is wrong with its replicas, e.g. they fail on every batch",
        "Fresh replicas fail even on an event that the stage is known to process, so no event is to blame and nothing "
        "becomes a dead letter. `inferline-stream status` says what is wrong: the code, a device, memory, the host.",
        hold=time("10s"),
        severity=PAGE,
    )
    yield Alert(
        "InferlineSkew",
        f"max {_BY_STAGE} (inferline_partition_arrival_rate_per_second{{{match}}}) "
        f"> 3 * avg {_BY_STAGE} (inferline_partition_arrival_rate_per_second{{{match}}}) "
        f"and on (pipeline, stage) inferline_stage_dispatchers{{{match}}} > 1",
        "One partition of stage {{ $labels.stage }} carries more than three times the mean",
        "The stage has several dispatchers, and a partition has only one of them. Spread the key.",
        hold=time("10m"),
    )
    yield Alert(
        "InferlineClockLead",
        f"inferline_stage_clock_lead_seconds{{{match}}} > 5",
        "Stage {{ $labels.stage }} reads records from {{ $value | humanizeDuration }} ahead of its host's clock",
        "Such records count from when they are read, so that their time on the way is not seen. Correct the clock of "
        "their producers, or this host's.",
        hold=time("5m"),
    )


def _loss_alerts(target: Target) -> Iterator[Alert]:
    match, time = target.match, target.time
    yield Alert(
        "InferlineReplicasCrash",
        f"sum {_BY_STAGE} (increase(inferline_stage_restarts_total{{{match}}}[{time('10m')}])) > 3",
        "Replicas of stage {{ $labels.stage }} died {{ $value | humanize }} times in 10 minutes",
        "Their last words are in the log of the controller: memory, a missing file, or one event that kills.",
    )
    yield Alert(
        "InferlineDeadLettersGrow",
        f"sum {_BY_STAGE} (increase(inferline_stage_dead_lettered_total{{{match}}}[{time('10m')}])) > 0",
        "Stage {{ $labels.stage }} sent {{ $value | humanize }} events to its dead-letter topic in 10 minutes",
        "Each is a missed event. The records hold the error in their headers; fix the cause, then replay them.",
    )
    yield Alert(
        "InferlineDegraded",
        f"inferline_stage_degraded_ratio{{{match}}} > {UNMET_SHARE:g}",
        "The fallback of stage {{ $labels.stage }} makes {{ $value | humanizePercentage }} of the events",
        "It is there for the time until replicas have started. See with `inferline-stream explain` why there are no "
        "more: a limit, the stock, or replicas that take longer than profiled.",
        hold=time("5m"),
    )
    yield Alert(
        "InferlineBackgroundSlow",
        f"inferline_background_needed_per_second{{{match}}} > "
        f"{BACKGROUND_MARGIN:g} * inferline_background_rate_per_second{{{match}}} and "
        f"inferline_background_left_records{{{match}}} > "
        f"{BACKLOG_S:g} * inferline_background_needed_per_second{{{match}}}",
        "Background events of {{ $labels.topic }} are served too slowly: {{ $value | humanize }}/s are needed",
        "They get less than their rate, or will not be done by finish_by at this pace. `inferline-stream explain` says "
        "what holds replicas back: a limit, the stock, a pause. Else ask for less, or for later.",
        hold=time("10m"),
    )
    yield Alert(
        "InferlineDeadLettersExpire",
        f"inferline_stage_dead_letter_age_ratio{{{match}}} > 0.8",
        "Stage {{ $labels.stage }}: its oldest dead letter has spent {{ $value | humanizePercentage }} of its time",
        "Kafka deletes letters once they are older than their topic's retention. See with `inferline-stream dlq ls` "
        "which were not sent again, and send them, or raise retention.ms.",
    )
    yield Alert(
        "InferlineScalingIneffective",
        f"inferline_stage_lag_seconds{{{match}}} > on (pipeline) group_left inferline_slo_seconds{{{match}}} "
        f"and on (pipeline) inferline_recent_late_ratio{{{match}}} > {1 - target.objective:.4g} "
        f"and on (pipeline, stage) ({_replicas(target, 'ready')} >= {_replicas(target, 'wanted')}) "
        f"and on (pipeline, stage) deriv(inferline_stage_lag_seconds{{{match}}}[{time('1m')}]) > 0",
        "Stage {{ $labels.stage }} falls behind although every wanted replica is ready",
        "Records age past the SLO and replicas do not help: the stage waits for something that they share, or its "
        "service time has grown beyond its profile.",
        hold=time("2m"),
    )


def _replicas(target: Target, state: str) -> str:
    return f'sum {_BY_STAGE} (inferline_replicas{{{target.match},state="{state}"}})'


def rules_document(target: Target) -> dict[str, Any]:
    """A Prometheus rule file for one pipeline, as it is in JSON."""
    labels = {"pipeline": target.pipeline} | ({"rehearsal": f"{target.faster:g}"} if target.faster > 1 else {})
    recorded = [{"record": name, "expr": expr} for name, expr in recordings(target)]
    alerting = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.hold,
            **({} if alert.keep == "0s" else {"keep_firing_for": alert.keep}),
            "labels": {"severity": alert.severity, **labels},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook": f"{GUIDES}/how-to/runbook.md#{alert.runbook}",
            },
        }
        for alert in alerts(target)
    ]
    # One group: its rules run in order, so alerts see the ratios of the same evaluation.
    return {"groups": [{"name": f"inferline.{target.pipeline}", "rules": [*recorded, *alerting]}]}


def rules_yaml(target: Target) -> str:
    """The same as YAML, for people to read and keep."""
    (group,) = rules_document(target)["groups"]
    lines = ["groups:", f"  - name: {json.dumps(group['name'])}", "    rules:"]
    for rule in group["rules"]:
        for at, (key, value) in enumerate(rule.items()):
            lead = "      - " if at == 0 else "        "
            if key == "annotations":
                lines += [f"{lead}{key}:", *(f"          {name}: {json.dumps(text)}" for name, text in value.items())]
            else:
                plain = key in ("alert", "record", "for", "keep_firing_for")
                lines.append(f"{lead}{key}: {value if plain else json.dumps(value)}")
    return "\n".join(lines) + "\n"
