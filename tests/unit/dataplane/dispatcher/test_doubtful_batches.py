"""Replicas whose batches have no success: who is at fault, and what that costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from inferline_stream.dataplane.dispatcher import doubtful_batches
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Batch, Broken, Done, Failed, Results, Returned
from inferline_stream.dataplane.replica.stage_call import run_batch
from inferline_stream.pipeline.names import ERRORS_PREFIX
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot, Replica, fed

SAMPLE = b"a sample"


@contextlib.contextmanager
def served(behave: Callable[[Replica, Batch], None], *, limit: int, replicas: int = 1) -> Iterator[PlayedSlot]:
    """A slot that knows a sample. All its replicas answer batches in some way; replaced ones come again."""
    with fed(limit=limit) as pool:
        _answered(pool, behave)
        pool.session.suspects.learn(SAMPLE)
        for _ in range(replicas):
            pool.attached()
        yield pool


def _answered(pool: PlayedSlot, behave: Callable[[Replica, Batch], None]) -> None:
    done: set[str] = set()
    until, advance = pool.until, pool.advance

    def answer() -> bool:
        for name in set(pool.replaced) - done:
            done.add(name)
            pool.attached()
        for replica in list(pool.replicas.values()):
            if replica.connected and replica.frames:
                behave(replica, replica.batch())
                return True
        return False

    def holds_once_they_answered(holds: Callable[[], bool]) -> bool:
        while not holds():
            if not answer():
                return False
        return True

    def advance_while_they_answer(by_s: float) -> None:
        advance(by_s)
        while answer():
            pass

    pool.until = lambda holds, what: until(lambda: holds_once_they_answered(holds), what)  # type: ignore[method-assign]
    pool.advance = advance_while_they_answer  # type: ignore[method-assign]


def refuses(replica: Replica, batch: Batch, *, busy: bool = False) -> None:
    replica.say(Returned(batch.epoch, batch.batch, "the server answers 500", busy=busy))


def fails(replica: Replica, batch: Batch) -> None:
    replica.say(Results(batch.epoch, batch.batch, [Failed("E", "bad", "")] * len(batch.inputs), [], 0.01))


class Gpu:
    """A replica whose device takes no call any more after a bad event, or from the start."""

    def __init__(self, *, dead: bool = False) -> None:
        self.dead = dead
        self.took: list[int] = []

    def answer(self, replica: Replica, batch: Batch) -> None:
        self.took.append(len(batch.inputs))
        outcomes, calls, _ = run_batch(self._call, lambda value: Done(value, 0), batch.inputs)
        replica.say(Results(batch.epoch, batch.batch, outcomes, calls, 0.01))

    def _call(self, values: list[bytes]) -> list[bytes]:
        self.dead = self.dead or b"bad" in values
        if self.dead:
            raise RuntimeError("the device is lost")
        return values


@pytest.mark.parametrize("limit", [1, 4])
def test_events_that_a_healthy_server_never_takes_stop_nothing_and_become_dead_letters(limit):
    def behave(replica: Replica, batch: Batch) -> None:
        (refuses if b"bad" in batch.inputs else Replica.answer)(replica, batch)

    with served(behave, limit=limit) as pool:
        pool.fetched(*[b"bad"] * 8, *[b"good"] * 50)
        pool.until(lambda: pool.offset() == 58, "all are done")
        assert pool.report.counts.dead_lettered == 8
        assert pool.sent.count(b"good") == 50
        assert pool.sent.count(b"bad") == 8, "as letters"
        assert pool.session.trouble() == pool.trouble == ""


def test_an_event_is_at_fault_after_so_many_refusals_and_its_letter_says_why():
    tries = 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal tries
        tries += batch.inputs == [b"bad"]
        (refuses if b"bad" in batch.inputs else Replica.answer)(replica, batch)

    with served(behave, limit=1) as pool:
        pool.fetched(b"bad")
        pool.until(lambda: pool.offset() == 1, "it is done")
        assert tries == doubtful_batches.REFUSALS
        why = "not taken 6 times, while the same replica's server took others: the server answers 500"
        (letter,) = (m for (topic, _), sent in pool.outgoing[0].items() if topic == "in.dlq" for m in sent)
        said = dict(letter.headers)
        assert (said[ERRORS_PREFIX + "type"], said[ERRORS_PREFIX + "message"]) == (b"Unserved", why.encode())


@pytest.mark.parametrize("busy", [False, True])
def test_a_server_that_is_away_blames_no_event_and_loses_none_and_takes_them_in_their_order(busy):
    away, asked, tried = True, 0, 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal asked, tried
        asked += away
        tried += away and batch.inputs != [SAMPLE]
        if away:
            refuses(replica, batch, busy=busy)
        else:
            replica.answer(batch)

    with served(behave, limit=1) as pool:
        pool.fetched(*[b"%d" % number for number in range(20)])
        pool.until(lambda: asked > 4, "the server was asked again and again")
        assert tried == 1, "samples ask it, not events"
        assert "answers 500" in pool.trouble
        away = False
        pool.until(lambda: pool.offset() == 20, "all are done")
        assert pool.sent == [b"%d" % number for number in range(20)]
        assert pool.report.counts.dead_lettered == 0


def test_an_event_for_which_a_server_is_always_busy_is_not_blamed_and_holds_up_no_other():
    refused = 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal refused
        if batch.inputs == [b"x"] and refused < 3 * doubtful_batches.REFUSALS:
            refused += 1
            refuses(replica, batch, busy=True)
        else:
            replica.answer(batch)

    with served(behave, limit=1) as pool:
        pool.fetched(b"x", *[b"other"] * 9)
        pool.until(lambda: pool.offset() == 10, "all are done")
        assert pool.sent == [*[b"other"] * 9, b"x"]


def test_an_event_for_which_a_server_is_always_busy_holds_up_none_of_its_batch():
    def behave(replica: Replica, batch: Batch) -> None:
        if b"x" in batch.inputs:
            refuses(replica, batch, busy=True)
        else:
            replica.answer(batch)

    with served(behave, limit=4) as pool:
        pool.fetched(b"x", *[b"other"] * 7)
        pool.until(lambda: pool.sent == [b"other"] * 7, "the others are done")
        assert pool.report.counts.dead_lettered == 0


def test_a_batch_that_fails_as_a_whole_is_believed_once_the_replica_has_passed_a_sample():
    def behave(replica: Replica, batch: Batch) -> None:
        if SAMPLE in batch.inputs:
            assert pool.report.counts.dead_lettered == 0
            replica.answer(batch)
        else:
            fails(replica, batch)

    with served(behave, limit=4) as pool:
        pool.fetched(b"1", b"2", b"3")
        pool.until(lambda: pool.offset() == 3, "they are dead letters")
        assert (pool.report.counts.dead_lettered, pool.replaced) == (3, [])


def test_a_replica_that_fails_on_a_sample_too_is_replaced_and_costs_no_event():
    behaviours = {"r0": fails}

    def behave(replica: Replica, batch: Batch) -> None:
        behaviours.get(replica.name, Replica.answer)(replica, batch)

    with served(behave, limit=4) as pool:
        pool.fetched(*[b"%d" % number for number in range(10)])
        pool.until(lambda: pool.offset() == 10, "all are done")
        assert (pool.report.counts.dead_lettered, pool.replaced) == (0, ["r0"])
        assert sorted(pool.sent) == [b"%d" % number for number in range(10)]


def test_replicas_that_all_fail_dead_letter_nothing_and_say_so():
    with served(fails, limit=4) as pool:
        pool.fetched(*[b"%d" % number for number in range(10)])
        pool.until(lambda: "may be at fault" in pool.session.trouble(), "it says so")
        assert pool.report.counts.dead_lettered == 0


def test_one_bad_event_that_breaks_its_replica_is_one_dead_letter_of_160():
    gpus: dict[str, Gpu] = {}

    def behave(replica: Replica, batch: Batch) -> None:
        gpus.setdefault(replica.name, Gpu()).answer(replica, batch)

    with served(behave, limit=16) as pool:
        pool.fetched(*[b"good"] * 16, b"bad", *[b"good"] * 143)
        pool.until(lambda: pool.offset() == 160, "all are done")
        assert pool.report.counts.dead_lettered == 1
        assert pool.sent.count(b"good") == 159


@pytest.mark.parametrize("rate", [100, 200, 300, 800])
def test_of_four_replicas_a_broken_one_takes_one_batch_before_it_is_tested_and_replaced(rate):
    gpus = {"r0": Gpu(dead=True)}

    def behave(replica: Replica, batch: Batch) -> None:
        gpus.setdefault(replica.name, Gpu()).answer(replica, batch)

    with served(behave, limit=8, replicas=4) as pool:
        for first in range(0, 200, 4):
            pool.fetched(*[b"good"] * 4, first=first)
            pool.advance(4 / rate)
        pool.until(lambda: pool.offset() == 200, "all are done")
        assert pool.replaced == ["r0"]
        assert gpus["r0"].took == [4, 1], "a batch, and the sample"
        assert pool.report.counts.dead_lettered == 0


def test_a_retired_replica_leaves_what_is_in_doubt_to_others():
    with fed(limit=2) as pool:
        pool.session.suspects.learn(SAMPLE)
        leaving, other = pool.attached(), pool.attached()
        pool.fetched(b"1", b"2")
        batch = leaving.batch()
        pool.retire(leaving.name)
        fails(leaving, batch)
        again = other.batch()
        assert again.inputs == [b"1", b"2"]
        other.answer(again)
        pool.until(lambda: pool.offset() == 2, "both are done")


def test_what_is_in_doubt_does_not_hold_up_a_drain():
    with fed(limit=2) as pool:
        pool.session.suspects.learn(SAMPLE)
        replica = pool.attached()
        pool.fetched(b"1")
        batch = replica.batch()
        pool.feed(on.Drained())
        fails(replica, batch)
        pool.until(lambda: pool.drained, "it has drained")
        assert (pool.offset(), pool.report.counts.dead_lettered) == (0, 0), "the next owner runs it again"


def test_what_is_in_hand_of_a_halted_partition_does_not_run_again():
    with fed(limit=1) as pool:
        doubted, lost = pool.attached(), pool.attached()
        pool.fetched(b"1", b"2")
        batch = doubted.batch()
        lost.batch()
        pool.session.halt("the topic was deleted", 0)
        refuses(doubted, batch)
        pool.lost(lost.name)
        pool.retire(doubted.name)
        pool.until(lambda: not pool.phases(), "both are gone")
        assert len(pool.session.queue) == 0


def test_suspects_of_a_halted_partition_do_not_run_again():
    with fed(limit=2) as pool:
        replica = pool.attached()
        pool.fetched(b"1", b"2")
        replica.batch()
        replica.die()
        session = pool.session
        pool.until(lambda: len(session.suspects) == 2, "both are suspects")
        session.halt("the topic was deleted", 0)
        assert len(session.suspects) == 0


# Processes that do not get ready, or do not end


def test_a_replica_that_hangs_as_it_starts_is_replaced():
    with fed() as pool:
        pool.attached("hangs", ready=False)
        pool.until(lambda: pool.replaced == ["hangs"], "it is replaced")
        assert pool.phases() == {}


def breaks(replica: Replica, batch: Batch) -> None:
    replica.say(Broken(batch.epoch, batch.batch, "returned 1 results for a batch of 2"))


@pytest.mark.parametrize("ends", [breaks, lambda replica, batch: replica.die()])
def test_a_replica_whose_process_lives_on_after_its_connection_is_replaced(ends):
    with fed() as pool:
        replica = pool.attached()
        pool.fetched(b"x")
        ends(replica, replica.batch())
        pool.until(lambda: pool.replaced == [replica.name], "it is replaced")


def test_a_replica_that_may_have_a_batch_in_hand_has_that_batchs_time_to_be_ready_again():
    with fed(batch_deadline_s=60.0) as pool:
        for name, again in (("new", False), ("again", True)):
            pool.attached(name, ready=False, again=again)
        pool.until(lambda: pool.replaced == ["new"], "the new one is replaced")
        assert pool.phases() == {"again": "starting"}
