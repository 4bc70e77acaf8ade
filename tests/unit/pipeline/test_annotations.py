"""Types read from annotations, and which results suit which stage."""

import types as types_module
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NewType, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from inferline_stream import Stage
from inferline_stream.pipeline.annotations import (
    StageTypes,
    accepts,
    condition_type,
    describe,
    join_fields,
    stage_types,
    types_of,
    without_none,
)


class Point(Struct):
    x: int
    y: float = 0.0


class Named(Struct):
    name: str


class NamedPoint(Point):
    name: str = ""


UserId = NewType("UserId", int)
T = TypeVar("T")

SIMPLE: list[Any] = [int, float, str, bool, type(None), Point, Named, Literal["a", "b"], Literal["a"], Literal[1]]


def types() -> st.SearchStrategy[Any]:
    def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            inner.map(lambda t: list[t]),
            inner.map(lambda t: dict[str, t]),
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        )

    return st.recursive(st.sampled_from(SIMPLE), larger, max_leaves=4)


@st.composite
def narrower(draw: st.DrawFn, kind: Any) -> Any:
    """A type that Python takes for narrower, mostly; sometimes any other one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(types())
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is float:
        return draw(st.sampled_from([float, int, bool]))
    if kind is int:
        return draw(st.sampled_from([int, bool, Literal[1]]))
    if kind is Point:
        return draw(st.sampled_from([Point, NamedPoint]))
    if kind is str:
        return draw(st.sampled_from([str, Literal["a"]]))
    if origin is list:
        return list[draw(narrower(arguments[0]))]
    if origin is dict:
        return dict[str, draw(narrower(arguments[1]))]
    if origin in (typing.Union, types_module.UnionType):
        kept = [draw(narrower(member)) for member in arguments if draw(st.booleans())]
        return typing.Union[tuple(kept)] if kept else arguments[0]  # noqa: UP007  built at run time
    return kind


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type that JSON can hold: no NaN, no infinity."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if kind is int:
        return st.integers(-(2**53), 2**53)
    if kind in (Point, NamedPoint, Named):
        return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.sampled_from("abc"), values(arguments[1]), max_size=3)
    if origin is Literal:
        return st.sampled_from(arguments)
    if arguments:
        return st.one_of([values(member) for member in arguments])
    return {str: st.sampled_from(["", "a", "c", "5"]), bool: st.booleans(), type(None): st.none()}[kind]


@given(st.data())
def test_what_is_accepted_decodes(data: st.DataObject) -> None:
    wanted = data.draw(types(), "wanted")
    narrow = data.draw(narrower(wanted), "given")
    try:
        decode = msgspec.json.Decoder(wanted).decode
    except TypeError:  # a union whose parts msgspec cannot distinguish
        return
    if accepts(wanted, narrow):
        decode(msgspec.json.encode(data.draw(values(narrow), "value")))


@given(types())
def test_every_type_accepts_itself_and_everything_accepts_any(kind: Any) -> None:
    assert accepts(kind, kind)
    assert accepts(Any, kind)
    assert accepts(kind, Any)
    assert accepts(object, kind)


@given(types(), types())
def test_a_union_accepts_what_its_members_do(one: Any, other: Any) -> None:
    assert accepts(one | other, one)
    assert accepts(one | other, other)
    assert accepts(one | other, other | one)


@pytest.mark.parametrize(
    ("wanted", "given_type", "accepted"),
    [
        (float, int, True),
        (int, float, False),
        (int, bool, False),
        (float, bool, False),
        (object, bool, True),
        (Point, NamedPoint, True),
        (NamedPoint, Point, False),
        (Point, Named, False),
        (list[float], list[int], True),
        (list[int], list[str], False),
        (Sequence[int], list[int], True),
        (list, list[int], True),
        (list[int], list, True),
        (dict, dict[str, int], True),
        (dict, Point, False),
        (tuple[int, ...], tuple[int, int], True),
        (int | None, int, True),
        (int, int | None, False),
        (str, Literal["a"], True),
        (Literal["a", "b"], Literal["a"], True),
        (Literal["a"], Literal["a", "b"], False),
        (Literal["a"], str, False),
        (int, UserId, True),
        (Annotated[int, "positive"], int, True),
        (T, Point, True),
        (typing.Protocol, Point, False),
    ],
)
def test_single_rules(wanted: Any, given_type: Any, accepted: bool) -> None:
    assert accepts(wanted, given_type) is accepted


class Model:
    def __call__(self, points: list[Point]) -> list[float]:
        return [point.y for point in points]


class Refined(Model):
    pass


class Static:
    @staticmethod
    def score(points: "Sequence[Point]") -> "list[float]":
        return [point.y for point in points]


def untyped(points):
    return points


def half_typed(points) -> list[int]:
    return [1 for _ in points]


def lists_of_anything(points: list) -> list:
    return points


@pytest.mark.parametrize(
    ("run", "takes", "returns"),
    [
        (Model, Point, float),
        (Refined, Point, float),
        (Static.score, Point, float),
        (untyped, Any, Any),
        (half_typed, Any, int),
        (lists_of_anything, Any, Any),
        (len, Any, Any),
    ],
)
def test_types_of_stages(run: Callable[..., Any], takes: Any, returns: Any) -> None:
    assert stage_types(run) == StageTypes(takes, returns)


def is_high(point: Point) -> bool:
    return point.y > 1


def guards(point: Point | None) -> typing.TypeGuard[Point]:
    return point is not None


class Conditions:
    @staticmethod
    def low(point):
        return point.y < 1


@pytest.mark.parametrize(
    ("condition", "judged"),
    [(is_high, Point), (guards, Point | None), (Conditions.low, Any), (callable, Any)],
)
def test_what_conditions_judge(condition: Callable[[Any], bool], judged: Any) -> None:
    assert condition_type(condition) == judged


def test_none_is_taken_out_of_a_union() -> None:
    assert without_none(int | None) == (int, True)
    assert without_none(int | str | None) == (int | str, True)
    assert without_none(int) == (int, False)
    assert without_none(None) == (type(None), False)


def test_join_fields_go_by_their_encoded_names() -> None:
    class Renamed(Struct, rename={"near": "near-duplicate"}):
        near: bool
        far: int

    assert join_fields(Renamed) == {"near-duplicate": bool, "far": int}
    assert join_fields(int) is None
    assert join_fields(Point | None) is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Point, "Point"),
        (list[Point], "list[Point]"),
        (int | None, "int | None"),
        (typing.Optional[dict[str, Point]], "dict[str, Point] | None"),  # noqa: UP045  as some people write it
        (Literal["a", 1], "Literal['a', 1]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Any, "Any"),
        (None, "None"),
    ],
)
def test_types_are_written_as_their_author_would(kind: Any, words: str) -> None:
    assert describe(kind) == words


@pytest.mark.parametrize("name", ["score:Score", "models.score:Score.inner", "_m:_f"])
def test_code_given_by_name_has_the_types_that_its_stage_declares(name: str) -> None:
    assert types_of(Stage("a", name, hardware="cpu-1")) == StageTypes(Any, Any)
    assert types_of(Stage("a", name, hardware="cpu-1", takes=Point, returns=bytes)) == StageTypes(Point, bytes)
    assert condition_type(name) is Any


@pytest.mark.parametrize("name", ["", "score", "score:", ":Score", "a b:c", "a:b:c", "../a:b", "a.:b", "1a:b", "a:b()"])
def test_a_name_of_code_that_has_another_form_is_reported_with_the_remedy(name: str) -> None:
    for judge in (lambda: types_of(Stage("a", name, hardware="cpu-1")), lambda: condition_type(name)):
        with pytest.raises(TypeError, match='does not name code; write "module:name"'):
            judge()
