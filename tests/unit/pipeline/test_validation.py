"""Each mistake of a declared pipeline is found, and is told with file, stage and remedy."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from inferline_stream import Edge, Hardware, InvalidTopology, Pipeline, Sample, Stage, Topic
from inferline_stream.pipeline.validation import problems, validated


class Post(Struct):
    text: str


class Tagged(Struct):
    text: str
    language: str


class Findings(Struct):
    language: Tagged
    toxicity: float | None
    duplicate: bool


class Language:
    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, posts: list[Post]) -> list[Tagged]:
        return [Tagged(post.text, "en") for post in posts]


def is_english(tagged: Tagged) -> bool:
    return tagged.language == "en"


def judge(tagged: list[Tagged]) -> list[float]:
    return [0.0] * len(tagged)


def search(tagged: list[Tagged]) -> list[bool]:
    return [False] * len(tagged)


def decide(findings: list[Findings]) -> list[str]:
    return ["ok"] * len(findings)


def pass_on(posts: list[Post]) -> list[Post]:
    return posts


def moderation(**changes: Any) -> Pipeline:
    """The example of the documentation; keywords replace arguments of `Pipeline`, or of a stage by its name."""
    of_stage = {name: changes.pop(name, {}) for name in ("language", "toxicity", "duplicate", "verdict")}
    cpu = {"hardware": ["cpu-1"]}
    language = Stage("language", of_stage["language"].pop("run", Language), **{**cpu, **of_stage["language"]})
    toxicity = Stage(
        "toxicity",
        of_stage["toxicity"].pop("run", judge),
        **{"after": [language.when(is_english)], "hardware": ["cpu-1", "t4"], **of_stage["toxicity"]},
    )
    duplicate = Stage("duplicate", search, **{"after": [language], **cpu, **of_stage["duplicate"]})
    verdict = Stage(
        "verdict",
        of_stage["verdict"].pop("run", decide),
        **{"after": [language, toxicity, duplicate], **cpu, **of_stage["verdict"]},
    )
    arguments: dict[str, Any] = {
        "name": "moderation",
        "slo": "250ms",
        "source": Topic("posts"),
        "sink": Topic("verdicts"),
        "stages": [language, toxicity, duplicate, verdict],
        "sample": Sample("arrivals.csv", "posts.jsonl"),
        **changes,
    }
    return Pipeline(arguments.pop("name"), **arguments)


def only_problem(pipeline: Pipeline) -> str:
    found = problems(pipeline)
    assert len(found) == 1, "\n".join(found)
    assert found[0].startswith(__file__)
    return found[0]


def line(run: Any, **arguments: Any) -> Pipeline:
    """A pipeline of one stage."""
    stage = Stage("only", run, **{"hardware": ["cpu-1"], **arguments})
    return Pipeline("line", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])


def test_a_sound_pipeline_has_no_problems() -> None:
    pipeline = moderation()
    assert problems(pipeline) == ()
    assert validated(pipeline) is pipeline


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(InvalidTopology) as raised:
        validated(moderation(slo="250", language={"hardware": []}, toxicity={"max_batch_size": 0}))
    assert len(raised.value.problems) == 3
    assert str(raised.value).count("\n") == 2


def test_a_problem_names_the_line_that_declares_the_stage() -> None:
    pipeline = line(pass_on, hardware=[])
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, text in enumerate(lines, start=1) if 'Stage("only"' in text)
    assert only_problem(pipeline).startswith(f"{__file__}:{number}: stage 'only': ")


@pytest.mark.parametrize("slo", ["250", "ms", "250 parsecs", "", 0.25, None])
def test_an_slo_needs_a_unit(slo: Any) -> None:
    assert "is not a duration: write a number and its unit" in only_problem(moderation(slo=slo))


def test_an_slo_is_above_zero() -> None:
    assert "SLO '0ms' must be above 0" in only_problem(moderation(slo="0ms"))


@pytest.mark.parametrize("objective", [0, 1, 99, -0.5, True, "0.99", float("nan")])
def test_an_objective_is_a_share(objective: Any) -> None:
    assert "must lie between 0 and 1" in only_problem(moderation(objective=objective))


@pytest.mark.parametrize("name", ["", "two words", "a.b", "-a", "a/b", "é", "a" * 81, 7, None])
def test_a_name_can_stand_in_a_topic(name: Any) -> None:
    assert "cannot stand in a topic's name" in only_problem(moderation(name=name))
    stage = Stage(name, pass_on, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    assert "cannot stand in a topic's name" in only_problem(pipeline)


@pytest.mark.parametrize("name", ["assignments", "stage-stats", "arrivals", "decisions", "control", "completed"])
def test_a_stage_does_not_take_the_name_of_a_control_topic(name: str) -> None:
    stage = Stage(name, pass_on, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    assert "is the name of one of the pipeline's own topics" in only_problem(pipeline)


@pytest.mark.parametrize("name", ["", "two words", "..", "a" * 231, 3])
def test_a_topic_has_a_name_that_kafka_takes(name: Any) -> None:
    assert "is no name for a Kafka topic" in only_problem(moderation(source=Topic(name)))


def test_source_and_sink_differ() -> None:
    assert "results would come back as events" in only_problem(moderation(sink=Topic("posts")))


def test_a_source_is_none_of_the_pipelines_own_topics() -> None:
    assert "is a name that the pipeline uses itself" in only_problem(moderation(source=Topic("moderation.toxicity")))


def test_an_unknown_codec_is_told_with_the_nearest() -> None:
    assert "unknown codec 'jsno'; did you mean 'json'?" in only_problem(moderation(source=Topic("a", codec="jsno")))


@pytest.mark.parametrize("partitions", [0, -1, 1.5, "8"])
def test_partitions_are_one_or_more(partitions: Any) -> None:
    found = only_problem(moderation(source=Topic("a", partitions=partitions)))
    assert "must be a whole number, 1 or more" in found


def test_a_source_that_is_a_string_is_told_what_to_write() -> None:
    assert 'write Topic("posts")' in only_problem(moderation(source="posts"))


def test_a_stage_listed_twice_is_found() -> None:
    stage = Stage("a", pass_on, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage, stage])
    assert "stage 'a' is listed 2 times" in only_problem(pipeline)


def test_two_stages_of_one_name_are_found() -> None:
    first = Stage("a", pass_on, hardware=["cpu-1"])
    second = Stage("a", pass_on, hardware=["cpu-1"], after=[first])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second])
    assert "2 stages are called 'a'" in only_problem(pipeline)


def test_a_pipeline_without_stages_is_found() -> None:
    assert "has no stages" in only_problem(moderation(stages=[]))


def test_what_is_no_stage_is_found() -> None:
    assert "which is no Stage" in only_problem(moderation(stages=[*moderation().stages, "verdict"]))


@pytest.mark.parametrize("wrap", [Edge, lambda stage: stage])
def test_a_cycle_is_told_in_the_direction_of_flow(wrap: Callable[[Stage], Any]) -> None:
    first = Stage("first", pass_on, hardware=["cpu-1"])
    second = Stage("second", pass_on, hardware=["cpu-1"], after=[first])
    third = Stage("third", pass_on, hardware=["cpu-1"], after=[second])
    first.after.append(wrap(third))
    found = problems(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second, third]))
    cycle = next(problem for problem in found if "cycle" in problem)
    path = cycle.partition("cycle: ")[2].partition(";")[0].split(" → ")
    assert path[0] == path[-1]
    assert set(path) == {"first", "second", "third"}
    assert all(
        (a, b) in {("first", "second"), ("second", "third"), ("third", "first")} for a, b in itertools.pairwise(path)
    )


def test_a_stage_that_follows_itself_is_a_cycle() -> None:
    pipeline = line(pass_on)
    pipeline.stages[0].after.append(Edge(pipeline.stages[0]))
    assert any("cycle: only → only" in problem for problem in problems(pipeline))


def test_a_parent_outside_the_pipeline_is_found() -> None:
    stranger = Stage("stranger", pass_on, hardware=["cpu-1"])
    found = only_problem(line(pass_on, after=[stranger]))
    assert "stage 'only': parent 'stranger'" in found
    assert "is not among the pipeline's stages" in found


def test_a_parent_given_by_name_is_found() -> None:
    assert "parent 'language' is no Stage" in only_problem(line(pass_on, after=["language"]))


def test_a_parent_given_twice_is_found() -> None:
    language = Stage("language", Language, hardware=["cpu-1"])
    twice = Stage("twice", judge, after=[language, language.when(is_english)], hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[language, twice])
    assert any("parent 'language' is given twice" in problem for problem in problems(pipeline))


def test_several_final_stages_are_named() -> None:
    pipeline = moderation()
    found = only_problem(moderation(stages=pipeline.stages[:3]))
    assert "2 stages have no child ('toxicity', 'duplicate')" in found


def test_a_stage_without_hardware_is_found() -> None:
    assert "stage 'only': has no hardware" in only_problem(line(pass_on, hardware=[]))


def test_unknown_hardware_is_told_with_the_nearest() -> None:
    found = only_problem(line(pass_on, hardware=["cpu1"]))
    assert "unknown hardware 'cpu1'; did you mean 'cpu-1'" in found


def test_hardware_of_ones_own_is_known() -> None:
    assert problems(moderation(hardware=[Hardware("npu", 0.2)], toxicity={"hardware": ["npu"]})) == ()


def test_hardware_given_as_an_object_is_told_where_it_belongs() -> None:
    assert "the object to Pipeline(hardware=)" in only_problem(line(pass_on, hardware=[Hardware("npu", 0.2)]))


def test_hardware_declared_twice_is_found() -> None:
    twice = [Hardware("npu", 0.2), Hardware("npu", 0.3)]
    assert "hardware 'npu' is declared 2 times" in only_problem(moderation(hardware=twice))


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", True])
def test_a_batch_holds_at_least_one_event(size: Any) -> None:
    assert "must be a whole number, 1 or more" in only_problem(line(pass_on, max_batch_size=size))


@pytest.mark.parametrize(
    ("emulated", "said"),
    [
        (None, "no service times for 'emulated-cpu'"),
        ({}, "no service times for 'emulated-cpu'"),
        ({2: "20ms"}, "no emulated service time for batch size 1"),
        ({1: "20"}, "'20' is not a duration"),
        ({1: 0.02}, "0.02 is not a duration"),
        ({1: "0ms"}, "must be above 0"),
        ({1: "20ms", 0: "1ms"}, "emulated batch size 0 must be a whole number"),
        ({1: "20ms", "8": "60ms"}, "emulated batch size '8' must be a whole number"),
        ({"emulated-cpu": "20ms"}, "are no table"),
    ],
)
def test_emulated_hardware_needs_service_times(emulated: Any, said: str) -> None:
    assert said in only_problem(line(pass_on, hardware=["emulated-cpu"], emulated=emulated))


def test_one_bad_table_for_two_kinds_is_told_once() -> None:
    kinds = ["emulated-cpu", "emulated-gpu-small"]
    assert "batch size 1" in only_problem(line(pass_on, hardware=kinds, emulated={2: "20ms"}))


def test_emulated_times_for_another_kind_are_told_with_the_nearest() -> None:
    table = {1: "20ms"}
    found = only_problem(
        line(pass_on, hardware=["emulated-cpu"], emulated={"emulated-cpu": table, "emulated-cp": table})
    )
    assert "'emulated-cp', which is not among its hardware; did you mean 'emulated-cpu'?" in found


def test_emulated_times_without_emulated_hardware_are_found() -> None:
    assert "starts with 'emulated-'" in only_problem(line(pass_on, emulated={1: "20ms"}))


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
        (later, "is asynchronous or a generator"),
        (yields, "is asynchronous or a generator"),
        (one_by_one, "takes Post, not a batch"),
        (with_context, "must take exactly one argument"),
        (unresolved, "cannot be resolved"),
        (Language(), "is neither a function nor a class"),
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
