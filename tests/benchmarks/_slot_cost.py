"""What a slot's decisions cost a record: the machine without IO, flat out, in virtual time."""

from __future__ import annotations

import time
from collections import deque

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.frames import Answer, Batch, Call, Done, Results
from inferline_stream.kafka.records import Record
from tests.unit.dataplane.dispatcher.doubles import WALL_S, Entry, PlayedSlot

FETCH, KEYS, REPLICAS = 500, 1000, 4


def slot_us(records: int, batch: int, *, keyed: bool, transactional: bool = False) -> float:
    """Return the CPU time of all calls of `Slot.on` for a record, in µs.

    Args:
        records: that it takes in, 1 KB each, as fast as it can: replicas and Kafka answer at once.
        batch: limit of a batch.
        keyed: whether they have keys, and so an order.
        transactional: whether it is exactly once.
    """
    played = PlayedSlot({0: (0, "")}, transactional=transactional, limit=batch)
    played.begin()
    played.plan(limit=batch, service_s={1: 0.001, 64: 0.01})
    for number in range(REPLICAS):
        played.attached(f"r{number}")
    stamp_ms, value = round((played.now_s + WALL_S) * 1000), b"x" * 1000
    log = [Record(b"%d" % (at % KEYS) if keyed else None, value, (), stamp_ms, "in", 0, at) for at in range(records)]
    slot, now_s, timer_s, took_s = played.slot, played.now_s, None, 0.0
    answers = deque[on.SlotEvent]()
    committing: dict[int, Entry] = {}
    committed = read = 0
    while committed < records:
        now_s += 1e-5
        played.lease.renew(now_s)
        if answers:
            event = answers.popleft()
            if type(event) is on.OffsetsCommitted:
                committed = committing[0][0]
        elif timer_s is not None and timer_s <= now_s:
            event, timer_s = on.Time(), None
        elif read < records and 0 not in slot.full():
            fetched, read = log[read : read + FETCH], min(records, read + FETCH)
            event = on.RecordsRead({0: fetched}, {0: read}, {}, now_s + WALL_S)
        else:
            assert timer_s is not None, "the slot waits for nothing"
            now_s = max(now_s, timer_s)
            continue
        began_s = time.process_time()
        actions = slot.on(event, now_s)
        took_s += time.process_time() - began_s
        for action in actions:
            match action:
                case on.SendFrame(name, Batch(epoch=epoch, batch=number, inputs=inputs)):
                    outcomes: list[Answer] = [Done(value, 0)] * len(inputs)
                    answers.append(on.Heard(name, Results(epoch, number, outcomes, [Call(len(inputs), 0.001)], 0.001)))
                case on.Produce():
                    answers.append(on.Produced())
                case on.Commit(entries):
                    committing = committing | dict(entries)
                    answers.append(on.OffsetsCommitted())
                case on.LookUp():
                    answers.append(on.FoundCommitted(dict(committing)))
                case on.WakeAt(at_s):
                    timer_s = at_s
    return took_s / records * 1e6
