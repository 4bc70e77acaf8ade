import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from inferline_stream.cli.plan_steps import plan_table
from inferline_stream.cli.screen import StagesTable, background_words, isolation_words
from inferline_stream.cli.status import controller_line, status_tables
from inferline_stream.observability.page.snapshot import snapshot
from inferline_stream.observability.pipeline_state import (
    DeviceState,
    IsolationState,
    NodeState,
    PipelineState,
    ReplicaCounts,
)
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from tests.unit.observability.states import a_state
from tests.unit.tuner.plans import plan

SEALED = IsolationState("sandbox", 2, 2, 7, (9092,), 76, {})


def test_isolation_is_shown_in_words() -> None:
    assert isolation_words(SEALED) == "sealed, 76 calls"
    assert isolation_words(replace(SEALED, sealed=1)) == "1/2 sealed, 76 calls"


def test_a_stage_shows_its_pool_what_waits_for_it_and_what_is_wrong_with_it() -> None:
    state = a_state()
    stage = replace(
        state.stages[0], hold_s=0.0, queued=17, dispatcher_utilization=0.25, trouble="the sample event fails"
    )
    console = Console(width=200, file=StringIO())
    console.print(StagesTable(replace(state, stages=(stage,))))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    names, figures, of_class, background, trouble, late, behind = lines
    shown = dict(zip(names, figures, strict=False))
    assert " ".join(of_class) == "class posts: P99 300ms of 500ms, late 1%"
    assert shown | {
        "hardware": "cpu-1", "replicas": "2/3", "queued": "17", "wait": "4ms", "batch": "2.0/8", "service": "20ms",
        "utilization": "70%", "dispatcher": "25%", "lag": "6",
    } == shown  # fmt: skip
    assert " ".join(background) == "background archive: 5.0/s, 4.0/s needed, 10 left, done in 2s"
    assert background_words(replace(state.backgrounds[0], rate=3.0, left=121)) == (
        "background archive: 3.0/s, 4.0/s needed: too slow, 121 left, done in 2s"
    )
    assert "too slow" not in background_words(replace(state.backgrounds[0], rate=3.0, left=119))  # no more may come
    assert " ".join(trouble) == "language: the sample event fails"
    assert " ".join(late) == "language: 2 events can no longer be on time; the oldest entered 60m ago"
    assert " ".join(behind).startswith("language: records are up to 60m older than others before them, and go last:")


def test_a_device_that_is_lost_or_had_an_error_of_its_own_is_named_below_the_stages() -> None:
    devices = (DeviceState("GPU-a", lost="GPU is lost"), DeviceState("GPU-b", xid=79), DeviceState("GPU-c"))
    console = Console(width=200, file=StringIO())
    console.print(status_tables(replace(a_state(), stages=(), devices=devices)))
    shown = [line.strip() for line in console.file.getvalue().splitlines() if "GPU-" in line]
    assert shown == ["GPU-a is lost: GPU is lost", "GPU-b reported Xid 79"]


def test_the_first_line_says_how_many_were_late_beyond_the_window_and_which_slo_waits_for_a_plan() -> None:
    state = replace(a_state(), slo_s=0.5, budget_left=-7.07, slo_wanted_s=0.7)
    line = controller_line(state).plain
    assert "SLO's window: 8.07 times the late events allowed so far" in line
    assert "SLO 700ms waits for the next plan" in line
    line = controller_line(replace(state, budget_left=0.93, slo_wanted_s=0.5)).plain
    assert "SLO's window: 93% of the late events allowed so far are left" in line
    assert "waits" not in line


def test_a_stage_in_a_cluster_shows_its_dispatcher_and_replicas_by_node() -> None:
    state = a_state()
    nodes = {"gpu-1": NodeState(0, 2), "host/8a5c": NodeState(1, 0), "mixed": NodeState(1, 1)}
    state = replace(state, stages=(replace(state.stages[0], nodes=nodes, trouble=""),))
    console = Console(width=200, file=StringIO())
    console.print(status_tables(state))
    shown = "language: gpu-1 (2 ready); host/8a5c (dispatcher); mixed (dispatcher, 1 ready)"
    assert shown in console.file.getvalue()
    (stage,) = json.loads(snapshot(state, []))["stages"]
    assert stage["nodes"] == [["gpu-1", 0, 2], ["host/8a5c", 1, 0], ["mixed", 1, 1]], "the page shows them, too"


SHAPES = {
    "minimal": {"read": ["emulated-cpu"], "search": ["emulated-cpu", "emulated-gpu-small"], "answer": ["emulated-cpu"]},
    "moderation": {"language": ["cpu-0.1"], "toxicity": ["cpu-0.25"], "duplicate": ["cpu-0.5"], "verdict": ["cpu-0.1"]},
    "assistant": {"retrieve": ["cpu-0.25", "cpu-1"], "rerank": ["cpu-0.5"], "compose": ["cpu-0.1"]},
}
"""Stages and hardware of the examples."""

WIDTHS = pytest.mark.parametrize("width", [80, 100, 160])


def printed(what: RenderableType, width: int) -> str:
    console = Console(width=width, file=StringIO())
    console.print(what)
    return console.file.getvalue()


def busy(shape: dict[str, list[str]]) -> PipelineState:
    """Every figure as long as it gets in a run at thousands of records a second."""
    state = a_state()
    stages = [
        replace(
            state.stages[0], name=name, replicas=tuple(ReplicaCounts(kind, 8, 12, 10, 2) for kind in kinds),
            arrival_rate=12345.6, queued=23456, wait_s=2.317, service_time_s=0.1234, utilization=1.0,
            dispatcher_utilization=0.99, mean_batch_size=28.7, max_batch_size=32, hold_s=0.125,
            lags=(345678,), isolation=SEALED, nodes={}, trouble="",
        )
        for name, kinds in shape.items()
    ]  # fmt: skip
    return replace(state, stages=tuple(stages))


@WIDTHS
@pytest.mark.parametrize("example", SHAPES)
def test_the_live_table_shows_every_word_and_number_whole_at_any_usual_width(example: str, width: int) -> None:
    state = busy(SHAPES[example])
    for shown in (printed(StagesTable(state), width), printed(status_tables(state), width)):
        assert "…" not in shown
        words = shown.split()
        once = ["hardware", "records/s", "queued", "wait", "batch", "service", "utilization", "dispatcher", "isolation"]
        assert [words.count(name) for name in once] == [1] * len(once)
        figures = ["12345.6", "23456", "2.32s", "345678", "28.7/32", "100%", "99%"]
        assert [words.count(figure) for figure in figures] == [len(state.stages)] * len(figures)
        kinds = [kind for kinds in SHAPES[example].values() for kind in kinds]
        assert all(words.count(kind) == kinds.count(kind) for kind in kinds)


@WIDTHS
@pytest.mark.parametrize(("example", "concurrency"), [("minimal", 1), ("moderation", 1), ("assistant", 16)])
def test_a_plan_shows_every_word_and_number_whole_at_any_usual_width(
    example: str, concurrency: int, width: int
) -> None:
    shape = SHAPES[example]
    held = {
        name: tuple(Allocation(kind, 32, 12, 0.125, concurrency) for kind in kinds) for name, kinds in shape.items()
    }
    found = replace(plan(), allocations=held, utilization=dict.fromkeys(shape, 1.0), cost_per_hour=123.4567)
    kinds = [Hardware(kind, 3.0865) for kinds in shape.values() for kind in kinds]
    shown = printed(plan_table(found, {kind.name: kind for kind in kinds}), width)
    assert "…" not in shown
    words = shown.split()
    once = ["stage", "hardware", "batch", "hold", "replicas", "utilization", "$/h", "123.4567", *shape]
    assert [name for name in once if name not in words] == []
    rows = len(kinds)
    assert [words.count(figure) for figure in ("32", "12", "125ms", "100%", "37.0380")] == [rows] * 5
