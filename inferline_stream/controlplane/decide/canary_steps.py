"""What becomes of a version that is tried out: more events, all of them, or none. Pure.

Its share is multiplied at each step that it passes; after the last one every replica is replaced by one of it. A step's
verdict rests on what was counted at its own share, since a version may be good until it is busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from inferline_stream.controlplane.decide.version_judge import Judgement

WIDER = 4.0
"""What the share is multiplied by at each step: 10 %, 40 %, all."""

MOST_DEATHS = 3
"""So many replicas of it may end by themselves, beyond those that it has: what ends more often never serves."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A version that is tried out, as it stands.

    Args:
        share: of the events that it gets.
        left_s: time left to decide.
        judgements: by stage.
        held: whether people hold decisions.
        deaths: replicas of it that ended by themselves.
        last_death: why the last of them did, in words.
        replicas: that it has.
        why_over: why it is given up whatever its figures are; empty for no reason.
    """

    share: float
    left_s: float
    judgements: Mapping[str, Judgement]
    held: bool = False
    deaths: int = 0
    last_death: str = ""
    replicas: int = 1
    why_over: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do.

    Args:
        kind: go on, give it a larger share, let it take the place of the running version, or give it up.
        share: from now on.
        detail: why, in words, with the numbers.
    """

    kind: Literal["keep", "widen", "promote", "roll_back"]
    share: float = 0.0
    detail: str = ""


def next_move(trial: Trial) -> Move:
    """Return what to do with a version now.

    Whatever makes it worse is acted on even while people hold decisions, as is the end of its time: only what would
    give it more waits for them.
    """
    if trial.why_over:
        return Move("roll_back", detail=trial.why_over)
    worse = {stage: judged for stage, judged in trial.judgements.items() if judged.verdict == "worse"}
    if worse:
        return Move("roll_back", detail=f"worse: {_words(worse)}")
    if trial.deaths > MOST_DEATHS + trial.replicas:
        return Move("roll_back", detail=f"{trial.deaths} of its replicas ended by themselves: {trial.last_death}")
    if trial.left_s <= 0:
        return Move("roll_back", detail=f"not decided in time: {_words(trial.judgements)}")
    passed = trial.judgements and all(judged.verdict == "alike" for judged in trial.judgements.values())
    if trial.held or not passed:
        return Move("keep", trial.share)
    if trial.share * WIDER < 1:
        wider = trial.share * WIDER
        return Move("widen", wider, f"{trial.share:.3g} to {wider:.3g} of the events: {_words(trial.judgements)}")
    return Move("promote", 1.0, f"as good on {trial.share:.0%} of the events: {_words(trial.judgements)}")


def _words(judgements: Mapping[str, Judgement]) -> str:
    found = []
    for stage, judged in judgements.items():
        sure = f", sure to {1 - judged.error:.2%}" if judged.verdict != "open" else ""
        found.append(f"stage {stage}: {judged.words}{sure}")
    return "; ".join(found) or "no stage has been measured"
