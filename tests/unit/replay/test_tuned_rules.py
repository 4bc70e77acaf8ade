"""How `compare` chooses the settings of the rules of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream import Pipeline, Sample, Stage, Topic
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace, levels_trace
from inferline_stream.replay.compare import AS_DEFAULT, Comparison, compare
from inferline_stream.replay.contenders import FAMILIES
from inferline_stream.replay.loop import Conditions
from tests.support.emulated_runs import declared_profile, plan_by_hand


def same(values: list[int]) -> list[int]:
    return values


WORK = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "50ms", 4: "120ms"}, max_batch_size=4)
PIPELINE = Pipeline(
    "tuned", slo="500ms", source=Topic("in"), sink=Topic("out"), stages=[WORK], sample=Sample("a.csv", "e.jsonl")
)
CALM = levels_trace([(5.0, 60.0)], 1.0, np.random.default_rng(1))
BURST = levels_trace([(5.0, 20.0), (60.0, 20.0), (5.0, 20.0)], 1.0, np.random.default_rng(2))


def compared(trace: Trace, policy: str, **given: object) -> Comparison:
    measured = declared_profile(PIPELINE, {})
    plan = plan_by_hand(PIPELINE, measured, CALM, {"work": 1})
    kinds = catalogue(PIPELINE.hardware)
    return compare(
        shape_of(PIPELINE), plan, measured, CALM, trace, catalogue=kinds, policies=("default", policy),
        conditions=Conditions(1.0), **given,
    )  # fmt: skip


def test_the_defaults_are_among_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    (keda,) = (family for family in FAMILIES if family.name == "keda")
    never_scales = replace(keda, space={"lag_per_batch": (1e6,)})
    monkeypatch.setattr("inferline_stream.replay.compare.FAMILIES", (never_scales,))
    assert compared(BURST, "keda", tune_on=BURST).tuned == {("keda", False): {}, ("keda", True): {}}


def test_a_rule_is_tuned_on_the_sample_unless_another_trace_is_given() -> None:
    by_sample = compared(BURST, "ray")
    assert by_sample.tuned == compared(BURST, "ray", tune_on=CALM).tuned
    assert by_sample.tuned != compared(BURST, "ray", tune_on=BURST).tuned


def test_settings_that_were_found_before_are_taken_as_they_are() -> None:
    before = {("keda", False): {"lag_per_batch": 4.0}, ("keda", True): {}}
    found = compared(BURST, "keda", tuned=before)
    assert found.tuned == before
    assert found.row("keda", "tuned", on_our_pool=False).setting == "lag_per_batch=4"
    as_default, default = (found.row("keda", setting) for setting in ("tuned", "default"))
    assert as_default.setting == AS_DEFAULT
    assert as_default.outcome.cost == default.outcome.cost
    shown = {(row.on_our_pool, row.setting) for row in found.shown}
    assert shown == {(False, "default"), (False, "lag_per_batch=4"), (True, "default")}, "the defaults stand once"
