"""Replicas that stay far behind those of their kind."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica

SLOW_FACTOR, SLOW_S = 2.0, 5.0
"""How far a straggler is behind the median of its kind, and for how long."""

SLOW_PEERS, SLOW_BATCHES = 3, 20
"""How many replicas of a kind must have run how many batches before one can be a straggler."""


def stragglers(replicas: Iterable[PooledReplica], now_s: float) -> list[tuple[str, str]]:
    """Return replicas that stay far behind their kind, with the reason, each of them once. Ask every second."""
    kinds: dict[str, list[PooledReplica]] = {}
    for replica in replicas:
        if replica.batches >= SLOW_BATCHES and not replica.leaving:
            kinds.setdefault(replica.hardware, []).append(replica)
    found = []
    for hardware, peers in kinds.items():
        if len(peers) < SLOW_PEERS:
            continue
        median = statistics.median(peer.slowdown for peer in peers)
        for peer in peers:
            if min(peer.slowdown, peer.last_ratio) < SLOW_FACTOR * median:
                peer.slow_since_s = math.inf
                continue
            peer.slow_since_s = min(peer.slow_since_s, now_s)
            stayed = now_s - peer.slow_since_s >= SLOW_S and peer.finished_s > peer.slow_since_s
            if stayed and not peer.reported:
                peer.reported = True
                times = peer.slowdown / median
                reason = f"it is {times:.1f} times slower than the median of {len(peers)} replicas on {hardware!r}"
                found.append((peer.replica, reason))
    return found
