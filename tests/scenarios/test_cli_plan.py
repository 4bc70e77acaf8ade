"""`init`, `profile`, `plan`: from an empty folder to a plan, on emulated hardware."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from inferline_stream.cli.main import app
from inferline_stream.planner.plan_document import plan_from_bytes
from tests.support.quiet_profile import quieten


@pytest.fixture(autouse=True, scope="module")
def as_before() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path


def call(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starter topology that has been profiled."""
    folder = tmp_path_factory.mktemp("starter") / "reviews"
    result = call("init", folder)
    assert result.exit_code == 0, result.stderr
    assert f"Next: inferline-stream run {folder}" in result.stdout
    result = call("profile", folder)
    assert result.exit_code == 0, result.stderr
    quieten(folder)
    return folder


@pytest.fixture(scope="module")
def planned(started: Path) -> str:
    """What a plan says to people."""
    result = call("plan", started)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def document(started: Path) -> str:
    """What it says to machines."""
    result = call("plan", started, "--output", "json")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_starter_is_sound(started: Path) -> None:
    result = call("check", started)
    assert result.exit_code == 0, result.stderr


def test_init_never_writes_over_a_file(started: Path) -> None:
    before = (started / "topology.py").read_text()
    result = call("init", started)
    assert result.exit_code == 2
    assert "holds topology.py, events.jsonl, arrivals.csv, live.csv already" in result.stderr
    assert (started / "topology.py").read_text() == before


def test_the_starters_sample_rises_and_falls_and_its_replay_bursts_beyond_it(started: Path) -> None:
    times, live = (
        [float(line) for line in (started / name).read_text().splitlines()[1:]] for name in ("arrivals.csv", "live.csv")
    )
    counts = [sum(start <= time < start + 20 for time in times) for start in (0, 20, 40)]
    assert counts[1] > 1.5 * max(counts[0], counts[2])
    burst = sum(17 <= time < 25 for time in live) / 8
    assert burst > 2 * counts[1] / 20
    assert sum(time >= 25 for time in live) / 50 < counts[1] / 20


def test_profiles_are_printed_for_people_and_for_machines(started: Path) -> None:
    table = call("profile", started, env={"COLUMNS": "120"})  # a busy machine's times are longer, and need the space
    assert table.exit_code == 0
    assert "emulated-gpu-small" in table.stdout
    document = json.loads(call("profile", started, "--output", "json").stdout)
    by_kind = {(found["stage"], found["hardware"]): found for found in document["profiles"]}
    assert set(by_kind) == {
        ("parse", "emulated-cpu"),
        ("study", "emulated-cpu"),
        ("study", "emulated-gpu-small"),
        ("rate", "emulated-cpu"),
    }
    first = by_kind["study", "emulated-gpu-small"]["service_times"][0]
    assert first["batch_size"] == 1
    assert 0.020 <= first["mean_s"] < 0.2
    assert document["hop_overhead_s"] > 0


def test_profiles_are_kept_and_measured_again_on_request(started: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in (started / ".inferline").rglob("*.emulated-*.json")}
    assert len(files) == 4
    assert call("profile", started).exit_code == 0
    assert all(file.stat().st_mtime_ns == before for file, before in files.items())
    assert call("profile", started, "--again", "--stage", "rate").exit_code == 0
    changed = {file.name for file, before in files.items() if file.stat().st_mtime_ns != before}
    assert changed == {"rate.emulated-cpu.json"}


def test_a_plan_for_people_names_every_stage_what_it_costs_and_why_it_has_what_it_has(planned: str) -> None:
    for word in ("stage", "hardware", "batch", "replicas", "utilization", "$/h", "parse", "study", "rate", "SLO 250ms"):
        assert word in planned
    for words in ("emulated hardware sleeps", "Held by", "Slack", "confidence"):
        assert words in planned


def test_a_plan_for_machines_meets_the_slo_and_is_the_one_saved(started: Path, document: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = call("plan", started, "--output", "json", "--save", file)
    assert result.exit_code == 0, result.stderr
    plan = plan_from_bytes(result.stdout.encode())
    assert plan_from_bytes(file.read_bytes()) == plan
    assert plan.pipeline == "reviews"
    assert 0 < plan.predicted_p99_s <= plan.slo_s == 0.25
    assert set(plan.allocations) == {"parse", "study", "rate"}
    assert document == result.stdout


def test_a_reserve_is_part_of_the_plan_with_what_it_costs_and_replay_holds_it(
    started: Path, planned: str, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    result = call("plan", started, "--reserve", "4", "--save", file)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert re.search(r"Reserve: for 4 times the planned traffic about \d of parse, \d of study, \d of rate are", said)
    assert "the plan's replicas stay" in " ".join(planned.split())
    held = plan_from_bytes(file.read_bytes())
    assert held.reserve == 4.0
    reserve = json.loads(call("plan", started, "--reserve", "4", "--output", "json").stdout)["explanation"]["reserve"]
    assert reserve["always"]
    assert reserve["cost_per_hour"] > held.cost_per_hour
    assert reserve["replicas"]["study"] > sum(a.replicas for a in held.allocations["study"])
    costs = {
        given: json.loads(call("replay", started, *given, "--output", "json").stdout)["cost"]
        for given in ((), ("--plan", file), ("--reserve", "4"), ("--plan", file, "--reserve", "0"))
    }
    assert costs["--plan", file] == costs["--reserve", "4"] > max(costs[()], costs["--plan", file, "--reserve", "0"])


def test_the_papers_algorithm_and_another_slo_can_be_chosen(started: Path) -> None:
    result = call("plan", started, "--algorithm", "inferline", "--slo", "400ms", "--output", "json")
    assert result.exit_code == 0, result.stderr
    plan = plan_from_bytes(result.stdout.encode())
    assert (plan.algorithm, plan.slo_s) == ("inferline", 0.4)


def test_a_heavier_trace_needs_a_dearer_plan(started: Path, document: str, tmp_path: Path) -> None:
    busy = tmp_path / "busy.csv"
    busy.write_text("arrival_s\n" + "".join(f"{i / 600:.5f}\n" for i in range(6000)))
    usual = plan_from_bytes(document.encode())
    result = call("plan", started, "--trace", busy, "--output", "json")
    assert result.exit_code == 0, result.stderr
    heavier = plan_from_bytes(result.stdout.encode())
    assert heavier.arrival_rate == pytest.approx(600, rel=0.01)
    assert heavier.cost_per_hour > usual.cost_per_hour


def test_an_slo_that_no_plan_meets_is_reported_with_the_smallest_that_one_does(started: Path) -> None:
    result = call("plan", started, "--slo", "10ms")
    assert result.exit_code == 4
    assert "Traceback" not in result.stderr
    reported = re.search(r"ask for an SLO of ([0-9.]+) s or more", result.stderr)
    assert reported is not None, result.stderr
    assert call("plan", started, "--slo", f"{reported[1]}s").exit_code == 0
    assert call("plan", started, "--slo", f"{float(reported[1]) * 0.5:.5f}s").exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slo", "250"], "--slo: '250' is not a duration"),
        (["--slo", "0s"], "must be above 0"),
        (["--algorithm", "magic"], "Invalid value for '--algorithm'"),
        (["--trace", "gamma:rate=-1,cv=1,for=1m"], "--trace: "),
    ],
)
def test_options_that_cannot_be_are_usage_errors(started: Path, arguments: list[str], said: str) -> None:
    result = call("plan", started, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_trace_that_cannot_be_read_ends_with_exit_code_3(started: Path) -> None:
    result = call("plan", started, "--trace", "nowhere.csv")
    assert result.exit_code == 3
    assert "nowhere.csv: cannot be read" in result.stderr


def test_more_events_than_fit_in_memory_are_refused_with_what_they_would_need(started: Path, tmp_path: Path) -> None:
    counted = tmp_path / "counted.csv"
    counted.write_text("time,count\n0,900000000000\n60,900000000000\n")
    for trace in ("gamma:rate=1e8,for=24h", counted):
        result = call("plan", started, "--trace", trace)
        assert result.exit_code == 3
        assert re.search(r"need[s]? about [0-9.]+ GB of memory, [0-9.]+ GB are free", result.stderr), result.stderr


def test_the_curve_falls_and_goes_through_the_plan(started: Path) -> None:
    result = call("plan", started, "--trace", "gamma:rate=20,for=8s", "--curve", "--output", "json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    costs = {point["slo_s"]: point["cost_per_hour"] for point in document["curve"]}
    known = [cost for cost in costs.values() if cost is not None]
    assert known == sorted(known, reverse=True)
    assert costs[document["plan"]["slo_s"]] == document["plan"]["cost_per_hour"]


def test_several_traces_are_planned_for_at_once(started: Path) -> None:
    def cost(*traces: str) -> float:
        options = [word for trace in traces for word in ("--trace", trace)]
        result = call("plan", started, *options, "--output", "json")
        assert result.exit_code == 0, result.stderr
        return plan_from_bytes(result.stdout.encode()).cost_per_hour

    calm, busy = "gamma:rate=10,for=1m", "levels:60x30s,180x30s"
    assert cost(calm, busy) > cost(calm)


def test_an_unknown_stage_is_a_usage_error(started: Path) -> None:
    result = call("profile", started, "--stage", "studie")
    assert result.exit_code == 2
    assert "--stage 'studie': the pipeline has parse, study, rate" in result.stderr


def test_a_setting_that_is_no_number_is_a_usage_error(started: Path) -> None:
    result = call("plan", started, env={"INFERLINE_FETCH_WAIT_S": "soon"})
    assert result.exit_code == 2
    assert "INFERLINE_FETCH_WAIT_S='soon' is not a number of seconds" in result.stderr


@pytest.mark.parametrize("command", ["plan", "profile"])
def test_a_kafka_that_does_not_answer_ends_with_exit_code_5(started: Path, command: str) -> None:
    env = {"INFERLINE_CONNECT_TIMEOUT_S": "0.5"}
    result = call(command, started, "--bootstrap-servers", "127.0.0.1:1", env=env)
    assert result.exit_code == 5
    assert "does not answer" in result.stderr


def test_a_topology_without_a_sample_says_what_to_add(tmp_path: Path) -> None:
    assert call("init", tmp_path / "x").exit_code == 0
    file = tmp_path / "x" / "topology.py"
    file.write_text(re.sub(r"    sample=Sample\(.*\),\n", "", file.read_text()))
    assert call("check", file).exit_code == 0
    result = call("plan", file)
    assert result.exit_code == 3
    assert "declares no sample" in result.stderr
