from __future__ import annotations

import pytest

from inferline_stream.controlplane.apply.slot_keeper import Silence


@pytest.fixture
def silence() -> Silence:
    return Silence(3.0)


def run(silence: Silence, start_s: float, end_s: float, *, answered: bool = True, heard: str = "") -> set[str]:
    fell: set[str] = set()
    for tick in range(int(start_s * 10), int(end_s * 10)):
        silence.advance(tick / 10, answered=answered)
        for dispatcher in heard.split():
            silence.heard(dispatcher)
        fell |= silence.fell_silent()
    return fell


def test_a_dispatcher_is_silent_after_three_seconds_without_a_report_and_returned_once(silence: Silence) -> None:
    run(silence, 0, 1, heard="a b")
    assert run(silence, 1, 3.9, heard="a") == set()
    assert run(silence, 3.9, 4.2, heard="a") == {"b"}
    assert run(silence, 4.2, 9, heard="a") == set()
    assert silence.silent == {"b"}


def test_a_dispatcher_of_an_earlier_term_that_is_never_heard_falls_silent_too(silence: Silence) -> None:
    run(silence, 0, 1, heard="new")
    silence.expect(["old", "new"])
    assert run(silence, 1, 3.9, heard="new") == set()
    assert run(silence, 3.9, 4.2, heard="new") == {"old"}


def test_nobody_is_silent_while_kafka_gives_no_answer(silence: Silence) -> None:
    run(silence, 0, 1, heard="a b")
    assert run(silence, 1, 31, answered=False) == set()
    assert run(silence, 31, 33, heard="a b") == set()


def test_nobody_is_silent_because_this_process_was_stopped(silence: Silence) -> None:
    run(silence, 0, 1, heard="a")
    silence.advance(61.0, answered=True)
    assert silence.fell_silent() == set()


def test_when_all_fall_silent_together_we_count_as_deaf_for_a_while(silence: Silence) -> None:
    run(silence, 0, 1, heard="a b c")
    assert run(silence, 1, 12) == set()
    assert run(silence, 12, 13, heard="a b c") == set()
    assert run(silence, 13, 40) == {"a", "b", "c"}


def test_a_dispatcher_that_speaks_again_is_not_silent_and_may_fall_silent_again(silence: Silence) -> None:
    run(silence, 0, 1, heard="a")
    assert run(silence, 1, 5) == {"a"}
    run(silence, 5, 6, heard="a")
    assert silence.silent == set()
    assert run(silence, 6, 10) == {"a"}
