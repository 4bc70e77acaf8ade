"""What becomes of a version by what is known of it: laws that hold of every trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.controlplane.decide.canary_steps import MOST_DEATHS, Trial, next_move
from inferline_stream.controlplane.decide.version_judge import Judgement

VERDICTS = st.dictionaries(
    st.sampled_from("abc"), st.sampled_from(["worse", "alike", "open"]).map(Judgement), max_size=3
)
TRIALS = st.builds(
    Trial,
    share=st.floats(0.001, 1.0),
    left_s=st.floats(-10, 10),
    judgements=VERDICTS,
    held=st.booleans(),
    deaths=st.integers(0, 9),
    replicas=st.integers(1, 3),
    why_over=st.sampled_from(["", "", "newer code"]),
)


@given(TRIALS)
def test_a_version_gets_more_only_where_every_stage_is_as_good_in_time_and_nobody_holds_decisions(trial: Trial) -> None:
    verdicts = {judged.verdict for judged in trial.judgements.values()}
    move = next_move(trial)
    bad = "worse" in verdicts or trial.left_s <= 0 or trial.why_over or trial.deaths > MOST_DEATHS + trial.replicas
    assert (move.kind == "roll_back") == bool(bad)
    assert (move.kind in ("widen", "promote")) == (not bad and verdicts == {"alike"} and not trial.held)
    if move.kind == "widen":
        assert trial.share < move.share < 1
    assert move.kind == "keep" or move.detail


@pytest.mark.parametrize(("share", "passed"), [(0.1, [0.4, 1.0]), (0.01, [0.04, 0.16, 0.64, 1.0]), (0.5, [1.0])])
def test_a_good_version_passes_a_few_steps(share: float, passed: list[float]) -> None:
    trial, found = Trial(share, 60.0, {"a": Judgement("alike")}), []
    while (move := next_move(trial)).kind == "widen":
        found.append(move.share)
        trial = replace(trial, share=move.share)
    assert [*found, move.share] == pytest.approx(passed)
    assert move.kind == "promote"
