"""Each mistake of a declared pipeline is found, and is reported with file, stage and remedy."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from inferline_stream import Edge, Emulated, Hardware, InvalidTopology, Pipeline, Sample, Spot, Stage, Topic
from inferline_stream.pipeline.validation import problems, validated
from tests.unit.pipeline.declaring import Language, is_english, judge, line, moderation, only_problem, pass_on


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
    stage = Stage("only", pass_on, hardware=[])
    pipeline = Pipeline("line", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, text in enumerate(lines, start=1) if 'Stage("only"' in text)
    assert only_problem(pipeline).startswith(f"{__file__}:{number}: stage 'only': ")


@pytest.mark.parametrize("slo", ["250", "ms", "250 parsecs", "", 0.25, None])
def test_an_slo_needs_a_unit(slo: Any) -> None:
    assert "is not a duration: write a number and its unit" in only_problem(moderation(slo=slo))


def test_an_slo_ends_before_the_calendar() -> None:
    assert "SLO '99999999999h' is longer than 36500d" in only_problem(moderation(slo="99999999999h"))


def test_an_slo_is_above_zero() -> None:
    assert "SLO '0ms' must be above 0" in only_problem(moderation(slo="0ms"))


@pytest.mark.parametrize("objective", [0, 1, 99, -0.5, True, "0.99", float("nan")])
def test_an_objective_is_a_share(objective: Any) -> None:
    assert "must lie between 0 and 1" in only_problem(moderation(objective=objective))


def test_the_order_of_queues_is_one_of_two() -> None:
    assert problems(moderation(order="entry")) == ()
    assert "order 'fifo' is none; use 'deadline' or 'entry'" in only_problem(moderation(order="fifo"))


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


def test_an_unknown_codec_is_reported_with_the_nearest() -> None:
    assert "unknown codec 'jsno'; did you mean 'json'?" in only_problem(moderation(source=Topic("a", codec="jsno")))


@pytest.mark.parametrize("partitions", [0, -1, 1.5, "8"])
def test_partitions_are_one_or_more(partitions: Any) -> None:
    found = only_problem(moderation(source=Topic("a", partitions=partitions)))
    assert "must be a whole number, 1 to 100000" in found


def test_a_source_that_is_a_string_is_answered_with_what_to_write() -> None:
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
def test_a_cycle_is_reported_in_the_direction_of_flow(wrap: Callable[[Stage], Any]) -> None:
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
    assert "2 stages have no child and no sink of their own ('toxicity', 'duplicate')" in found


@pytest.mark.parametrize(
    ("sinks", "pipelines", "problem"),
    [
        ({"right": Topic("alerts")}, Topic("out"), None),
        ({"left": Topic("alerts"), "right": Topic("calm"), "first": Topic("all")}, None, None),
        ({"left": Topic("alerts"), "right": Topic("calm")}, Topic("out"), "none feeds the pipeline's sink; leave"),
        ({"left": Topic("alerts")}, None, "final stage 'right' has no sink; give it or the pipeline"),
        ({"left": Topic("out")}, Topic("out"), "2 sinks are topic 'out'; give each a topic of its own"),
        ({"left": Topic("in")}, Topic("out"), "source and sink are both topic 'in'"),
        ({"right": Topic("x", background=True)}, Topic("out"), "sink topic 'x': background is of a source"),
        ({"right": Topic("x y")}, Topic("out"), "sink topic 'x y' is no name"),
        ({"right": Topic("x", codec="raw")}, Topic("out"), "returns list[int], but the sink topic is raw"),
        (
            {"right": Topic("x"), "first": Topic("y", codec="msgpack")},
            Topic("out"),
            "stage 'first': its sink has the codec 'msgpack', and the next stage takes its results as 'json'",
        ),
        ({"right": Topic("x"), "many": Topic("y")}, Topic("out"), ""),
    ],
)
def test_sinks_of_stages_are_each_a_topic_of_its_own_that_something_feeds(sinks, pipelines, problem) -> None:
    first = Stage("first", whole, hardware="cpu-1", sink=sinks.get("first"))
    stages = [first, *(Stage(n, whole, hardware="cpu-1", after=[first], sink=sinks.get(n)) for n in ("left", "right"))]
    if "many" in sinks:
        stages.append(Stage("many", several, hardware="cpu-1", after=[first], many=True, sink=sinks["many"]))
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=pipelines, stages=stages)
    assert problem in only_problem(pipeline) if problem else problems(pipeline) == ()


@pytest.mark.parametrize(
    ("own", "pipelines", "problem"),
    [
        ({"left": Topic("orders")}, Topic("in"), None),
        ({"left": Topic("orders"), "right": Topic("returns", codec="msgpack")}, None, None),
        ({"left": Topic("orders")}, [Topic("in"), Topic("old", background=True, rate=3)], None),
        ({"left": Topic("orders"), "right": Topic("returns")}, Topic("in"), "none reads the pipeline's; leave source"),
        ({"left": Topic("orders")}, None, "first stage 'right' has no source; give it or the pipeline"),
        ({"left": Topic("in")}, Topic("in"), "source topic 'in' is listed 2 times"),
        ({"left": Topic("out")}, Topic("in"), "source and sink are both topic 'out'"),
        ({"left": Topic("orders", slo="100ms")}, Topic("in"), "of stage 'left': slo is of a pipeline's source"),
        ({"left": Topic("orders")}, [Topic("in"), Topic("gold", slo="1s")], "sources of stages have one SLO"),
        (
            {"left": Topic("orders", arrivals="timestamps")},
            Topic("in"),
            "arrivals 'timestamps' is for 'in', and holds for all of them",
        ),
        ({"last": Topic("orders")}, Topic("in"), "stage 'last' has parents and a source"),
        ({"left": Topic("orders", sample=Sample("a", "b"))}, Topic("in"), "topic 'in' has no sample, and others have"),
        ({}, Topic("in", sample=Sample("a", "b")), "its sample is the pipeline's"),
    ],
)
def test_sources_of_first_stages_are_each_a_topic_of_one_slo(own, pipelines, problem) -> None:
    left, right = (Stage(name, whole, hardware="cpu-1", source=own.get(name)) for name in ("left", "right"))
    last = Stage("last", either, hardware="cpu-1", after=[left, right], source=own.get("last"))
    pipeline = Pipeline("p", slo="2s", source=pipelines, sink=Topic("out"), stages=[left, right, last])
    assert problem in only_problem(pipeline) if problem else problems(pipeline) == ()


def test_what_another_source_gives_is_missing_in_a_join() -> None:
    left, right = Stage("left", whole, hardware="cpu-1"), Stage("right", whole, hardware="cpu-1", source=Topic("x"))
    last = Stage("last", both, hardware="cpu-1", after=[left, right])
    found = problems(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[left, right, last]))
    assert len(found) == 2
    assert all("may not be taken; annotate field" in problem for problem in found)


class Either(Struct):
    left: int | None = None
    right: int | None = None


class Both(Struct):
    left: int
    right: int


def either(events: list[Either]) -> list[int]:
    return [0 for _ in events]


def both(events: list[Both]) -> list[int]:
    return [0 for _ in events]


def whole(events: list[int]) -> list[int]:
    return events


def several(events: list[int]) -> list[list[int]]:
    return [[event] for event in events]


def test_a_stage_without_hardware_is_found() -> None:
    assert "stage 'only': has no hardware" in only_problem(line(pass_on, hardware=[]))


def test_unknown_hardware_is_reported_with_the_nearest() -> None:
    found = only_problem(line(pass_on, hardware=["cpu1"]))
    assert "unknown hardware 'cpu1'; did you mean 'cpu-1'" in found


def test_hardware_of_ones_own_is_known() -> None:
    assert problems(moderation(hardware=[Hardware("npu", 0.2)], toxicity={"hardware": ["npu"]})) == ()


def test_hardware_given_as_an_object_is_answered_with_where_it_belongs() -> None:
    assert "the object to Pipeline(hardware=)" in only_problem(line(pass_on, hardware=[Hardware("npu", 0.2)]))


def test_hardware_declared_twice_is_found() -> None:
    twice = [Hardware("npu", 0.2), Hardware("npu", 0.3)]
    assert "hardware 'npu' is declared 2 times" in only_problem(moderation(hardware=twice))


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", True, 10**30])
def test_a_batch_holds_at_least_one_event_and_no_more_than_fit(size: Any) -> None:
    assert f"max_batch_size {size!r} must be a whole number, 1 to 100000" in only_problem(
        line(pass_on, max_batch_size=size)
    )


def test_replicas_that_stand_by_are_no_more_than_can_be() -> None:
    assert "standby 1000000000 must be a whole number, 0 to 1000000" in only_problem(line(pass_on, standby=10**9))


def test_a_topic_has_no_more_partitions_than_kafka_takes() -> None:
    assert "partitions 10000000 must be a whole number, 1 to 1000000" in only_problem(
        moderation(sink=Topic("out", partitions=10**7))
    )


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
        (Emulated({2: "20ms"}), "no emulated service time for batch size 1"),
        (Emulated({1: "20ms"}, cv=-0.5), "emulated cv -0.5 must be a number, 0 or more"),
        (Emulated({1: "20ms"}, cv=float("nan")), "emulated cv nan must be a number"),
        (Emulated({1: "20ms"}, weight=3), "emulated weight 3 must be a function"),  # type: ignore[arg-type]
    ],
)
def test_emulated_hardware_needs_service_times(emulated: Any, said: str) -> None:
    assert said in only_problem(line(pass_on, hardware=["emulated-cpu"], emulated=emulated))


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("tokens", "cost: 'tokens' does not name code"),
        ("models:", "cost: 'models:' does not name code"),
        (3, "cost 3 is neither a function of one event nor the name of one"),
    ],
)
def test_a_cost_is_a_function_or_names_one(cost: Any, said: str) -> None:
    assert said in only_problem(line(pass_on, cost=cost))


@pytest.mark.parametrize(
    ("gpus", "strategy", "isolation", "sound"),
    [
        (0.5, "mps", "sandbox", False),
        (0.5, "mps", "none", True),
        (0.5, "time-slicing", "sandbox", True),
        (1, "mps", "sandbox", True),
    ],
)
def test_a_sealed_replica_shares_no_gpu_by_mps(gpus: float, strategy: str, isolation: str, sound: bool) -> None:
    half = Hardware("half", 1.0, gpus=gpus, node_labels={"nvidia.com/gpu.sharing-strategy": strategy})
    stage = Stage("only", pass_on, hardware=["half"], isolation=isolation)
    pipeline = Pipeline("line", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], hardware=[half])
    if sound:
        assert problems(pipeline) == ()
    else:
        assert "a sealed replica connects to no daemon" in only_problem(pipeline)


def test_one_bad_table_for_two_kinds_is_reported_once() -> None:
    kinds = ["emulated-cpu", "emulated-gpu-small"]
    assert "batch size 1" in only_problem(line(pass_on, hardware=kinds, emulated={2: "20ms"}))


def test_emulated_times_for_another_kind_are_reported_with_the_nearest() -> None:
    table = {1: "20ms"}
    found = only_problem(
        line(pass_on, hardware=["emulated-cpu"], emulated={"emulated-cpu": table, "emulated-cp": table})
    )
    assert "'emulated-cp', which is not among its hardware; did you mean 'emulated-cpu'?" in found


def test_emulated_times_without_emulated_hardware_are_found() -> None:
    assert "starts with 'emulated-'" in only_problem(line(pass_on, emulated={1: "20ms"}))


@pytest.mark.parametrize("ordered", [None, True, False])
def test_a_stage_may_keep_or_lift_the_order_of_keys(ordered: bool | None) -> None:
    stage = Stage("only", pass_on, hardware=["cpu-1"], ordered=ordered)
    assert problems(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])) == ()


def test_an_order_is_a_truth_value() -> None:
    stage = Stage("only", pass_on, hardware=["cpu-1"], ordered="yes")  # type: ignore[arg-type]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    assert "ordered 'yes' must be True, False or None" in only_problem(pipeline)


def named(**given: Any) -> Pipeline:
    """A pipeline whose stages and condition are named, and whose modules are nowhere."""
    first = Stage("first", given.get("run", "nowhere:run"), hardware=["cpu-1"], returns=given.get("returns"))
    left = Stage("left", "nowhere:run", after=[first.when(given.get("when", "nowhere:holds"))], hardware=["cpu-1"])
    join = Stage("join", "nowhere:Join", after=[first, left], hardware=["cpu-1"], takes=given.get("takes"))
    return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, left, join])


def test_code_given_by_name_is_judged_without_being_imported() -> None:
    assert problems(named()) == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"run": "nowhere"}, "'nowhere' does not name code; write \"module:name\""),
        ({"when": "nowhere.holds"}, "edge from 'first': 'nowhere.holds' does not name code"),
        ({"takes": int}, "joins 2 parents and takes list[int]"),
        ({"run": pass_on, "returns": int}, "takes= and returns= are for code given by name; annotate the function"),
    ],
)
def test_a_mistake_in_code_given_by_name_is_reported(given: dict[str, Any], said: str) -> None:
    assert said in only_problem(named(**given))


def test_types_declared_for_named_code_are_compared_along_an_edge() -> None:
    first = Stage("first", "nowhere:run", hardware=["cpu-1"], returns=int)
    second = Stage("second", "nowhere:run", after=[first], hardware=["cpu-1"], takes=str)
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, second])
    assert "takes list[str], but its parent 'first' returns list[int]" in only_problem(pipeline)


@pytest.mark.parametrize(
    ("idle", "said"), [("soon", "is not a duration"), ("30s", "must be 60s or more"), (900, "is not a duration")]
)
def test_what_sleeps_needs_a_time_of_a_minute_or_more(idle: Any, said: str) -> None:
    assert said in only_problem(moderation(idle=idle))
    assert said in only_problem(moderation(toxicity={"idle": idle}))


def test_spot_capacity_has_the_kind_beside_it_that_takes_over() -> None:
    lent = [Hardware("box", 1.0, spot=Spot(0.3))]
    said = only_problem(moderation(hardware=lent, toxicity={"hardware": ["box-spot"]}))
    assert "hardware 'box-spot' may be taken away: add 'box', which takes over then" in said
    assert problems(moderation(hardware=lent, toxicity={"hardware": ["box", "box-spot"]})) == ()


def _declared(**of: dict[str, Any]) -> Pipeline:
    """A pipeline, with arguments of one of its declarations replaced."""
    spot = Spot(**{"price": 0.1, **of.get("spot", {})})
    own = Hardware(**{"name": "t4", "price_per_hour": 1.0, "spot": spot, **of.get("hardware", {})})
    stage = Stage(**{"name": "only", "run": pass_on, "hardware": ["cpu-1"], **of.get("stage", {})})
    topic = Topic(**{"name": "in", **of.get("topic", {})})
    sample = Sample(**{"arrivals": "arrivals.csv", "events": "events.jsonl", **of.get("sample", {})})
    whole = {"slo": "1s", "source": topic, "sink": Topic("out"), "stages": [stage], "hardware": [own], "sample": sample}
    return Pipeline("line", **whole | of.get("pipeline", {}))


@pytest.mark.parametrize("odd", [None, 7, float("nan"), "x", b"x", ["x"], [7], {"a": 1}, True, ...], ids=repr)
@pytest.mark.parametrize(
    ("what", "argument"),
    [
        ("stage", "name"),
        ("stage", "hardware"),
        ("stage", "after"),
        ("stage", "emulated"),
        ("stage", "source"),
        ("stage", "sink"),
        ("topic", "name"),
        ("topic", "codec"),
        ("sample", "arrivals"),
        ("sample", "events"),
        ("sample", "replay"),
        ("hardware", "name"),
        ("hardware", "price_per_hour"),
        ("hardware", "stock"),
        ("hardware", "asleep_per_hour"),
        ("hardware", "node_labels"),
        ("spot", "price"),
        ("spot", "losses_per_hour"),
        ("spot", "node_labels"),
        ("pipeline", "source"),
        ("pipeline", "stages"),
        ("pipeline", "hardware"),
        ("pipeline", "schedule"),
    ],
)
def test_an_argument_of_another_type_is_refused_in_words_or_taken(what: str, argument: str, odd: Any) -> None:
    try:
        pipeline = _declared(**{what: {argument: odd}})
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        assert all(isinstance(problem, str) for problem in problems(pipeline))
        return
    assert argument in said or "hardware" in said


@pytest.mark.parametrize("argument", ["stages", "hardware", "schedule"])
def test_one_value_in_place_of_a_list_is_answered_with_the_remedy(argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{argument}= takes a list, not Stage; write {argument}=\[\.\.\.\]"):
        _declared(pipeline={argument: Stage("only", pass_on, hardware=["cpu-1"])})


def test_a_parent_in_place_of_a_list_of_parents_is_answered_with_the_remedy() -> None:
    parent = Stage("parent", pass_on, hardware=["cpu-1"])
    with pytest.raises(TypeError, match=r"after= takes a list, not Stage; write after=\[\.\.\.\]"):
        Stage("only", pass_on, hardware=["cpu-1"], after=parent)  # type: ignore[arg-type]  the mistake


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            {"stage": {"hardware": ["cpu-1", 7]}},
            "hardware 7 is not the name of a hardware kind; write one such as 'cpu-1'",
        ),
        ({"stage": {"emulated": "3ms"}}, "emulated '3ms' must be a mapping; give emulated={1:"),
        ({"stage": {"source": "returns"}}, "source 'returns' is no Topic; write Topic(\"returns\")"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_remedy(of: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(_declared(**of)))


def test_a_sample_without_a_file_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r'arrivals None must be the name of a file, e\.g\. arrivals="arrivals'):
        _declared(sample={"arrivals": None})
