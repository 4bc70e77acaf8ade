from __future__ import annotations

import pytest

from inferline_stream.controlplane.records.control_records import Override, Overrides
from inferline_stream.tuner.observation import Limits


def having(*overrides: Override) -> Overrides:
    found = Overrides()
    for override in overrides:
        found = found.with_record(override.key, override)
    return found


def test_the_newest_of_each_kind_and_subject_counts() -> None:
    overrides = having(Override("scale", "a", 2), Override("scale", "b", 5), Override("scale", "a", 3))
    assert overrides.limits(0.0) == {"a": Limits(3, 3, awake=True), "b": Limits(5, 5, awake=True)}


def test_an_override_lapses_at_its_time() -> None:
    overrides = having(Override("pause", until_s=100.0), Override("scale", "a", 2, until_s=50.0))
    assert overrides.paused(99.0)
    assert not overrides.paused(100.0)
    assert overrides.limits(60.0) == {}


def test_taking_one_back_leaves_the_others() -> None:
    overrides = having(Override("pause"), Override("stock", "t4", 2)).with_record("pause", None)
    assert not overrides.paused(0.0)
    assert overrides.stock(0.0) == {"t4": 2}


def test_only_people_who_ask_for_replicas_keep_a_stage_awake() -> None:
    overrides = having(
        Override("limits", "a", maximum=9), Override("scale", "b", 0), Override("limits", "c", minimum=0)
    )
    assert overrides.limits(0.0) == {"a": Limits(1, 9), "b": Limits(0, 0), "c": Limits(0)}


def test_a_stage_scaled_by_hand_is_held_whatever_its_limits_say() -> None:
    overrides = having(Override("limits", "a", minimum=2, maximum=9), Override("scale", "a", 4))
    assert overrides.limits(0.0) == {"a": Limits(4, 4, awake=True)}
    assert overrides.with_record("scale/a", None).limits(0.0) == {"a": Limits(2, 9, awake=True)}


@pytest.mark.parametrize(
    ("override", "key"), [(Override("pause"), "pause"), (Override("price", "t4", 0.3), "price/t4")]
)
def test_keys_say_what_is_overridden(override: Override, key: str) -> None:
    assert override.key == key


def test_what_is_heard_of_a_clock_that_is_behind_keeps_its_order() -> None:
    code = Override("code", value=1000.0).heard(60.0)
    scale = Override("scale", "a", 2.0, until_s=1310.0).heard(60.0)
    assert (code.value, scale.value, scale.until_s) == (1060.0, 2.0, 1370.0)


def test_prices_and_slo() -> None:
    overrides = having(Override("price", "t4", 0.3), Override("slo", value=0.2))
    assert overrides.prices(0.0) == {"t4": 0.3}
    assert overrides.slo_s(0.0) == 0.2
    assert Overrides().slo_s(0.0) is None
