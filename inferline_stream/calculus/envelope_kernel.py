"""The loops of the traffic envelope as machine code. Imported only by `envelope.compiled_kernel`.

`calculus.envelope` describes the algorithm; `extend` and `query` here are its plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from inferline_stream.calculus.envelope_state import BLOCK, Counts, EnvelopeState, Times

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """The function as machine code, with its type kept for the type checker."""
    return cast("_Function", njit(nogil=True, cache=True, error_model="numpy")(function))


@_compiled
def _first_short(times: Times, last: int, length_s: float, guess: Any) -> int:
    """First arrival i with t[last] − t[i] < length, by strides that double from a guess."""
    t = times[last]
    low: int = min(max(guess, 0), last)
    high = last  # the answer is in [low, high] once t[low − 1] is too far
    stride = 1
    while low > 0 and t - times[low - 1] < length_s:
        high = low - 1
        low = max(low - 1 - stride, 0)
        stride *= 2
    while low < high:
        middle = (low + high) // 2
        if t - times[middle] < length_s:
            high = middle
        else:
            low = middle + 1
    return low


@_compiled
def extend(state: EnvelopeState, first: int) -> None:
    """See `EnvelopeKernel.extend`."""
    windows, times = state.windows, state.times
    kept = state.marks[0]
    k = first
    while k < kept:
        block = k // BLOCK
        end = min((block + 1) * BLOCK, kept)
        for w in range(windows.size):
            length_s = windows[w]
            i = k
            most = state.block_most[w, block]
            if k % BLOCK == 0:
                guess = state.block_most[w, block - 1] if block > 0 else np.int64(1)
                most = k - _first_short(times, k, length_s, k - guess + 1) + 1
                i = k + 1
            while i < end:
                # A count grows by at most 1 per arrival, so most is never below the count before this one.
                if i >= most and times[i] - times[i - most] < length_s:
                    most += 1
                i += 1
            state.block_most[w, block] = most
            head, tail = state.heads[w], state.tails[w]
            while tail > head and (
                state.queue[w, tail - 1] == block or state.block_most[w, state.queue[w, tail - 1]] <= most
            ):
                tail -= 1
            state.queue[w, tail] = block
            state.tails[w] = tail + 1
        state.marks[1] = block + 1
        k = end


@_compiled
def _first_reaching(times: Times, low: int, origin_s: float, length_s: float, moved: int) -> int:
    """First arrival from ``low`` on with t − origin ≥ length; expected about ``moved`` after ``low``."""
    high = times.size
    near = min(low + moved, high)
    stride = 8
    if near > low and times[near - 1] - origin_s >= length_s:
        high = near - 1
        while high > low and times[high - 1] - origin_s >= length_s:
            near = high
            high = max(high - stride, low)
            stride *= 2
        low, high = high, near
    else:
        low = near
        while near < high and times[near] - origin_s < length_s:
            low = near + 1
            near += stride
            stride *= 2
        high = min(near, high)
    while low < high:
        middle = (low + high) // 2
        if times[middle] - origin_s < length_s:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def _first_inside(times: Times, low: int, now_s: float, span_s: float) -> int:
    """First arrival from ``low`` on with now − t < span."""
    near, stride = low, 64
    while near < times.size and now_s - times[near] >= span_s:  # double the stride, then bisect
        low = near + 1
        near += stride
        stride *= 2
    high = min(near, times.size)
    while low < high:
        middle = (low + high) // 2
        if now_s - times[middle] >= span_s:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def query(state: EnvelopeState, now_s: float, counts: Counts) -> None:
    """See `EnvelopeKernel.query`."""
    windows, spans, times = state.windows, state.spans, state.times
    kept = state.marks[0]
    first = moved = 0
    for w in range(windows.size):
        length_s = windows[w]
        if w == 0 or spans[w] != spans[w - 1]:
            first = _first_inside(times[:kept], state.firsts[w], now_s, spans[w])
            # Every edge moves on about as far as the span's start does.
            moved = first - state.firsts[w]
        state.firsts[w] = first
        if first == kept:
            counts[w] = 0
            continue
        origin_s = times[first]
        edge = _first_reaching(times[:kept], max(state.edges[w], first), origin_s, length_s, moved)
        state.edges[w] = edge
        most = edge - first
        head, tail = state.heads[w], state.tails[w]
        while head < tail and (state.queue[w, head] + 1) * BLOCK <= edge:
            head += 1
        state.heads[w] = head
        if head < tail and edge < kept:
            block = state.queue[w, head]
            if block * BLOCK >= edge:
                most = max(most, state.block_most[w, block])
            else:
                if head + 1 < tail:
                    most = max(most, state.block_most[w, state.queue[w, head + 1]])
                for i in range(edge, min((block + 1) * BLOCK, kept)):
                    if i >= most and times[i] - times[i - most] < length_s:
                        most += 1
        counts[w] = most


class CompiledKernel:
    """`EnvelopeKernel` as machine code; runs without the interpreter's lock."""

    extend = staticmethod(extend)
    query = staticmethod(query)
