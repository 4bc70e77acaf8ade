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
        fell |= silence.fell_silent().keys()
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
    assert silence.fell_silent() == {}


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
    assert run(silence, 6, 13) == {"a"}


def test_a_slot_whose_dispatchers_fall_silent_one_after_another_has_more_time_each_time_until_one_is_calm(
    silence: Silence,
) -> None:
    found, now_s = [], 0.0
    for number in range(7):
        name = f"a-0-{number // 2}"  # one is started again under its name, or its slot moves
        run(silence, now_s, now_s + 1, heard=name)
        began_s = now_s = now_s + 1
        while not run(silence, now_s, now_s + 0.1):
            now_s += 0.1
        found.append(round(now_s - began_s))
        silence.forget(name)
    assert found == [3, 6, 12, 24, 48, 48, 48]
    run(silence, now_s, now_s + 62, heard="a-0-9 b-0-1")
    now_s += 62
    assert run(silence, now_s, now_s + 2.8, heard="b-0-1") == set()
    assert run(silence, now_s + 2.8, now_s + 3.3, heard="b-0-1") == {"a-0-9"}
