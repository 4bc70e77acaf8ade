"""One compiled step of the pipeline under control: the Estimator's kernels, stage by stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import (
    Account,
    Joining,
    Queue,
    Service,
    Sources,
    Tokens,
    Varying,
    delay,
    merge,
    record_latencies,
)
from inferline_stream.estimator.numba_kernels import compiled, sources_version
from inferline_stream.estimator.shared_queue import SharedState, serve_choosing, serve_shared
from inferline_stream.replay.tables import Tables

Advance = Callable[[Tables, tuple[int, int], float, float, float], None]
"""(tables, (first, end), until_s, hop_s, slo_s): everything that happens before ``until_s``, that instant excluded, at
the stages between ``first`` and ``end``, what ``first`` sends, and what ``end`` receives; either may be no stage."""

_USED = ("merge", "delay", "serve_shared", "serve_choosing", "record_latencies")


@functools.cache
def advance() -> Advance:
    """The compiled step: imports numba; compiling takes some seconds once per installation."""
    from numba import njit

    scope: dict[str, Any] = dict(globals())
    scope.update({name: getattr(compiled(), name) for name in _USED})
    step = FunctionType(_advance.__code__, scope, "advance")
    # numba's cache notices changes of this file alone: the name says which kernels were compiled into it.
    step.__qualname__ = "advance_" + sources_version()
    step.__module__ = __name__
    compiled_step: Advance = njit(nogil=True, cache=True, error_model="numpy")(step)
    return compiled_step


def _advance(x: Tables, stretch: tuple[int, int], until_s: float, hop_s: float, slo_s: float) -> None:
    """See `Advance`. Compiled with the Estimator's kernels in their compiled form."""
    queues, events = x.arrived.shape
    stages = x.source_count.size
    differ = x.extra_s.size > 0
    sent_flat = x.sent.reshape(-1)
    sent_event_flat = x.sent_event.reshape(-1)
    for s in range(max(stretch[0], 0), min(stretch[1] + 1, stages)):
        first = x.queues[s, 0]
        end = x.queues[s, 1]
        if s > stretch[0]:
            # Arrivals: events that enter, what the only parent sends, or what a join makes of its parents'.
            before = x.arrived_count[s]
            n = before
            sources = x.source_count[s]
            if sources == 0 and differ:
                known = x.entered[s]
                entered = known
                while entered < x.entering[s] and x.entry_s[entered] < until_s:
                    entered += 1
                entering = Tokens(x.entry_s[known:entered].copy(), np.arange(known, entered).astype(np.int32))
                on_the_way = Tokens(x.arrived[s, n:], x.arrived_event[s, n:])
                n += delay(entering, x.hop_keys[0, s], x.extra_s, on_the_way, (known - n, until_s))[0]
                x.entered[s] = entered
            elif sources == 0:
                while n < x.entering[s] and x.entry_s[n] < until_s:
                    x.arrived[s, n] = x.entry_s[n]
                    x.arrived_event[s, n] = n
                    n += 1
            elif x.whole[s]:
                row = x.source_rows[s, 0]
                while n < x.sent_count[row]:
                    x.arrived[s, n] = x.sent[row, n]
                    x.arrived_event[s, n] = x.sent_event[row, n]
                    n += 1
            else:
                begin = np.empty(sources, np.int64)
                ends = np.empty(sources, np.int64)
                for k in range(sources):
                    row = x.source_rows[s, k]
                    begin[k] = row * events + x.taken[s, k]
                    ends[k] = row * events + x.sent_count[row]
                skip = queues + s
                skipped = x.sent_count[skip]
                arrived, skips = merge(
                    Sources(sent_flat, sent_event_flat, begin, ends, until_s),
                    Joining(x.masks, x.admits[s, :sources], x.needed[s], x.visits[s], x.skips[s] > 0, x.seen[s], hop_s),
                    Tokens(x.arrived[s, n:], x.arrived_event[s, n:]),
                    Tokens(x.sent[skip, skipped:], x.sent_event[skip, skipped:]),
                )
                for k in range(sources):
                    x.taken[s, k] = begin[k] - x.source_rows[s, k] * events
                n += arrived
                x.sent_count[skip] += skips
            x.arrived_count[s] = n
            if first != s:  # each goes to its slot's queue
                for i in range(before, n):
                    event = x.arrived_event[s, i]
                    row = first + np.int64(x.slot_of[s, event])
                    x.arrived[row, x.arrived_count[row]] = x.arrived[s, i]
                    x.arrived_event[row, x.arrived_count[row]] = event
                    x.arrived_count[row] += 1
            if s == stretch[1]:
                break
            # Service.
            kinds = x.kinds[s]
            rows = x.rows[s]
            drawn = rows if x.varies[s] else 0
            varying = Varying(
                x.fixed_s[s, :drawn], x.per_unit_s[s, :drawn], x.factors[s, :drawn], x.units[s], x.largest[s]
            )
            lots = x.lots[s, : x.lots.shape[1] if x.varies[s] else 0]
            service = Service(x.limits[s, :kinds], x.table[s, :rows], varying, lots, x.hold_s[s], hop_s, slo_s)
            account = Account(x.batches[s, :rows], x.totals[s])
            for q in range(first, end):
                if x.marks[q, 1] == 0:
                    continue
                gone = x.sent_count[q]
                queue = Queue(x.arrived[q], x.arrived_event[q], x.arrived_count[q], 0, until_s, x.entry_s)
                state = SharedState(
                    x.marks[q], x.clock[q], x.ring_time[q], x.ring_start[q], x.ring_size[q], x.ring_kind[q]
                )
                out = Tokens(x.sent[q, gone:], x.sent_event[q, gone:])
                if kinds > 1:
                    x.sent_count[q] += serve_choosing(queue, service, account, state, out)
                else:
                    x.sent_count[q] += serve_shared(queue, service, account, state, out)
        while first != s:  # of several slots what left first, of equal times the lower slot's
            next_q = -1
            next_s = math.inf
            for q in range(first, end):
                if x.passed_on[q] < x.sent_count[q] and x.sent[q, x.passed_on[q]] < next_s:
                    next_q = q
                    next_s = x.sent[q, x.passed_on[q]]
            if next_q < 0:
                break
            x.sent[s, x.sent_count[s]] = next_s
            x.sent_event[s, x.sent_count[s]] = x.sent_event[next_q, x.passed_on[next_q]]
            x.passed_on[next_q] += 1
            x.sent_count[s] += 1
        # Departures since the last step, as they count as sent; the final stage's have reached the sink.
        before = x.passed_on[s]
        x.passed_on[s] = x.sent_count[s]
        sent = Tokens(x.sent[s, before : x.sent_count[s]], x.sent_event[s, before : x.sent_count[s]])
        if differ:
            row = queues + stages + s
            n = x.sent_count[row]
            on_the_way = Tokens(x.sent[row, n:], x.sent_event[row, n:])
            x.sent_count[row] += delay(sent, x.hop_keys[1, s], x.extra_s, on_the_way, (before - n, until_s))[0]
            sent = Tokens(x.sent[row, n : x.sent_count[row]], x.sent_event[row, n : x.sent_count[row]])
        if x.final[s]:
            record_latencies(sent, x.entry_s, hop_s, x.latency_s)
