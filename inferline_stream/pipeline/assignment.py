"""Which replica holds which partition: balanced by measured rate over throughput, moving as little as it can."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def assign(
    partition_rates: Sequence[float],
    throughputs: Mapping[str, float],
    current: Mapping[int, str] | None = None,
    settling: Collection[int] = (),
) -> dict[int, str]:
    """Partition → replica.

    Partitions stay with their owner where that keeps the load even. Those without an owner go, heaviest
    first, to the replica that is least loaded after taking them; then single partitions move from the
    most to the least loaded replica while that lowers the larger of the two loads. Ties go to the
    replica that comes first in ``throughputs``, and to the lower partition.

    Args:
        partition_rates: arrival rate of each partition, any unit; equal values where nothing is known.
        throughputs: µ of each replica that may hold partitions, in order of preference.
        current: owners so far; owners missing from ``throughputs`` have lost their partitions.
        settling: partitions that are not to move again, because they are on the move.

    Returns:
        An owner for every partition; empty if there are no replicas.
    """
    if not throughputs:
        return {}
    # A partition that was never seen to carry records still costs fetching: spread those evenly too.
    floor = (sum(partition_rates) / len(partition_rates) if partition_rates else 0.0) * 1e-3 or 1.0
    rates = [max(rate, floor) for rate in partition_rates]
    order = {replica: i for i, replica in enumerate(throughputs)}
    load = dict.fromkeys(throughputs, 0.0)
    owner: dict[int, str] = {}

    def give(partition: int, replica: str) -> None:
        owner[partition] = replica
        load[replica] += rates[partition] / throughputs[replica]

    for partition, replica in sorted((current or {}).items()):
        if replica in order and partition < len(rates):
            give(partition, replica)
    unowned = [p for p in range(len(rates)) if p not in owner]
    for partition in sorted(unowned, key=lambda p: (-rates[p], p)):
        give(partition, min(order, key=lambda r: (load[r] + rates[partition] / throughputs[r], order[r])))
    # Each move strictly lowers the larger of two loads, so this ends; the bound guards against rounding.
    for _ in range(len(rates) * len(order)):
        move = _best_move(rates, throughputs, order, load, {p: r for p, r in owner.items() if p not in settling})
        if move is None:
            break
        partition, target = move
        load[owner[partition]] -= rates[partition] / throughputs[owner[partition]]
        give(partition, target)
    return owner


def _best_move(
    rates: Sequence[float],
    throughputs: Mapping[str, float],
    order: Mapping[str, int],
    load: Mapping[str, float],
    owner: Mapping[int, str],
) -> tuple[int, str] | None:
    """The partition whose move off the most loaded replica lowers the larger load most, or None."""
    source = max(order, key=lambda r: (load[r], -order[r]))
    target = min(order, key=lambda r: (load[r], order[r]))
    best: tuple[float, int] | None = None
    for partition, replica in owner.items():
        if replica != source:
            continue
        after = max(
            load[source] - rates[partition] / throughputs[source], load[target] + rates[partition] / throughputs[target]
        )
        if after < load[source] * (1 - 1e-9) and (best is None or (after, partition) < best):
            best = (after, partition)
    return None if best is None else (best[1], target)


def even_replicas(partitions: int | None, replicas: float) -> float:
    """How many replicas' worth of throughput that many give when each holds whole partitions of equal rate: P/⌈P/r⌉.

    Without partitions, with a shared queue, all of them.
    """
    if partitions is None or replicas <= 0:
        return max(replicas, 0.0)
    return partitions / math.ceil(partitions / min(replicas, partitions))
