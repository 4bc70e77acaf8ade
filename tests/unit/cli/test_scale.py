"""`scale --at`: a window that is set while a pipeline runs lapses when it is over, or is refused with its remedy."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from inferline_stream import ConsumerGroup, Pipeline
from inferline_stream.cli.scale import _of_window, _refuse_for_groups
from inferline_stream.errors import UsageError
from tests.unit.pipeline.declaring import moderation

BERLIN = moderation(zone="Europe/Berlin")


def test_a_window_lapses_when_it_is_over_by_the_pipeline_s_clock() -> None:
    both = _of_window(BERLIN, "2099-11-27 08:00-20:00", {"reserve": 1.6, "traffic": 3.0})
    over_s = datetime(2099, 11, 27, 19, tzinfo=UTC).timestamp()
    assert [(o.key, o.value, o.until_s) for o in both] == [
        ("reserve/2099-11-27 08:00-20:00", 1.6, over_s),
        ("traffic/2099-11-27 08:00-20:00", 3.0, over_s),
    ]
    assert _of_window(BERLIN, None, {"reserve": None, "traffic": None}) == []


def test_what_nothing_follows_for_groups_is_refused() -> None:
    none = {"--standby": None, "--slo": None, "--notice": None}
    group = ConsumerGroup("rank", group="rank-v1", topic="posts")
    adopted = Pipeline("adopted", slo="5s", stages=[group])
    _refuse_for_groups(BERLIN, none | {"--slo": "1s"})
    _refuse_for_groups(adopted, none)
    for option, value in (("--standby", 0), ("--slo", "1s"), ("--notice", ["cpu-1=2m"])):
        with pytest.raises(UsageError, match=f"^{option}: of stages whose code runs here; 'adopted' declares groups"):
            _refuse_for_groups(adopted, none | {option: value})


@pytest.mark.parametrize(
    ("at", "reserve", "problem"),
    [
        (None, 2.0, "--reserve needs --at"),
        ("2099-11-27", None, "says nothing: give reserve= or traffic="),
        ("friday", 2.0, "'friday' is no window: write one such as"),
        ("2099-11-27", 99.0, "reserve 99.0 must be above 0 and at most 20"),
        ("2020-11-27", 2.0, "'2020-11-27' is over; name a window to come, by the clock of Europe/Berlin"),
    ],
)
def test_a_window_that_cannot_be_set_is_refused(at: str | None, reserve: float | None, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        _of_window(BERLIN, at, {"reserve": reserve, "traffic": None})
