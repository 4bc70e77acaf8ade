from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferline_stream.controlplane.decide.decider import PolicyMemory
from inferline_stream.tuner.tuner_state import Patience
from tests.unit.controlplane.test_fleet import fleet
from tests.unit.tuner.plans import seen


def test_a_new_plan_leaves_what_was_learned_of_traffic_and_forgets_its_loads() -> None:
    patience = Patience(7.0, 5.0, {"a": (True, 5.0)})
    learned: dict[str, Any] = {"patience": patience, "leapt_s": 3.0, "outgrown_s": 4.0, "rises": (0.0, 1.0)}

    def learns(state: Any, _: Any) -> Any:
        return replace(state, **learned, fits_since_s={"a": 5.0}), None

    memory = PolicyMemory(learns, fleet({"cpu": 1}).view, {"a": {"cpu": 1}})
    memory.step(seen(5.0, ()))
    memory.again({"a": {"cpu": 1}})
    assert {name: getattr(memory.state, name) for name in learned} == learned
    assert memory.state.fits_since_s == {}
