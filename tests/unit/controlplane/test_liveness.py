from __future__ import annotations

from inferline_stream.controlplane.liveness import Liveness


def run(liveness: Liveness, start_s: float, end_s: float, *, answered: bool = True, heard: str = "") -> set[str]:
    fell: set[str] = set()
    for tick in range(int(start_s * 10), int(end_s * 10)):
        liveness.advance(tick / 10, answered=answered)
        for replica in heard.split():
            liveness.heard(replica)
        fell |= liveness.fell_silent()
    return fell


def test_a_replica_is_dead_after_three_seconds_without_a_report_and_told_once() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a b")
    assert run(liveness, 1, 3.9, heard="a") == set()
    assert run(liveness, 3.9, 4.2, heard="a") == {"b"}
    assert run(liveness, 4.2, 9, heard="a") == set()
    assert liveness.silent == {"b"}


def test_a_replica_of_an_earlier_term_that_is_never_heard_dies_of_silence_like_any_other() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="new")
    liveness.expect(["old", "new"])
    assert run(liveness, 1, 3.9, heard="new") == set()
    assert run(liveness, 3.9, 4.2, heard="new") == {"old"}


def test_nobody_dies_while_kafka_gives_no_answer() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a b")
    assert run(liveness, 1, 31, answered=False) == set()
    assert run(liveness, 31, 33, heard="a b") == set()


def test_nobody_dies_because_this_process_was_stopped() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a")
    liveness.advance(61.0, answered=True)
    assert liveness.fell_silent() == set()


def test_a_silent_replica_that_speaks_again_stays_dead() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a")
    run(liveness, 1, 10)
    run(liveness, 10, 20, heard="a")
    assert liveness.silent == {"a"}
    liveness.forget("a")
    assert liveness.silent == set()


def test_when_all_fall_silent_together_it_is_taken_for_deafness_for_a_while() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a b c")
    assert run(liveness, 1, 12) == set()
    assert run(liveness, 12, 13, heard="a b c") == set()
    assert run(liveness, 13, 40) == {"a", "b", "c"}


def test_a_single_replica_is_believed_to_be_dead_when_it_says_nothing() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a")
    assert run(liveness, 1, 4.5) == {"a"}


def test_of_two_the_dead_one_is_told_and_then_the_last_one_alone_is_believed() -> None:
    liveness = Liveness(3.0)
    run(liveness, 0, 1, heard="a b")
    assert run(liveness, 1, 5, heard="b") == {"a"}
    assert run(liveness, 5, 9) == {"b"}
