"""What a replica says of its own work, and what of it is believed."""

import math

import pytest

from inferline_stream.dataplane.dispatcher.batch_exchange import believed_calls, believed_s
from inferline_stream.dataplane.frames import Call, Results

MONTH_S = 30 * 86_400.0


def claimed(*calls: Call) -> Results:
    return Results(1, 1, [], list(calls), 0.01)


def test_a_time_is_believed_up_to_a_month():
    assert [believed_s(claimed_s) for claimed_s in (0.0, 0.5, MONTH_S)] == [0.0, 0.5, MONTH_S]


@pytest.mark.parametrize("claimed_s", [-0.001, MONTH_S + 1, math.inf, -math.inf, math.nan])
def test_a_time_that_cannot_be_is_not_believed(claimed_s):
    assert believed_s(claimed_s) is None


@pytest.mark.parametrize("calls", [[], [Call(4, 0.1)], [Call(4, MONTH_S)], [Call(1, 0.1)] * 8])
def test_calls_of_a_batch_of_four_are_believed_up_to_twice_as_many_and_of_its_size(calls):
    assert believed_calls(claimed(*calls), 4) == calls


@pytest.mark.parametrize(
    "call",
    [
        Call(0, 1.0),
        Call(-3, 1.0),
        Call(5, 1.0),
        Call(10**18, 1.0),
        Call(1, math.nan),
        Call(1, math.inf),
        Call(1, -1.0),
        Call(1, 0.0),
        Call(1, MONTH_S + 1),
    ],
)
def test_where_one_call_cannot_be_none_is_believed(call):
    assert not believed_calls(claimed(Call(4, 0.1), call), 4)


def test_more_calls_than_halving_takes_are_not_believed():
    assert not believed_calls(claimed(*[Call(1, 0.1)] * 9), 4)
