"""The topics that a slot reads, one of each class, with partitions as `event_classes` numbers them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from inferline_stream.kafka.offset_metadata import Entry
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_reader import Fetched, TopicReader
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of


class ClassReaders:
    """A reader for each class, so that none waits for what another fetches.

    Args:
        readers: by the number of their class.
    """

    def __init__(self, readers: Sequence[TopicReader]) -> None:
        self.readers = readers
        self.live = readers[0]
        """Of live events, and of grants."""

    async def start(self, timeout_s: float) -> None:
        """Connect all of them."""
        await asyncio.gather(*(reader.start(timeout_s) for reader in self.readers))

    async def stop(self) -> None:
        """Disconnect all of them."""
        for reader in self.readers:
            await reader.stop()

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions from there."""
        for reader, first, own in self._by_class(positions):
            reader.hold({number - first: positions[number] for number in own})

    def release(self, numbers: Iterable[int]) -> None:
        """Read these partitions no more."""
        for reader, first, own in self._by_class(numbers):
            reader.release([number - first for number in own])

    async def fetch(self, class_number: int, full: Collection[int], wait_s: float) -> Fetched:
        """Fetch a class; see `TopicReader.fetch`."""
        first = class_number * CLASS_STRIDE
        fetched = await self.readers[class_number].fetch([number - first for number in full], wait_s)
        if not first:
            return fetched
        return Fetched(
            {first + number: records for number, records in fetched.records.items()},
            fetched.control,
            {first + number: position for number, position in fetched.positions.items()},
            {first + number: why for number, why in fetched.lost.items()},
        )

    async def read_again(self, number: int, offsets: Collection[int]) -> dict[int, Record]:
        """Return records of a partition; see `TopicReader.read_again`."""
        class_number = class_of(number)
        return await self.readers[class_number].read_again(number - class_number * CLASS_STRIDE, offsets)

    async def beginnings(self, numbers: Iterable[int]) -> dict[int, int]:
        """Return the first offset that each partition still has."""
        found: dict[int, int] = {}
        for reader, first, own in self._by_class(numbers):
            begins = await reader.beginnings([number - first for number in own])
            found |= {first + number: offset for number, offset in begins.items()}
        return found

    async def committed(self, numbers: Iterable[int]) -> dict[int, Entry]:
        """Return what the classes' groups have committed."""
        found: dict[int, Entry] = {}
        for reader, first, own in self._by_class(numbers):
            entries = await reader.committed([number - first for number in own])
            found |= {first + number: entry for number, entry in entries.items()}
        return found

    async def commit(self, entries: Mapping[int, Entry]) -> None:
        """Commit for each class's group, one by one: none goes on where another one has failed."""
        for reader, own in self.by_class(entries):
            await reader.commit(own)

    def by_class(self, entries: Mapping[int, Entry]) -> Iterator[tuple[TopicReader, dict[int, Entry]]]:
        """Yield each class's reader, and its entries as its topic numbers them."""
        for reader, first, own in self._by_class(entries):
            yield reader, {number - first: entries[number] for number in own}

    def _by_class(self, numbers: Iterable[int]) -> Iterator[tuple[TopicReader, int, list[int]]]:
        """Yield each class's reader, the number of its first partition, and those of the numbers that are its own."""
        every = list(numbers)
        for class_number, reader in enumerate(self.readers):
            if own := [number for number in every if class_of(number) == class_number]:
                yield reader, class_number * CLASS_STRIDE, own
