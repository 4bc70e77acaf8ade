"""What the control loop logs of steps that fail."""

import logging

import pytest

from inferline_stream.controlplane import loop_steps
from inferline_stream.controlplane.loop_steps import AGAIN_S, OVER_S, StepFailures
from inferline_stream.errors import InferlineError

STEP = "scale"
REFUSED, BROKEN = InferlineError("Kubernetes refuses: raise the quota"), ZeroDivisionError("a mistake of ours")


def test_an_error_that_lasts_is_logged_once_and_then_counted_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    failures = StepFailures()
    for half_second in range(int(4 * AGAIN_S)):
        failures.add(STEP, REFUSED, half_second / 2)
    first, again = [record.message for record in caplog.records]
    assert first == "a step of the control loop failed: InferlineError: Kubernetes refuses: raise the quota"
    assert again == f"a step of the control loop failed {int(2 * AGAIN_S)} more times in {AGAIN_S:.0f} s: " + (
        "InferlineError: Kubernetes refuses: raise the quota"
    )
    assert failures.count == 4 * AGAIN_S


def test_two_errors_that_take_turns_are_each_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = StepFailures()
    for turn in range(10):
        failures.add(STEP, (REFUSED, BROKEN)[turn % 2], turn / 2)
    assert len(caplog.records) == 2


def test_only_what_is_unforeseen_is_logged_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    failures = StepFailures()
    for error in (REFUSED, BROKEN):
        failures.add(STEP, error, 0.0)
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_texts_that_always_differ_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_steps, "_KNOWN", 3)
    failures = StepFailures()
    for number in range(10):
        failures.add(STEP, InferlineError(f"failed at {number}"), number)
        failures.add(STEP, REFUSED, number)
    assert len(failures._known) == 3


def test_an_error_that_lasts_is_remembered_among_texts_that_always_differ(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_steps, "_KNOWN", 3)
    failures = StepFailures()
    for number in range(10):
        failures.add(STEP, InferlineError(f"failed at {number}"), number)
        failures.add(STEP, REFUSED, number)
    assert sum("raise the quota" in record.message for record in caplog.records) == 1


def test_the_end_of_an_error_is_logged_once_and_what_comes_after_it_is_new(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures = StepFailures()
    for now_s in range(3):
        failures.add(STEP, REFUSED, now_s)
    for now_s in range(10, 30):
        failures.worked("another step", now_s)
    assert len(caplog.records) == 1
    for now_s in range(30, 60):
        failures.worked(STEP, now_s)
    (_, over) = [record.message for record in caplog.records]
    assert over == f"a step of the control loop has worked for {OVER_S:.0f} s after: InferlineError: {REFUSED}"
    failures.add(STEP, REFUSED, 60)
    assert caplog.records[-1].levelno == logging.ERROR


def test_an_error_that_comes_and_goes_has_no_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures = StepFailures()
    for second in range(int(AGAIN_S)):
        failures.add(STEP, REFUSED, second)
        failures.worked(STEP, second + 0.5)
    assert len(caplog.records) == 1
