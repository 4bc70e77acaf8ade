"""Where a run begins: the offsets that a pipeline's groups are given before any replica is granted a partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from inferline_stream.dataplane.routes import input_topics
from inferline_stream.errors import UsageError
from inferline_stream.kafka.offset_metadata import (
    Committed,
    Entry,
    decode_metadata,
    encode_metadata,
    finished_by_all,
    finished_by_any,
    known_partitions,
)
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.units import moment_s
from inferline_stream.pipeline.version import Structure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageGroup:
    """Offsets of a stage's group, which has no members, on its input topic."""

    offsets: Offsets
    name: str
    topic: str
    state: TopicState

    @classmethod
    async def of(cls, offsets: Offsets, name: str, topic: str) -> StageGroup:
        """Look at the topic."""
        return cls(offsets, name, topic, await offsets.state(topic))

    @property
    def partitions(self) -> range:
        """Partitions of the topic, by number."""
        return range(self.state.partitions)

    async def committed(self, partitions: Iterable[int]) -> Mapping[int, Entry]:
        """Return what the group has committed, of those partitions that have a committed offset."""
        return await self.offsets.entries(self.name, self.topic, partitions)

    async def begins(self) -> dict[int, int]:
        """Return the first offset of each partition."""
        return dict(enumerate((await self.offsets.begins({self.topic: self.state.partitions}))[self.topic]))

    async def ends(self) -> dict[int, int]:
        """Return the end offset of each partition."""
        return dict(enumerate((await self.offsets.ends({self.topic: self.state.partitions}))[self.topic]))

    async def at(self, time_ms: int) -> dict[int, int]:
        """Return the first offset at or after a time, in ms since the epoch; partitions without one are left out."""
        found = await self.offsets.first_since({self.topic: self.state.partitions}, time_ms)
        return {tp.partition: at.offset for tp, at in found.items()}

    def is_of_another_topic(self, entry: Entry) -> bool:
        """Whether an offset was committed before the topic was deleted and created again."""
        return self.state.replaces(decode_metadata(*entry).topic_id)

    async def commit(self, wanted: Mapping[int, Committed]) -> None:
        """Commit these offsets, with the topic's identity and number of partitions."""
        if wanted:
            now = {p: replace(c, topic_id=self.state.id, partitions=self.state.partitions) for p, c in wanted.items()}
            entries = {p: (each.offset, encode_metadata(each)) for p, each in now.items()}
            await self.offsets.commit(self.name, self.topic, entries)


async def commit_start_offsets(
    bootstrap_servers: str,
    pipeline: Pipeline,
    prefix: str = "",
    start: str = "committed",
    *,
    timeout_s: float = 10.0,
    before: Structure | None = None,
) -> None:
    """Commit where each stage's group starts, once before any replica is granted a partition.

    Entry stages start where ``start`` says; the other stages at the beginning of their topics. A partition that has a
    committed offset keeps it unless ``start`` is a place of its own: then entry stages are moved. One that has none
    although its stage has worked before stays without: its replica halts it, where going on anywhere would lose events
    or repeat them without a word. An entry stage that is new in a pipeline that has worked before starts where those
    that read its topic before stand: an event is finished that all of them have finished. One whose source has become
    another class starts where it stood itself. Where entry stages are moved, joins forget which events were finished
    before: those come again.

    A background topic is read from its beginning, once: ``start`` is about live topics.

    Args:
        bootstrap_servers: of the cluster.
        pipeline: whose topics exist.
        prefix: of its names.
        start: ``committed`` (where there is no offset, the end), ``earliest``, ``latest``, or an ISO time.
        timeout_s: longest wait for Kafka.
        before: the pipeline when it last worked. Partitions that the topics of its stages were given since begin at
            their beginning.

    Raises:
        UsageError: a start that is none of these, or where a new entry stage starts is not known.
        Unreachable: Kafka does not answer in time.
    """
    time_ms = _start_time_ms(start)
    names = Names(pipeline.name, prefix)

    async def commit_background(group: StageGroup, *, again: bool) -> None:
        committed, begins = await group.committed(group.partitions), await group.begins()
        added = _added(committed, begins)
        await group.commit(added if again else {p: Committed(at) for p, at in begins.items() if p not in committed})
        if missing := set(group.partitions) - committed.keys() - added.keys() if again else ():
            _say_missing(group, missing)

    async def commit(offsets: Offsets, stage: Stage) -> None:
        topics = input_topics(pipeline, names, stage.name)
        for source, topic in zip((pipeline.source, *pipeline.others), topics, strict=True):
            of = "" if source is pipeline.source else source.name
            enters = source.name if pipeline.enters(stage, source) else ""
            again = before is not None and before.read_by(stage.name, of) == enters
            group = await StageGroup.of(offsets, names.group(stage.name, of), topic)
            if source.background:
                await commit_background(group, again=again)
            else:
                await commit_live(group, stage, of, enters, again=again)

    async def commit_live(group: StageGroup, stage: Stage, of: str, enters: str, *, again: bool) -> None:
        committed = await group.committed(group.partitions)
        if start != "committed":  # what was committed of a topic of the same name that is gone counts for nothing
            committed = {p: entry for p, entry in committed.items() if not group.is_of_another_topic(entry)}
        added = _added(committed, await group.begins())
        if stage.is_join and start != "committed":
            await group.commit(await _forgetful(group, committed))
        elif start == "committed" and again:
            await group.commit(added)
            if missing := set(group.partitions) - committed.keys() - added.keys():
                _say_missing(group, missing)
        elif not enters:
            begins = await group.begins()
            await group.commit({p: Committed(begin) for p, begin in begins.items() if p not in committed})
        elif start == "committed" and before is not None and (not of or before.readers(enters)):
            left, own = await _left(group, names, before, stage.name, enters), await _own(group, committed)
            await group.commit(_joined(stage.name, group.topic, group.partitions, left, own))
        else:
            first = await _entry_offsets(group, start, time_ms, committed)
            wanted = {p: Committed(at) for p, at in first.items()}
            await group.commit(wanted if start != "committed" else {**wanted, **added})

    async with Offsets(bootstrap_servers, timeout_s) as offsets:
        # All at once: a leader that is busy for long is taken for dead.
        await asyncio.gather(*(commit(offsets, stage) for stage in pipeline.stages))


def _say_missing(group: StageGroup, partitions: Collection[int]) -> None:
    logger.error(
        "group %s has no offset of %s/%s, which it has read before: halted. Offsets expire where a pipeline stood "
        "still for days; set an offset of the group, or for the live topic run with --start earliest, latest or a time",
        group.name, group.topic, ",".join(map(str, sorted(partitions))),
    )  # fmt: skip


def has_read(before: Structure, pipeline: Pipeline) -> frozenset[str]:
    """Return the stages of a pipeline whose groups have read the topics already that they read now."""
    inner = before.edges.keys() - set(before.entries)

    def read(stage: Stage) -> bool:
        source = stage.source or pipeline.source
        of = "" if source is pipeline.source else source.name
        return stage.name in inner if stage.after else before.read_by(stage.name, of) == source.name

    return frozenset(stage.name for stage in pipeline.stages if read(stage))


async def _left(group: StageGroup, names: Names, before: Structure, stage: str, source: str) -> Mapping[int, Committed]:
    """Return what a stage had finished of a source topic as another class, or what all that read it had.

    Only partitions count that each of them knows; there are none where nobody read the topic.
    """
    known, readers, of = [], before.readers(source), before.class_of(source)
    for reader in (stage,) if stage in readers else readers:
        former = replace(group, name=names.group(reader, of))
        known.append(await _own(former, await former.committed(former.partitions)))
    partitions = set.intersection(*(set(own) for own in known)) if known else set[int]()
    return {p: finished_by_all([own[p] for own in known]) for p in partitions}


def _joined(
    stage: str, topic: str, partitions: Collection[int], left: Mapping[int, Committed], own: Mapping[int, Committed]
) -> dict[int, Committed]:
    """Return where a new entry stage begins: where those of before stand, or further on where it has been there itself.

    It has, if it was renamed and named back, or if a controller died before it had written the new structure down.
    """
    if missing := set(partitions) - left.keys() - own.keys():
        raise UsageError(
            f"Stage {stage!r} has not read topic {topic} before, and where the first stages of before stand is not "
            f"known of partitions {','.join(map(str, sorted(missing)))}: say with --start earliest, latest or a time "
            "where to begin"
        )
    return {p: finished_by_any([each[p] for each in (left, own) if p in each]) for p in partitions}


async def _own(group: StageGroup, committed: Mapping[int, Entry]) -> dict[int, Committed]:
    """Return where a group stands in its topic as it is, partitions included that the topic has been given since."""
    valid = {p: entry for p, entry in committed.items() if not group.is_of_another_topic(entry)}
    return _added(valid, await group.begins()) | {p: decode_metadata(*entry) for p, entry in valid.items()}


def _added(committed: Mapping[int, Entry], begins: Mapping[int, int]) -> dict[int, Committed]:
    """Where to begin with partitions that the topic has been given since its stage last worked."""
    known = known_partitions(committed.values())
    return {p: Committed(begin) for p, begin in begins.items() if p not in committed and 0 < known <= p}


async def _forgetful(group: StageGroup, committed: Mapping[int, Entry]) -> dict[int, Committed]:
    """Where a join's group stands, with a note that what is in its topic by now says nothing of events to come."""
    begins, wanted = await group.begins(), {}
    for partition, end in (await group.ends()).items():
        found = decode_metadata(*committed.get(partition, (begins[partition], "")))
        wanted[partition] = replace(found, forget_below=end)
    return wanted


async def _entry_offsets(
    group: StageGroup, start: str, time_ms: int | None, committed: Collection[int]
) -> dict[int, int]:
    if start == "earliest":
        return await group.begins()
    ends = await group.ends()
    if start == "latest":
        return ends
    if time_ms is None:
        return {p: end for p, end in ends.items() if p not in committed}
    return {**ends, **await group.at(time_ms)}


def check_start(start: str) -> None:
    """Refuse a start that no group could begin at.

    Raises:
        UsageError: neither ``committed``, ``earliest``, ``latest`` nor an ISO time.
    """
    _start_time_ms(start)


def _start_time_ms(start: str) -> int | None:
    if start in ("committed", "earliest", "latest"):
        return None
    try:
        return round(moment_s(start) * 1000)
    except ValueError as error:
        raise UsageError(f"start {start!r} is none of committed, earliest, latest or a time: {error}") from None
