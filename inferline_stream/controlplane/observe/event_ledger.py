"""A run's events, accounted for by their ids: entered, reached the sinks, ended without, lost or twice there.

Of a long run these are the newest events (`EndOffsets`), so that memory and time stay bounded; the others are counted.
Each class of events has a ledger of its own. Where offsets of the source are listed, those of the topics of further
classes follow. Of background ones the run answers for as much as the first stages have finished.

Each sink has an account of its own. An event has ended once all of them have a record of it, or know that none comes.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.observe.end_offsets import Begin, LedgerBegin
from inferline_stream.controlplane.observe.sink_account import ENDED, OUT, SinkAccount
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.dataplane.headers import (
    ENDED_AT,
    MOVED_TO_CLASS,
    REASON,
    ReadHeaders,
    bound_id,
    number,
    read_headers,
)
from inferline_stream.dataplane.lineage import root, root_of, share
from inferline_stream.kafka.offset_metadata import Committed, Run, finished_by_all
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.records import Header, Record
from inferline_stream.pipeline.names import event_id_prefix

NO_OUTPUT = frozenset(("skipped", "filtered", MOVED_TO_CLASS))
"""Endings of events that are no misses: the topology, or a stage, says that a sink gets nothing of them, or they have
entered again as events of another class."""

_LONGEST_NAME = 64
"""Bytes of an id that are kept; of a longer one, a digest."""


@dataclass(slots=True)
class EventLedger:
    """Counts by event id. An id made from topic, partition and offset costs three bytes, another one a string; its
    times cost 20 more.

    Args:
        source: what the ids of its events begin with; see `event_id_prefix`.
        first: first offset of each source partition that the run answers for.
        ends: end offset of each.
        live: offset of each from which on events are live traffic. Those before were there already: they are accounted
            for as all others, but their times say nothing of the run. By default every event is live.
        began: first offset of each source partition of the run, where that lies before ``first``. Sink records of
            events from before ``first`` are counted as ``earlier``.
        finished: of each source partition, what had been finished above its first offset when the run began: the run
            does not answer for it.
        moved: headers by which its events are moved to another class.
        topic: the source topic where there are several, to which the ids that producers name are bound; else empty.
    """

    source: str
    first: Sequence[int]
    ends: Sequence[int]
    live: Sequence[int] = ()
    began: Sequence[int] = ()
    finished: Sequence[tuple[Run, ...]] = ()
    moved: Set[Header] = frozenset()
    topic: str = ""
    latencies_s: array[float] = field(default_factory=lambda: array("f"))
    """Of the first record of each event in a sink; of several sinks the last of these records, infinite where one died
    on its way to a sink."""
    entries_s: array[float] = field(default_factory=lambda: array("d"))
    """When those events entered, seconds since the epoch."""
    arrivals_s: array[float] = field(default_factory=lambda: array("d"))
    """Of every record of the source topic, without those that are moved."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why events ended without a sink record."""
    live_reasons: Counter[str] = field(default_factory=Counter)
    """The same of live ones."""
    backlog: int = 0
    """Events that are not live."""
    backlog_done_s: float | None = None
    """When the last of them was done, seconds since the epoch; None before any was."""
    unknown: int = 0
    """Records in sink or completed topic of events that are not this run's."""
    earlier_out: int = 0
    """Sink records of events of the run that are not looked up."""
    earlier_ended: int = 0
    """Other endings of such events."""
    earlier_most: int = 0
    """Of several sinks, records of such events in the one that has most."""
    _entered: list[bytearray] = field(init=False)
    accounts: dict[str, SinkAccount] = field(init=False)
    """By the stage that feeds the sink."""
    _levels: int = field(init=False)
    _named: set[bytes] = field(default_factory=set)
    """Events with an id of their own."""
    _times: dict[bytes, int] = field(default_factory=dict)
    """Where there are several sinks: the place in `latencies_s` by the id of what counts, an event or its result."""
    _given_up: set[bytes] = field(default_factory=set)
    """Where there are several sinks: ids whose reason is counted. They end at each sink, and have one reason."""
    _said: dict[bytes, str] = field(default_factory=dict)
    """Where there are several sinks: the reason that a stage has given, by such an id. Others only skip the event."""
    _old: set[bytes] = field(default_factory=set)
    """Those of them that are not live."""
    others: dict[str, EventLedger] = field(default_factory=dict)
    """Those of further classes, by topic."""
    came_from: EventLedger | None = None
    """Of the class from which a header moves events to this one: what was there before a run was so in both."""
    longer_s: float | None = 0.0
    """How much longer the SLO of its class is than the pipeline's; None of background events."""

    def __post_init__(self) -> None:
        sizes = [max(0, end - first) for first, end in zip(self.first, self.ends, strict=True)]
        self._entered = [bytearray(n) for n in sizes]
        self.reaches(("",))

    def reaches(self, at: Sequence[str], levels: int = 0) -> None:
        """Say at which stages the sinks are that its events may reach.

        Args:
            at: the stages.
            levels: how often events were given many results on their way to what all these sinks get something of: of
                several sinks a latency is of that. See `Shape.counted`.
        """
        self._levels = levels
        self.accounts = {stage: SinkAccount([len(row) for row in self._entered]) for stage in at}

    def entered(self, record: Record) -> None:
        """A record of the source topic; one that came behind the last of the run's is another run's."""
        if record.offset >= self.ends[record.partition]:
            return
        if self.finished and _within(self.finished[record.partition], record.offset):
            return
        name = read_headers(record.headers, entry=True).event_id
        live = not self.live or record.offset >= self.live[record.partition]
        if name is not None and self.came_from is not None:
            live = live and not self.came_from._is_old(name)
        if not live:
            self.backlog += 1
        elif self.moved.isdisjoint(record.headers):
            self.arrivals_s.append(record.time_ms / 1e3)
        if name is not None:
            name = bound_id(self.topic, name) if self.topic else name
            if _kept(name) not in self._named and not live:
                self._old.add(_kept(name))
            self._named.add(_kept(name))
        elif self.first[record.partition] <= record.offset:
            self._entered[record.partition][record.offset - self.first[record.partition]] = 1

    def out(self, record: Record, at: str = "") -> None:
        """A record of the sink of a stage; call `entered` for all of the source before."""
        found = read_headers(record.headers)
        name = root(found.event_id or b"", len(found.of))
        if not self._count(name, [at], OUT, found):
            return
        if self._is_old(name):
            self._old_done(record)
        elif found.entry_us is not None:
            entered_s = found.entry_us / 1e6
            latency_s = max(0.0, record.time_ms / 1e3 - entered_s)
            if len(self.accounts) > 1:
                known = self._times.setdefault(self._counted(found.event_id or b"", found.of), len(self.latencies_s))
                if known < len(self.latencies_s):
                    self.latencies_s[known] = max(self.latencies_s[known], latency_s)
                    return
            self.entries_s.append(entered_s)
            self.latencies_s.append(latency_s)

    def ended(self, record: Record) -> None:
        """A record of the completed topic; call `out` for all of the sinks before."""
        reason = (record.header(REASON) or b"unknown").decode(errors="replace")
        found = read_headers(record.headers)
        name = _root_ended(record)
        at = (record.header(ENDED_AT) or b"").decode(errors="replace").split(",")
        at = [stage for stage in at if stage in self.accounts] or list(self.accounts)
        if not self._count(name, at, ENDED, found._replace(event_id=record.key)):
            return
        kept = self._counted(record.key or b"", found.of)
        if len(self.accounts) > 1:
            if kept in self._given_up:
                return
            if reason in NO_OUTPUT:
                if reason != "skipped":
                    self._said[kept] = reason
                if not self._is_without_output(name):
                    return
                reason = self._said.pop(kept, reason)
            self._given_up.add(kept)
        self.reasons[reason] += 1
        if self._is_old(name):
            self._old_done(record)
        elif (known := self._times.get(kept)) is not None:
            self.latencies_s[known] = math.inf
        else:
            self.live_reasons[reason] += 1

    def _counted(self, name: bytes, of: Sequence[int]) -> bytes:
        """Return what stands for the event whose latency counts, by the id of that or of a result of it."""
        return _kept(root(name, max(0, len(of) - self._levels)))

    def _is_without_output(self, name: bytes) -> bool:
        """Whether an event has ended for every sink, and no record of it is in any."""
        kept, place = _kept(name), None if _kept(name) in self._named else self._looked_up(name)
        every = self.accounts.values()
        return all(each.has(kept, place, ENDED) and not each.has(kept, place, OUT) for each in every)

    def _old_done(self, record: Record) -> None:
        self.backlog_done_s = max(self.backlog_done_s or 0.0, record.time_ms / 1e3)

    @property
    def every(self) -> list[EventLedger]:
        """The ledgers of all classes, this one first."""
        return [self, *self.others.values()]

    @property
    def of_live(self) -> list[EventLedger]:
        """The ledgers of all live classes, this one first."""
        return [self, *(ledger for ledger in self.others.values() if ledger.longer_s is not None)]

    def judged_s(self) -> NDArray[np.float32]:
        """Latencies of all live classes, each less what its class's SLO is longer than the pipeline's."""
        return np.concatenate(
            [np.frombuffer(each.latencies_s, np.float32) - (each.longer_s or 0.0) for each in self.of_live]
        )

    def of(self, name: bytes, at: str = "") -> EventLedger:
        """Return the ledger of the class of a source's event: this one where no further class knows it.

        Args:
            name: its id.
            at: the stage whose sink it has reached, if any.
        """
        reaching = (ledger for ledger in self.others.values() if not at or at in ledger.accounts)
        return next((ledger for ledger in reaching if ledger._knows(name)), self)

    def of_completed(self, record: Record) -> None:
        """A record of the completed topic, of an event of any class."""
        moved = record.header(REASON) == MOVED_TO_CLASS.encode()  # the class that it is of now knows it, too
        (self if moved else self.of(_root_ended(record))).ended(record)

    def _knows(self, name: bytes) -> bool:
        return _kept(name) in self._named or self._place(name) is not None

    def _is_old(self, name: bytes) -> bool:
        """Whether an event of this run was there before it."""
        if not self.backlog:
            return False
        if _kept(name) in self._named:
            return _kept(name) in self._old
        at = self._place(name)
        return at is not None and at[1] < self.live[at[0]]

    @property
    def prefix(self) -> str:
        """What an id begins with that was made from an event's place; partition and offset follow."""
        return f"{self.source}/"

    def _place(self, name: bytes) -> tuple[int, int] | None:
        """Partition and offset of an event in the source topic; None where its id does not say."""
        prefix = self.prefix.encode()
        if not name.startswith(prefix) or len(name) > len(prefix) + _LONGEST_NAME:
            return None
        place, _, rest = name.removeprefix(prefix).partition(b"/")
        partition, offset = number(place, len(self.first) - 1), number(rest, 2**63 - 1)
        return None if partition is None or offset is None else (partition, offset)

    def _looked_up(self, name: bytes) -> tuple[int, int] | None:
        """Partition, and number in it, of an event that entered among those that are looked up; None of another one."""
        where = self._place(name)
        if where is None:
            return None
        partition, at = where[0], where[1] - self.first[where[0]]
        entered = self._entered[partition]
        return (partition, at) if 0 <= at < len(entered) and entered[at] else None

    def _count(self, name: bytes, at: Sequence[str], kind: int, found: ReadHeaders) -> bool:
        """Count one record at the sinks of these stages; whether it is the first of its kind at one of them."""
        kept = _kept(name)
        place = None if kept in self._named else self._looked_up(name)
        if (kept in self._named or place is not None) and self.accounts.keys() >= set(at):
            of_it = share(found.of) if found.of else None
            firsts = [self.accounts[stage].count(kept, place, kind, found.event_id or b"", of_it) for stage in at]
            return any(firsts)
        where = self._place(name)
        if self.began and (where is None or self.began[where[0]] <= where[1] < self.first[where[0]]):
            if kind == OUT:  # an id of the producer's own does not say when its event came
                self.earlier_out += 1
            else:
                self.earlier_ended += 1
        else:
            self.unknown += 1
        return False

    @property
    def earlier_in(self) -> int:
        """Events of the run that are not looked up, by the growth of the source topic."""
        return sum(run.unfinished(first) for run, first in zip(self._of_run, self.first, strict=False))

    @property
    def earlier_backlog(self) -> int:
        """Those of them that were there before the run."""
        ends = zip(self._of_run, self.first, self.live, strict=False)
        return sum(run.unfinished(min(first, live)) for run, first, live in ends)

    @property
    def _of_run(self) -> Iterator[Committed]:
        """Where the run began in each source partition."""
        return map(Committed, self.began, self.finished or itertools.repeat(()))

    @property
    def events_in(self) -> int:
        """Events that entered."""
        return sum(sum(row) for row in self._entered) + len(self._named)

    @property
    def events_out(self) -> int:
        """Events with a record in a sink."""
        every = self.accounts.values()
        placed = (np.logical_or.reduce(rows) for rows in zip(*(each.placed(OUT) for each in every), strict=True))
        named = sum(any(each.has(name, None, OUT) for each in every) for name in self._named)
        return sum(int(row.sum()) for row in placed) + named

    @property
    def duplicated(self) -> int:
        """Records in sinks beyond the first that an event has in each."""
        return sum(each.duplicated for each in self.accounts.values())

    @property
    def apart(self) -> bool:
        """Whether events have many results, each of which counts by itself."""
        return any(each.apart for each in self.accounts.values())

    def lost(self, most: int = 20) -> tuple[int, list[str]]:
        """Events that a sink has neither got nor was to get nothing of, and the ids of the first few."""
        found: dict[bytes, str] = {}
        for stage, account in self.accounts.items():
            at = f" (in the sink of stage {stage})" if len(self.accounts) > 1 else ""
            rows = zip(self._entered, account.placed(OUT), account.placed(ENDED), strict=True)
            for p, (entered, out, ended) in enumerate(rows):
                for offset in np.flatnonzero((np.frombuffer(entered, np.uint8) > 0) & ~out & ~ended):
                    found.setdefault(f"{self.prefix}{p}/{self.first[p] + offset}".encode(), at)
            for name, apart in account.apart.items():
                if apart.seen < 1:
                    found.setdefault(name, f": {apart.seen} of its results{at}")
            for name in self._named:
                if not account.has(name, None, OUT) and not account.has(name, None, ENDED):
                    found.setdefault(name, at)
        return len(found), [name.decode(errors="replace") + why for name, why in itertools.islice(found.items(), most)]


def _root_ended(record: Record) -> bytes:
    """Return the id of the source's event of a record of the completed topic."""
    return root(record.key or b"", len(read_headers(record.headers).of))


async def ledger_begin(offsets: Offsets, context: PipelineContext) -> LedgerBegin:
    """Where a run that starts now begins: at the entry groups' committed offsets, and the other topics' ends.

    The dispatchers of a silent leader go on meanwhile. So it is asked first where the results end: what is not finished
    after that had not come out by then.
    """
    topics = (*context.sinks.values(), context.names.completed)
    ends = await offsets.ends({topic: await offsets.partitions(topic) for topic in topics})
    first = {of: await _committed(offsets, context, of) for of in ("", *context.others)}
    ends |= await offsets.ends({_source(context, of): len(first[of]) for of in ("", *context.live)})
    every = [each for of_class in first.values() for each in of_class]
    began = tuple(each.offset for each in every)
    return LedgerBegin(
        began,
        {stage: ends[sink] for stage, sink in context.sinks.items()},
        ends[context.names.completed],
        tuple(
            offset
            for of, of_class in first.items()
            for offset in (
                ends[_source(context, of)] if of in ("", *context.live) else [each.offset for each in of_class]
            )
        ),
        tuple(each.runs for each in every),
        {of: len(of_class) for of, of_class in first.items()},
    )


async def read_ledger(
    offsets: Offsets,
    context: PipelineContext,
    since: LedgerBegin,
    *,
    to_committed: bool = False,
    begin: Begin | None = None,
) -> EventLedger:
    """Read source, sinks and completed topic from where the run began to their ends now.

    Args:
        offsets: to read them.
        context: names.
        since: where the run began.
        to_committed: answer only for what the entry stages have committed: others may go on writing.
        begin: of the run's beginning and the source's ends, makes where the events begin that are looked up by id; by
            default all of them are. Those before are counted by the growth of the topics.

    Raises:
        Unreachable: Kafka does not answer.
    """
    ends = await offsets.ends(
        {
            **{_source(context, of): len(since.of_class(since.source, of)) for of in ("", *context.live)},
            **{sink: len(since.sinks[stage]) for stage, sink in context.sinks.items()},
            context.names.completed: len(since.completed),
        }
    )
    source: tuple[int, ...] = ()
    for of in ("", *context.others):
        if not to_committed and of in ("", *context.live):
            source = (*source, *ends[_source(context, of)])
            continue
        # Partitions that a topic was given during the run are not looked up.
        committed = (await _committed(offsets, context, of))[: len(since.of_class(since.source, of))]
        source = (*source, *(each.offset for each in committed))
    start = since if begin is None else begin(since, source)
    topics = {of: _source(context, of) for of in ("", *context.others)}
    prefixes = {of: event_id_prefix(topic, await offsets.topic_id(topic)) for of, topic in topics.items()}
    ledgers = {of: _ledger(of, prefix, since, start, source) for of, prefix in prefixes.items()}
    if len(ledgers) > 1:
        for of, each in ledgers.items():
            each.topic = topics[of]
    for of, each in ledgers.items():
        each.reaches(context.sinks_of(of), context.levels_of(of))
    ledger = ledgers.pop("")
    ledger.moved = context.pipeline.moved.keys()
    ledger.others = ledgers
    for of, each in ledger.others.items():
        each.longer_s, each.came_from = context.live.get(of), ledger
    earlier = {stage: sum(ends_then) - sum(since.sinks[stage]) for stage, ends_then in start.sinks.items()}
    ledger.earlier_out, ledger.earlier_most = sum(earlier.values()), max(earlier.values()) if len(earlier) > 1 else 0
    ledger.earlier_ended = sum(start.completed) - sum(since.completed)
    for of, each in {"": ledger, **ledger.others}.items():
        await _read(context, topics[of], each.first, each.ends, each.entered)

    def out(stage: str) -> Callable[[Record], None]:
        return lambda record: ledger.of(root_of(record.headers) or b"", stage).out(record, stage)

    for stage, topic in context.sinks.items():
        await _read(context, topic, start.sinks[stage], ends[topic], out(stage))
    topic = context.names.completed
    await _read(context, topic, start.completed, ends[topic], ledger.of_completed)
    return ledger


def _ledger(of: str, prefix: str, since: LedgerBegin, start: LedgerBegin, ends: Sequence[int]) -> EventLedger:
    """Return an empty ledger of a class."""
    return EventLedger(
        prefix,
        since.of_class(start.source, of),
        since.of_class(ends, of),
        since.of_class(since.live, of),
        () if start is since else since.of_class(since.source, of),
        since.of_class(since.finished, of),
    )


async def _read(
    context: PipelineContext, topic: str, first: Sequence[int], ends: Sequence[int], take: Callable[[Record], None]
) -> None:
    async with context.kafka.follow(topic, dict(enumerate(first))) as follower:
        async for record in follower.until(dict(enumerate(ends))):
            take(record)


def _source(context: PipelineContext, of_class: str) -> str:
    return context.names.topic(of_class) if of_class else context.source


async def _committed(offsets: Offsets, context: PipelineContext, of_class: str = "") -> tuple[Committed, ...]:
    """What every entry stage has finished of a class's source topic."""
    topic = _source(context, of_class)
    partitions = await offsets.partitions(topic)
    committed = [
        await offsets.committed(context.names.group(stage, of_class), topic, partitions)
        for stage in sorted(context.entries_of(of_class))
    ]
    return tuple(map(finished_by_all, zip(*committed, strict=True)))


def _within(runs: Sequence[Run], offset: int) -> bool:
    at = bisect.bisect_right(runs, offset, key=itemgetter(0))
    return at > 0 and offset < runs[at - 1][1]


def _kept(name: bytes) -> bytes:
    """What stands for an id here: producers choose some of them, at any length."""
    return name if len(name) <= _LONGEST_NAME else b"blake2s:" + hashlib.blake2s(name).hexdigest().encode()
