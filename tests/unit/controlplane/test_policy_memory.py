from __future__ import annotations

from dataclasses import replace
from typing import Any

from msgspec import structs

from inferline_stream.controlplane.decide.decider import PolicyMemory
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.staffing_table import Staffing
from tests.unit.controlplane.test_fleet import fleet
from tests.unit.tuner.plans import seen


def test_a_new_plan_leaves_what_people_have_seen_and_forgets_its_loads() -> None:
    learned: dict[str, Any] = {
        "outgrown_s": 4.0,
        "leapt_s": 3.0,
        "woken_s": 2.0,
        "reported": {(Reason.BACKLOG, "a"): 4.0},
    }

    def learns(state: Any, _: Any) -> Any:
        return structs.replace(state, **learned, fits_since_s={"a": 5.0}), None

    memory = PolicyMemory(learns, fleet({"cpu": 1}).view, {"a": {"cpu": 1}})
    memory.step(seen(5.0, ()))
    memory.again({"a": {"cpu": 1}})
    assert {name: getattr(memory.state, name) for name in learned} == learned
    assert memory.state.fits_since_s == {}


def test_a_table_stays_for_as_long_as_the_plan_that_it_was_made_for() -> None:
    view = fleet({"cpu": 1}).view
    memory, table = PolicyMemory(step, view, {"a": {"cpu": 1}}), Staffing((1.0,), {"a": (10.0,)}, 10.0)
    memory.staff(table)
    memory.again({"a": {"cpu": 1}})  # as after a pause
    assert memory.state.basis.staffing is table
    view.adopt(replace(view.plan, slo_s=9.0), view.measured)
    memory.again({"a": {"cpu": 1}})
    assert memory.state.basis.staffing is None
