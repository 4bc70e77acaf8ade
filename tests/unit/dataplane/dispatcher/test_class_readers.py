"""Readers of classes: each knows its own topic's partitions, and the slot one number for each of all of them."""

import asyncio

from inferline_stream.dataplane.dispatcher.class_readers import ClassReaders
from inferline_stream.kafka.topic_reader import Fetched
from inferline_stream.pipeline.event_classes import CLASS_STRIDE

ARCHIVE = 2 * CLASS_STRIDE


class Reader:
    """A topic whose partition n begins at 10 n and was committed at 10 n + 1."""

    def __init__(self) -> None:
        self.held, self.full, self.commits = {}, None, []

    def hold(self, positions):
        self.held |= positions

    def release(self, partitions):
        for partition in partitions:
            del self.held[partition]

    async def fetch(self, full, wait_s):
        self.full = full
        return Fetched({1: ["record"]}, [], {1: 17}, {3: "damaged"})

    async def beginnings(self, partitions):
        return {partition: 10 * partition for partition in partitions}

    async def committed(self, partitions):
        return {partition: (10 * partition + 1, "") for partition in partitions}

    async def commit(self, entries):
        self.commits.append(entries)

    async def read_again(self, partition, offsets):
        return dict.fromkeys(offsets, (self, partition))


def test_each_topic_is_asked_in_its_own_numbers_and_answers_in_the_slots():
    live, _, archive = readers = [Reader() for _ in range(3)]
    classes = ClassReaders(readers)
    classes.hold({0: 5, ARCHIVE + 1: 6, ARCHIVE + 3: 7})
    classes.release([ARCHIVE + 3])
    assert [reader.held for reader in readers] == [{0: 5}, {}, {1: 6}]
    numbers = [4, ARCHIVE + 1, ARCHIVE + 4]
    assert asyncio.run(classes.beginnings(numbers)) == {4: 40, ARCHIVE + 1: 10, ARCHIVE + 4: 40}
    entries = asyncio.run(classes.committed(numbers))
    assert entries == {4: (41, ""), ARCHIVE + 1: (11, ""), ARCHIVE + 4: (41, "")}
    asyncio.run(classes.commit(entries))
    assert [reader.commits for reader in readers] == [[{4: (41, "")}], [], [{1: (11, ""), 4: (41, "")}]]
    assert asyncio.run(classes.read_again(ARCHIVE + 4, [8])) == {8: (archive, 4)}
    assert classes.live is live


def test_what_a_fetch_brings_has_the_slots_numbers_and_a_full_partition_the_topics():
    live, archive = readers = [Reader(), Reader()]
    classes = ClassReaders(readers)
    brought = asyncio.run(classes.fetch(1, [CLASS_STRIDE + 2], 0.0))
    assert archive.full == [2]
    assert brought == Fetched({CLASS_STRIDE + 1: ["record"]}, [], {CLASS_STRIDE + 1: 17}, {CLASS_STRIDE + 3: "damaged"})
    assert asyncio.run(classes.fetch(0, [2], 0.0)) == Fetched({1: ["record"]}, [], {1: 17}, {3: "damaged"})
    assert live.full == [2]
