"""A stage's code between bytes and bytes: joins, conditions, and what is given by name."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferline_stream import Pipeline, Result, Stage, Topic
from inferline_stream.dataplane.frames import Done, Failed, Many
from inferline_stream.dataplane.replica.stage_code import StageCode
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.errors import InvalidTopology


class Both(msgspec.Struct):
    left: int | None
    right: str | None


def number(values: list[int]) -> list[int]:
    return values


def text(values: list[int]) -> list[str]:
    return [str(value) for value in values]


def raw(values: list[int]) -> list[bytes]:
    return [bytes(value) for value in values]


def both(values: list[Both]) -> list[Both]:
    return values


def pair(values):
    return values


def large(result: int) -> bool:
    return result > 10


def strange(result: int) -> bool:
    raise LookupError(f"cannot judge {result}")


def pipeline(*stages: Stage) -> Pipeline:
    return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=list(stages))


def diamond(join: object = both, condition: object = large) -> Pipeline:
    first = Stage("first", number, hardware=["cpu-1"])
    left = Stage("left", number, hardware=["cpu-1"], after=[first.when(condition)])
    right = Stage("right", text, hardware=["cpu-1"], after=[first])
    last = Stage("last", join, hardware=["cpu-1"], after=[left, right])
    return pipeline(last, right, left, first)


def code(declared: Pipeline, stage: str) -> StageCode:
    return StageCode(declared, stage, "/nowhere/topology.py")


def test_an_edge_is_the_bit_of_its_child_in_the_routes() -> None:
    declared = diamond()
    bits = {child: 1 << bit for bit, child in enumerate(routes_of(declared, "first").children)}
    outcomes, *_ = code(declared, "first").process(lambda values: values, [b"3", b"30"])
    assert outcomes == [Done(b"3", bits["right"]), Done(b"30", bits["right"] | bits["left"])]


def test_a_join_gets_a_field_per_parent_and_none_for_one_that_was_skipped() -> None:
    seen = []
    inputs = [{"left": b"1", "right": b'"a"'}, {"right": b'"b"'}, {"left": b"no number"}, {"left": b"4"}]
    outcomes, *_ = code(diamond(), "last").process(lambda values: seen.extend(values) or values, inputs)
    assert seen == [Both(1, "a"), Both(None, "b"), Both(4, None)]
    assert outcomes[1] == Done(b'{"left":null,"right":"b"}', 0)
    assert isinstance(outcomes[2], Failed)
    assert outcomes[3] == Done(b'{"left":4,"right":null}', 0)


def test_a_join_of_plain_values_gets_a_dict() -> None:
    outcomes, *_ = code(diamond(pair), "last").process(lambda values: values, [{"right": b'"b"'}])
    assert outcomes == [Done(b'{"left":null,"right":"b"}', 0)]


def test_what_a_condition_raises_fails_its_event_alone() -> None:
    outcomes, *_ = code(diamond(condition=strange), "first").process(lambda values: values, [b"1"])
    (failed,) = outcomes
    assert isinstance(failed, Failed)
    assert (failed.type, failed.message) == ("LookupError", "cannot judge 1")


def test_a_batch_of_which_nothing_can_be_decoded_does_not_call_the_stage() -> None:
    outcomes, calls, _ = code(diamond(), "first").process(lambda values: pytest.fail("called"), [b"x", b"y"])
    assert [type(outcome) for outcome in outcomes] == [Failed, Failed]
    assert calls == []


def test_bytes_go_between_stages_as_they_are() -> None:
    first = Stage("first", raw, hardware=["cpu-1"])
    last = Stage("last", lambda values: values, hardware=["cpu-1"], after=[first])
    assert code(pipeline(first, last), "first").settle(b"\x00\xff") == Done(b"\x00\xff", 1)


@pytest.mark.parametrize("join", [number, text])
def test_a_join_that_takes_no_field_per_parent_is_refused(join: object) -> None:
    with pytest.raises(InvalidTopology, match="stage 'last': a join's input must be"):
        code(diamond(join), "last")


def test_code_given_by_name_is_imported_for_its_own_stage_alone(tmp_path: Path) -> None:
    (tmp_path / "own_part.py").write_text(
        "def run(values):\n    return values\n\ndef large(value):\n    return value > 1\n"
    )
    (tmp_path / "other_part.py").write_text("def run(values):\n    return values\n")
    own = Stage("own", "own_part:run", hardware=["cpu-1"], takes=int, returns=int)
    other = Stage("other", "other_part:run", hardware=["cpu-1"], after=[own.when("own_part:large")], takes=int)
    try:
        loaded = StageCode(pipeline(own, other), "own", str(tmp_path / "topology.py"))
        outcomes, *_ = loaded.process(loaded.run, [b"1", b"2"])
        assert outcomes == [Done(b"1", 0), Done(b"2", 1)]
        assert "own_part" in sys.modules
        assert "other_part" not in sys.modules
    finally:
        sys.modules.pop("own_part", None)
        sys.path.remove(str(tmp_path))


def test_of_endless_results_no_more_are_made_than_one_that_is_too_many() -> None:
    made: list[int] = []

    def endless(count: int) -> Iterator[int]:
        for number in range(count):
            made.append(number)
            yield number

    def many(counts: list[int]) -> list[Iterator[int]]:
        return [endless(count) for count in counts]

    code = alone(Stage("many", many, hardware="cpu-1", many=True, most=20))
    (too_many, fitting, none) = code.process(many, [b"10000000", b"20", b"0"]).outcomes
    assert isinstance(too_many, Failed)
    assert too_many.type == "TooManyResults"
    assert isinstance(fitting, Many)
    assert (len(fitting.results), none) == (20, Many())
    assert len(made) == 21 + 20


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (None, Many()),
        (Result(1), Done(b"1", 0)),
        (Result(1, key="k", headers={"a": "b", "c": b"d"}), Done(b"1", 0, b"k", (("a", b"b"), ("c", b"d")))),
        (Result(1, headers={"__inferline.event_id": "x"}), "names that begin with __inferline. are not the user's"),
        (Result(1, key=7), "Result key 7 must be text or bytes"),  # type: ignore[arg-type]
        (Result(1, headers={"a": 7}), "Result header 'a': 7 must be text or bytes"),  # type: ignore[dict-item]
    ],
)
def test_a_result_may_have_a_key_and_headers_of_its_own_and_none_filters(result: Any, outcome: Any) -> None:
    def give(numbers: list[int]) -> list[Any]:
        return [result for _ in numbers]

    (found,) = alone(Stage("give", give, hardware="cpu-1")).process(give, [b"1"]).outcomes
    assert outcome in found.message if isinstance(found, Failed) else found == outcome


def alone(stage: Stage) -> StageCode:
    return StageCode(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage]), stage.name, "t.py")
