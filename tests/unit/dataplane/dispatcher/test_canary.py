"""A version that is tried out gets its share of a slot's events, and ends none of them."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Batch, Broken, Call, Done, Failed, Leave, Many, Results, Returned
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.slot_grants import CanaryShare, Grant, HardwarePlan, StagePlan
from inferline_stream.kafka.records import Record
from inferline_stream.observability.stage_counts import CanaryCounts
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.pipeline.version import kind_of_version
from tests.unit.dataplane.dispatcher.doubles import KIND, WALL_S, PlayedSlot, Replica, fed
from tests.unit.dataplane.dispatcher.test_live_classes import ARCHIVE, PREMIUM, Classed

FAULT = Failed("ValueError", "the new version's own", "")


def granted(slot: PlayedSlot, share: float, *, mirror: bool = False, version: str = "ab12", limit: int = 4) -> None:
    """Have a version tried out on a share of the events."""
    canary = CanaryShare(version, share, mirror) if share else None
    plan = StagePlan({KIND: HardwarePlan(limit, {1: 0.01})}, canary=canary)
    slot.feed(Grant("work", 0, 1, "d", 1, 2, plan=plan))


def tried(slot: PlayedSlot, version: str = "ab12") -> Replica:
    """Attach a replica of the version."""
    return slot.attached(f"c{len(slot.replicas)}", hardware=kind_of_version(KIND, version))


def pieces(values: list[bytes]) -> list[list[bytes]]:
    return [[value] for value in values]


@contextlib.contextmanager
def half_tried(*values: bytes, **how: Any) -> Iterator[tuple[PlayedSlot, Replica, Replica]]:
    """A slot that tries a version out on half of the events, a replica of the running version, and one of the new.

    The running version has served the first event, so the new one has the events of these values.
    """
    with fed(**how) as slot:
        granted(slot, 0.5)
        main, new = slot.attached(), tried(slot)
        slot.fetched(b"0")
        main.answer(main.batch())
        slot.fetched(*values, first=1)
        yield slot, main, new


def counts(slot: PlayedSlot) -> CanaryCounts:
    (found,) = slot.report.counts.canaries.values()
    return found


def fails(replica: Replica, batch: Batch, outcomes: list[Any] | None = None) -> None:
    replica.say(Results(batch.epoch, batch.batch, outcomes or [FAULT] * len(batch.inputs), [Call(1, 0.01)], 0.01))


def served(slot: PlayedSlot, replicas: list[Replica]) -> Counter[str]:
    """Let every replica answer what it has, until all are idle; return who got how many events."""
    got = Counter[str]()
    while busy := [replica for replica in replicas if replica.frames]:
        for replica in busy:
            batch = replica.batch()
            got[replica.name] += len(batch.inputs)
            slot.advance(0.001)
            replica.answer(batch)
    return got


@given(share=st.floats(0.01, 0.5), limit=st.integers(1, 16), rounds=st.lists(st.integers(1, 40), max_size=40))
@settings(max_examples=40, deadline=None)
def test_it_gets_its_share_to_within_two_batches(share: float, limit: int, rounds: list[int]) -> None:
    with fed() as slot:
        granted(slot, share, limit=limit)
        main, new = slot.attached(), tried(slot)
        handed, first = Counter[str](), 0
        for count in rounds:
            slot.fetched(*[b"%d" % at for at in range(first, first + count)], first=first)
            first += count
            handed += served(slot, [main, new])
        if first:
            slot.until(lambda: slot.offset() == first, "all are committed")
        assert handed.total() == len(slot.sent) == first
        assert abs(handed[new.name] - share * first) <= 2 * limit
        if first:
            assert (counts(slot).events, counts(slot).main_events) == (handed[new.name], handed[main.name])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("every", [2, 3, 4, 10])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_it_gets_its_share_of_events_that_come_in_a_rhythm_too(share: float, every: int, mirror: bool) -> None:
    with fed() as slot:
        granted(slot, share, mirror=mirror, limit=1)
        main, new = slot.attached(), tried(slot)
        got = Counter[int]()
        for number in range(2000):
            slot.fetched(b"%d" % number, first=number)
            while busy := [replica for replica in (main, new) if replica.frames]:
                for replica in busy:
                    batch = replica.batch()
                    got.update(int(each) % every for each in batch.inputs if replica is new)
                    replica.answer(batch)
        assert sum(got.values()) == pytest.approx(2000 * share, rel=0.02)
        for rest in range(every):
            assert got[rest] == pytest.approx(2000 * share / every, rel=0.3)


def died(replica: Replica, batch: Batch) -> None:
    replica.die()


def broke(replica: Replica, batch: Batch) -> None:
    replica.say(Broken(batch.epoch, batch.batch, "returned too much"))


def miscounted(replica: Replica, batch: Batch) -> None:
    replica.say(Results(batch.epoch, batch.batch, [Done(b"", 0)] * 9, [Call(2, 0.01)], 0.01))


@pytest.mark.parametrize("ends", [fails, died, broke, miscounted])
def test_what_it_fails_on_runs_on_the_running_version_and_counts_as_its_failure(ends: Any) -> None:
    with fed() as slot:
        granted(slot, 0.5)
        new = tried(slot)
        slot.fetched(*[b"%d" % at for at in range(2)])  # nobody else is there: it waits for the running version
        main = slot.attached()
        main.answer(main.batch())
        slot.fetched(*[b"%d" % at for at in range(2, 6)], first=2)
        ends(new, batch := new.batch())
        while main.frames:
            main.answer(main.batch())
        slot.until(lambda: slot.offset() == 6, "all are committed")
        assert sorted(value or b"" for value in slot.sent) == [b"%d" % at for at in range(6)]
        assert slot.report.counts.dead_lettered == 0
        assert (counts(slot).answered, counts(slot).failed) == (len(batch.inputs), len(batch.inputs))


@pytest.mark.parametrize(("outcome", "failed"), [(Many(), 0), (Many((Done(b"x", 0),)), 1), (Done(b"x" * 10**7, 0), 1)])
def test_what_it_filters_ends_and_what_cannot_be_sent_on_runs_on_the_running_version(outcome: Any, failed: int) -> None:
    with half_tried(b"1") as (slot, main, new):
        fails(new, new.batch(), [outcome])
        while main.frames:
            main.answer(main.batch())
        slot.until(lambda: slot.offset() == 2, "all are committed")
        assert slot.report.counts.dead_lettered == 0
        assert slot.sent.count(b"1") == failed
        assert (counts(slot).answered, counts(slot).failed) == (1, failed)


def test_an_event_that_both_fail_on_is_a_dead_letter_and_no_failure_of_the_new_one() -> None:
    with half_tried(b"1", b"2") as (slot, main, new):
        fails(new, new.batch())
        batch = main.batch()
        fails(main, batch, [FAULT, Done(b"2", 0)])
        slot.until(lambda: slot.offset() == 3, "all are committed")
        assert slot.report.counts.dead_lettered == 1
        assert (counts(slot).answered, counts(slot).failed) == (2, 1)


def test_an_event_that_both_fail_on_alone_is_no_failure_of_the_new_one_either() -> None:
    with fed() as slot:
        granted(slot, 0.5)
        main, new = slot.attached(), tried(slot)
        slot.fetched(b"0")
        main.answer(main.batch())
        slot.fetched(b"1", first=1)
        fails(new, new.batch())
        fails(main, main.batch())
        sample = main.batch()
        assert sample.inputs == [b"0"], "the batch had no success: is that the replica's fault?"
        main.answer(sample)
        slot.until(lambda: slot.offset() == 2, "all are committed")
        assert slot.report.counts.dead_lettered == 1
        assert (counts(slot).answered, counts(slot).failed) == (1, 0)


def test_what_memory_ran_out_on_runs_in_smaller_batches_also_where_it_has_failed() -> None:
    with fed() as slot:
        granted(slot, 1.0)
        main, new = slot.attached(), tried(slot)
        slot.fetched(b"0", b"1")
        batch = main.batch()
        main.say(Broken(batch.epoch, batch.batch, "out of memory", memory=True))
        slot.fetched(b"2", first=2)
        for _ in range(3):
            fails(new, new.batch())
        main, handed = slot.attached(), list[Any]()
        for _ in range(3):
            batch = main.batch()
            handed.append(batch.inputs)
            main.answer(batch)
        assert handed == [[b"0"], [b"1"], [b"2"]]


def test_a_server_that_is_away_or_a_lost_host_is_no_failure_of_it() -> None:
    with fed() as slot:
        granted(slot, 0.5)
        main, new, other = slot.attached(), tried(slot), tried(slot)
        slot.fetched(b"0", b"1", b"2")
        main.answer(main.batch())
        slot.fetched(b"3", first=3)
        batch = new.batch()
        new.say(Returned(batch.epoch, batch.batch, "busy"))
        main.answer(main.batch())
        slot.fetched(b"4", first=4)
        assert isinstance(other.batch(), Batch)
        slot.lost(other.name)
        main.answer(main.batch())
        slot.until(lambda: slot.offset() == 5, "all are committed")
        assert (counts(slot).answered, counts(slot).failed) == (0, 0)


def test_a_batch_that_it_keeps_runs_elsewhere_and_it_is_replaced_in_the_end() -> None:
    with half_tried(b"1") as (slot, main, new):
        late = new.batch()
        main.answer(main.batch())
        slot.until(lambda: slot.offset() == 2, "all are committed")
        new.answer(late)
        assert slot.sent == [b"0", b"1"]  # not twice
        slot.fetched(b"2", b"3", first=2)
        while not new.frames:
            main.answer(main.batch())
            slot.fetched(*[b"x"] * 4, first=slot.offset())
        slot.until(lambda: new.name in slot.replaced, "it is replaced")


def keyed(slot: PlayedSlot, first: int, keys: list[int]) -> None:
    """Hand over records with these keys; a value says which of its key it is."""
    stamp_ms = round((slot.now_s + WALL_S) * 1000)
    seen, records = Counter[int](), []
    for at, key in enumerate(keys):
        records.append(Record(b"k%d" % key, b"%d.%d" % (key, seen[key]), (), stamp_ms, "in", 0, first + at))
        seen[key] += 1
    slot.feed(on.RecordsRead({0: records}, {0: first + len(keys)}, {}, slot.now_s + WALL_S))


@given(
    keys=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    shares=st.lists(st.sampled_from([0.1, 0.4, 0.0]), min_size=1, max_size=4),
    draws=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_a_key_stays_with_its_version_and_in_its_order_whatever_fails(keys, shares, draws) -> None:
    with fed() as slot:
        main, new = slot.attached(), tried(slot)
        granted(slot, shares[0])
        keyed(slot, 0, keys)
        steps, at = iter(shares[1:]), 0
        while busy := [replica for replica in (main, new) if replica.frames]:
            at += 1
            replica = draws.choice(busy)
            batch = replica.batch()
            if replica is new:
                assert len(shares) > 1 or all(
                    zlib.crc32(b"k" + bytes(value).partition(b".")[0]) < shares[0] * 2**32 for value in batch.inputs
                )
                outcomes = [draws.choice([FAULT, Done(bytes(value), 0)]) for value in batch.inputs]
                fails(new, batch, outcomes)
            else:
                replica.answer(batch)
            if at % 5 == 0 and (share := next(steps, None)) is not None:
                granted(slot, share)
        slot.until(lambda: slot.offset() == len(keys), "all are committed")
        assert len(slot.sent) == len(keys)
        for key in set(keys):
            own = [value for value in slot.sent if (value or b"").startswith(b"%d." % key)]
            assert own == [b"%d.%d" % (key, number) for number in range(keys.count(key))]
        assert slot.report.counts.dead_lettered == 0


def test_copies_are_compared_and_no_result_of_it_counts() -> None:
    with fed() as slot:
        granted(slot, 0.5, mirror=True)
        main, new = slot.attached(), tried(slot)
        for first in range(0, 40, 4):
            slot.fetched(*[b"%d" % at for at in range(first, first + 4)], first=first)
            main.answer(main.batch())
            if new.frames:
                batch = new.batch()
                assert batch.expected == [Done(bytes(each), 0) for each in batch.inputs if isinstance(each, bytes)]
                outcomes = [Done(b"other", 0), FAULT, *[Done(b"", 0)] * (len(batch.inputs) - 2)]
                agreed = [False, False, True, True]
                new.say(Results(batch.epoch, batch.batch, outcomes, [Call(4, 0.01)], 0.01, agreed=agreed))
        slot.until(lambda: slot.offset() == 40, "all are committed")
        assert slot.sent == [b"%d" % at for at in range(40)]
        seen = counts(slot)
        assert abs(seen.events - 20) <= 4
        assert seen.events + seen.main_events == 40
        batches = seen.events // 4
        assert (seen.compared, seen.disagreed, seen.failed) == (3 * batches, batches, batches)
        assert (slot.report.counts.served, slot.report.counts.copies) == (40, seen.events)


def test_batches_of_every_live_class_are_copied_and_none_of_background_events() -> None:
    slot = Classed()
    slot.plan(canary=CanaryShare("ab12", 1.0, mirror=True))
    main, new = slot.attached(), tried(slot)
    for partition in (PREMIUM, 0, ARCHIVE):
        slot.comes(b"%d" % partition, partition=partition)
        main.answer(main.batch())
        if new.frames:
            new.answer(new.batch())
    assert counts(slot).events == 2


def test_it_gets_its_share_of_all_live_classes_together_and_no_background_event() -> None:
    slot = Classed()
    slot.plan(canary=CanaryShare("ab12", 0.25))
    main, new = slot.attached(), tried(slot)
    for _ in range(20):
        for partition in (PREMIUM, 0, ARCHIVE):
            slot.comes(b"%d" % partition, partition=partition)
        got = served(slot, [main, new])
        assert got[new.name] <= 1
    assert abs(counts(slot).events - 10) <= 1
    assert counts(slot).events + counts(slot).main_events == 40
    assert slot.report.counts.dead_lettered == 0


def test_many_results_of_it_are_sent_once_and_what_it_fails_on_has_those_of_the_running_version() -> None:
    work = Stage("work", pieces, hardware="cpu-1", many=True, most=3)
    ends = {"source": Topic("in", codec="raw"), "sink": Topic("out", codec="raw")}
    with half_tried(b"1", b"2", b"3", stage=routes_of(Pipeline("p", slo="1s", stages=[work], **ends), "work")) as (
        slot,
        main,
        new,
    ):
        batch = new.batch()
        letters = [Many((Done(value + b"a", 0), Done(value + b"b", 0))) for value in map(bytes, batch.inputs)]
        fails(new, batch, [FAULT, *letters[1:]])
        again = main.batch()
        assert again.inputs == batch.inputs[:1]
        fails(main, again, [Many((Done(b"main", 0),))])
        slot.until(lambda: slot.offset() == 4, "all are committed")
        own = [part.value for each in letters[1:] for part in each.results]
        assert Counter(slot.sent) == Counter([b"0", b"main", *own])
        assert (counts(slot).failed, slot.report.counts.dead_lettered) == (1, 0)


def test_one_that_is_tried_out_no_more_gets_nothing_and_leaves() -> None:
    with fed() as slot:
        granted(slot, 0.5)
        main, new = slot.attached(), tried(slot)
        granted(slot, 0.0)
        for first in range(4):
            slot.fetched(b"x", first=first)
            main.answer(main.batch())
        assert new.idle()
        slot.retire(new.name)
        assert isinstance(new.next(), Leave)
        assert slot.phases() == {main.name: "ready"}


def test_time_goes_on_after_its_last_replica_has_died_with_a_batch() -> None:
    with half_tried(b"1") as (slot, main, new):
        new.batch()
        new.die()
        main.answer(main.batch())
        slot.advance(3600.0)
        assert slot.offset() == 2


def test_a_slot_that_drains_waits_for_its_batch_and_not_for_what_it_failed_on() -> None:
    with half_tried(b"1") as (slot, _, new):
        batch = new.batch()
        slot.feed(on.Drained())
        assert not slot.drained
        fails(new, batch)
        slot.until(lambda: slot.drained, "it has drained")
        assert slot.offset() == 1  # its successor reads the other one again
