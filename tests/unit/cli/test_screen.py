import json
from dataclasses import replace
from io import StringIO

from rich.console import Console

from inferline_stream.cli.screen import isolation_words, stages_table
from inferline_stream.cli.status import status_tables
from inferline_stream.observability.page.snapshot import snapshot
from inferline_stream.observability.pipeline_state import IsolationState, NodeState
from tests.unit.observability.states import a_state

SEALED = IsolationState("sandbox", 2, 2, 7, (9092,), 76, {})


def test_isolation_is_shown_in_words_with_the_runtime_around_the_seal_where_it_is_there() -> None:
    assert isolation_words(SEALED) == "sealed, 76 calls"
    assert isolation_words(replace(SEALED, level="kata", sealed=1)) == "1/2 sealed within kata, 76 calls"
    absent = replace(SEALED, level="gvisor", missing=("gvisor: nothing shows it",))
    assert isolation_words(absent) == "[bold yellow]sealed, 76 calls: gvisor: nothing shows it[/]"


def test_a_stage_shows_its_pool_what_waits_for_it_and_what_is_wrong_with_it() -> None:
    state = a_state()
    stage = replace(
        state.stages[0], hold_s=0.0, queued=17, dispatcher_utilization=0.25, trouble="the sample event fails"
    )
    console = Console(width=200, file=StringIO())
    console.print(stages_table(replace(state, stages=(stage,))))
    names, figures, trouble = (line.split() for line in console.file.getvalue().splitlines())
    shown = dict(zip(names, figures, strict=False))
    assert shown | {
        "hardware": "cpu-1", "replicas": "2/3", "queued": "17", "wait": "4ms", "batch": "2.0/8", "service": "20ms",
        "utilization": "70%", "dispatcher": "25%", "lag": "6",
    } == shown  # fmt: skip
    assert " ".join(trouble) == "language: the sample event fails"


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
