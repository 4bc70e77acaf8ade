"""What stages, conditions and joins take and return is checked against what they are given."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct

from inferline_stream import Pipeline, RayServe, Stage, Topic
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import (
    Findings,
    Language,
    Post,
    Tagged,
    is_english,
    judge,
    line,
    moderation,
    only_problem,
    pass_on,
)


def test_types_are_compared_along_an_edge() -> None:
    first = Stage("first", pass_on, hardware=["cpu-1"])
    second = Stage("second", judge, after=[first], hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second])
    found = only_problem(pipeline)
    assert "stage 'second': takes list[Tagged], but its parent 'first' returns list[Post]" in found


def test_a_condition_is_compared_with_its_parents_results() -> None:
    first = Stage("first", pass_on, hardware=["cpu-1"])
    second = Stage("second", pass_on, after=[first.when(is_english)], hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second])
    assert "condition is_english judges Tagged, but 'first' returns Post" in only_problem(pipeline)


def nested() -> Callable[[Tagged], bool]:
    def inner(tagged: Tagged) -> bool:
        return True

    return inner


async def slowly(tagged: Tagged) -> bool:
    return True


def of_two(tagged: Tagged, other: Tagged) -> bool:
    return True


def counts(tagged: Tagged) -> int:
    return 1


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (lambda tagged: True, "is a lambda"),
        (nested(), "is nested in a function"),
        (slowly, "is asynchronous"),
        (of_two, "must take exactly one argument"),
        (counts, "returns int; it must return bool"),
        (Language(), "is not a function"),
    ],
)
def test_a_condition_is_an_importable_function_of_one_result(condition: Any, said: str) -> None:
    language = Stage("language", Language, hardware=["cpu-1"])
    toxicity = Stage("toxicity", judge, after=[language.when(condition)], hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[language, toxicity])
    found = only_problem(pipeline)
    assert "edge from 'language'" in found
    assert said in found


class NoCall:
    pass


class NeedsArgument:
    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, posts: list[Post]) -> list[Post]:
        return posts


async def later(posts: list[Post]) -> list[Post]:
    return posts


def one_by_one(post: Post) -> Post:
    return post


def with_context(posts: list[Post], context: str) -> list[Post]:
    return posts


def yields(posts: list[Post]):
    yield from posts


def unresolved(posts: "list[Nowhere]") -> list[Post]:  # noqa: F821  that is the point
    return posts


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (NoCall, "has no `def __call__"),
        (NeedsArgument, "cannot be constructed without arguments"),
        (yields, "is a generator"),
        (one_by_one, "takes Post, not a batch"),
        (with_context, "must take exactly one argument"),
        (unresolved, "cannot be resolved"),
        (Language(), "is neither a function nor a class"),
        (RayServe("http://a:8000/rank", request=str, response=len), "server at http://a:8000/rank is given as code"),
    ],
)
def test_a_stage_is_a_function_or_class_from_batch_to_batch(run: Any, said: str) -> None:
    assert said in only_problem(line(run))


def bare(posts):
    return posts


def test_a_stage_without_annotations_is_taken_as_it_is() -> None:
    assert problems(line(bare)) == ()


class MissingField(Struct):
    language: Tagged
    toxicity: float | None


class ExtraField(Findings):
    duplicates: bool = False


class NotOptional(Struct):
    language: Tagged
    toxicity: float
    duplicate: bool


class WrongType(Struct):
    language: Tagged
    toxicity: str | None
    duplicate: bool


class AllOptional(Struct):
    language: Tagged | None
    toxicity: float | None
    duplicate: bool | None


def joining(takes: type) -> Callable[..., Any]:
    def run(findings):
        return ["ok"] * len(findings)

    run.__annotations__ = {"findings": list[takes], "return": list[str]}
    return run


@pytest.mark.parametrize(
    ("takes", "said"),
    [
        (MissingField, "MissingField has no field for parent 'duplicate'"),
        (ExtraField, "field ExtraField.duplicates belongs to no parent; did you mean 'duplicate'?"),
        (NotOptional, "annotate field NotOptional.toxicity as `float | None`"),
        (WrongType, "field WrongType.toxicity is str | None, but parent 'toxicity' returns list[float]"),
        (Tagged | None, "a join takes a msgspec Struct with one field per parent (language, toxicity, duplicate)"),
        (dict, "takes list[dict]; a join takes a msgspec Struct"),
    ],
)
def test_a_join_takes_a_field_per_parent(takes: Any, said: str) -> None:
    assert said in only_problem(moderation(verdict={"run": joining(takes)}))


def test_none_may_be_allowed_where_it_is_not_needed() -> None:
    assert problems(moderation(verdict={"run": joining(AllOptional)})) == ()


def test_a_join_field_may_be_renamed_to_a_stage_whose_name_is_no_identifier() -> None:
    class Kebab(Struct, rename="kebab"):
        near_duplicates: Post
        far: Post

    first = Stage("near-duplicates", pass_on, hardware=["cpu-1"])
    second = Stage("far", pass_on, hardware=["cpu-1"])
    join = Stage("join", joining(Kebab), after=[first, second], hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second, join])
    assert problems(pipeline) == ()


def test_raw_topics_carry_bytes() -> None:
    def raw(posts):
        return posts

    raw.__annotations__ = {"posts": list[bytes], "return": list[bytes]}
    ends = {"slo": "1s", "source": Topic("in", codec="raw"), "sink": Topic("out", codec="raw")}
    assert problems(Pipeline("p", **ends, stages=[Stage("only", raw, hardware=["cpu-1"])])) == ()
    found = problems(Pipeline("p", **ends, stages=[Stage("only", pass_on, hardware=["cpu-1"])]))
    assert len(found) == 2
    assert "the source topic is raw; take list[bytes]" in found[0]
    assert "the sink topic is raw; return list[bytes]" in found[1]
