from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferline_stream.controlplane.decide.decider import PolicyMemory
from inferline_stream.tuner.decision import Reason
from tests.unit.controlplane.test_fleet import fleet
from tests.unit.tuner.plans import seen


def test_a_new_plan_leaves_what_people_have_seen_and_forgets_its_loads() -> None:
    learned: dict[str, Any] = {"outgrown_s": 4.0, "leapt_s": 3.0, "reported": {(Reason.BACKLOG, "a"): 4.0}}

    def learns(state: Any, _: Any) -> Any:
        return replace(state, **learned, fits_since_s={"a": 5.0}), None

    memory = PolicyMemory(learns, fleet({"cpu": 1}).view, {"a": {"cpu": 1}})
    memory.step(seen(5.0, ()))
    memory.again({"a": {"cpu": 1}})
    assert {name: getattr(memory.state, name) for name in learned} == learned
    assert memory.state.fits_since_s == {}
