from dataclasses import asdict

import pytest

from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.pipeline.version import Structure, incompatibilities, structure_of


def number(values: list[int]) -> list[int]:
    return values


def other(values: list[int]) -> list[int]:
    return [value + 1 for value in values]


def raw(values: list[int]) -> list[bytes]:
    return [b"%d" % value for value in values]


def positive(value: int) -> bool:
    return value > 0


def pipeline(
    *, run=number, conditional=False, extra=False, join=True, ordered=False, sink="out", codec="json"
) -> Pipeline:
    first = Stage("first", run, hardware="cpu-1")
    left = Stage("left", number, hardware="cpu-1", after=[first.when(positive) if conditional else first])
    stages = [first, left]
    if extra:
        stages.append(Stage("right", number, hardware="cpu-1", after=[first]))
    last = Stage("last", number, hardware="cpu-1", after=[left, first] if join else [left], ordered=ordered)
    return Pipeline("p", slo="1s", source=Topic("in", codec=codec), sink=Topic(sink), stages=[*stages, last])


def test_another_function_of_the_same_types_is_compatible_and_has_the_same_version():
    running, wanted = structure_of(pipeline()), structure_of(pipeline(run=other))
    assert incompatibilities(running, wanted) == []
    assert running.version == wanted.version
    assert Structure(**asdict(running)).version == running.version


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"extra": True}, "stage right is new"),
        ({"conditional": True}, "edge from first to left"),
        ({"join": False}, "stage last came after first, left and comes after left"),
        ({"ordered": True}, "stage last puts the parts of an event together elsewhere"),
        ({"run": raw}, "results of stage first were json and are raw"),
        ({"sink": "elsewhere"}, "the sink of stage last was topic out (json) and is topic elsewhere (json)"),
        ({"codec": "msgpack"}, "the source was topic in (json) and is topic in (msgpack)"),
    ],
)
def test_a_change_that_records_under_way_would_notice_is_named_and_changes_the_version(change, reported):
    running, wanted = structure_of(pipeline()), structure_of(pipeline(**change))
    assert [reason for reason in incompatibilities(running, wanted) if reported in reason]
    assert running.version != wanted.version
    if "extra" in change:
        assert any("stage right is gone" in reason for reason in incompatibilities(wanted, running))


def test_an_order_of_keys_that_is_lifted_is_no_other_structure():
    kept, lifted = structure_of(pipeline(join=False)), structure_of(pipeline(join=False, ordered=True))
    assert kept == lifted
    assert structure_of(pipeline(ordered=None)) == structure_of(pipeline(ordered=False))


def test_the_format_of_results_is_known_of_code_that_is_given_by_name():
    named = Stage("first", "models.elsewhere:run", hardware="cpu-1", returns=bytes)
    found = structure_of(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[named]))
    assert found.formats == {"first": "raw"}
