from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.controlplane.session import Run
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.pipeline.trace import gamma_trace, levels_trace
from inferline_stream.testing.runs import Script, declared_profile, plan_by_hand, trace_feed

SWING = Path(__file__).parent / "swing"
EVERY_THIRD = {("parse", "check"): 1 / 3}

RunOf = Callable[..., Run]


@pytest.fixture
def swing(tmp_path: Path) -> RunOf:
    """Builds a run of the swing topology: levels of (rate, seconds), scaled by a script."""

    def build(
        bootstrap_servers: str,
        levels: list[tuple[float, float]],
        changes: list[tuple[float, Mapping[str, int]]],
        replicas: Mapping[str, int] | None = None,
        **more: object,
    ) -> Run:
        pipeline = load_topology(SWING)
        rng = np.random.default_rng(7)
        measured = declared_profile(pipeline, EVERY_THIRD)
        sample = gamma_trace(40, 1.0, 30, rng)
        return Run(
            pipeline=pipeline,
            topology=SWING / "topology.py",
            bootstrap_servers=bootstrap_servers,
            plan=plan_by_hand(pipeline, measured, sample, replicas or {"parse": 1, "check": 1, "decide": 1}),
            measured=measured,
            log_folder=tmp_path / "logs",
            prefix=f"t{uuid.uuid4().hex[:8]}.",
            feed=trace_feed(levels_trace(levels, 1.0, rng), SWING / "orders.jsonl", tmp_path, key_field="number"),
            policy=Script(changes),
            **more,  # type: ignore[arg-type]
        )

    return build
