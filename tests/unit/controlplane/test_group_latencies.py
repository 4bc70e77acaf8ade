"""What events take from end to end in groups that run already, as it is estimated."""

import numpy as np
import pytest

from inferline_stream import ConsumerGroup
from inferline_stream.controlplane.observe.group_latencies import GroupLatencies
from inferline_stream.observability.latency_histogram import LatencyHistogram, latency_bounds_s

SLO_S = 2.0


def test_latencies_of_a_chain_are_those_of_the_sum_and_of_a_branch_its_own():
    read = ConsumerGroup("read", group="r", topic="in")
    rank = ConsumerGroup("rank", group="k", topic="read", after=[read])
    log = ConsumerGroup("log", group="l", topic="read", after=[read])
    rng = np.random.default_rng(1)
    estimated, found = GroupLatencies([read, rank, log], SLO_S), {}
    for step in range(400):
        at_s = 0.25 * step
        # What was slow long ago is no part of what comes now.
        slow_s = 30.0 if at_s < 10 else 0.0
        fresh = {
            "read": [(slow_s + s, 1) for s in rng.exponential(0.4, 20)],
            "rank": [(s, 2) for s in rng.exponential(0.3, 10)] if at_s >= 25 else [],
            "log": [(0.1, 1)] if at_s >= 25 else [],
        }
        for name, counts in estimated.take(at_s, fresh):
            found.setdefault(name, counts.__class__()).add(counts)

    rank_s = rng.exponential(0.4, 100_000) + rng.exponential(0.3, 100_000)
    log_s = rng.exponential(0.4, 100_000) + 0.1
    for name, events, truth_s in (("rank", 300 * 20, rank_s), ("log", 300, log_s)):
        histogram = LatencyHistogram(
            latency_bounds_s(SLO_S), tuple(found[name].latency_buckets), found[name].latency_sum_s
        )
        assert sum(histogram.counts) == events
        assert histogram.sum_s / events == pytest.approx(truth_s.mean(), rel=0.15)
        assert histogram.above(SLO_S) / events == pytest.approx(np.mean(truth_s > SLO_S), abs=0.015)


def test_nothing_is_estimated_before_every_group_on_the_way_has_committed():
    read = ConsumerGroup("read", group="r", topic="in")
    rank = ConsumerGroup("rank", group="k", topic="read", after=[read])
    estimated = GroupLatencies([read, rank], SLO_S)
    assert not dict(estimated.take(0.0, {"read": [], "rank": [(0.1, 1)]}))
    assert dict(estimated.take(0.1, {"read": [(0.1, 1)], "rank": [(0.1, 1)]}))
