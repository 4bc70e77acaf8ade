"""The SLO's window goes on over terms, and begins again when it has passed."""

from __future__ import annotations

from typing import Any

import pytest

from inferline_stream.controlplane.observe.slo_window import SloWindow
from inferline_stream.controlplane.records.control_records import SLO_KEY, SloRecord, decode_stored
from inferline_stream.controlplane.records.record_writers import DecisionLog
from inferline_stream.tuner.error_budget import ErrorBudget

UNSPENT = ErrorBudget(0.99, 1000.0)


def of_a_term(found: SloRecord | None = None) -> SloWindow:
    return SloWindow(UNSPENT, DecisionLog("decisions"), found, 3.0)


def written(window: SloWindow) -> SloRecord:
    record: Any = window.book.waiting()[-1]
    assert record.key == SLO_KEY.encode()
    found = decode_stored(SLO_KEY, record.value)
    assert isinstance(found, SloRecord)
    return found


def counted(budget: ErrorBudget) -> tuple[float, int, int]:
    return budget.passed_s, budget.events, budget.late


def test_a_run_counts_from_its_beginning_and_again_from_each_window():
    window = of_a_term()
    looks = [window.look(5000.0 + at_s, int(10 * at_s), int(at_s / 10)) for at_s in (0, 400, 990, 1010, 3500)]
    assert list(map(counted, looks)) == [(0, 0, 0), (400, 4000, 40), (990, 9900, 99), (10, 0, 0), (500, 0, 0)]
    assert counted(window.look(8600.0, 36_000, 353)) == (600, 1000, 3)


def test_the_next_term_goes_on_whatever_dispatchers_that_live_on_report_of_the_time_before():
    first = of_a_term()
    first.look(5000.0, 0, 0)
    first.look(5300.0, 3000, 60)
    first.write()
    after = of_a_term(written(first))
    # It hears of a dispatcher's whole life, and then of another one's.
    assert counted(after.look(5310.0, 0, 0)) == (310, 3000, 60)
    assert counted(after.look(5311.0, 1400, 30)) == (311, 3000, 60)
    assert counted(after.look(5312.0, 3000, 60)) == (312, 3000, 60)
    assert counted(after.look(5320.0, 3080, 61)) == (320, 3080, 61)


def test_a_window_that_passed_while_nothing_ran_is_over():
    found = SloRecord(5300.0, ErrorBudget(0.99, 1000.0, 300.0, 3000, 60))
    window = of_a_term(found)
    assert counted(window.look(6500.0, 0, 0)) == (500, 0, 0)
    assert counted(window.look(6501.0, 3000, 60)) == (501, 0, 0)  # a dispatcher's whole life
    assert counted(window.look(6505.0, 3040, 61)) == (505, 40, 1)


def test_it_is_written_down_every_ten_seconds():
    window = of_a_term()
    for second in range(31):
        window.look(5000.0 + second, 10 * second, second)
    assert [r.key for r in window.book.waiting()] == [SLO_KEY.encode()] * 3
    assert written(window) == SloRecord(5030.0, ErrorBudget(0.99, 1000.0, 30.0, 300, 30))


@pytest.mark.parametrize("value", ['{"events":-1}', '{"late":1e17}', '{"passed_s":-5}', '{"window_s":null}'])
def test_no_window_is_read_that_no_release_writes(value: str):
    budget = '{"objective":0.99,"window_s":1000.0,"passed_s":3.0,"events":1,"late":1}'
    changed = budget[:-1] + "," + value[1:]
    with pytest.raises(ValueError, match=r"range|budget"):
        decode_stored(SLO_KEY, f'{{"time_s":5.0,"budget":{changed},"version":1}}'.encode())
