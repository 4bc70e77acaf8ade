"""Wishes that a HorizontalPodAutoscaler carries out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Wish
from inferline_stream.replay.through_keda import ThroughKeda
from tests.unit.replay.test_consumer_group import shared
from tests.unit.replay.test_loop import one_stage, run


@dataclass
class Said:
    """Wants so many of one stage from these seconds on."""

    at_s: dict[int, int]
    name: str = "said"
    period_s: float = 1.0

    def decide(self, view: View) -> Wish | None:
        wanted = self.at_s.get(round(view.time_s))
        return None if wanted is None else Wish({"a": {"x": wanted}})


def carried_out(at_s: dict[int, int], tolerances: dict[str, float], begun: int) -> list[tuple[float, int]]:
    """When there are how many, over a minute of traffic."""
    trace, held = Trace(np.arange(0.0, 61.0, 1.0)), {"a": (Allocation("x", 1, begun),)}
    scaler = ThroughKeda(Said(at_s), {"a": {"x": begun}}, tolerances)
    found = run(one_stage(0.01), held, trace, scaler, sharing=shared(24))
    return [(step.time_s, sum(step.replicas["a"].values())) for step in found.steps]


@pytest.mark.parametrize(
    ("at_s", "tolerance", "follows"),
    [
        ({3: 20}, 0.1, [(15.0, 20)]),  # at the next sync
        ({3: 20, 10: 12}, 0.1, []),  # what was taken back before
        ({3: 14, 20: 20}, 0.1, [(15.0, 14), (30.0, 20)]),
        ({3: 13}, 0.1, [(15.0, 14)]),  # 13 of 12 would never be: 14 are asked for
        ({3: 11}, 0.1, []),  # 11 of 12 are within the tolerance, and no fewer are asked for
        ({3: 13, 20: 11}, 0.0, [(15.0, 13), (30.0, 11)]),
        ({16: 4}, 0.1, [(30.0, 4)]),  # without waiting 300 s
    ],
)
def test_an_autoscaler_follows_at_its_syncs_and_not_within_its_tolerance(
    at_s: dict[int, int], tolerance: float, follows: list[tuple[float, int]]
) -> None:
    assert carried_out(at_s, {"a": tolerance}, begun=12) == follows


def test_wishes_for_groups_that_keda_does_not_scale_are_carried_out_at_once() -> None:
    assert carried_out({3: 13, 10: 12}, {"other": 0.1}, begun=12) == [(3.0, 13), (10.0, 12)]
