"""What comes in: end offsets, committed offsets, reports. Everything ends up in the `PipelineView`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from inferline_stream.controlplane.observe.end_offsets import EndOffsets
from inferline_stream.controlplane.observe.log_growth import OffsetHistory
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import (
    TRAFFIC_S,
    arrivals_between,
    recent_ticks,
    recover_arrivals,
)
from inferline_stream.controlplane.observe.settled_parts import SettledParts
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.record_writers import ArrivalLog
from inferline_stream.dataplane.headers import read_headers, version_value
from inferline_stream.dataplane.reports import PoolReport, decode_report
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.version import structure_of

logger = logging.getLogger(__name__)

LETTERS_S = 600.0
"""How often the age of the oldest dead letters is looked at: topics keep them for days."""

LAGS_S = 0.25
"""How often committed offsets are read: one small request per stage."""

_TOPICS_EVERY = 5
"""Every so many samples of the source's end offsets, those of all other topics are read with them."""

_LOOKS_BACK = 20
"""So many looks at all topics take two seconds: an event whose result was there then is committed by now."""


class SourceTimestamps:
    """Follows the committed records of the live source topics, from a minute and a half ago: arrivals by timestamps.

    For a source whose offsets count what is no event, too: a producer that writes in transactions ends each with a
    record of its own in the log, and what it aborts stays there; events of another class by their header, which count
    where they are moved to. This reads every record, so it costs with their size; elsewhere log growth shows the same
    for next to nothing.

    Timestamps are what producers say. One that cannot be right counts as now where the record has just come, and not
    at all where it was there before: a record of the year 2100 would make all others older than the envelope's windows.

    Args:
        context: names.
        partitions: of each topic.

    Raises:
        Unreachable: on entering, Kafka does not answer.
    """

    def __init__(self, context: PipelineContext, partitions: Mapping[str, int]) -> None:
        self._context, self._partitions = context, partitions
        self.counts = [0] * sum(partitions.values())
        """Records by partition, those of one topic behind another's, from what an earlier controller has written."""
        self._history: list[tuple[float, int]] = []
        since_s = time.time() - TRAFFIC_S
        self._followers = {topic: context.kafka.follow(topic, since_s) for topic in partitions}
        self._version = version_value(structure_of(context.pipeline))
        # Where producers say when an event entered, that does not show how long it waited.
        moved = {} if context.pipeline.source.timestamp_header else context.pipeline.moved
        self._moved = {context.names.topic(of.name): header for header, of in moved.items()}
        self._entered = AsyncExitStack()

    async def __aenter__(self) -> Self:
        ticks = await recent_ticks(self._context, len(self.counts), time.time() - TRAFFIC_S)
        known_until_s = 0.0
        if ticks:
            known_until_s, self.counts = ticks[-1][0], list(ticks[-1][1])
        async with AsyncExitStack() as stack:
            for topic, follower in self._followers.items():
                await stack.enter_async_context(follower)
                end = await follower.end()
                counted = [each async for record in follower.until(end) for each in self._counted(topic, [record])]
                now_s = time.time()
                for place, time_s in counted:
                    if _credible(time_s, now_s):
                        self._history.append((time_s, place))
                        self.counts[place] += time_s > known_until_s
            self._entered = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.__aexit__(kind, error, trace)

    async def read(self, timeout_s: float) -> list[tuple[float, int]]:
        """Time and place of each record that came since the last call, ascending; maybe none.

        Times are in seconds since the epoch. The first call returns what was there before, which `counts` has.
        """
        arrivals, self._history = self._history, []
        if not arrivals:
            came = await asyncio.gather(*(follower.read(timeout_s) for follower in self._followers.values()))
            now_s = time.time()
            for topic, records in zip(self._followers, came, strict=True):
                for place, time_s in self._counted(topic, records):
                    self.counts[place] += 1
                    arrivals.append((time_s if _credible(time_s, now_s) else now_s, place))
        return sorted(arrivals)

    def _counted(self, topic: str, records: list[Record]) -> Iterator[tuple[int, float]]:
        """Yield the place in `counts` and the time of each record that is an event of the topic's class.

        Partitions that a topic was given since end offsets were first looked at are left out. So is what a dispatcher
        has moved here that entered longer ago than recent traffic: it waited in the first class's topic.
        """
        header, since_us = self._moved.get(topic), 1e6 * (time.time() - TRAFFIC_S)
        earlier = itertools.takewhile(lambda each: each != topic, self._partitions)
        first = sum(self._partitions[each] for each in earlier)
        moved = self._context.pipeline.moved.keys() if topic == self._context.source else frozenset[object]()
        for record in records:
            if record.partition >= self._partitions[topic] or not moved.isdisjoint(record.headers):
                continue
            if header in record.headers:
                found = read_headers(record.headers)
                if found.version == self._version and found.entry_us is not None and found.entry_us < since_us:
                    continue
            yield first + record.partition, record.time_ms / 1e3


def _credible(time_s: float, now_s: float) -> bool:
    """Whether a record that is read now may have been written then: a transaction's come once it has ended."""
    return now_s - TRAFFIC_S <= time_s <= now_s


@dataclass(slots=True)
class Collector:
    """Fills a `PipelineView`.

    Args:
        view: to fill.
        offsets: reads them.
        ticks: called with every sample of the source topic.
        heard: called with each report that is newer than those before.
    """

    view: PipelineView
    offsets: Offsets
    ticks: ArrivalLog
    heard: Callable[[PoolReport], None]
    stamps: SourceTimestamps | None = field(default=None, init=False)
    """Shows arrivals, where the growth of the source's log does not."""
    end_offsets: EndOffsets = field(default_factory=EndOffsets)
    answered_s: float = -1.0
    """When Kafka last answered, on the event loop's clock."""
    _stamped_s: float = 0.0
    """Up to when arrivals by timestamps are written down, in seconds since the epoch."""
    _began_ms: float = field(default_factory=lambda: time.time() * 1e3)
    _topics: dict[str, int] = field(default_factory=dict)
    _samples: int = 0
    _ends: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _grown: Counter[str] = field(default_factory=Counter)
    """Records that came to a topic since the start."""
    _look_s: float = 0.0
    """When to look at the topics again."""

    async def begin(self, stack: AsyncExitStack) -> None:
        """Look the topics up, and learn the arrivals of the last minutes.

        Args:
            stack: closes what reads the source's records, where their timestamps show arrivals.

        Raises:
            Unreachable: Kafka does not answer, or one is missing.
        """
        context = self.view.context
        self._topics = {context.topic(stage): n for stage, n in self.view.partitions.items()}
        for of, of_class in self.view.others.items():
            self._topics |= {context.topic(stage, of): n for stage, n in of_class.partitions.items()}
            self.end_offsets.looks_back = _LOOKS_BACK
        for topic in (*context.sinks.values(), context.names.completed):
            self._topics[topic] = await self.offsets.partitions(topic)
        if context.pipeline.counts_records:
            self.stamps = await stack.enter_async_context(SourceTimestamps(context, self.source_partitions))
            self._stamped_s = time.time()
            self.ticks.sampled(self._stamped_s * 1e3, self.stamps.counts)
        else:
            came = await recover_arrivals(context, self.offsets, self.source_partitions, self.view.growth)
            self.view.arrived(came)

    @property
    def source_partitions(self) -> dict[str, int]:
        """Partitions of each topic that live events arrive on."""
        return {topic: self._topics[topic] for topic in self.view.context.sources}

    async def sample(self, *, everything: bool = False) -> None:
        """Read end offsets: of the live source topics each time, of all topics now and then, or where that is asked."""
        context, everything = self.view.context, everything or self._samples % _TOPICS_EVERY == 0
        self._samples += 1
        asked_s = asyncio.get_running_loop().time()
        ends = await self.offsets.ends(self._topics if everything else self.source_partitions)
        # Both clocks at once: a replay of these ticks finds each arrival in the windows that the policy saw it in.
        now_s, now_ms = asyncio.get_running_loop().time(), time.time() * 1e3
        self.answered_s = now_s
        counts: Sequence[int] = [end for topic in context.sources for end in ends[topic]]
        if self.stamps is not None:
            counts = self.stamps.counts
            self.view.growth.skip(now_s, counts)
        elif len(context.sources) > 1 and len(counts) != len(self.view.growth.ends or counts):
            self.view.growth.skip(now_s, counts)  # one has been given partitions, which are numbered on
        elif self.view.growth.gap(now_s):
            await self._fill_gap(now_s, counts)
        else:
            self.view.arrivals(now_s, counts)
        if self.stamps is None:
            self.ticks.sampled(now_ms, counts)
        if everything:
            for of, offsets, joins in self._classes():
                by_stage = {stage: ends[context.topic(stage, of)] for stage in offsets}
                for stage, history in offsets.items():
                    history.reached(now_s, by_stage[stage])
                for settling in joins.values():
                    settling.ends(asked_s, now_s, by_stage)
            begun = [
                offset
                for topic, of_class in self.view.others.items()
                for offset in (of_class.finished() if of_class.background else ends[context.names.topic(topic)])
            ]
            sinks = {stage: ends[topic] for stage, topic in context.sinks.items()}
            self.end_offsets.look((*ends[context.source], *begun), sinks, ends[context.names.completed])
            out = sum(self._since_start(topic, ends) for topic in context.sinks.values())
            # The log also holds each transaction's end, and what background events came to.
            if context.records.delivery == "exactly_once" or self.view.backgrounds:
                out = sum(self.view.latencies.histogram().counts) - self.view.reports.earlier_results
            self.view.events_out = out
            self.view.completed = self._since_start(context.names.completed, ends)

    async def stamped(self) -> None:
        """Take in the records of the source that have come, waiting a moment for the first.

        They are written down at their own times: after a pause they would be a burst, and plans be made for it.
        """
        assert self.stamps is not None
        known, asked_s, sample_s = list(self.stamps.counts), time.time(), self.view.context.settings.arrivals_sample_s
        arrivals = await self.stamps.read(0.1)
        times = np.array([time_s for time_s, _ in arrivals])
        if known == self.stamps.counts:
            self._stamped_s = max(self._stamped_s, asked_s)
            self.ticks.sampled(self._stamped_s * 1e3, known)
        else:
            until_s = time.time()
            self.ticks.came(arrivals, known, since_s=self._stamped_s, until_s=until_s, sample_s=sample_s)
            self._stamped_s = min(max(self._stamped_s, arrivals[-1][0]) + sample_s, until_s)
        now_s, shift_s = asyncio.get_running_loop().time(), asyncio.get_running_loop().time() - time.time()
        self.view.arrived(np.minimum(times + shift_s, now_s))

    async def _fill_gap(self, now_s: float, ends: Sequence[int]) -> None:
        """Nobody sampled for a while: the records themselves tell when they came."""
        growth, shift_s = self.view.growth, now_s - time.time()
        since_s = (growth.newest_s or now_s) - shift_s
        until_s = now_s - shift_s
        known = (*growth.ends, *[0] * (len(ends) - len(growth.ends)))  # partitions that were added begin at 0
        came = await arrivals_between(
            self.view.context, known, ends, since_s, until_s, partitions=self.source_partitions
        )
        sample_s = self.view.context.settings.arrivals_sample_s
        self.ticks.came(came, known, since_s=since_s, until_s=until_s, sample_s=sample_s, known_s=time.time())
        growth.skip(now_s, ends)
        self.view.arrived(np.array([time_s for time_s, _ in came]) + shift_s)
        gap_s = now_s - shift_s - since_s
        # Nothing is missing and nobody has to act: no warning, least of all from `status` on a busy machine.
        logger.info("no sample of arrivals for %.1f s: %d read from the records", gap_s, len(came))

    def _since_start(self, topic: str, ends: Mapping[str, Sequence[int]]) -> int:
        """Records that have come to a topic; as in `LogGrowth`, an offset that went backwards counts nothing."""
        before, self._ends[topic] = self._ends.get(topic, tuple(ends[topic])), tuple(ends[topic])
        self._grown[topic] += sum(max(0, a - b) for a, b in itertools.zip_longest(ends[topic], before, fillvalue=0))
        return self._grown[topic]

    async def lags(self) -> None:
        """Read the committed offsets of every stage's groups."""
        context, served = self.view.context, self.view.reports.ready_stages()
        for of, offsets, joins in self._classes():
            for stage, history in offsets.items():
                committed = await self.offsets.committed(
                    context.names.group(stage, of), context.topic(stage, of), len(history.ends)
                )
                now_s, passed = asyncio.get_running_loop().time(), [found.offset for found in committed]
                history.committed(now_s, committed, served=stage in served)
                waits = stage in joins and self.view.reports.join_waits(stage)
                for settling in joins.values():
                    settling.committed(now_s, stage, passed, waits=waits)
        for background in self.view.backgrounds.values():
            background.look(asyncio.get_running_loop().time())
        if (now_s := asyncio.get_running_loop().time()) >= self._look_s:
            self._look_s = now_s + self.view.context.settings.topic_check_s
            await self._look_at_topics()

    def _classes(self) -> Iterator[tuple[str, Mapping[str, OffsetHistory], Mapping[str, SettledParts]]]:
        """Yield each class of events with the offsets of its stages and what is settled in its joins."""
        yield "", self.view.offsets, self.view.settling
        for of, of_class in self.view.others.items():
            yield of, of_class.offsets, of_class.settling

    async def _look_at_topics(self) -> None:
        """Find out which partitions the topics were given, and where those between stages begin now."""
        context, view = self.view.context, self.view
        found = await self.offsets.existing(self._topics)
        for of, offsets, _ in self._classes():
            for stage, history in offsets.items():
                topic = context.topic(stage, of)
                if found.get(topic, 0) > self._topics[topic]:
                    logger.info("topic %s has %d partitions now", topic, found[topic])
                (view.others[of] if of else view).grow(stage, found.get(topic, 0))
                if stage not in context.entries_of(of):
                    history.begin((await self.offsets.begins({topic: len(history.ends)}))[topic])
        self._topics |= {topic: max(count, found.get(topic, 0)) for topic, count in self._topics.items()}

    async def letters(self) -> None:
        """Find out how old the oldest dead letter of each stage is, as a share of the time that its topic keeps it."""
        context = self.view.context
        topics = {
            stage: [Names.dead_letters(context.topic(stage, of)) for of in ("", *self.view.others)]
            for stage in self.view.offsets
        }
        there = await self.offsets.existing({topic for of_stage in topics.values() for topic in of_stage})
        kept_s, died_s = await context.kafka.retentions(there), await self.offsets.oldest_s(there)
        now_s = time.time()
        shares = {topic: max(0.0, now_s - died_s[topic]) / kept_s[topic] for topic in died_s.keys() & kept_s.keys()}
        self.view.letter_age_shares = {
            stage: max(shares.get(topic, 0.0) for topic in of_stage) for stage, of_stage in topics.items()
        }

    async def hear(self, reports: TopicFollower) -> None:
        """Take in the reports that have come, waiting for the first."""
        for entry in self.view.context.decoder.decoded(await reports.read(1.0), decode_report):
            report = entry.value
            if report is None or report.stage not in self.view.offsets:
                continue
            if self.view.reports.add(report, asyncio.get_running_loop().time()):
                if entry.record.time_ms < self._began_ms:
                    self.view.reports.had_before(report)
                self.heard(report)
