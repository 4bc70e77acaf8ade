"""What a dispatcher makes of records of the assignments topic that no leader writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.tenure import Tenure
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.slot_grants import Grant, LeaderHeartbeat, encode_control
from inferline_stream.kafka.records import Record

GRANT = Grant("a", 0, 1, "a-0-x", 3, 7)
HEARTBEAT = LeaderHeartbeat(3, "c")


def following(*records: tuple[bytes | None, bytes | None]) -> tuple[Tenure, list[on.SlotEvent]]:
    """A tenure that has read its grant and then these keys and values, and what its slot learned."""
    learned = list[on.SlotEvent]()
    spec: Any = SimpleNamespace(dispatcher="a-0-x", slot=0, routes=SimpleNamespace(stage="a"))
    nothing: Any = None
    report = PoolReport("a-0-x", 1, "a", 0, "serving", 1)
    tenure = Tenure(spec, nothing, nothing, report, learned.append, transactional=False)
    for key, value in ((b"a/0", encode_control(GRANT)), *records):
        tenure.follow(Record(key, value))
    return tenure, learned


@pytest.mark.parametrize("key", [b"a/0", b"leader", b"\xff", b"", None])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"type":"heartbeat","term":3,"controller":"\xff"}',
        encode_control(msgspec.structs.replace(GRANT, slot=1, slots=2, dispatcher="a-1-x")),
        encode_control(msgspec.structs.replace(GRANT, stage="b")),
        msgspec.json.encode(msgspec.to_builtins(HEARTBEAT) | {"type": "heartbeat", "term": 10**400}),
    ],
)
def test_a_record_that_no_leader_writes_changes_nothing(key: bytes | None, value: bytes) -> None:
    tenure, learned = following((key, value))
    assert tenure.grant == GRANT
    assert learned == [GRANT]


def test_a_heartbeat_under_the_key_of_a_slot_does_not_take_it_away() -> None:
    tenure, learned = following((b"a/0", encode_control(HEARTBEAT)), (b"leader", encode_control(GRANT)))
    assert (tenure.grant, learned) == (GRANT, [GRANT])


def test_what_the_leader_writes_is_followed() -> None:
    tenure, learned = following((b"leader", encode_control(HEARTBEAT)), (b"a/0", None))
    assert tenure.grant is None
    assert learned == [GRANT, HEARTBEAT]
