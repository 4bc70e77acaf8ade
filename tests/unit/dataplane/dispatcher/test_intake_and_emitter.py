"""Records in, records out: a dispatcher's intake and its emitter, without Kafka."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.event import Dead, Event, Expired, Late, Requeued, Skipped
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.frames import Done, Failed, Many
from inferline_stream.dataplane.headers import (
    DEAD,
    DROPPED,
    EVENT_ID_BYTES,
    FALLBACK,
    LETTERED,
    MOVED,
    REASON,
    REPLAY,
    bound_id,
    version_value,
)
from inferline_stream.dataplane.routes import Routes, routes_of
from inferline_stream.errors import InvalidTopology
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import LIMIT_BYTES, Record
from inferline_stream.pipeline.names import ENTRY_TIME, ERRORS_PREFIX, EVENT_ID, PARENT, PART, SKIPPED, VERSION
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.pipeline.version import structure_of


class Post(msgspec.Struct):
    text: str


class Both(msgspec.Struct):
    left: int | None
    right: str | None


def ask(posts: list[Post]) -> list[int]:
    return [len(post.text) for post in posts]


def lists(posts: list[Post]) -> list[list[int]]:
    return [[len(post.text)] for post in posts]


def left(numbers: list[int]) -> list[int]:
    return numbers


def right(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


def both(parts: list[Both]) -> list[Both]:
    return parts


def even(number: int) -> bool:
    return number % 2 == 0


def pipeline(
    timestamp_header: str | None = None, source: list[Topic] | None = None, ordered: bool | None = None
) -> Pipeline:
    first = Stage("ask", ask, hardware="cpu-1")
    one = Stage("left", left, hardware="cpu-1", after=[first.when(even)])
    other = Stage("right", right, hardware="cpu-1", after=[first])
    final = Stage("both", both, hardware="cpu-1", after=[one, other], ordered=ordered)
    sources = source or Topic("in", timestamp_header=timestamp_header)
    return Pipeline("p", slo="1s", source=sources, sink=Topic("out"), stages=[first, one, other, final])


def record(value: bytes | None, *headers: tuple[str, bytes], offset: int = 0, key: bytes | None = b"k") -> Any:
    return Record(key, value, headers, 1_000, "in", 3, offset)


THIS = version_value(structure_of(pipeline()))
NOW_S = 1_700_000_000.0


class Taken:
    """An intake and what it gave."""

    def __init__(self, stage: str, declared: Pipeline | None = None, **of_pipeline: Any) -> None:
        self.routes = routes_of(declared or pipeline(**of_pipeline), stage)
        self.join = Join(self.routes.parents)
        self.partition = Partition(3, Committed(0), "me", self.join if self.routes.is_join else None)
        self.ready: list[Event] = []
        self.ended: list[tuple[Event, Any]] = []
        self.now_s = NOW_S
        self.set_back_s = 0.0
        """How far the wall clock was set back since the start."""
        self.intake = Intake(
            self.routes,
            self.ready.append,
            lambda event, outcome: self.ended.append((event, outcome)),
        )

    def __call__(self, *records: Any) -> "Taken":
        self.intake.at(self.now_s + self.set_back_s, self.now_s)
        for given in records:
            self.intake.take_in(self.partition, given)
        return self


def sent(stage: str, event: Event, outcome: Any) -> dict[tuple[str, int], list[Any]]:
    routes = routes_of(pipeline(), stage)
    emitter = Emitter(routes, partitions_of(routes), random.Random(1), new_report("d", 1, stage, 0, 1))
    emitter.add(event, outcome)
    return emitter.take()


def partitions_of(routes: Routes) -> dict[str, int]:
    return dict.fromkeys([*routes.topics_written, "out", "p.both"], 4)


def whole(lists: list[list[int | None]]) -> list[int]:
    return [len(numbers) for numbers in lists]


class Gathered(Taken):
    """The intake of a stage that gathers two results of an event, with None for one that died."""

    def __init__(self) -> None:
        many = Stage("many", lists, hardware="cpu-1", many=True)
        each = Stage("each", left, hardware="cpu-1", after=[many])
        last = Stage("whole", whole, hardware="cpu-1", after=[each.gathered(missing=None)])
        super().__init__(
            "whole", Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[many, each, last])
        )

    def part(self, offset: int, place: int, *headers: tuple[str, bytes]) -> None:
        """Take in what became of one of the two."""
        known = ((EVENT_ID, b"e"), (VERSION, self.routes.version), (PART, b"%d/2" % place))
        self(record(b"%d" % place, *known, *headers, offset=offset))


def taking(stage: str, *children: str) -> int:
    """Edges, a bit each, to these children."""
    known = routes_of(pipeline(), stage).children
    return sum(1 << known.index(child) for child in children)


def topics(outgoing: dict[tuple[str, int], list[Any]]) -> Counter[str]:
    return Counter({topic: 0 for topic, _ in outgoing}) + Counter(
        topic for (topic, _), messages in outgoing.items() for _ in messages
    )


def one_event(stage: str = "ask") -> Event:
    return Taken(stage)(record(b'{"text": "abcd"}')).ready[0]


def test_what_is_gathered_names_the_fallbacks_of_all_its_parts():
    taken = Gathered()
    taken.part(0, 1, (PARENT, b"each"), (FALLBACK, b"each"))
    taken.part(1, 0, (PARENT, b"each"))
    (event,) = taken.ready
    assert event.payload == [b"0", b"1"]
    assert dict(event.headers)[FALLBACK] == b"each"


@pytest.mark.parametrize("went_on", [True, False])
def test_a_result_that_is_sent_again_after_its_list_has_gone_on_with_none_ends_the_event_no_second_time(went_on):
    taken = Gathered()
    taken.part(0, 1, (DEAD, b"2"))
    if went_on:
        taken.part(1, 0, (PARENT, b"each"))
        assert taken.ready.pop().payload == [b"0", None]
    taken.part(2, 1, (PARENT, b"each"), (REPLAY, b"1"))
    taken.join.settled = 3
    parts = taken.join.overdue(1.0, NOW_S + 2.0)
    assert parts is not None
    taken.intake.give_up(taken.partition, parts, "why")
    ((event, outcome),) = taken.ended
    assert isinstance(outcome, Late if went_on else Failed)
    emitter = Emitter(taken.routes, partitions_of(taken.routes), random.Random(1), new_report("d", 1, "whole", 0, 1))
    emitter.add(event, outcome)
    letters, completed = taken.routes.names.dead_letters(taken.routes.input_topic), taken.routes.names.completed
    assert topics(emitter.take()) == Counter({letters: 1} if went_on else {letters: 2, completed: 1})


@pytest.mark.parametrize(("stage", "key", "dies"), [("left", b"own", 1), ("left", b"k", 0), ("ask", b"own", 0)])
def test_a_key_of_one_branch_alone_by_which_an_ordered_join_would_not_meet_the_other_is_a_dead_letter(stage, key, dies):
    declared = pipeline()
    declared.stage("both").ordered = True
    routes = routes_of(declared, stage)
    report = new_report("d", 1, stage, 0, 1)
    emitter = Emitter(routes, partitions_of(routes), random.Random(1), report)
    emitter.add(one_event(), Done(b"1", (1 << len(routes.children)) - 1, key))
    sent = emitter.take()
    assert report.counts.dead_lettered == dies
    letters = [dict(each.headers) for (topic, _), each_of in sent.items() if topic.endswith("dlq") for each in each_of]
    assert [letter[ERRORS_PREFIX + "type"] for letter in letters] == [b"OtherKey"] * dies


def test_a_source_record_gets_its_place_as_id_and_its_timestamp_as_entry_time():
    (event,) = Taken("ask")(record(b'{"text": "x"}', ("shop", b"7"), offset=9)).ready
    assert event.payload == b'{"text": "x"}'
    assert event.event_id == b"in/3/9"
    assert event.entry_us == 1_000_000
    assert event.headers == [("shop", b"7"), (EVENT_ID, b"in/3/9"), (ENTRY_TIME, b"1000000"), (VERSION, THIS)]


def test_another_pipelines_entry_time_is_replaced_and_its_event_id_kept():
    given = record(b'{"text": "x"}', (EVENT_ID, b"mine"), (ENTRY_TIME, b"5"), (VERSION, b"1"), (PARENT, b"old"))
    (event,) = Taken("ask")(given).ready
    assert (event.event_id, event.entry_us) == (b"mine", 1_000_000)
    assert Counter(name for name, _ in event.headers) == Counter([EVENT_ID, ENTRY_TIME, VERSION])


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (b"orders@1234abcd/0/7", b"in/orders@1234abcd/0/7"),  # where the next event of another source will be
        (b"order-1", b"in/order-1"),
        (b"inner/order-1", b"in/inner/order-1"),
        (b"in/order-1", b"in/order-1"),  # a dead letter that is sent again
        (b"in@1234abcd/0/7", b"in@1234abcd/0/7"),
    ],
)
def test_of_several_sources_a_named_id_is_bound_to_the_topic_that_it_came_by(named, expected):
    taken = Taken("ask", source=[Topic("in"), Topic("orders", slo="2s")])(record(b"1", (EVENT_ID, named)))
    assert taken.ready[0].event_id == expected
    assert Taken("ask")(record(b"1", (EVENT_ID, named))).ready[0].event_id == named


def test_a_named_id_that_is_bound_is_never_longer_than_one_that_is_believed():
    ids = {b"x" * 255 + b"%d" % last for last in (1, 2)}
    bound = {bound_id("orders", each) for each in ids}
    assert len(bound) == 2
    assert all(each.startswith(b"orders/") and len(each) <= EVENT_ID_BYTES for each in bound)
    assert {bound_id("orders", each) for each in bound} == bound


@pytest.mark.parametrize(("header", "expected_us"), [(b"250", 250_000), (b"250.5", 250_500), (b"soon", 1_000_000)])
def test_a_named_header_holds_the_entry_time_where_it_is_a_number(header, expected_us):
    (event,) = Taken("ask", timestamp_header="at")(record(b'{"text": "x"}', ("at", header))).ready
    assert event.entry_us == expected_us


def test_a_payload_is_not_looked_at_and_a_record_without_a_value_is_empty():
    taken = Taken("ask")(record(b"no json"), record(None, offset=1))
    assert [event.payload for event in taken.ready] == [b"no json", b""]


@pytest.mark.parametrize(
    "header",
    [(PARENT, b"\xff"), (PARENT, None), (SKIPPED, None), (SKIPPED, b"\xfe,"), (DEAD, None), (ENTRY_TIME, None)],
)
@pytest.mark.parametrize("stage", ["ask", "left", "both"])
def test_no_header_however_wrong_raises_or_hides_the_next_record(stage, header):
    taken = Taken(stage)(record(b"1", (EVENT_ID, b"e"), header), record(b"2", (EVENT_ID, b"f"), offset=1))
    assert taken.partition.completion.position == 2


@pytest.mark.parametrize("header", [b"inf", b"nan", b"1e400", None])
def test_an_entry_time_header_that_is_no_time_counts_as_missing(header):
    (event,) = Taken("ask", timestamp_header="at")(record(b"1", ("at", header))).ready
    assert event.entry_us == 1_000_000


def part(
    parent: str | None,
    value: bytes,
    *,
    offset: int,
    skipped: str = "",
    dead: int = 0,
    replay: int = 0,
    event: bytes = b"e",
) -> Any:
    headers = [(EVENT_ID, event), (ENTRY_TIME, b"7")]
    headers += [(PARENT, parent.encode())] if parent else []
    headers += [(SKIPPED, skipped.encode())] if skipped else []
    headers += [(DEAD, b"%d" % dead)] if dead else []
    headers += [(REPLAY, b"%d" % replay)] if replay else []
    return record(value, *headers, offset=offset)


def test_a_joins_event_holds_one_field_per_parent_and_none_for_a_branch_not_taken():
    (event,) = Taken("both")(part("left", b"4", offset=0), part("right", b'"4"', offset=5)).ready
    assert event.payload == {"left": b"4", "right": b'"4"'}
    assert event.offsets == (0, 5)
    (event,) = Taken("both")(part(None, b"", offset=0, skipped="left"), part("right", b'"3"', offset=5)).ready
    assert event.payload == {"right": b'"3"'}
    assert PARENT not in dict(event.headers)


def test_a_join_is_skipped_with_all_its_parents_and_dies_with_one():
    ((_, outcome),) = Taken("both")(part(None, b"", offset=0, skipped="left,right")).ended
    assert outcome == Skipped()
    ((_, outcome),) = Taken("both")(
        part("right", b'"3"', offset=0), part(None, b"", offset=1, skipped="left", dead=LETTERED)
    ).ended
    assert outcome == Dead(LETTERED)


def test_a_part_that_arrives_twice_is_complete_at_once():
    taken = Taken("both")(part("left", b"4", offset=0), part("left", b"4", offset=1))
    assert taken.intake.duplicates == 1
    assert taken.partition.completion.open_count == 1


def test_a_result_goes_along_the_arrows_that_its_conditions_take():
    even_number = sent("ask", one_event(), Done(b"4", taking("ask", "left", "right")))
    assert topics(even_number) == Counter({"p.left": 1, "p.right": 1})
    odd_number = sent("ask", one_event(), Done(b"3", taking("ask", "right")))
    assert topics(odd_number) == Counter({"p.right": 1, "p.both": 1})
    ((marker,),) = [messages for (topic, _), messages in odd_number.items() if topic == "p.both"]
    assert dict(marker.headers)[SKIPPED] == b"left"
    assert DEAD not in dict(marker.headers)


def test_equal_keys_go_to_equal_partitions_and_joins_go_by_event_id():
    event = one_event()
    (to_right,) = sent("ask", event, Done(b"4", taking("ask", "right"))).keys() & {("p.right", n) for n in range(4)}
    for _ in range(3):
        assert to_right in sent("ask", event, Done(b"4", taking("ask", "right")))
    from_left = {place for place in sent("left", event, Done(b"4", taking("left", "both"))) if place[0] == "p.both"}
    event.key = b"another key"
    assert from_left == {place for place in sent("right", event, Done(b"4", taking("right", "both")))}


def test_a_dead_letter_is_the_original_record_and_every_join_downstream_hears_of_it():
    event = one_event()
    outgoing = sent("ask", event, Failed("ValueError", "no", "trace"))
    assert topics(outgoing) == Counter({"in.dlq": 1, "p.completed": 1, "p.both": 1})
    (letter,) = outgoing["in.dlq", 0]
    assert (letter.key, letter.value) == (b"k", b'{"text": "abcd"}')
    errors = dict(letter.headers)
    assert errors[ERRORS_PREFIX + "type"] == b"ValueError"
    assert (errors[ERRORS_PREFIX + "partition"], errors[ERRORS_PREFIX + "offset"]) == (b"3", b"0")
    ((marker,),) = [messages for (topic, _), messages in outgoing.items() if topic == "p.both"]
    assert dict(marker.headers)[SKIPPED] == b"left,right"
    assert dict(marker.headers)[DEAD] == b"2"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Expired(to_dead_letters=False), {"p.completed": 1, "p.both": 1}),
        (Expired(to_dead_letters=True), {"in.dlq": 1, "p.completed": 1, "p.both": 1}),
        (Done(b"x" * LIMIT_BYTES, taking("ask", "right")), {"in.dlq": 1, "p.completed": 1, "p.both": 1}),
    ],
)
def test_every_other_end_of_an_event_is_recorded(outcome, expected):
    assert topics(sent("ask", one_event(), outcome)) == Counter(expected)


def test_the_final_stage_writes_the_sink_or_the_reason_and_a_dead_event_nothing_more():
    event = one_event()
    assert topics(sent("both", event, Done(b"{}", 0))) == Counter({"out": 1})
    skipped = sent("both", event, Skipped())
    assert topics(skipped) == Counter({"p.completed": 1})
    (((ended,)),) = skipped.values()
    assert dict(ended.headers)[REASON] == b"skipped"
    assert sent("both", event, Dead(DROPPED)) == {}


def test_a_join_keeps_the_parts_of_an_event_that_died_elsewhere_where_it_may_be_sent_again():
    given = part("right", b'"3"', offset=0), part(None, b"", offset=1, skipped="left", dead=LETTERED)
    ((event, outcome),) = Taken("both")(*given).ended
    ((letter,),) = sent("both", event, outcome).values()
    assert (letter.value, dict(letter.headers)[PARENT]) == (b'"3"', b"right")
    assert dict(letter.headers)[ERRORS_PREFIX + "type"] == b"DiedUpstream"
    given = part("right", b'"3"', offset=0), part(None, b"", offset=1, skipped="left", dead=DROPPED)
    ((event, outcome),) = Taken("both")(*given).ended
    assert sent("both", event, outcome) == {}


@pytest.mark.parametrize("version", [b"1.00000000", b"2" + THIS[1:]])
def test_a_record_that_another_topology_wrote_becomes_a_dead_letter_unless_it_is_sent_again(version):
    old = [(EVENT_ID, b"e"), (ENTRY_TIME, b"7"), (VERSION, version)]
    ((_, outcome),) = Taken("left")(record(b"4", *old)).ended
    assert outcome.type == "OtherTopology"
    ((_, outcome),) = Taken("both")(record(b"4", *old, (PARENT, b"left"))).ended
    assert outcome.type == "OtherTopology"
    assert Taken("left")(record(b"4", *old, (REPLAY, b"1"))).ready
    assert Taken("left")(record(b"4", *old[:2], (VERSION, THIS))).ready
    assert Taken("ask")(record(b'{"text": "x"}', *old)).ready


def test_an_event_that_is_sent_again_says_so_to_every_stage_after():
    (event,) = Taken("ask")(record(b'{"text": "x"}', (REPLAY, b"2"), (REPLAY, b"no number"))).ready
    assert event.replayed
    assert (REPLAY, b"2") in event.headers
    (joined,) = Taken("both")(part("left", b"4", offset=0, replay=1), part("right", b'"4"', offset=1, replay=1)).ready
    assert joined.replayed
    assert not one_event().replayed


def test_a_stage_that_is_not_there_is_a_wrong_topology():
    with pytest.raises(InvalidTopology, match="no stage 'nobody'; it has ask, left, right, both"):
        routes_of(pipeline(), "nobody")


def of_sizes(**topics: int) -> Emitter:
    routes = routes_of(pipeline(), "ask")
    return Emitter(
        routes, partitions_of(routes), random.Random(1), new_report("d", 1, "ask", 0, 1), RecordRules(topics)
    )


def test_a_letter_that_is_too_large_loses_its_traceback_first_and_then_its_value():
    event = one_event()
    for limit, traceback, value, cut in (
        (9_000, True, True, None),
        (3_000, False, True, None),
        (200, False, False, 16),
    ):
        emitter = of_sizes(**{"in.dlq": limit})
        emitter.add(event, Failed("ValueError", "no", "x" * 4000))
        (letter,) = emitter.take()["in.dlq", 0]
        errors = dict(letter.headers)
        assert (ERRORS_PREFIX + "traceback" in errors, letter.value is not None) == (traceback, value)
        assert errors.get(ERRORS_PREFIX + "cut_bytes") == (None if cut is None else b"%d" % cut)


def test_a_result_is_as_large_as_the_smallest_topic_on_its_way_takes_headers_included():
    event = Taken("ask")(record(b"x", ("large", b"x" * 700))).ready[0]
    for limit, fits in ((1200, True), (1000, False)):
        emitter = of_sizes(**{"p.right": limit})
        emitter.add(event, Done(b"x" * 50, taking("ask", "right")))
        assert ("p.right" in {topic for topic, _ in emitter.take()}) is fits


def sent_with_a_compacted(topic: str, stage: str, event: Event, outcome: Any) -> Counter[str]:
    routes = routes_of(pipeline(), stage)
    rules = RecordRules({}, frozenset({topic}))
    emitter = Emitter(routes, partitions_of(routes), random.Random(1), new_report("d", 1, stage, 0, 1), rules)
    emitter.add(event, outcome)
    return topics(emitter.take())


def test_only_a_sink_that_is_a_table_needs_a_key():
    joined = Taken("both")(part("left", b"4", offset=0), part("right", b'"4"', offset=1)).ready[0]
    joined.key = None
    assert sent_with_a_compacted("out", "both", joined, Done(b"x", 0)).keys() == {"p.both.dlq", "p.completed"}
    keyless = Taken("ask")(record(b'{"text": "abcd"}', key=None)).ready[0]
    outcome = Done(b"x", taking("ask", "right"))
    assert sent_with_a_compacted("p.left", "ask", keyless, outcome) == sent_with_a_compacted(
        "", "ask", keyless, outcome
    )


def test_parts_between_complete_offsets_are_appended_again_and_gathered_when_they_come_back(monkeypatch):
    monkeypatch.setattr("inferline_stream.dataplane.dispatcher.completion.RUNS_LEFT", 1)
    taken = Taken("both")(part("left", b"4", offset=0), part("left", b"6", offset=1, event=b"other"))
    taken(*(part("left", b"5", offset=offset, event=b"%d" % offset) for offset in (2, 3)))
    taken.partition.completion.complete(1)
    taken.intake.move_to_end(taken.partition)
    ((event, outcome),) = taken.ended
    assert outcome == Requeued(4)
    assert event.offsets == (0,)
    ((place, (again,)),) = sent("both", event, outcome).items()
    assert place == ("p.both", 3)
    assert (again.key, again.value, dict(again.headers)[PARENT]) == (b"k", b"4", b"left")
    assert dict(again.headers)[MOVED] == b"4"
    taken(part("left", b"4", offset=4), part("right", b'"4"', offset=5))
    (joined,) = taken.ready
    assert joined.payload == {"left": b"4", "right": b'"4"'}
    assert joined.offsets == (4, 5)


def test_a_late_part_becomes_a_letter_and_nothing_else():
    taken = Taken("both")(part("left", b"4", offset=0))
    taken.partition.join.settled = 1
    taken.intake.give_up(taken.partition, taken.partition.join.overdue(0.0, 1e12), "waited")
    taken(part("right", b'"4"', offset=1))
    (given_up, _), (late, outcome) = taken.ended
    assert given_up.offsets == (0,)
    assert topics(sent("both", late, outcome)) == Counter({"p.both.dlq": 1})
    ((letter,),) = sent("both", late, outcome).values()
    assert (letter.value, dict(letter.headers)[PARENT]) == (b'"4"', b"right")


def test_an_event_whose_parts_are_read_again_is_the_same_and_those_behind_it_wait_for_it():
    parts = {0: part("left", b"4", offset=0), 1: part("right", b'"4"', offset=1)}
    taken = Taken("both")(parts[0])
    taken.partition.join.fit(0.0)
    taken(parts[1])
    taken.partition.join.fit(0.0)
    taken(*(part(parent, b"5", offset=at, event=b"f") for at, parent in ((2, "left"), (3, "right"))))
    assert taken.ready == []
    taken.intake.read_again(taken.partition, 2, parts)
    whole = Taken("both")(*parts.values()).ready[0]
    first, second = taken.ready
    assert (first.payload, first.headers, first.offsets) == (whole.payload, whole.headers, whole.offsets)
    assert (first.size_bytes, second.offsets, taken.partition.unread_bytes) == (whole.size_bytes, (2, 3), 0)


@pytest.mark.parametrize(
    ("stage", "outcome", "type_"),
    [
        ("ask", Many((Done(b"1", 0),)), "TooManyResults"),  # of a stage that gives one
        ("many", Many((Done(b"1", 0),) * 3), "TooManyResults"),
        ("many", Many((Done(b"x" * 300_000, 0),) * 2), "Oversize"),
        ("many", Done(b"1", 1, headers=(("big", b"x" * 1_100_000),)), "Oversize"),
    ],
)
def test_results_that_no_stage_may_give_are_a_dead_letter_and_nothing_else(stage, outcome, type_):
    many = Stage("many", lists, hardware="cpu-1", many=True, most=2)
    after = Stage("after", left, hardware="cpu-1", after=[many])
    routes = routes_of(Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[many, after]), "many")
    routes = routes_of(pipeline(), "ask") if stage == "ask" else routes
    partitions = dict.fromkeys([*routes.topics_written, "p.both"], 4)
    emitter = Emitter(routes, partitions, random.Random(1), new_report("d", 1, stage, 0, 1))
    emitter.result_bytes = 140_000
    emitter.add(one_event("ask"), outcome)
    outgoing = emitter.take()
    letters = [record for (topic, _), records in outgoing.items() if topic == "in.dlq" for record in records]
    assert [dict(record.headers)[ERRORS_PREFIX + "type"] for record in letters] == [type_.encode()]
    assert not any(
        record.value for (topic, _), records in outgoing.items() for record in records if topic.startswith("p.after")
    )


def test_no_replica_says_what_a_header_of_ours_does():
    event = one_event()
    own = (("theirs", b"1"), (EVENT_ID, b"stolen"))
    (record,) = next(
        records for (topic, _), records in sent("both", event, Done(b"1", 0, b"own", own)).items() if topic == "out"
    )
    assert (record.key, dict(record.headers)[EVENT_ID], dict(record.headers)["theirs"]) == (
        b"own",
        event.event_id,
        b"1",
    )
