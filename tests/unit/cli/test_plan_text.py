"""A plan's explanation in words."""

import io
import math

import pytest
from rich.console import Console

from inferline_stream.cli.plan_text import show_why
from inferline_stream.planner.confidence import Interval
from inferline_stream.planner.plan_explanation import Explanation
from inferline_stream.replay.reserve_costs import Reserve
from tests.unit.tuner.plans import plan


@pytest.mark.parametrize(
    ("multiple", "said"),
    [(2.54, "carry 2.5 times the planned rate. "), (17_250.0, "carry 17,250 times the planned rate. "), (math.inf, "")],
)
def test_what_a_reserve_carries_is_said_where_there_is_a_rate(multiple: float, said: str) -> None:
    written = io.StringIO()
    why = Explanation((), 0.1, Interval(0.1, 0.2, 0.95), "throughput")
    show_why(Console(file=written, width=500), plan(), why, Reserve(False, {"a": 2, "b": 3}, 5.0, multiple))
    text = written.getvalue()
    assert f"stay: $5.0000/h. {'At most they ' if said else ''}{said}Another one: --reserve." in text
