"""Records of the pipeline's own topics that no release up to this one writes."""

from __future__ import annotations

import logging
import time

import msgspec
import pytest

from inferline_stream.controlplane.leadership import read_log
from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.controlplane.records.control_records import (
    ArrivalTicks,
    Override,
    decode_override,
    decode_stored,
    decode_ticks,
    encode,
)
from inferline_stream.dataplane.reports import PoolReport, decode_report, encode_report
from inferline_stream.dataplane.slot_grants import Grant, LeaderHeartbeat, encode_control, grant_key
from inferline_stream.kafka.records import Record
from inferline_stream.observability.pipeline_state import DecisionRecord

BYTES = [
    b"",
    b"\xff\x00",
    b"[",
    b"17",
    b"null",
    b'"pause"',
    b"{}",
    b'{"kind":"pause","more":' + b"[" * 100_000,
    b"x" * 900_000,
]
LIMITED = Override("limits", "a", maximum=3)
REPORT = PoolReport("a-0", 1, "a", 0, "serving", 1)


def followed(*values: bytes | None, key: bytes | None = b"k", first: int = 0) -> list[Record]:
    return [Record(key, value, (), 0, "own", 0, first + at) for at, value in enumerate(values)]


def changed(record: msgspec.Struct, **fields: object) -> bytes:
    return msgspec.json.encode(msgspec.to_builtins(record) | fields)


def test_valid_records_among_bytes_of_any_kind_are_kept_and_the_others_counted_once() -> None:
    decoder = RecordDecoder()
    records = followed(*BYTES[:4], encode(LIMITED), *BYTES[4:], None, key=b"limits/a")
    for _ in range(3):  # what is read again is not counted again
        found = [(e.key, e.value) for e in decoder.decoded_by_key(records, decode_override)]
        assert found == [("limits/a", LIMITED), ("limits/a", None)]
    assert decoder.counts == {"own": len(BYTES)}


@pytest.mark.parametrize(
    "value",
    [
        changed(LIMITED, kind="freeze"),
        changed(LIMITED, version=2),
        changed(LIMITED, maximum=-1),
        changed(LIMITED, subject="b"),  # under the key of another one it could never be taken back
        changed(Override("scale", "a", 2), value=None),
        changed(Override("scale", "a", 2), value=1.5),
        changed(Override("scale", "a", 2), value=1e300),
        changed(Override("slo", value=0.2), value=0),
        changed(Override("pause"), until_s=1e15),
    ],
)
def test_an_override_that_this_release_would_not_write_is_skipped(value: bytes) -> None:
    key = "limits/a" if b'"limits"' in value or b"freeze" in value else f"{msgspec.json.decode(value)['kind']}/a"
    key = key.replace("slo/a", "slo").replace("pause/a", "pause")
    decoder = RecordDecoder()
    assert list(decoder.decoded_by_key(followed(value, key=key.encode()), decode_override)) == []
    assert decoder.counts["own"] == 1


@pytest.mark.parametrize(
    ("value", "decode"),
    [
        (changed(ArrivalTicks([1.0], [[1]], [0], 0.0), times_ms=[1.0, 2.0]), decode_ticks),
        (changed(ArrivalTicks([1.0], [[1]], [0], 0.0), ends=[[-1]]), decode_ticks),
        (changed(ArrivalTicks([1.0], [[1]], [0], 0.0), ends=[[10**400]]), decode_ticks),
        (changed(ArrivalTicks([1.0], [[1]], [0], 0.0), version=9), decode_ticks),
        (changed(REPORT, counts={"events": 10**400}), decode_report),
        (changed(REPORT, counts={"batch_stats": {"cpu": {0: {}}}}), decode_report),
        (changed(REPORT, counts={"latency_buckets": [1] * 20_000}), decode_report),
        (changed(REPORT, version=2), decode_report),
    ],
)
def test_a_report_or_a_tick_that_contradicts_itself_is_skipped(value: bytes, decode: object) -> None:
    decoder = RecordDecoder()
    assert list(decoder.decoded(followed(value), decode)) == []
    assert decoder.counts["own"] == 1


def test_what_this_release_writes_is_read() -> None:
    decoder = RecordDecoder()
    written = [
        *decoder.decoded(followed(encode(ArrivalTicks([1.0], [[1, 2]], [0], 0.0))), decode_ticks),
        *decoder.decoded(followed(encode_report(REPORT)), decode_report),
    ]
    assert [entry.value for entry in written] == [ArrivalTicks([1.0], [[1, 2]], [0], 0.0), REPORT]
    assert not decoder.counts


def test_a_stored_plan_whose_plan_is_none_is_skipped() -> None:
    plan = {
        "controller": "c",
        "term": 1,
        "time_s": 0.0,
        "reason": "",
        "detail": "",
        "plan": {"version": 2},
        "number": 1,
    }
    records = followed(msgspec.json.encode(plan), key=b"plan-1")
    assert list(RecordDecoder().decoded_by_key(records, decode_stored)) == []


def test_a_decision_that_wants_more_replicas_than_there_can_be_is_skipped() -> None:
    decision = DecisionRecord(1, "c", 1, 0.0, "scale_up", "", "", {"a": {"cpu": 2}}, applied=True)
    absurd = changed(decision, replicas={"a": {"cpu": 2**31}})
    records = followed(encode(decision), absurd, key=b"wanted")
    assert [entry.value for entry in RecordDecoder().decoded_by_key(records, decode_stored)] == [decision]


def test_grants_are_kept_beside_others_that_cannot_be_and_an_unreadable_heartbeat_shows_that_somebody_leads() -> None:
    grant = Grant("a", 0, 1, "a-0-x", 3, 7)
    bad = [changed(grant, slots=0), changed(grant, number=2**70), changed(grant, stage="b"), changed(grant, version=5)]
    records = followed(encode_control(grant), *bad, key=grant_key("a", 0).encode())
    leader = Record(b"leader", changed(LeaderHeartbeat(4, "c"), version=2), (), int(time.time() * 1e3), "own", 0, 9)
    decoder = RecordDecoder()
    log = read_log([*records, leader], time.time(), decoder)
    assert log.grants == (grant,)
    assert log.heartbeat is None
    assert log.heartbeat_age_s < 5
    assert decoder.counts["own"] == len(bad) + 1


def test_the_log_names_the_newest_and_repeats_itself_only_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    decoder = RecordDecoder()
    with caplog.at_level(logging.ERROR):
        for at in range(100):
            assert list(decoder.decoded(followed(b"\x1b[2J", first=at), decode_ticks)) == []
    assert len(caplog.records) == 1
    assert "topic own: skipped 1 record that cannot be read" in caplog.text
    assert "\x1b" not in caplog.text
    assert decoder.counts["own"] == 100
