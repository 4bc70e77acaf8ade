"""The same pipelines simulated by SimPy and by a hand-written event heap: what the Estimator is compared with.

Both model what the benchmark's plans have: shared queues in order of arrival, batches, replicas of one kind, mean
service times, the overhead of a hop, conditional edges and joins. Each is written as its kind is usually written.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload


@dataclass(frozen=True)
class Network:
    """What both need: per stage its children and, by mask, who gets a record, and how many a join waits for."""

    workload: Workload
    stations: list[Station]
    targets: list[list[list[int]]]  # by stage and mask: children that get a record
    needed: list[list[int]]  # by stage and mask: records that an event needs before it is in the queue
    tables: list[list[float]]
    limits: list[int]

    @classmethod
    def of(cls, workload: Workload, stations: list[Station]) -> Network:
        shape, masks = workload.shape, [mask for _, mask in workload.ways]
        stages = range(len(shape.stages))
        targets = [[[shape.arrows[a].child for a in shape.children(s) if m >> a & 1] for m in masks] for s in stages]
        needed = [[sum(m >> a & 1 for a in shape.parents(s)) for m in masks] for s in stages]
        return cls(
            workload,
            stations,
            targets,
            needed,
            [station.table.tolist() for station in stations],
            [int(station.limits[0]) for station in stations],
        )


def simulate_with_plain_heap(network: Network, events: int) -> np.ndarray:
    """Latencies of the first events. One heap: an entry per record that arrives and one per batch that ends."""
    workload = network.workload
    hop_s = workload.hop_s
    entry_s = workload.entry_s[:events].tolist()
    masks = workload.masks[:events].tolist()
    latency_s = [0.0] * events
    queues: list[deque[int]] = [deque() for _ in network.stations]
    free = [station.replicas for station in network.stations]
    got: list[dict[int, int]] = [{} for _ in network.stations]
    final = len(network.stations) - 1
    push, pop = heapq.heappush, heapq.heappop
    number = 0
    # (when, 0, running number, stage, event) arrives; (when, 1, running number, stage, batch) ends.
    heap: list[tuple[float, int, int, int, Any]] = [
        (at_s + hop_s, 0, event, s, event) for event, at_s in enumerate(entry_s) for s in workload.shape.entries()
    ]
    heapq.heapify(heap)
    while heap:
        now = heap[0][0]
        touched = set()
        while heap and heap[0][0] == now:
            _, ends, _, s, what = pop(heap)
            touched.add(s)
            if not ends:
                mask = masks[what]
                if network.needed[s][mask] > 1:
                    count = got[s].pop(what, 0) + 1
                    if count < network.needed[s][mask]:
                        got[s][what] = count
                        continue
                queues[s].append(what)
                continue
            free[s] += 1
            for event in what:
                if s == final:
                    latency_s[event] = now + hop_s - entry_s[event]
                for child in network.targets[s][masks[event]]:
                    number += 1
                    push(heap, (now + hop_s, 0, number, child, event))
        for s in touched:
            queue = queues[s]
            while queue and free[s]:
                free[s] -= 1
                batch = [queue.popleft() for _ in range(min(len(queue), network.limits[s]))]
                number += 1
                push(heap, (now + network.tables[s][len(batch)], 1, number, s, batch))
    return np.array(latency_s)


def simulate_with_simpy(network: Network, events: int) -> np.ndarray:
    """Latencies of the first events. A process per replica, woken when something waits, and one per record on its way.

    No `simpy.Store`: it hands each record to another idle replica, where ours takes all that waits as one batch.
    """
    workload = network.workload
    hop_s = workload.hop_s
    entry_s = workload.entry_s[:events].tolist()
    masks = workload.masks[:events].tolist()
    latency_s = np.zeros(events)
    env = simpy.Environment()
    queues: list[deque[int]] = [deque() for _ in network.stations]
    idle: list[deque[simpy.Event]] = [deque() for _ in network.stations]
    got: list[dict[int, int]] = [{} for _ in network.stations]
    final = len(network.stations) - 1

    def hop(s: int, event: int) -> Generator[simpy.Event, None, None]:
        yield env.timeout(hop_s)
        needed = network.needed[s][masks[event]]
        if needed > 1:
            count = got[s].pop(event, 0) + 1
            if count < needed:
                got[s][event] = count
                return
        queues[s].append(event)
        if idle[s]:
            idle[s].popleft().succeed()

    def replica(s: int) -> Generator[simpy.Event, None, None]:
        queue, limit, table = queues[s], network.limits[s], network.tables[s]
        while True:
            while not queue:
                wake = env.event()
                idle[s].append(wake)
                yield wake
            batch = [queue.popleft() for _ in range(min(len(queue), limit))]
            yield env.timeout(table[len(batch)])
            for event in batch:
                if s == final:
                    latency_s[event] = env.now + hop_s - entry_s[event]
                for child in network.targets[s][masks[event]]:
                    env.process(hop(child, event))

    def source() -> Generator[simpy.Event, None, None]:
        for event, at_s in enumerate(entry_s):
            yield env.timeout(max(0.0, at_s - env.now))
            for s in workload.shape.entries():
                env.process(hop(s, event))

    for s, station in enumerate(network.stations):
        for _ in range(station.replicas):
            env.process(replica(s))
    env.process(source())
    env.run()
    return latency_s
