"""Traffic envelope: the most arrivals in any window of a length, exact, over the recent past or a whole trace.

InferLine (SoCC 2020) §5. It is an empirical arrival curve in the sense of network calculus
(`calculus.curves`). A window of length w is half-open: arrivals i ≤ k lie in one window if t_k − t_i < w.

How it stays fast. Arrivals are kept in order of time and grouped into blocks of `BLOCK`. For each window
length a block holds the largest count of arrivals in a window that ends at one of its arrivals. While a
block fills, only that maximum M matters: arrival k exceeds it iff t[k] − t[k − M] < w, one comparison
(and counts grow by at most 1 from one arrival to the next, so M grows by 1). The blocks whose maximum no later
block reaches form a queue with falling maxima; its head is the answer. A block that the span has partly
left behind is looked through again. What remains is the window at the edge of the span: it holds the
first arrivals inside it, and no arrival from before it. Each window has its own span.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from inferline_stream.calculus.envelope_state import BLOCK, Counts, EnvelopeKernel, EnvelopeState, Times
from inferline_stream.pipeline.trace import Trace

_LARGE = 16 * BLOCK

LONGEST_WINDOW_S = 60.0
"""The paper's longest window: it shows the mean rate."""


def windows_s(shortest_s: float) -> tuple[float, ...]:
    """Window lengths T_s·2^i below the longest, then the longest itself (InferLine §5).

    Args:
        shortest_s: T_s, the pipeline's service time at batch 1.

    Raises:
        ValueError: a shortest window not above 0.
    """
    if not (shortest_s > 0 and math.isfinite(shortest_s)):
        raise ValueError(f"windows from {shortest_s} s to {LONGEST_WINDOW_S} s: both must be finite and above 0")
    lengths = itertools.takewhile(lambda w: w < LONGEST_WINDOW_S, (shortest_s * 2.0**i for i in itertools.count()))
    return (*lengths, LONGEST_WINDOW_S)


def trace_envelope(trace: Trace, windows: Sequence[float]) -> tuple[tuple[float, int], ...]:
    """(window_s, most arrivals in any such window of the whole trace), in the order of ``windows``."""
    times = trace.arrivals_s
    counts: dict[float, int] = {}
    shorter_s, least, most = 0.0, min(1, times.size), int(times.size)
    for window_s in sorted(windows):
        # A window holds what a shorter one does, and no more than as many of those as cover it (one for rounding).
        at_most = min(most, (math.ceil(window_s / shorter_s) + 1) * least) if shorter_s else most
        least = counts[window_s] = _most_in_window(times, window_s, least, at_most)
        shorter_s = window_s
    return tuple((w, counts[w]) for w in windows)


def _most_in_window(times: Times, window_s: float, least: int, most: int) -> int:
    """Largest count by bisecting on it: counts above m exist iff some t[k] − t[k − m] < w, and only at such k."""
    ends: Counts | None = None
    while least < most:
        middle = min((least + most) // 2, 2 * least)
        if ends is None:
            short = np.flatnonzero(times[middle:] - times[:-middle] < window_s) + middle
        else:
            short = ends[ends >= middle]
            short = short[times[short] - times[short - middle] < window_s]
        if short.size:
            least = middle + 1
            ends = short if short.size < times.size // 16 else None  # many are looked at faster one after another
        else:
            most = middle
    return least


class TrafficEnvelope:
    """The most arrivals in any window within the recent past, updated by blocks of arrivals.

    Args:
        windows_s: window lengths, seconds.
        span_s: how far the past reaches, or how far for each window; no window is longer.
        kernel: `compiled_kernel()` or, by default, NumPy; both give the same counts.

    Raises:
        ValueError: a window not above 0 or longer than the span.
    """

    def __init__(
        self,
        windows_s: Sequence[float],
        span_s: float | Sequence[float] = LONGEST_WINDOW_S,
        kernel: EnvelopeKernel | None = None,
    ) -> None:
        spans_s = np.broadcast_to(np.asarray(span_s, np.float64), len(windows_s)).copy()
        if not all(0 < w <= span for w, span in zip(windows_s, spans_s, strict=True)):
            raise ValueError(f"windows {tuple(windows_s)} s must be above 0 and at most the span of {span_s} s")
        self.span_s = float(spans_s.max())
        self._kernel: EnvelopeKernel = NumpyKernel() if kernel is None else kernel
        self._now_s = self._newest_s = -math.inf
        windows = len(windows_s)
        self._counts = np.zeros(windows, np.int64)
        self._state = EnvelopeState(
            windows=np.array(windows_s, np.float64),
            spans=spans_s,
            times=np.empty(4 * BLOCK),
            marks=np.zeros(2, np.int64),
            block_most=np.zeros((windows, 4), np.int64),
            queue=np.zeros((windows, 4), np.int64),
            heads=np.zeros(windows, np.int64),
            tails=np.zeros(windows, np.int64),
            firsts=np.zeros(windows, np.int64),
            edges=np.zeros(windows, np.int64),
        )

    @property
    def windows_s(self) -> tuple[float, ...]:
        """Window lengths in the order of the counts."""
        return tuple(self._state.windows.tolist())

    @property
    def latest_s(self) -> float:
        """The latest arrival or query; −∞ before the first."""
        return self._now_s

    def use(self, kernel: EnvelopeKernel) -> None:
        """Go on with another kernel; nothing is lost."""
        self._kernel = kernel

    def add(self, times_s: Times) -> None:
        """Take in arrivals.

        Args:
            times_s: ascending, seconds, shape (arrivals,). They may be older than those already
                seen: late arrivals count in their place, if the span still holds it.
        """
        size = times_s.size
        if not size:
            return
        latest_s = float(times_s[-1])
        kept = int(self._state.marks[0])
        if times_s[0] < self._newest_s:
            times_s = self._unwound(times_s)
            kept, size = int(self._state.marks[0]), times_s.size
        if kept + size > self._state.times.size:
            self._make_room(size)
            kept = int(self._state.marks[0])
        state = self._state
        state.times[kept : kept + size] = times_s
        state.marks[0] = kept + size
        self._newest_s = max(self._newest_s, latest_s)
        self._now_s = max(self._now_s, latest_s)
        self._kernel.extend(state, kept)
        if size > _LARGE:
            # The span's start has moved far: find it now, where that costs next to nothing per arrival.
            self._kernel.query(state, self._now_s, self._counts)

    def counts(self, now_s: float | None = None) -> Counts:
        """Most arrivals in any window inside (now − span, now], by window; valid until the next call.

        Args:
            now_s: the present; the latest arrival if None. Never moves backwards.
        """
        if now_s is not None and now_s > self._now_s:
            self._now_s = now_s
        self._kernel.query(self._state, self._now_s, self._counts)
        return self._counts

    def count_since(self, since_s: float) -> int:
        """Arrivals at or after ``since_s``, which must lie inside the longest span."""
        kept = int(self._state.marks[0])
        return kept - int(self._state.times[:kept].searchsorted(since_s, side="left"))

    def ranks(self, times_s: Times) -> Counts:
        """Kept arrivals at or before each of these times, counted from an arbitrary one: differences count arrivals."""
        return self._state.times[: int(self._state.marks[0])].searchsorted(times_s, side="right")

    def _unwound(self, late: Times) -> Times:
        """Forget the kept arrivals after the first late one; return them merged with the late ones."""
        state = self._state
        kept = int(state.marks[0])
        late = late[self._now_s - late < self.span_s]
        if not late.size:
            return late
        # From the start of the block that the first late one falls into: its maximum has to be found again.
        keep = int(np.searchsorted(state.times[:kept], late[0], side="right")) // BLOCK * BLOCK
        merged = np.sort(np.concatenate([state.times[keep:kept], late]), kind="stable")
        # What is inside a span, and each window's edge, only moves back by what is put in before it.
        state.marks[:] = keep, keep // BLOCK
        self._requeue()
        return merged

    def _make_room(self, size: int) -> None:
        """Drop whole blocks that no window inside its span reaches; grow if that is not enough."""
        state = self._state
        kept, blocks = (int(mark) for mark in state.marks)
        oldest_s = self._now_s - self.span_s - float(state.windows.max(initial=0.0))
        gone = int(np.searchsorted(state.times[:kept], oldest_s, side="left")) // BLOCK
        needed = kept - gone * BLOCK + size
        # Twice what is needed: what is moved now was paid for by as many arrivals since the last move.
        capacity = -(-max(state.times.size, 2 * needed) // BLOCK) * BLOCK
        times = np.empty(capacity)
        times[: kept - gone * BLOCK] = state.times[gone * BLOCK : kept]
        most = np.zeros((len(state.windows), capacity // BLOCK), np.int64)
        most[:, : blocks - gone] = state.block_most[:, gone:blocks]
        state.marks[:] -= (gone * BLOCK, gone)
        np.maximum(state.firsts - gone * BLOCK, 0, out=state.firsts)
        np.maximum(state.edges - gone * BLOCK, 0, out=state.edges)
        self._state = state._replace(times=times, block_most=most, queue=np.zeros_like(most))
        self._requeue()

    def _requeue(self) -> None:
        """Build the queues of falling maxima again from the blocks' maxima."""
        state = self._state
        blocks = int(state.marks[1])
        state.heads[:] = 0
        for window, most in enumerate(state.block_most[:, :blocks]):
            # A block stays if it exceeds every later one.
            later = np.maximum.accumulate(most[::-1])[::-1]
            stays = np.flatnonzero(most[:-1] > later[1:]) if blocks > 1 else np.empty(0, np.int64)
            queue = np.append(stays, blocks - 1) if blocks else stays
            state.queue[window, : queue.size] = queue
            state.tails[window] = queue.size


class NumpyKernel:
    """The loops without compilation: slower per arrival, ready at once."""

    @staticmethod
    def extend(state: EnvelopeState, first: int, /) -> None:
        """See `EnvelopeKernel.extend`."""
        kept = int(state.marks[0])
        while first < kept:
            block = first // BLOCK
            end = min((block + 1) * BLOCK, kept)
            most = state.block_most[:, block]
            if first % BLOCK == 0:
                most[:] = 1
            if end - first > _SAMPLED:
                # A good first guess from a few arrivals leaves few of the others to be counted.
                _raise_most(state, most, np.arange(first, end, _SAMPLED))
            _raise_most(state, most, np.arange(first, end))
            state.marks[1] = block + 1
            for window, value in enumerate(most.tolist()):
                _enqueue(state, window, block, value)
            first = end

    @staticmethod
    def query(state: EnvelopeState, now_s: float, counts: Counts, /) -> None:
        """See `EnvelopeKernel.query`."""
        kept = int(state.marks[0])
        if not kept:
            counts[:] = 0
            return
        times = state.times[:kept]
        firsts = _first_inside(times, now_s, state.spans)
        edges = _first_beyond(times, times[np.minimum(firsts, kept - 1)], state.windows)
        state.firsts[:], state.edges[:] = firsts, edges
        counts[:] = edges - firsts
        heads, tails = state.heads, state.tails
        lanes = np.arange(edges.size)
        while (passed := (state.queue[lanes, heads % state.queue.shape[1]] + 1) * BLOCK <= edges).any():
            passed &= heads < tails
            if not passed.any():
                break
            heads += passed
        blocks = state.queue[lanes, heads % state.queue.shape[1]]
        seen = (heads < tails) & (edges < kept)
        whole = seen & (blocks * BLOCK >= edges)
        np.maximum(counts, state.block_most[lanes, blocks], out=counts, where=whole)
        for window in np.flatnonzero(seen & ~whole).tolist():
            counts[window] = _most_of_rest(state, window, int(counts[window]))


_SAMPLED = 16


def _raise_most(state: EnvelopeState, most: Counts, ends: Counts) -> None:
    """Raise each window's maximum to the largest count of a window that ends at one of these arrivals."""
    times = state.times
    starts = ends[None, :] - most[:, None]
    longer = (times[ends][None, :] - times[np.maximum(starts, 0)] < state.windows[:, None]) & (starts >= 0)
    window, column = np.nonzero(longer)
    if window.size:
        np.maximum.at(most, window, _counts_at(times, ends[column], state.windows[window]))


def _counts_at(times: Times, ends: Counts, windows: Times) -> Counts:
    """Arrivals i ≤ k with t[k] − t[i] < w, for each k of ``ends`` and w of ``windows``."""
    last = times[ends]
    start = np.minimum(np.searchsorted(times[: int(ends.max()) + 1], last - windows, side="right"), ends)
    # last − w was rounded: move to where the difference itself is below w.
    while (longer := (start > 0) & (last - times[np.maximum(start - 1, 0)] < windows)).any():
        start -= longer
    while (shorter := last - times[start] >= windows).any():
        start += shorter
    return np.asarray(ends - start + 1, np.int64)


def _enqueue(state: EnvelopeState, window: int, block: int, value: int) -> None:
    """Put a block at the queue's end, or leave it there, and drop the blocks before it that it reaches."""
    queue, most = state.queue[window], state.block_most[window]
    head, tail = int(state.heads[window]), int(state.tails[window])
    while tail > head and (queue[tail - 1] == block or most[queue[tail - 1]] <= value):
        tail -= 1
    queue[tail] = block
    state.tails[window] = tail + 1


def _first_inside(times: Times, now_s: float, spans_s: Times) -> Counts:
    """For each span the first arrival with now − t < span."""
    first, last = np.searchsorted(times, now_s - spans_s, side="right"), times.size - 1
    # now − span was rounded: move to where the difference itself is below the span.
    while (early := (first > 0) & (now_s - times[np.maximum(first - 1, 0)] < spans_s)).any():
        first -= early
    while (late := (first <= last) & (now_s - times[np.minimum(first, last)] >= spans_s)).any():
        first += late
    return first


def _first_beyond(times: Times, origin_s: Times, lengths_s: Times) -> Counts:
    """For each length, and its origin, the first arrival with t − origin ≥ length."""
    first = np.searchsorted(times, origin_s + lengths_s, side="left")
    # origin + length was rounded: move to where the difference itself reaches the length.
    while (early := times[first - 1] - origin_s >= lengths_s).any():
        first -= early
    last = times.size - 1
    while (late := (times[np.minimum(first, last)] - origin_s < lengths_s) & (first <= last)).any():
        first += late
    return first


def _most_of_rest(state: EnvelopeState, window: int, at_least: int) -> int:
    """The largest count in what is left of the queue, whose first block the span has partly left behind."""
    times, kept, edge = state.times, int(state.marks[0]), int(state.edges[window])
    head, length_s = int(state.heads[window]), float(state.windows[window])
    block = int(state.queue[window, head])
    most = at_least
    if head + 1 < int(state.tails[window]):
        most = max(most, int(state.block_most[window, state.queue[window, head + 1]]))
    ends = np.arange(max(edge, most), min((block + 1) * BLOCK, kept))
    ends = ends[times[ends] - times[ends - most] < length_s]
    return int(_counts_at(times, ends, np.full(ends.size, length_s)).max()) if ends.size else most


@cache
def compiled_kernel() -> EnvelopeKernel:
    """The loops as machine code: imports numba, and compiles on first use after an install (seconds)."""
    from inferline_stream.calculus import envelope_kernel

    return envelope_kernel.CompiledKernel()
