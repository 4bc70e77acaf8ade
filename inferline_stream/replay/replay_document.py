"""Replays as documents: the summary and every step, as builtin values, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from inferline_stream.replay.compare import Comparison, Row
from inferline_stream.replay.outcome import Outcome

BIN_S = 15.0
"""Length of the bins of which the worst is shown (the paper's)."""


def summary(outcome: Outcome) -> dict[str, Any]:
    """What came of it, in numbers."""
    return {
        "policy": outcome.policy,
        "duration_s": outcome.duration_s,
        "events": int(outcome.entry_s.size),
        "slo_s": outcome.slo_s,
        "p99_s": _finite(outcome.p99_s),
        "miss_rate": outcome.miss_rate,
        "worst_bin_miss_rate": outcome.worst_miss_rate(BIN_S),
        "degraded_share": outcome.degraded_share,
        "cost": outcome.cost,
        "cost_per_hour": outcome.cost_per_hour,
        "peak_replicas": outcome.peak_replicas,
        "changes": outcome.changes,
        "miss_rates_by_class": dict(outcome.miss_rates_by_class),
    }


def steps(outcome: Outcome) -> list[dict[str, Any]]:
    """Every decision, in order of time; a step that leaves a stage out leaves it as it was."""
    return [
        {
            "time_s": round(step.time_s, 6),
            "action": step.action,
            "reason": step.reason,
            "replicas": {stage: dict(kinds) for stage, kinds in step.replicas.items()},
            "detail": step.detail,
        }
        for step in outcome.steps
    ]


def steps_as_json_lines(outcome: Outcome) -> str:
    """Every decision as a JSON object a line."""
    return "".join(json.dumps(step) + "\n" for step in steps(outcome))


def steps_as_csv(outcome: Outcome) -> str:
    """Every decision as a line: time, action, reason, replicas of each stage over all hardware, detail."""
    stages = list(dict.fromkeys(stage for stage, _ in outcome.replica_hours))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["time_s", "action", "reason", *stages, "detail"])
    for step in outcome.steps:
        counts = [sum(step.replicas[stage].values()) if stage in step.replicas else "" for stage in stages]
        table.writerow([f"{step.time_s:.3f}", step.action, step.reason, *counts, step.detail])
    return text.getvalue()


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Every row, cheapest first, and the cost that no policy can pass."""
    rows = sorted(comparison.rows, key=lambda row: row.outcome.cost)
    return {"work_bound": comparison.work_bound, "rows": [_row(row) for row in rows]}


def _row(row: Row) -> dict[str, Any]:
    return {
        **summary(row.outcome),
        "policy": row.policy,
        "on_our_pool": row.on_our_pool,
        "setting": row.setting,
        "keeps_objective": row.keeps_objective,
        "regret": row.regret,
        "regret_instant": row.regret_instant,
    }


def _finite(value: float) -> float | None:
    """JSON knows neither ∞ nor NaN."""
    return value if abs(value) < float("inf") else None
