"""Whether a replica is any good, as a table without IO."""

from __future__ import annotations

import pytest

from inferline_stream.dataplane.dispatcher.replica_trust import (
    END_S,
    Happening,
    ReplicaStanding,
    ReplicaTrust,
    TrustAction,
)

LIMIT_S = 60.0


def after(*happenings: Happening) -> tuple[ReplicaStanding | None, list[TrustAction]]:
    """Return what is thought of a replica in the end, and what was done on the way."""
    trust = ReplicaTrust()
    trust.attached("r", LIMIT_S, 0.0)
    actions = [trust.happens("r", what, 1.0) for what in happenings]
    return trust.standing("r"), [action for action in actions if action is not None]


READY, SUCCESS, NONE = Happening.READY, Happening.SUCCESS, Happening.NO_SUCCESS
SAMPLE, REFUSED = Happening.SAMPLE_HANDED, Happening.SAMPLE_NOT_TAKEN


@pytest.mark.parametrize(
    ("happenings", "standing", "actions"),
    [
        ((), ReplicaStanding.STARTING, []),
        ((READY,), ReplicaStanding.TRUSTED, []),
        ((READY, SUCCESS), ReplicaStanding.TRUSTED, []),
        ((READY, NONE), ReplicaStanding.DOUBTED, []),
        ((READY, NONE, NONE), ReplicaStanding.DOUBTED, []),
        ((READY, NONE, SUCCESS), ReplicaStanding.TRUSTED, [TrustAction.BELIEVE]),
        ((READY, NONE, SAMPLE), ReplicaStanding.TESTED, []),
        ((READY, NONE, SAMPLE, NONE), ReplicaStanding.TESTED, []),
        ((READY, NONE, SAMPLE, SUCCESS), ReplicaStanding.TRUSTED, [TrustAction.BELIEVE]),
        ((READY, NONE, SAMPLE, REFUSED), ReplicaStanding.DOUBTED, [TrustAction.SPARE]),
        (
            (READY, NONE, SAMPLE, REFUSED, SAMPLE, SUCCESS),
            ReplicaStanding.TRUSTED,
            [TrustAction.SPARE, TrustAction.BELIEVE],
        ),
        ((READY, NONE, Happening.NO_SAMPLE), ReplicaStanding.TRUSTED, [TrustAction.GUESS]),
        ((READY, NONE, SAMPLE, Happening.ENDED), ReplicaStanding.ENDING, []),
        ((Happening.ENDED,), ReplicaStanding.ENDING, []),
        ((READY, NONE, SUCCESS, SUCCESS, REFUSED), ReplicaStanding.TRUSTED, [TrustAction.BELIEVE]),
    ],
)
def test_a_replica_is_believed_once_it_has_a_success_or_has_passed_a_sample(happenings, standing, actions):
    assert after(*happenings) == (standing, actions)


def test_a_replica_that_is_not_ready_in_time_is_replaced_once_and_one_that_is_ready_is_not():
    trust = ReplicaTrust()
    for name in ("hangs", "loads"):
        trust.attached(name, LIMIT_S, 0.0)
    trust.happens("loads", Happening.READY)
    assert (trust.next_s, trust.overdue(LIMIT_S - 0.1)) == (LIMIT_S, [])
    assert trust.overdue(LIMIT_S) == [("hangs", "it was not ready within 60 s")]
    assert (trust.next_s, trust.overdue(1e9)) == (None, [])


def test_a_process_that_lives_on_after_its_connection_is_replaced_unless_it_is_attached_again():
    trust = ReplicaTrust()
    for name in ("lives on", "comes back", "is seen to"):
        trust.attached(name, LIMIT_S, 0.0)
        trust.happens(name, Happening.READY)
        trust.happens(name, Happening.ENDED, 10.0, "its connection ended")
    trust.attached("comes back", LIMIT_S, 11.0)
    trust.forget("is seen to")
    why = "its connection ended, and its process lived on for 5 s"
    assert trust.overdue(10.0 + END_S) == [("lives on", why)]
    assert trust.next_s == 11.0 + LIMIT_S
