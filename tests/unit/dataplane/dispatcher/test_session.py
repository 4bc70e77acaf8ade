"""A session sends, commits and ends in order; without Kafka."""

import tracemalloc

import pytest

from inferline_stream.dataplane.dispatcher import result_delivery
from inferline_stream.dataplane.dispatcher import session as session_module
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Done, Failed
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES, decode_metadata
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.pipeline.topology import Topic
from tests.unit.dataplane.dispatcher.doubles import WALL_S, PlayedSlot

BOTH = pytest.mark.parametrize("transactional", [False, True])


@BOTH
def test_results_are_sent_first_and_committed_once_they_are_acknowledged(transactional):
    slot = PlayedSlot(transactional=transactional)
    with slot.running():
        slot.fetched(b"a", b"b", b"c")
        slot.acknowledges = False
        slot.answer(slot.hand_out(2))
        slot.advance(2 * result_delivery.COMMIT_EVERY_S)
        assert (slot.sent, slot.offset()) == ([b"a", b"b"], 0)
        slot.acknowledge()
        slot.until(lambda: slot.offset() == 2, "both are committed")


@BOTH
def test_what_is_finished_above_an_unfinished_event_is_not_computed_by_the_next_session(transactional):
    slot = PlayedSlot(transactional=transactional)
    with slot.running():
        slot.fetched(*[b"%d" % number for number in range(6)])
        stuck, others = slot.hand_out(1), slot.hand_out(3)
        slot.answer(others)
        slot.until(lambda: bool(decode_metadata(*slot.entries[0]).runs), "what lies above is committed")
        assert slot.offset() == stuck[0].offsets[0] == 0
    slot.drop()
    slot.begin()
    slot.fetched(*[b"%d" % number for number in range(6)])
    assert [event.payload for event in slot.hand_out(9)] == [b"0", b"4", b"5"]


@BOTH
def test_a_session_that_drains_hands_out_nothing_and_waits_for_what_is_in_hand(transactional):
    slot = PlayedSlot(transactional=transactional)
    with slot.running() as session:
        slot.fetched(b"a", b"b", b"c")
        in_hand = slot.hand_out(1)
        slot.feed(on.Drained())
        assert (session.open(), len(session.queue), slot.held) == (False, 0, {})
        slot.fetched(b"d", first=3)
        slot.advance(0.01)
        assert not slot.drained
        slot.answer(in_hand)
        slot.until(lambda: slot.drained, "it has drained")
        assert (slot.sent, slot.offset()) == ([b"a"], 1)


@BOTH
def test_without_a_lease_nothing_is_sent_and_nothing_committed(transactional):
    slot = PlayedSlot(transactional=transactional)
    slot.begin()
    slot.fetched(b"a", b"b")
    slot.has_lease = False
    slot.advance(3.0)
    slot.answer(slot.hand_out(2))
    assert slot.lease_lost
    assert (slot.sent, slot.offset()) == ([], 0)
    slot.has_lease = True  # too late: another one may serve by now
    slot.fetched(b"c", first=2)
    slot.advance(1.0)
    assert (slot.sent, slot.offset()) == ([], 0)


@BOTH
def test_a_lease_that_expires_between_sending_and_committing_leaves_the_offsets_alone(transactional):
    slot = PlayedSlot(transactional=transactional)
    slot.begin()
    slot.fetched(b"a")
    slot.acknowledges = False
    slot.answer(slot.hand_out(1))
    slot.has_lease = False
    slot.advance(3.0)
    slot.acknowledge()
    slot.advance(1.0)
    assert slot.lease_lost
    assert (slot.sent, slot.offset()) == ([b"a"], 0)


def test_a_full_queue_pauses_the_partitions_that_fill_it_and_no_other(monkeypatch):
    monkeypatch.setattr(session_module, "QUEUE_BYTES", 20_000)
    slot = PlayedSlot()
    slot.begin()
    slot.fetched(*[b"x" * 100] * 40, partition=0)
    slot.fetched(b"x", partition=1)
    assert slot.session.full() == {0}
    slot.hand_out(40)
    assert slot.session.full() == frozenset()


def test_a_partition_pauses_before_the_offsets_finished_above_a_stuck_event_exceed_the_metadata():
    slot = PlayedSlot()
    slot.begin()
    first = 0
    while 0 not in slot.session.full():
        slot.fetched(*[b"x"] * 500, first=first)
        first += 500
        assert first < 1_000_000, "a partition grows for ever"
    assert slot.session.partitions[0].completion.most_bytes() < METADATA_LIMIT_BYTES
    slot.fetched(*[b"x"] * 500, partition=1)
    assert slot.session.full() == {0}


def test_nothing_is_fetched_while_too_much_that_ended_at_once_is_unacknowledged(monkeypatch):
    monkeypatch.setattr(result_delivery, "UNSENT_BYTES", 10_000)
    slot = PlayedSlot(source=Topic("in", codec="raw", max_bytes=100))
    with slot.running() as session:
        slot.acknowledges = False
        slot.fetched(*[b"too large" * 100] * 10)
        assert session.full() == {0, 1}
        slot.acknowledge()
        slot.until(lambda: not session.full(), "the dead letters are acknowledged")


def test_no_batch_is_handed_out_while_too_much_is_unacknowledged(monkeypatch):
    monkeypatch.setattr(result_delivery, "UNSENT_BYTES", 1000)
    slot = PlayedSlot(limit=2)
    with slot.running():
        slot.fetched(b"x" * 600, b"x" * 600, b"x")
        slot.acknowledges = False
        replica = slot.attached()
        replica.answer(replica.batch())
        assert replica.idle()
        slot.acknowledge()
        assert replica.batch().inputs == [b"x"]


def test_a_partition_whose_group_has_no_offset_is_halted_and_its_records_are_not_taken():
    slot = PlayedSlot({0: (5, ""), 1: None})
    session = slot.begin()
    assert (slot.held, set(slot.report.halted)) == ({0: 5}, {1})
    slot.fetched(b"x", partition=1)
    assert len(session.queue) == 0
    assert "in/1 is halted" in session.trouble()


def test_a_partition_that_cannot_be_read_on_is_halted_and_what_comes_of_it_all_the_same_is_not_taken():
    """A fetch that was under way may bring it."""
    slot = PlayedSlot()
    with slot.running() as session:
        slot.fetched(b"in hand", b"waits", partition=1)
        events = slot.hand_out(1)
        slot.feed(on.RecordsRead({}, {}, {1: "Kafka no longer has offset 2"}, slot.now_s + WALL_S))
        assert (slot.held, slot.report.halted) == ({0: 0}, {1: "Kafka no longer has offset 2"})
        slot.fetched(b"late", partition=1, first=2)
        slot.answer(events)
        slot.advance(1.0)
        assert len(session.queue) == 0
        assert (slot.sent, slot.offset(1)) == ([b"in hand"], 0)
        slot.fetched(b"other")
        slot.answer(slot.hand_out(1))
        slot.until(lambda: slot.offset() == 1, "the other partition is served on")


def test_events_of_a_halted_partition_are_no_suspects_once_their_replica_ends():
    slot = PlayedSlot(limit=2)
    with slot.running() as session:
        killed = slot.attached()
        slot.fetched(b"a", b"b", partition=1, key=b"k")
        assert killed.batch()
        slot.feed(on.RecordsRead({}, {}, {1: "gone"}, slot.now_s + WALL_S))
        killed.die()
        replica = slot.attached()
        assert replica.idle()
        assert len(session.suspects) == 0
        slot.fetched(b"c", key=b"k")
        assert replica.batch().inputs == [b"c"], "their key is free"


def test_a_partition_that_is_new_since_the_last_commit_begins_at_its_beginning_and_a_known_one_is_halted():
    slot = PlayedSlot({0: (5, "i1;c=2"), 1: None, 2: None})
    slot.topic = TopicState("abcdefgh", 3)
    slot.begin()
    assert slot.held == {0: 5, 2: 0}
    assert set(slot.report.halted) == {1}


def test_offsets_of_a_topic_that_was_deleted_are_not_read_on_from():
    slot = PlayedSlot({0: (5, "i1;t=ABCDEFGH"), 1: (7, "i1;t=abcdefgh"), 2: (9, "")})
    slot.topic = TopicState("abcdefgh", 3)
    session = slot.begin()
    assert slot.held == {1: 7, 2: 9}, "an offset that other tools have set names no topic"
    assert set(slot.report.halted) == {0}
    assert "deleted and created again (its id was ABCDEFGH…, it is abcdefgh…)" in session.trouble()


def test_commits_name_the_topic_and_partitions_that_it_was_given_are_owned_at_once():
    slot = PlayedSlot({0: (0, "")})
    slot.topic = TopicState("abcdefgh", 1)
    with slot.running():
        slot.until(lambda: slot.entries[0] == (0, "i1;o=me;t=abcdefgh;c=1"), "the offset is committed")
        slot.grow(TopicState("abcdefgh", 2))
        assert slot.held == {0: 0, 1: 0}
        slot.until(lambda: slot.entries == dict.fromkeys((0, 1), (0, "i1;o=me;t=abcdefgh;c=2")), "both are committed")


def test_a_slot_that_gets_none_of_a_topics_new_partitions_commits_how_many_there_are() -> None:
    """Where it did not, a successor would take the offsets that others lost for partitions that were added."""
    slot = PlayedSlot({0: (0, "")})
    slot.topic = TopicState("abcdefgh", 1)
    with slot.running():
        slot.until(lambda: slot.entries[0] == (0, "i1;o=me;t=abcdefgh;c=1"), "the offset is committed")
        slot.feed(on.Owned([], {}, {}, TopicState("abcdefgh", 2), partitions_before=1))
        slot.until(lambda: slot.entries[0] == (0, "i1;o=me;t=abcdefgh;c=2"), "it is committed with the new count")


@pytest.mark.parametrize(("on_expired", "topic"), [("drop", "p.completed"), ("dlq", "in.dlq")])
def test_an_event_past_its_slo_ends_where_that_is_asked_for(on_expired, topic):
    slot = PlayedSlot(on_expired=on_expired)
    with slot.running():
        slot.fetched(b"late", ago_s=10.0)
        slot.fetched(b"in time", first=1)
        assert [event.payload for event in slot.hand_out(2)] == [b"in time"]
        slot.until(lambda: bool(slot.outgoing), "the event ends")
    assert topic in {name for name, _ in slot.outgoing[0]}


def test_offsets_that_another_process_overwrote_are_committed_again():
    slot = PlayedSlot()
    with slot.running():
        slot.fetched(b"a", b"b")
        slot.answer(slot.hand_out(2))
        slot.until(lambda: slot.offset() == 2, "both are committed")
        slot.entries[0] = (0, "")
        slot.until(lambda: slot.offset() == 2, "they are committed again")


def test_results_that_are_larger_than_their_events_count_as_unacknowledged(monkeypatch):
    monkeypatch.setattr(result_delivery, "UNSENT_BYTES", 10_000)
    slot = PlayedSlot()
    with slot.running() as session:
        slot.fetched(b"x")
        slot.acknowledges = False
        session.finished(slot.hand_out(1), [Done(b"y" * 10_000, 0)])
        assert not session.open()


@BOTH
@pytest.mark.parametrize(("dies", "at_once"), [(False, 5), (True, 2)])
def test_what_waits_to_be_sent_goes_in_parts_by_the_memory_that_its_records_take(
    transactional, dies, at_once, monkeypatch
):
    monkeypatch.setattr(result_delivery, "SEND_BYTES", 4_600)
    slot = PlayedSlot(transactional=transactional)
    slot.begin()
    slot.acknowledges = False
    slot.fetched(*[b"%02d" % number for number in range(15)])
    outcomes = [Failed("E", "no", "") if dies else Done(b"%02d" % number, 0) for number in range(15)]
    slot.session.finished(slot.session.take(15).events, outcomes)
    slot.read({}, {})
    slot.acknowledge()
    slot.until(lambda: slot.offset() == 15, "all are committed")
    to = slot.routes.names.dead_letters("in") if dies else "out"
    sent = [each for outgoing in slot.outgoing for (topic, _), each in outgoing.items() if topic == to]
    assert max(map(len, sent)) == at_once
    assert [each.value for messages in sent for each in messages] == [b"%02d" % number for number in range(15)]


def test_a_drain_ends_with_its_lease_where_a_successor_has_committed_already():
    slot = PlayedSlot(transactional=True)
    with slot.running():
        slot.until(lambda: slot.entries[0][1] != "", "the first commit is made")
        slot.entries[0] = (7, "a successor's")
        slot.has_lease = False
        slot.feed(on.Drained())
        slot.advance(3.0)
        assert (slot.lease_lost, slot.drained) == (True, False)


def test_long_keys_are_not_kept_once_their_events_are_committed():
    slot = PlayedSlot()
    slot.plan(limit=8)
    slot.begin()
    replica = slot.attached()
    tracemalloc.start()
    try:
        for number in range(30):
            slot.fetched(b"x", first=number, key=b"%03d" % number + bytes(20_000))
            replica.answer(replica.batch())
            slot.until(lambda number=number: slot.offset() == number + 1, "it is committed")
            slot.recorded.clear()
            slot.outgoing.clear()
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
