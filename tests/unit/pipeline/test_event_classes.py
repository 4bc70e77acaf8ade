"""Background topics beside the live one: what may be declared, and what each class gets of its own."""

from __future__ import annotations

from typing import Any

import pytest

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.dataplane.dead_letters import _topics
from inferline_stream.dataplane.kafka_permissions import permissions
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.kafka.pipeline_topics import topics_of
from inferline_stream.pipeline.event_classes import class_of, numbered
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import moderation, only_problem

POSTS, ARCHIVE = Topic("posts"), Topic("archive", background=True)
BATCH = Topic("batch", background=True, header=("priority", "batch"))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ([], "source lists no topic"),
        ([ARCHIVE], "source has background topics only ('archive')"),
        ([POSTS, Topic("more")], "source lists 2 live topics without a slo ('posts', 'more')"),
        ([Topic("posts", slo="1s")], "each live source topic ('posts') has a slo"),
        ([POSTS, Topic("premium", slo="fast")], "slo 'fast' is not a duration"),
        ([POSTS, Topic("premium", slo="0s")], "slo '0s' must be above 0"),
        ([POSTS, Topic("premium", slo="1s", share=1.5)], "share 1.5 must be a number above 0 and below 1"),
        ([POSTS, *(Topic(name, slo="1s", share=0.5) for name in "ab")], "all together must be below 1"),
        ([Topic("posts", share=0.5)], "share 0.5 is for further topics"),
        ([POSTS, Topic("premium", slo="1s", rate=5.0)], "rate is of background topics"),
        ([POSTS, Topic("premium", slo="1s", codec="raw")], "one: give both the same"),
        ([POSTS, Topic("archive", background=True, slo="1s")], "background events have no slo"),
        ([POSTS, Topic("archive", background=True, rate=-1)], "rate -1 must be a number of events per second"),
        ([POSTS, Topic("archive", background=True, finish_by="soon")], "finish_by 'soon' is not a time"),
        ([POSTS, ARCHIVE, ARCHIVE], "source topic 'archive' is listed 2 times"),
        ([POSTS, "archive"], "source 'archive' is no Topic"),
        ([POSTS, Topic("archive", background="yes")], "background 'yes' must be True or False"),  # type: ignore[arg-type]
        ([POSTS, Topic("archive", background=True, codec="raw")], "one: give both the same"),
        (
            [POSTS, Topic("archive", background=True, arrivals="timestamps")],
            "is for 'posts', and holds for all of them: leave arrivals out here",
        ),
        ([POSTS, Topic("dlq", background=True)], "would be called like those of dead letters"),
        ([POSTS, Topic("a" * 213, background=True)], "is longer than 229 characters"),
        ([POSTS, Topic("archive", background=True, weight=0)], "weight 0 must be a number above 0"),
        ([Topic("posts", weight=2.0), ARCHIVE], "weight is of background topics"),
        ([POSTS, Topic("verdicts", background=True)], "results would come back as events"),
        ([POSTS, Topic("archive", background=True, header="batch")], "header 'batch' must be a name and a value"),  # type: ignore[arg-type]
        ([POSTS, Topic("archive", background=True, header=("__inferline.x", "1"))], "must be a name and a value"),
        (
            [Topic("posts", header=("a", "b")), ARCHIVE],
            "header ('a', 'b') is for further topics; this one has all other events: leave header out",
        ),
        ([POSTS, BATCH, Topic("more", background=True, header=BATCH.header)], "is of 2 source topics"),
    ],
)
def test_a_wrong_background_topic_is_refused_with_the_remedy(source: Any, problem: str) -> None:
    assert problem in only_problem(moderation(source=source))


def test_results_of_all_classes_go_to_one_sink() -> None:
    assert "background is of a source" in only_problem(moderation(sink=Topic("verdicts", background=True)))


def test_the_live_topic_is_the_source_wherever_it_is_listed() -> None:
    pipeline = moderation(source=[ARCHIVE, POSTS])
    assert problems(pipeline) == ()
    assert (pipeline.source, pipeline.others) == (POSTS, (ARCHIVE,))


def test_a_class_has_topics_groups_dead_letters_and_rights_of_its_own() -> None:
    alone, pipeline = moderation(), moderation(source=[POSTS, ARCHIVE])
    more = [topic.name for topic in topics_of(pipeline, "x.") if topic not in topics_of(alone, "x.")]
    inner = [f"x.moderation.{stage.name}.archive" for stage in pipeline.stages if stage.after]
    inputs = ["x.archive", *inner]
    assert sorted(more) == sorted([*inputs, *(f"{topic}.dlq" for topic in inputs)])
    letters = _topics(pipeline, Names("moderation", "x."))
    assert {topic: letters[f"{topic}.dlq"] for topic in inputs} == dict(zip(inputs, inputs, strict=True))
    rights = {(each.role, each.resource, each.name, each.operations) for each in permissions(pipeline, "x.")}
    for stage in pipeline.stages:
        assert ("dispatcher", "group", f"x.moderation.{stage.name}.archive", ("Read",)) in rights
    for topic in inputs:
        assert any(of == topic and "Read" in how for role, _, of, how in rights if role == "dispatcher")


def test_the_first_stages_may_move_events_to_a_topic_that_has_a_header() -> None:
    pipeline = moderation(source=[POSTS, ARCHIVE, BATCH])
    writers = {each.name for each in pipeline.stages if "batch" in routes_of(pipeline, each.name).topics_written}
    assert writers == {each.name for each in pipeline.stages if not each.after}
    assert ("dispatcher", "batch", True) in {
        (each.role, each.name, "Write" in each.operations) for each in permissions(pipeline)
    }


def test_a_dispatcher_numbers_the_partitions_of_all_classes() -> None:
    routes = routes_of(moderation(source=[POSTS, ARCHIVE]), "toxicity")
    live, background = routes.classes
    assert (live.input_topic, background.input_topic) == ("moderation.toxicity", "moderation.toxicity.archive")
    (number,) = numbered(1, [7])
    assert (class_of(number), class_of(7)) == (1, 0)
    assert routes.place(number) == "moderation.toxicity.archive/7"
    assert routes.place(7) == "moderation.toxicity/7"


def test_a_source_gives_its_partitions_to_the_stages_at_which_its_events_enter() -> None:
    def work(events: list[int]) -> list[int]:
        return events

    stages = [
        Stage("a", work, hardware=["cpu"]),
        Stage("b", work, hardware=["cpu"], source=Topic("more", partitions=3)),
    ]
    stages.append(Stage("c", work, hardware=["cpu"], after=list(stages)))
    source = Topic("posts", partitions=1)
    assert Pipeline("p", slo="1s", source=source, sink=Topic("out"), stages=stages).entry_partitions == {"a": 1, "b": 3}
    assert Pipeline("p", slo="1s", source=Topic("posts"), sink=Topic("out"), stages=stages[:1]).entry_partitions == {}
