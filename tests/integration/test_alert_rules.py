"""Every alert is run by promtool on series that fire it and on the healthy series, which must not."""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

import inferline_stream.observability as room
from inferline_stream.observability.alert_rules import PAGE, Target, alerts, burns, rules_document, rules_yaml
from inferline_stream.observability.latency_histogram import bucket_label, latency_bounds_s
from inferline_stream.observability.metrics import serve_metrics
from tests.unit.observability.states import a_state

P = "moderation"
TARGETS = [(0.25, 0.99), (0.005, 0.999), (60.0, 0.5)]
MINUTES = 30
LONG_MINUTES = 13 * 6 * 60
"""Long enough for the three-day window of the burn alerts. They hold for no time: a look every six hours will do."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def series(name: str, **labels: str) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in {"pipeline": P, **labels}.items())
    return f"{name}{{{inside}}}"


def healthy(slo_s: float) -> dict[str, str]:
    """One sample a minute of a pipeline that is well: 600 events a minute, none late."""
    flat, stage = f"x{MINUTES}", {"stage": "toxicity"}
    found = {
        series("inferline_slo_seconds"): f"{slo_s}{flat}",
        series("inferline_predicted_p99_seconds"): f"{0.8 * slo_s}{flat}",
        series("inferline_recent_p99_seconds"): f"{0.8 * slo_s}{flat}",
        series("inferline_recent_late_ratio"): f"0{flat}",
        series("inferline_model_drift_ratio"): f"1{flat}",
        series("inferline_state_age_seconds"): f"0.5{flat}",
        series("inferline_plan_feasible"): f"1{flat}",
        series("inferline_paused"): f"0{flat}",
        series("inferline_oversubscribed"): f"0{flat}",
        series("inferline_slo_events_total"): f"0+600x{MINUTES}",
        series("inferline_slo_missed_total"): f"0{flat}",
        series("inferline_envelope_excess_ratio", window_seconds="60"): f"0.9{flat}",
        series("inferline_input_age_seconds", input="arrivals"): f"0.02{flat}",
        series("inferline_stage_partitions", **stage): f"4{flat}",
    }
    found |= {
        series("inferline_latency_seconds_bucket", le=bucket_label(b)): f"0+600x{MINUTES}"
        for b in latency_bounds_s(slo_s)
    }
    found |= {
        series("inferline_replicas", hardware="cpu-1", state=state, **stage): f"{n}{flat}"
        for state, n in {"planned": 2, "wanted": 2, "ready": 2, "pending": 0}.items()
    }
    found |= {
        series("inferline_partition_arrival_rate_per_second", partition=str(p), **stage): f"10{flat}" for p in range(4)
    }
    found |= {
        series(f"inferline_stage_{name}", **stage): f"0{flat}"
        for name in (
            "stuck_partitions", "lag_seconds", "clock_lead_seconds", "uncommitted_ratio",
            "dead_letter_age_ratio",
            "halted_partitions", "in_trouble", "dispatcher_utilization_ratio", "restarts_total", "dead_lettered_total",
        )
    }  # fmt: skip
    found |= {series("inferline_stage_at_limit", limit="stock", **stage): f"0{flat}"}
    device = {"device": "GPU-a", "model": "Tesla T4"}
    found |= {series(f"inferline_device_{name}", **device): f"0{flat}" for name in ("lost", "xid")}
    found |= {series("inferline_stage_dispatchers", **stage): f"2{flat}"}
    found |= {series(f"inferline_background_{name}_per_second", topic="a"): f"5{flat}" for name in ("rate", "needed")}
    found |= {series("inferline_background_left_records", topic="a"): f"151{flat}"}
    found |= {series("inferline_stage_service_time_ratio", **stage): f"1{flat}"}
    found |= {series("inferline_stage_service_time_seconds", **stage): f"{0.2 * slo_s}{flat}"}
    found |= {
        series("inferline_input_age_seconds", input=name): f"0.3{flat}" for name in ("reports/toxicity", "offsets")
    }
    return found


def broken(alert: str, slo_s: float, objective: float) -> dict[str, str | None]:
    """What differs from healthy for the alert to fire; None removes a series."""
    flat, stage = f"x{MINUTES}", {"stage": "toxicity"}
    wanted = series("inferline_replicas", hardware="cpu-1", state="wanted", **stage)
    burn = dict(zip(("Fast", "Steady", "Slow", "Creeping"), burns(Target(P, slo_s, objective)), strict=True))
    if alert.startswith("InferlineSLOBurn"):
        late = 600 * burn[alert.removeprefix("InferlineSLOBurn")].threshold * 1.05
        return {
            series("inferline_slo_missed_total"): f"0+{late}x{LONG_MINUTES}",
            series("inferline_slo_events_total"): f"0+600x{LONG_MINUTES}",
        }
    cases: dict[str, dict[str, str | None]] = {
        "InferlineControllerDown": {series("inferline_slo_seconds"): None},
        "InferlineStuckPartition": {series("inferline_stage_stuck_partitions", **stage): f"1{flat}"},
        "InferlineSLOAtRisk": {
            series("inferline_envelope_excess_ratio", window_seconds="60"): f"1.1{flat}",
            wanted: f"3{flat}",
        },
        "InferlinePlanInfeasible": {series("inferline_plan_feasible"): f"0{flat}"},
        "InferlineOversubscribed": {series("inferline_oversubscribed"): f"1{flat}"},
        "InferlineInputStale": {series("inferline_input_age_seconds", input="arrivals"): f"11{flat}"},
        "InferlineUnreadableRecords": {series("inferline_unreadable_records_total", topic="p.control"): f"1{flat}"},
        "InferlineModelDrift": {series("inferline_model_drift_ratio"): f"0.6{flat}"},
        "InferlineSLOBucketMissing": {series("inferline_latency_seconds_bucket", le=bucket_label(slo_s)): None},
        "InferlineAtLimit": {series("inferline_stage_at_limit", limit="stock", **stage): f"1{flat}"},
        "InferlineDeviceFault": {series("inferline_device_xid", device="GPU-a", model="Tesla T4"): f"79{flat}"},
        "InferlineServiceTimeDrift": {series("inferline_stage_service_time_ratio", **stage): f"1.25{flat}"},
        "InferlineReplicasMissing": {wanted: f"3{flat}"},
        "InferlinePartitionHalted": {series("inferline_stage_halted_partitions", **stage): f"1{flat}"},
        "InferlineInnerTopicFills": {
            series("inferline_stage_uncommitted_ratio", **stage): f"0.55{flat}",
            series("inferline_stage_lag_seconds", **stage): f"61{flat}",
        },
        "InferlineDispatcherSilent": {series("inferline_input_age_seconds", input="reports/toxicity"): f"6{flat}"},
        "InferlineDispatcherBusy": {series("inferline_stage_dispatcher_utilization_ratio", **stage): f"0.85{flat}"},
        "InferlinePoolInTrouble": {series("inferline_stage_in_trouble", **stage): f"1{flat}"},
        "InferlineSkew": {
            series("inferline_partition_arrival_rate_per_second", partition="0", **stage): f"200{flat}",
        },
        "InferlineClockLead": {series("inferline_stage_clock_lead_seconds", **stage): f"86400{flat}"},
        "InferlineReplicasCrash": {series("inferline_stage_restarts_total", **stage): f"0+1x{MINUTES}"},
        "InferlineDeadLettersGrow": {series("inferline_stage_dead_lettered_total", **stage): f"0+1x{MINUTES}"},
        "InferlineBackgroundSlow": {series("inferline_background_rate_per_second", topic="a"): f"4{flat}"},
        "InferlineDegraded": {series("inferline_stage_degraded_ratio", **stage): f"0.03{flat}"},
        "InferlineDeadLettersExpire": {series("inferline_stage_dead_letter_age_ratio", **stage): f"0.85{flat}"},
        "InferlineScalingIneffective": {
            series("inferline_stage_lag_seconds", **stage): f"0+{slo_s}x{MINUTES}",
            series("inferline_recent_late_ratio"): f"0.6{flat}",
        },
    }
    return cases[alert]


def nearly(alert: str, slo_s: float) -> dict[str, str]:
    """What comes close to an alert and is none: just below its bound, too short, or of no harm."""
    flat, stage = f"x{MINUTES}", {"stage": "toxicity"}
    wanted = series("inferline_replicas", hardware="cpu-1", state="wanted", **stage)
    age = series("inferline_input_age_seconds", input="arrivals")
    lag = series("inferline_stage_lag_seconds", **stage)
    half = MINUTES // 2
    cases = {
        "InferlineControllerDown": {series("inferline_state_age_seconds"): f"29{flat}"},
        "InferlineStuckPartition": {series("inferline_stage_stuck_partitions", **stage): f"1x{half} 0x{half}"},
        "InferlineInputStale": {age: f"9{flat}"},
        "InferlineUnreadableRecords": {series("inferline_unreadable_records_total", topic="p.control"): f"0{flat}"},
        "InferlineModelDrift": {
            series("inferline_model_drift_ratio"): f"0.1{flat}",
            series("inferline_recent_p99_seconds"): f"{0.4 * slo_s}{flat}",
        },
        "InferlineServiceTimeDrift": {series("inferline_stage_service_time_ratio", **stage): f"0.85{flat}"},
        "InferlineReplicasMissing": {wanted: f"2x{MINUTES - 2} 3x1"},
        "InferlineInnerTopicFills": {
            series("inferline_stage_uncommitted_ratio", **stage): f"1{flat}",
            series("inferline_stage_lag_seconds", **stage): f"59{flat}",
        },
        "InferlineDispatcherSilent": {series("inferline_input_age_seconds", input="reports/toxicity"): f"4{flat}"},
        "InferlineDispatcherBusy": {series("inferline_stage_dispatcher_utilization_ratio", **stage): f"0.75{flat}"},
        "InferlineSkew": {series("inferline_partition_arrival_rate_per_second", partition="0", **stage): f"28{flat}"},
        "InferlineClockLead": {series("inferline_stage_clock_lead_seconds", **stage): f"86400x{half} 0x{half}"},
        "InferlineReplicasCrash": {series("inferline_stage_restarts_total", **stage): f"0+0.2x{MINUTES}"},
        "InferlineDeadLettersGrow": {series("inferline_stage_dead_lettered_total", **stage): f"5{flat}"},
        "InferlineBackgroundSlow": {series("inferline_background_rate_per_second", topic="a"): f"4.6{flat}"},
        "InferlineDegraded": {series("inferline_stage_degraded_ratio", **stage): f"0.02{flat}"},
        "InferlineDeadLettersExpire": {series("inferline_stage_dead_letter_age_ratio", **stage): f"0.79{flat}"},
        "InferlineScalingIneffective": {lag: f"0+{slo_s}x{MINUTES}"},  # one event is served last, and none is late else
        "InferlineAtLimit": {series("inferline_stage_at_limit", limit="stock", **stage): f"1x{half} 0x{half}"},
        "InferlineDeviceFault": {
            series("inferline_device_lost", device="GPU-a", model="Tesla T4"): f"1x{half} 0x{half}",
            series("inferline_device_xid", device="GPU-a", model="Tesla T4"): f"79x{half} 0x{half}",
        },
    }
    return cases[alert]


NAMES = [alert.name for alert in alerts(Target(P, *TARGETS[0]))]
ALL_OR_NOTHING = (
    "InferlineSLOAtRisk", "InferlinePlanInfeasible", "InferlineSLOBucketMissing", "InferlinePartitionHalted",
    "InferlinePoolInTrouble", "InferlineOversubscribed",
)  # fmt: skip
"""Nothing comes close to them, or has a test of its own."""
BURNS = [name for name in NAMES if name.startswith("InferlineSLOBurn")]


def promtool_test(
    folder: Path,
    slo_s: float,
    objective: float,
    cases: list[tuple[str, dict[str, str], int]],
    minutes: int = MINUTES,
) -> str:
    """Run (pattern of alerts, series, expected firing count) cases; returns promtool's complaint, empty if all hold."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in found.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname=~"{alert}",alertstate="firing"}})',
                    "eval_time": f"{minutes}m",
                    "exp_samples": [{"labels": "{}", "value": firing}] if firing else [],
                }
            ],
        }
        for alert, found, firing in cases
    ]
    return complaint(folder, Target(P, slo_s, objective), "1m" if minutes == MINUTES else "6h", tests)


def complaint(folder: Path, target: Target, every: str, tests: list[dict]) -> str:
    """Run promtool's own tests on the rules, evaluated that often; returns what it says, empty if all hold."""
    (folder / "rules.yml").write_text(rules_yaml(target))
    document = {"rule_files": ["rules.yml"], "evaluation_interval": every, "tests": tests}
    (folder / "test.yml").write_text(json.dumps(document))
    lavish = {**os.environ, "GOGC": "400"}  # it lives for a second: collecting its garbage takes a quarter of that
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"],
        cwd=folder, env=lavish, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(("slo_s", "objective"), TARGETS)
def test_every_alert_fires_on_its_trouble_and_is_silent_when_all_is_well(tmp_path, slo_s, objective):
    cases: list[tuple[str, dict[str, str], int]] = [(".+", healthy(slo_s), 0)]
    for name in NAMES:
        trouble = healthy(slo_s) | broken(name, slo_s, objective)
        cases.append((name, {key: value for key, value in trouble.items() if value is not None}, 1))
    short = [case for case in cases if case[0] not in BURNS]
    assert promtool_test(tmp_path, slo_s, objective, short) == ""


@needs_promtool
@pytest.mark.parametrize(("slo_s", "objective"), TARGETS)
def test_what_comes_close_to_an_alert_does_not_fire_it(tmp_path, slo_s, objective):
    close = [name for name in NAMES if name not in (*BURNS, *ALL_OR_NOTHING)]
    cases = [(name, healthy(slo_s) | nearly(name, slo_s), 0) for name in close]
    assert promtool_test(tmp_path, slo_s, objective, cases) == ""


@needs_promtool
def test_background_events_that_come_more_slowly_than_their_rate_are_not_served_too_slowly(tmp_path):
    few = healthy(0.25) | broken("InferlineBackgroundSlow", 0.25, 0.99)
    few |= {series("inferline_background_left_records", topic="a"): f"20x{MINUTES}"}
    assert promtool_test(tmp_path, 0.25, 0.99, [("InferlineBackgroundSlow", few, 0)]) == ""


@needs_promtool
def test_a_controller_whose_loop_hangs_is_down_although_it_answers(tmp_path):
    hung = healthy(0.25) | {series("inferline_state_age_seconds"): f"0+60x{MINUTES}"}
    assert promtool_test(tmp_path, 0.25, 0.99, [("InferlineControllerDown", hung, 1)]) == ""


@needs_promtool
def test_late_events_that_were_served_last_do_not_count_as_drift(tmp_path):
    drifted = healthy(0.25) | broken("InferlineModelDrift", 0.25, 0.99)
    late = series("inferline_recent_late_ratio")
    cases = [
        ("InferlineModelDrift", drifted | {late: f"{share}x{MINUTES}"}, fires)
        for share, fires in ((0.01, 1), (0.011, 0))
    ]
    assert promtool_test(tmp_path, 0.25, 0.99, cases) == ""


def controller(instance: str, slo: str, age: str = "") -> dict[str, str]:
    """What one controller's endpoint tells, sample by sample, where it answers."""
    found = {series("inferline_slo_seconds", instance=instance): slo}
    return found | ({series("inferline_state_age_seconds", instance=instance): age} if age else {})


OUTAGES = {
    "the next one misses scrapes as it comes up": (controller("a", "0.25x10 stale _x10 0.25x4 stale _x4 0.25x130"), 1),
    "it dies again as it comes up": (
        controller("a", "0.25x10 stale _x10 0.25x8 stale _x8 0.25x8 stale _x8 0.25x130"),
        1,
    ),
    "its loop hangs, then it is ended": (
        controller("a", "0.25x40 stale _x10 0.25x130", "0x10 0+15x29 stale _x10 0x130"),
        1,
    ),
    "another has taken over, and it still answers": (
        controller("a", "0.25x130", "0x10 0+15x119") | controller("b", "_x11 0.25x118", "_x11 0x118"),
        0,
    ),
}
"""What is seen of controllers, a sample every 15 s, and how often anybody should be called."""


@needs_promtool
@pytest.mark.parametrize("what", OUTAGES)
def test_one_outage_of_the_controller_is_one_alert(tmp_path, what):
    seen, calls = OUTAGES[what]
    firing = 'ALERTS{alertname="InferlineControllerDown",alertstate="firing"}'
    looks = [
        {
            "expr": f"sum(count_over_time(({firing} unless {firing} offset 15s)[30m:15s]))",
            "eval_time": "30m",
            "exp_samples": [{"labels": "{}", "value": calls}] if calls else [],
        },
        {"expr": firing, "eval_time": "30m", "exp_samples": []},
    ]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in seen.items()],
        "promql_expr_test": looks,
    }
    assert complaint(tmp_path, Target(P, 0.25, 0.99), "15s", [test]) == ""


@needs_promtool
def test_rules_for_another_slo_than_the_one_in_force_are_reported_even_where_their_bucket_exists(tmp_path):
    doubled = {series("inferline_slo_seconds"): f"0.5x{MINUTES}"}  # half of it is a bucket too
    assert promtool_test(tmp_path, 0.25, 0.99, [("InferlineSLOBucketMissing", healthy(0.25) | doubled, 1)]) == ""


@needs_promtool
@pytest.mark.parametrize(("slo_s", "objective"), TARGETS)
def test_every_burn_alert_fires_above_its_threshold_and_is_silent_below(tmp_path, slo_s, objective):
    cases = []
    for name, burn in zip(BURNS, burns(Target(P, slo_s, objective)), strict=True):
        above = broken(name, slo_s, objective)
        below = {**above, series("inferline_slo_missed_total"): f"0+{600 * burn.threshold * 0.95}x{LONG_MINUTES}"}
        cases += [(name, above, 1), (name, below, 0)]
    assert promtool_test(tmp_path, slo_s, objective, cases, LONG_MINUTES) == ""


@needs_promtool
@pytest.mark.parametrize("slo_s", [0.005, 0.25, 5.0])
def test_service_times_drift_only_by_more_than_a_hundredth_of_the_slo(tmp_path, slo_s):
    def drift(ratio: float, share: float) -> dict[str, str]:
        """Batches that take a share of the SLO, and so many times what was profiled."""
        names = {"ratio": ratio, "seconds": share * slo_s}
        return {
            series(f"inferline_stage_service_time_{name}", stage="toxicity"): f"{value}x{MINUTES}"
            for name, value in names.items()
        }

    seen = {(1.5, 0.029): 0, (1.5, 0.031): 1, (0.5, 0.009): 0, (0.5, 0.011): 1}
    cases = [
        ("InferlineServiceTimeDrift", healthy(slo_s) | drift(ratio, share), fires)
        for (ratio, share), fires in seen.items()
    ]
    assert promtool_test(tmp_path, slo_s, 0.99, cases) == ""


@needs_promtool
def test_the_rule_test_itself_can_fail(tmp_path):
    complaint = promtool_test(tmp_path, 0.25, 0.99, [("InferlineAtLimit", healthy(0.25), 1)])
    assert "FAILED" in complaint


@needs_promtool
@pytest.mark.parametrize(("slo_s", "objective"), TARGETS)
def test_promtool_accepts_the_rule_file(tmp_path, slo_s, objective):
    path = tmp_path / "rules.yml"
    path.write_text(rules_yaml(Target(P, slo_s, objective)))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("objective", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_every_burn_rate_can_be_reached_and_a_longer_window_never_needs_more(objective):
    thresholds = [burn.threshold for burn in burns(Target(P, 0.25, objective))]
    assert all(0 < threshold < 1 for threshold in thresholds)
    assert thresholds == sorted(thresholds, reverse=True)
    assert min(thresholds) >= (1 - objective) * (1 - 1e-9)


@pytest.mark.parametrize("objective", [0.0, 1.0, 99.0])
def test_an_objective_that_is_no_share_is_refused(objective):
    with pytest.raises(ValueError, match="objective"):
        Target(P, 0.25, objective)


def test_only_slo_burn_and_what_stands_still_pages():
    pages = {alert.name for alert in alerts(Target(P, 0.25, 0.99)) if alert.severity == PAGE}
    assert pages == {
        "InferlineSLOBurnFast",
        "InferlineSLOBurnSteady",
        "InferlineControllerDown",
        "InferlineStuckPartition",
        "InferlinePartitionHalted",
        "InferlineInnerTopicFills",
        "InferlineDispatcherSilent",
        "InferlinePoolInTrouble",
    }


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert():
    text = (Path(room.__file__).parents[2] / "docs/how-to/runbook.md").read_text()
    assert set(re.findall(r"^## (Inferline\w+)$", text, re.MULTILINE)) == set(NAMES)


def test_a_rule_file_is_the_same_in_yaml_and_in_json():
    yaml = pytest.importorskip("yaml")
    target = Target(P, 0.25, 0.99)
    assert yaml.safe_load(rules_yaml(target)) == rules_document(target)


AT_RISK = {
    "replicas are not ready": {
        series("inferline_replicas", hardware="cpu-1", state="wanted", stage="toxicity"): "3",
    },
    "the stock is used up": {series("inferline_stage_at_limit", limit="stock", stage="toxicity"): "1"},
    "decisions are held": {series("inferline_paused"): "1"},
}


@needs_promtool
@pytest.mark.parametrize("why", AT_RISK)
def test_traffic_beyond_the_plan_is_a_risk_only_where_something_keeps_replicas_away(tmp_path, why):
    beyond = {series("inferline_envelope_excess_ratio", window_seconds="60"): f"1.1x{MINUTES}"}
    because = {name: f"{value}x{MINUTES}" for name, value in AT_RISK[why].items()}
    cases = [
        ("InferlineSLOAtRisk", healthy(0.25) | beyond | because, 1),
        ("InferlineSLOAtRisk", healthy(0.25) | beyond, 0),
        ("InferlineSLOAtRisk", healthy(0.25) | because, 0),
    ]
    assert promtool_test(tmp_path, 0.25, 0.99, cases) == ""


@pytest.mark.parametrize(
    ("written", "faster", "expected"),
    [("3d", 1, "3d"), ("90m", 1, "90m"), ("1d", 24, "1h"), ("1h", 60, "1m"), ("5m", 20, "15s"), ("30s", 60, "500ms")],
)
def test_a_rehearsal_divides_every_window_and_hold(written, faster, expected):
    assert Target(P, 0.25, 0.99, faster).time(written) == expected


def test_a_rehearsal_differs_from_the_real_rules_in_nothing_but_time_and_a_label():
    def without_times(target):
        text = rules_yaml(target)
        text = re.sub(r"(\[|for: |ratio_rate|over )\d+(ms|[smhd])", r"\1T", text)
        return text.replace(', "rehearsal": "60"', "").splitlines()

    real, rehearsed = without_times(Target(P, 0.25, 0.99)), without_times(Target(P, 0.25, 0.99, 60))
    assert real == rehearsed
    assert '"rehearsal": "60"' in rules_yaml(Target(P, 0.25, 0.99, 60))


@needs_promtool
def test_promtool_finds_nothing_to_complain_about_in_what_is_served():
    with closing(serve_metrics(a_state, port=0)) as server:
        address = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(address, timeout=5) as answer:
            served = answer.read().decode()
    lint = subprocess.run(
        ["promtool", "check", "metrics"], input=served, capture_output=True, text=True, timeout=30, check=False
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert lint.stderr == ""
