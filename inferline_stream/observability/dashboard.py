"""The Grafana dashboard, as a value: SLO, traffic, cost, replicas, stages, control loop.

`python -m inferline_stream.observability.dashboard` prints it; docker/grafana/dashboards holds what it prints.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 39
"""Of Grafana 10.4 and later."""

_P = '{pipeline=~"$pipeline"}'
_S = '{pipeline=~"$pipeline", stage=~"$stage"}'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Args:
        title: above it.
        unit: Grafana's name of the unit.
        queries: (expression, legend).
        kind: Grafana's name of the picture.
        width: of 24 columns.
        what: what it shows, on hover.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    what: str = ""


def _quantile(share: float) -> tuple[str, str]:
    rate = f"sum by (le, pipeline) (rate(inferline_latency_seconds_bucket{_P}[$__rate_interval]))"
    return f"histogram_quantile({share:g}, {rate})", f"P{100 * share:g}"


def _burn(window: str) -> tuple[str, str]:
    missed, events = (f"increase(inferline_slo_{what}_total{_P}[{window}])" for what in ("missed", "events"))
    return f"{missed} / {events} / (1 - inferline_slo_objective_ratio{_P})", f"over {window}"


_BUDGET_LEFT = (
    f"1 - increase(inferline_slo_missed_total{_P}[$__range]) / increase(inferline_slo_events_total{_P}[$__range])"
    f" / (1 - inferline_slo_objective_ratio{_P})"
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "SLO",
        (
            Panel("P99 now", "s", ((f"inferline_recent_p99_seconds{_P}", ""),), "stat", 4, "Over about the last 10 s."),
            Panel("SLO", "s", ((f"inferline_slo_seconds{_P}", ""),), "stat", 4),
            Panel("Error budget left", "percentunit", ((_BUDGET_LEFT, ""),), "stat", 4, "Of the time range shown."),
            Panel("Cost", "currencyUSD", ((f"inferline_cost_dollars_per_hour{_P}", "per hour"),), "stat", 4),
            Panel("A plan meets the SLO", "bool_yes_no", ((f"inferline_plan_feasible{_P}", ""),), "stat", 4),
            Panel("Decisions are held", "bool_yes_no", ((f"inferline_paused{_P}", ""),), "stat", 4),
            Panel(
                "End-to-end latency", "s",
                (_quantile(0.5), _quantile(0.95), _quantile(0.99), (f"inferline_slo_seconds{_P}", "SLO"),
                 (f"inferline_predicted_p99_seconds{_P}", "the plan's P99")),
                width=12,
            ),
            Panel(
                "Burn of the error budget", "none", (_burn("5m"), _burn("1h")), width=12,
                what="1 spends exactly the budget; the alert that pages begins at 14.4 over 1h and 5m.",
            ),
        ),
    ),
    (
        "Traffic and cost",
        (
            Panel("Arrivals", "reqps", ((f"inferline_arrival_rate_per_second{_P}", "arrivals"),
                                        (f"rate(inferline_events_out_total{_P}[$__rate_interval])", "out"))),
            Panel(
                "Traffic envelope over the plan's", "percentunit",
                ((f"inferline_envelope_excess_ratio{_P}", "{{window_seconds}} s"),),
                what="Above 100 %, more came in some window of that length than the plan was made for.",
            ),
            Panel(
                "Cost per hour", "currencyUSD",
                ((f"inferline_cost_dollars_per_hour{_P}", "held"),
                 (f"inferline_plan_cost_dollars_per_hour{_P}", "plan"),
                 (f"inferline_coarse_peak_cost_dollars_per_hour{_P}", "CG-Peak")),
            ),
            Panel("Envelope: most arrivals, live", "none",
                  ((f"inferline_envelope_arrivals{_P}", "{{window_seconds}} s"),), "bargauge", 12),
            Panel("Envelope: most arrivals, planned for", "none",
                  ((f"inferline_envelope_planned_arrivals{_P}", "{{window_seconds}} s"),), "bargauge", 12),
        ),
    ),
    (
        "Replicas and decisions",
        (
            Panel(
                "Replicas", "none",
                (('sum by (stage) (inferline_replicas{pipeline=~"$pipeline", stage=~"$stage", state="ready"})',
                  "{{stage}} ready"),
                 ('sum by (stage) (inferline_replicas{pipeline=~"$pipeline", stage=~"$stage", state="wanted"})',
                  "{{stage}} wanted")),
                width=12,
            ),
            Panel("Decisions", "none", ((f"increase(inferline_decisions_total{_P}[$__rate_interval])",
                                         "{{action}}: {{reason}}"),), width=12),
            Panel("Start-up time", "s", ((f"inferline_stage_start_up_seconds{_S}", "{{stage}}"),)),
            Panel("Replicas that died", "none",
                  ((f"increase(inferline_stage_restarts_total{_S}[$__rate_interval])", "{{stage}}"),)),
            Panel("Batches lost", "none",
                  ((f"increase(inferline_stage_batches_lost_total{_S}[$__rate_interval])", "{{stage}}"),),
                  what="Their replica died, hung or broke its contract; each was run again."),
        ),
    ),
    (
        "Stages",
        (
            Panel("Utilization", "percentunit", ((f"inferline_stage_utilization_ratio{_S}", "{{stage}}"),)),
            Panel("Queued events", "none", ((f"inferline_stage_queued_events{_S}", "{{stage}}"),)),
            Panel("Dispatcher, of a core", "percentunit",
                  ((f"inferline_stage_dispatcher_utilization_ratio{_S}", "{{stage}}"),),
                  what="The busiest dispatcher of the stage."),
            Panel("Wait", "s", ((f"inferline_stage_wait_seconds{_S}", "{{stage}}"),)),
            Panel("Service time of a batch", "s", ((f"inferline_stage_service_time_seconds{_S}", "{{stage}}"),)),
            Panel("Batches filled", "percentunit", ((f"inferline_stage_batch_fill_ratio{_S}", "{{stage}}"),)),
            Panel("Age of the oldest record", "s", ((f"inferline_stage_lag_seconds{_S}", "{{stage}}"),)),
            Panel("Dead letters", "none",
                  ((f"increase(inferline_stage_dead_lettered_total{_S}[$__rate_interval])", "{{stage}}"),)),
            Panel("Lag by partition", "none",
                  ((f"inferline_partition_lag_records{_S}", "{{stage}} {{partition}}"),), width=12),
            Panel("Arrivals by partition", "reqps",
                  ((f"inferline_partition_arrival_rate_per_second{_S}", "{{stage}} {{partition}}"),), width=12,
                  what="One line far above the others is a hot key: it holds back only its own events."),
        ),
    ),
    (
        "Control loop",
        (
            Panel("Age of inputs", "s", ((f"inferline_input_age_seconds{_P}", "{{input}}"),)),
            Panel("Predicted P99 over the measured", "percentunit", ((f"inferline_model_drift_ratio{_P}", "drift"),)),
            Panel("Failed steps, and terms", "none",
                  ((f"increase(inferline_loop_failures_total{_P}[$__rate_interval])", "failed"),
                   (f"inferline_controller_term{_P}", "term"))),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The document that Grafana provisions."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, (title, held) in enumerate(ROWS):
        panels.append({"id": 100 * row + 1, "type": "row", "title": title, "gridPos": _place(0, y, _COLUMNS, 1)})
        x, y, tall = 0, y + 1, 0
        for n, panel in enumerate(held, start=2):
            if x + panel.width > _COLUMNS:
                x, y = 0, y + tall
            tall = 4 if panel.kind == "stat" else 8
            panels.append(_panel(panel, 100 * row + n, _place(x, y, panel.width, tall)))
            x += panel.width
        y += tall
    return {
        "uid": "inferline-stream",
        "title": "inferline-stream",
        "tags": ["inferline"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("pipeline", "label_values(inferline_slo_seconds, pipeline)"),
                _variable("stage", f"label_values(inferline_stage_partitions{_P}, stage)"),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0} if panel.kind != "stat" else {"unit": panel.unit}},
        "targets": [
            {"refId": chr(65 + n), "expr": expression, "legendFormat": legend or "__auto", "instant": instant}
            for n, (expression, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
