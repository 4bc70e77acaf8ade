"""A session sends, commits and ends in order; without Kafka."""

import asyncio

import pytest

from inferline_stream.dataplane.dispatcher import session as session_module
from inferline_stream.dataplane.dispatcher.lease import LeaseExpired
from inferline_stream.dataplane.dispatcher.offset_committer import COMMIT_EVERY_S
from inferline_stream.dataplane.frames import Done
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.pipeline.topology import Topic
from tests.unit.dataplane.dispatcher.doubles import Slot, until

BOTH = pytest.mark.parametrize("transactional", [False, True])


async def what_ended(work: asyncio.Task[None]) -> BaseException | None:
    """Wait for a session's end; returns the error out of the task groups around it."""
    await asyncio.wait([work], timeout=5.0)
    error = work.exception()
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


@BOTH
async def test_results_are_sent_first_and_committed_once_they_are_acknowledged(transactional):
    slot = Slot(transactional=transactional)
    async with slot.running():
        slot.fetched(b"a", b"b", b"c")
        slot.sender.acknowledges.clear()
        slot.answer(slot.hand_out(2))
        await slot.sender.began.wait()
        await asyncio.sleep(2 * COMMIT_EVERY_S)
        assert (slot.sender.sent, slot.offset()) == ([b"a", b"b"], 0)
        slot.sender.acknowledges.set()
        await until(lambda: slot.offset() == 2, "both are committed")


@BOTH
async def test_what_is_finished_above_an_unfinished_event_is_not_computed_by_the_next_session(transactional):
    slot = Slot(transactional=transactional)
    async with slot.running():
        slot.fetched(*[b"%d" % number for number in range(6)])
        stuck, others = slot.hand_out(1), slot.hand_out(3)
        slot.answer(others)
        await until(lambda: bool(slot.reader.entries[0][1]), "what lies above is committed")
        assert slot.offset() == stuck[0].offsets[0] == 0
    slot.session = slot.new_session()
    await slot.begin()
    slot.fetched(*[b"%d" % number for number in range(6)])
    assert [event.payload for event in slot.hand_out(9)] == [b"0", b"4", b"5"]


@BOTH
async def test_a_session_that_drains_hands_out_nothing_and_waits_for_what_is_in_hand(transactional):
    slot = Slot(transactional=transactional)
    async with slot.running() as session:
        slot.fetched(b"a", b"b", b"c")
        in_hand = slot.hand_out(1)
        draining = asyncio.create_task(session.drain())
        await asyncio.sleep(0)
        assert (session.open(), len(session.queue), slot.reader.held) == (False, 0, {})
        slot.fetched(b"d", first=3)
        await asyncio.sleep(0.01)
        assert not draining.done()
        slot.answer(in_hand)
        await asyncio.wait_for(draining, 5)
        assert (slot.sender.sent, slot.offset()) == ([b"a"], 1)


@BOTH
async def test_without_a_lease_nothing_is_sent_and_nothing_committed(transactional):
    slot = Slot(transactional=transactional)
    await slot.begin()
    work = asyncio.create_task(slot.session.run())
    slot.fetched(b"a", b"b")
    slot.now_s = 3.0
    slot.answer(slot.hand_out(2))
    assert isinstance(await what_ended(work), LeaseExpired)
    assert (slot.sender.sent, slot.offset()) == ([], 0)


async def test_a_lease_that_expires_between_sending_and_committing_leaves_the_offsets_alone():
    slot = Slot()
    await slot.begin()
    work = asyncio.create_task(slot.session.run())
    slot.fetched(b"a")
    slot.sender.acknowledges.clear()
    slot.answer(slot.hand_out(1))
    await slot.sender.began.wait()
    slot.now_s = 3.0
    slot.sender.acknowledges.set()
    assert isinstance(await what_ended(work), LeaseExpired)
    assert (slot.sender.sent, slot.offset()) == ([b"a"], 0)


async def test_a_full_queue_pauses_the_partitions_that_fill_it_and_no_other(monkeypatch):
    monkeypatch.setattr(session_module, "QUEUE_BYTES", 20_000)
    slot = Slot()
    await slot.begin()
    slot.fetched(*[b"x" * 100] * 40, partition=0)
    slot.fetched(b"x", partition=1)
    assert slot.session.full() == {0}
    slot.hand_out(40)
    assert slot.session.full() == frozenset()


async def test_a_partition_pauses_before_the_offsets_finished_above_a_stuck_event_exceed_the_metadata():
    slot = Slot()
    await slot.begin()
    first = 0
    while 0 not in slot.session.full():
        slot.fetched(*[b"x"] * 500, first=first)
        first += 500
        assert first < 1_000_000, "a partition grows for ever"
    assert slot.session.partitions[0].completion.most_bytes() < METADATA_LIMIT_BYTES
    slot.fetched(*[b"x"] * 500, partition=1)
    assert slot.session.full() == {0}


async def test_nothing_is_fetched_while_too_much_that_ended_at_once_is_unacknowledged(monkeypatch):
    monkeypatch.setattr(session_module, "UNSENT_BYTES", 10_000)
    slot = Slot(source=Topic("in", codec="raw", max_bytes=100))
    async with slot.running() as session:
        slot.sender.acknowledges.clear()
        slot.fetched(*[b"too large" * 100] * 10)
        assert session.full() == {0, 1}
        slot.sender.acknowledges.set()
        await until(lambda: not session.full(), "the dead letters are acknowledged")


async def test_no_batch_is_handed_out_while_too_much_is_unacknowledged(monkeypatch):
    monkeypatch.setattr(session_module, "UNSENT_BYTES", 1000)
    kicks: list[None] = []
    slot = Slot(kick=lambda: kicks.append(None))
    async with slot.running() as session:
        slot.fetched(b"x" * 600, b"x" * 600, b"x")
        slot.sender.acknowledges.clear()
        slot.answer(slot.hand_out(2))
        assert not session.open()
        before = len(kicks)
        slot.sender.acknowledges.set()
        await until(session.open, "the results are acknowledged")
        assert len(kicks) > before, "nobody says that batches may be handed out again"


async def test_a_partition_whose_group_has_no_offset_is_halted_and_its_records_are_not_taken():
    slot = Slot({0: (5, ""), 1: None})
    session = await slot.begin()
    assert (slot.reader.held, set(slot.report.halted)) == ({0: 5}, {1})
    slot.fetched(b"x", partition=1)
    assert len(session.queue) == 0
    assert "in/1 is halted" in session.trouble()


async def test_a_partition_that_is_new_since_the_last_commit_begins_at_its_beginning_and_a_known_one_is_halted():
    slot = Slot({0: (5, "i1;c=2"), 1: None, 2: None})
    slot.reader.topic = TopicState("abcdefgh", 3)
    await slot.begin()
    assert slot.reader.held == {0: 5, 2: 0}
    assert set(slot.report.halted) == {1}


async def test_offsets_of_a_topic_that_was_deleted_are_not_read_on_from():
    slot = Slot({0: (5, "i1;t=ABCDEFGH"), 1: (7, "i1;t=abcdefgh"), 2: (9, "")})
    slot.reader.topic = TopicState("abcdefgh", 3)
    session = await slot.begin()
    assert slot.reader.held == {1: 7, 2: 9}, "an offset that other tools have set names no topic"
    assert set(slot.report.halted) == {0}
    assert "deleted and created again (its id was ABCDEFGH…, it is abcdefgh…)" in session.trouble()


async def test_commits_name_the_topic_and_partitions_that_it_was_given_are_owned_at_once():
    slot = Slot({0: (0, "")})
    slot.reader.topic = TopicState("abcdefgh", 1)
    async with slot.running() as session:
        await until(lambda: slot.reader.entries[0] == (0, "i1;o=me;t=abcdefgh;c=1"), "the offset is committed")
        slot.reader.topic = TopicState("abcdefgh", 2)
        await session.grow([1], 1)
        assert slot.reader.held == {0: 0, 1: 0}
        await until(
            lambda: slot.reader.entries == dict.fromkeys((0, 1), (0, "i1;o=me;t=abcdefgh;c=2")), "both are committed"
        )


@pytest.mark.parametrize(("on_expired", "topic"), [("drop", "p.completed"), ("dlq", "in.dlq")])
async def test_an_event_past_its_slo_ends_where_that_is_asked_for(on_expired, topic, monkeypatch):
    slot = Slot(on_expired=on_expired)
    sent = []
    monkeypatch.setattr(
        slot.sender, "send", lambda outgoing: asyncio.sleep(0, sent.append({name for name, _ in outgoing}))
    )
    async with slot.running():
        slot.fetched(b"late", ago_s=10.0)
        slot.fetched(b"in time", first=1)
        assert [event.payload for event in slot.hand_out(2)] == [b"in time"]
        await until(lambda: bool(sent), "the event ends")
    assert topic in sent[0]


async def test_offsets_that_another_process_overwrote_are_committed_again():
    slot = Slot()
    async with slot.running() as session:
        slot.fetched(b"a", b"b")
        slot.answer(slot.hand_out(2))
        await until(lambda: slot.offset() == 2, "both are committed")
        slot.reader.entries[0] = (0, "")
        await session._commits.check()
        await until(lambda: slot.offset() == 2, "they are committed again")


async def test_results_that_are_larger_than_their_events_count_as_unacknowledged(monkeypatch):
    monkeypatch.setattr(session_module, "UNSENT_BYTES", 10_000)
    slot = Slot()
    async with slot.running() as session:
        slot.fetched(b"x")
        slot.sender.acknowledges.clear()
        session.finished(slot.hand_out(1), [Done(b"y" * 10_000, 0)])
        assert not session.open()


async def test_a_drain_ends_with_its_lease_where_a_successor_has_committed_already():
    slot = Slot(transactional=True)
    async with slot.running() as session:
        await until(lambda: slot.reader.entries[0][1] != "", "the first commit is made")
        slot.reader.entries[0] = (7, "a successor's")
        slot.now_s = 3.0
        with pytest.raises(LeaseExpired):
            await asyncio.wait_for(session.drain(), 5)
