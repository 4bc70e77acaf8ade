"""Profiles of consumer groups that run already, with figures by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferline_stream.pipeline.group_profile import GroupProfile, Learned, Rebalance


def learned_group(group: str, each_s: float, rebalance: Rebalance | None, **others: Any) -> GroupProfile:
    """Return what is known of a group in which a batch of b takes (1 + b) · each_s, batches of 4 at most."""
    known = GroupProfile(
        group=group,
        partitions=24,
        workers=2,
        max_batch_size=4,
        fixed_s=each_s,
        per_event_s=each_s,
        spread=0.0,
        throughput=Learned(4 / (5 * each_s), 0.0, 1),
        source="commits",
        start_up_s=Learned(1.0, 0.0, 1),
        rebalance=rebalance,
    )
    return replace(known, **others)
