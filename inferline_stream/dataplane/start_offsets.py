"""Where a run begins: the offsets that a pipeline's groups are given before any replica is granted a partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from inferline_stream.dataplane.routes import input_topic
from inferline_stream.errors import UsageError
from inferline_stream.kafka.committed_offsets import surely_committed
from inferline_stream.kafka.group_offsets import Entry, GroupOffsets
from inferline_stream.kafka.offset_metadata import Committed, decode_metadata, known_partitions
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage

logger = logging.getLogger(__name__)


async def commit_start_offsets(
    bootstrap_servers: str,
    pipeline: Pipeline,
    prefix: str = "",
    start: str = "committed",
    *,
    timeout_s: float = 10.0,
    known: Collection[str] = (),
) -> None:
    """Commit where each stage's group starts, once before any replica is granted a partition.

    Entry stages start where ``start`` says; the other stages at the beginning of their topics. A partition that has a
    committed offset keeps it unless ``start`` is a place of its own: then entry stages are moved. One that has none
    although its stage has worked before stays without: its replica halts it, where going on anywhere would lose events
    or repeat them without a word. Where entry stages are moved, joins forget which events were finished before: those
    come again.

    Args:
        bootstrap_servers: of the cluster.
        pipeline: whose topics exist.
        prefix: of its names.
        start: ``committed`` (where there is no offset, the end), ``earliest``, ``latest``, or an ISO time.
        timeout_s: longest wait for Kafka.
        known: stages that have worked before. Partitions that their topics were given since begin at their beginning.

    Raises:
        UsageError: a start that is none of these.
        Unreachable: Kafka does not answer in time.
    """
    time_ms = _start_time_ms(start)
    names = Names(pipeline.name, prefix)

    async def commit(stage: Stage) -> None:
        topic, name = input_topic(pipeline, names, stage.name), names.group(stage.name)
        async with GroupOffsets(bootstrap_servers, name, topic, timeout_s) as group:
            ask = partial(surely_committed, group.committed) if stage.name in known else group.committed
            committed = await ask(group.partitions)
            if start != "committed":  # what was committed of a topic of the same name that is gone counts for nothing
                committed = {p: entry for p, entry in committed.items() if not group.is_of_another_topic(entry)}
            added = _added(committed, await group.begins())
            if len(stage.after) > 1 and start != "committed":
                await group.commit(await _forgetful(group, committed))
            elif start == "committed" and stage.name in known:
                await group.commit(added)
                if missing := set(group.partitions) - committed.keys() - added.keys():
                    logger.error(
                        "group %s has no offset of %s/%s, which it has read before: halted. Offsets expire where a "
                        "pipeline stood still for days; run with --start earliest, latest or a time",
                        name, topic, ",".join(map(str, sorted(missing))),
                    )  # fmt: skip
            elif stage.after:
                begins = await group.begins()
                await group.commit({p: Committed(begin) for p, begin in begins.items() if p not in committed})
            else:
                offsets = await _entry_offsets(group, start, time_ms, committed)
                wanted = {p: Committed(at) for p, at in offsets.items()}
                await group.commit(wanted if start != "committed" else {**wanted, **added})

    await asyncio.gather(*map(commit, pipeline.stages))  # a leader that is busy for long is taken for dead


def _added(committed: Mapping[int, Entry], begins: Mapping[int, int]) -> dict[int, Committed]:
    """Where to begin with partitions that the topic has been given since its stage last worked."""
    known = known_partitions(committed.values())
    return {p: Committed(begin) for p, begin in begins.items() if p not in committed and 0 < known <= p}


async def _forgetful(group: GroupOffsets, committed: Mapping[int, Entry]) -> dict[int, Committed]:
    """Where a join's group stands, with a note that what is in its topic by now tells nothing of events to come."""
    begins, wanted = await group.begins(), {}
    for partition, end in (await group.ends()).items():
        found = decode_metadata(*committed.get(partition, (begins[partition], "")))
        wanted[partition] = replace(found, forget_below=end)
    return wanted


async def _entry_offsets(
    group: GroupOffsets, start: str, time_ms: int | None, committed: Collection[int]
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
        moment = datetime.fromisoformat(start)
    except ValueError:
        raise UsageError(
            f"start {start!r} is none of committed, earliest, latest or a time such as 2025-11-25T08:00:00+00:00"
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
