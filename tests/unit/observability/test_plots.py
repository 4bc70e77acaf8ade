import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.errors import UsageError
from inferline_stream.observability.plots import canvas
from inferline_stream.observability.plots.comparison import _front, _ranges, draw_comparison
from inferline_stream.observability.plots.plan_pictures import draw_cost_curve, draw_profiles
from inferline_stream.observability.plots.replay import draw_replay
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths
from inferline_stream.planner.plan_explanation import CurvePoint
from inferline_stream.replay.compare import Comparison, Row
from inferline_stream.replay.outcome import Outcome, Step

PLAN = Plan(
    pipeline="p",
    slo_s=0.2,
    allocations={"read": (Allocation("cpu", 4, 2),)},
    cost_per_hour=1.25,
    predicted_p99_s=0.19,
    arrival_rate=20.0,
    envelope=((0.5, 14), (5.0, 110)),
    visit_ratios={"read": 1.0},
    utilization={"read": 0.5},
)
MEASURED = PipelineProfile(
    {("read", "cpu"): Profile("read", "cpu", (ServiceTime(1, 0.05), ServiceTime(4, 0.1)))}, Paths((0,), (1.0,))
)


def outcome(policy: str = "default", cost: float = 1.0, late: int = 0, events: int = 600) -> Outcome:
    latency_s = np.full(events, 0.1)
    latency_s[:late] = 0.3
    steps = (Step(10.0, {"read": {"cpu": 5}}, "scale_up"),)
    return Outcome(policy, 0.2, np.linspace(0, 30, events), latency_s, steps, 30.0, {}, cost, 5, 1)


def row(policy: str, cost: float, late: int, setting: str = "default") -> Row:
    return Row(policy, setting, outcome(policy, cost, late), late <= 6)


CURVE = (CurvePoint(0.1, None), CurvePoint(0.2, PLAN), CurvePoint(0.4, replace(PLAN, cost_per_hour=0.5)))
ROWS = (row("default", 1.0, 3), row("keda", 2.0, 30), row("keda", 2.5, 0, "lag=3"), row("clairvoyant", 0.8, 0))


def draw_all(folder: Path, suffix: str) -> dict[str, Path]:
    files = {name: folder / f"{name}{suffix}" for name in ("curve", "profiles", "replay", "comparison")}
    draw_cost_curve(files["curve"], CURVE, "default", chosen=PLAN)
    draw_profiles(files["profiles"], MEASURED, ["read"])
    draw_replay(files["replay"], outcome(late=60), PLAN)
    draw_comparison(files["comparison"], Comparison(ROWS, 0.5, {}))
    return files


@pytest.fixture(scope="module")
def drawn_once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return draw_all(tmp_path_factory.mktemp("drawn"), ".svg")


def test_every_axis_has_its_quantity_and_unit(drawn_once: dict[str, Path]) -> None:
    wanted = {
        "curve": ["SLO on the P99 [ms]", "cost [$/h]", "the plan: $1.25/h"],
        "profiles": ["events per second", "service time [ms]", "batch size"],
        "replay": ["default: $120/h, 10.00% above 200 ms", "time [s]", "misses [%]", "window [s]", "replicas"],
        "comparison": ["cost of the trace [$]", "events above the SLO [%]", "keda on our pool, tuned"],
    }
    for name, texts in wanted.items():
        drawn = drawn_once[name].read_text()
        assert [text for text in texts if text not in drawn] == [], name


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path, drawn_once: dict[str, Path]) -> None:
    again = draw_all(tmp_path, ".svg")
    assert [name for name in again if again[name].read_bytes() != drawn_once[name].read_bytes()] == []
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for file in (first, second):
        draw_profiles(file, MEASURED, ["read"])
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["curve.jpg", "curve", "missing/curve.png"])
def test_a_file_that_cannot_be_written_is_named_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        canvas.check_file(tmp_path / name)


def test_without_matplotlib_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'inferline-stream\[plots\]'"):
        canvas.check_file(tmp_path / "curve.png")


def test_the_front_holds_what_nothing_cheaper_beats_and_leaves_hindsight_out() -> None:
    rows = sorted((*ROWS, row("ds2", 3.0, 1)), key=lambda r: r.outcome.cost)
    assert [(r.policy, r.setting) for r in _front(rows)] == [("default", "default"), ("keda", "lag=3")]


def test_numbers_at_one_place_are_written_as_ranges() -> None:
    assert _ranges([2, 3, 4, 7]) == "2–4, 7"


def test_a_curve_on_which_no_slo_is_met_says_so(tmp_path: Path) -> None:
    draw_cost_curve(tmp_path / "c.svg", CURVE[:1], "default")
    assert "no plan meets any of these SLOs" in (tmp_path / "c.svg").read_text()


def test_colours_stay_apart_for_the_colour_blind() -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as deuteranopes and protanopes see it.
    seen = {
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    colours = [canvas.BLUE, canvas.VERMILION, canvas.GREEN, canvas.ORANGE]
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours]) ** 2.2
    for matrix in seen.values():
        there = np.clip(rgb @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(there) for b in there[:i]]
        assert min(gaps) > 0.15
