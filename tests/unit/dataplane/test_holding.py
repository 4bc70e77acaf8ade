import pytest

from inferline_stream.dataplane.holding import POISON_AFTER, RELEASING, Event, Holding
from inferline_stream.dataplane.offsets import Committed, decode_metadata


def event(holding: Holding, offset: int) -> Event:
    assert holding.completion.read(offset)
    return Event(holding, (offset,), b"e", 0, 0, None, [], None, 1, ())


def found(holding: Holding) -> Committed:
    """What the next owner would find, were this holding committed now."""
    return decode_metadata(*holding.entry())


def test_a_grant_is_committed_even_where_nothing_else_changed():
    same = Holding(0, Committed(5, owner="me"), "me")
    assert same.to_commit() == same.entry()
    assert not Holding(0, Committed(5), "me").opened
    same.was_committed(same.entry())
    assert same.to_commit() is None
    assert same.opened


def test_an_owner_names_itself_while_it_works_and_takes_its_name_back_at_the_release():
    holding = Holding(0, Committed(5), "me")
    assert found(holding).owner == "me"
    holding.state = RELEASING
    holding.in_flight = 1
    assert found(holding).owner == "me"
    holding.in_flight = 0
    assert found(holding) == Committed(5)


def test_a_release_for_an_assignment_names_the_heir_who_need_not_say_so_again_and_whose_death_is_noticed():
    holding = Holding(0, Committed(5), "me")
    holding.freed, holding.heir = (1, 2), "heir"
    holding.state = RELEASING
    left = found(holding)
    assert left == Committed(5, owner="heir", freed=(1, 2))
    assert Holding(0, left, "heir").opened
    assert not Holding(0, left, "heir").attempts
    other = Holding(0, left, "other", suspects_end=9)
    assert (other.opened, other.attempts, other.suspected) == (False, 1, True)


def test_finding_ones_own_name_is_no_death():
    assert Holding(0, Committed(5, owner="me"), "me", suspects_end=9).attempts == 0
    assert not Holding(0, Committed(5, owner="me"), "me", suspects_end=9).suspected


def test_a_culprit_among_many_is_alone_after_two_deaths_and_poison_after_four():
    culprit, end = 7, 10
    committed = Committed(5)
    for deaths in range(POISON_AFTER + 1):
        holding = Holding(0, committed, f"owner-{deaths}", suspects_end=end)
        assert holding.attempts == deaths
        events = [event(holding, offset) for offset in range(committed.offset, end)]
        if deaths == POISON_AFTER:
            assert [holding.poisoned(e) for e in events] == [e.offsets[-1] == culprit for e in events]
            return
        batches = [[e] for e in events] if holding.careful else [events]
        for batch in batches:
            if holding.suspects(batch[-1]):
                holding.attempt(batch[-1])
            if any(e.offsets[-1] == culprit for e in batch):
                break  # it kills this owner
            for e in batch:
                holding.completion.complete(e.offsets[-1])
        committed = found(holding)
    pytest.fail("the culprit was never recognised")


def test_an_innocent_event_that_gets_through_clears_the_suspicion():
    holding = Holding(0, Committed(5, owner="dead", attempts=3, attempt_end=6), "me")
    suspect = event(holding, 5)
    assert holding.careful
    assert not Holding(0, Committed(5), "me").careful
    holding.attempt(suspect)
    holding.completion.complete(5)
    assert not holding.suspected
    assert found(holding).attempts == 0


def test_after_one_death_all_suspects_are_attempted_with_one_commit():
    holding = Holding(0, Committed(5, owner="dead"), "me", suspects_end=9)
    assert [holding.attempt(event(holding, offset)) for offset in (5, 6, 7)] == [True, False, False]
    assert (found(holding).attempts, found(holding).attempt_end) == (1, 9)
    holding.completion.complete(5)
    assert (found(holding).attempts, found(holding).attempt_end) == (1, 9)


def test_what_somebody_else_committed_is_committed_again():
    holding = Holding(0, Committed(5), "me")
    holding.was_committed(holding.entry())
    assert holding.found_committed(holding.entry())
    assert holding.to_commit() is None
    assert not holding.found_committed((3, ""))
    assert holding.to_commit() == holding.entry()
