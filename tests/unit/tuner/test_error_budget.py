"""What may still be late is what the window's objective leaves, and never what would page somebody."""

from __future__ import annotations

import pytest

from inferline_stream.observability.alert_rules import Target, burns
from inferline_stream.tuner.error_budget import DAY_S, ErrorBudget


@pytest.mark.parametrize(
    ("passed_s", "events", "late", "share"),
    [
        (0.0, 0, 0, 0.01),
        (500.0, 500, 0, 0.02),  # half of the window passed, nothing spent: twice as much of the rest
        (500.0, 500, 5, 0.01),  # spent at the objective's share
        (500.0, 500, 8, 0.004),  # two of the ten are left for five hundred
        (500.0, 500, 40, 1 / 500),  # more than all is spent
        (500.0, 1000, 0, 0.03),  # twice as many came as planned: fifteen for five hundred
        (999.0, 999, 0, 0.072),  # half of the fast alert's 14.4 %
        (2000.0, 2000, 0, 0.072),  # a window that has passed divides by nothing
    ],
)
def test_the_share_that_may_be_late_is_what_is_left_over_what_is_to_come(passed_s, events, late, share):
    assert ErrorBudget(0.99, 1000.0, passed_s, events, late).share(1.0) == pytest.approx(share)


@pytest.mark.parametrize("objective", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_no_window_lets_the_policy_risk_more_than_half_of_what_the_fast_alert_fires_at(objective):
    fast = burns(Target("p", 1.0, objective))[0].threshold
    unspent = ErrorBudget(objective, DAY_S, DAY_S - 10.0, 10**9, 0)
    assert unspent.share(100.0) == pytest.approx(fast / 2)


def test_spending_the_share_as_it_is_found_ends_the_window_at_the_objective():
    budget, events, late = ErrorBudget(0.99, 1000.0), 0, 0.0
    for second in range(1000):
        events, late = events + 100, late + 100 * budget.share(100.0)
        if second == 300:
            late += 200.0  # a spike
        budget = ErrorBudget(0.99, 1000.0, second + 1.0, events, int(late))
    assert budget.late == pytest.approx(1000, abs=10)
    assert budget.left == pytest.approx(0.0, abs=0.01)
