import errno
import json
import os

import pytest

from inferline_stream.connectors.sinks.jsonl import JsonlFile
from inferline_stream.connectors.sinks.postgres import _refused
from inferline_stream.errors import InvalidFile
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID


def record(offset, value=b'{"ok": true}', event_id=None, partition=0):
    headers = [] if event_id is None else [(EVENT_ID, event_id.encode())]
    return Record(None, value, headers, 1_700_000_000_000 + offset, partition=partition, offset=offset)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def taken(path):
    file = JsonlFile(path)
    try:
        assert file.take()
    except InvalidFile:
        file.close()
        raise
    return file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


def test_a_line_holds_event_id_time_and_value(path):
    file = taken(path)
    file.append([record(3, b'{"a":\n [1, "x\\ny"]}', "posts/0/17"), record(4, b"5")], "verdicts")
    file.close()
    assert lines(path) == [
        {"event_id": "posts/0/17", "timestamp_ms": 1_700_000_000_003, "value": {"a": [1, "x\ny"]}},
        {"event_id": "verdicts/0/4", "timestamp_ms": 1_700_000_000_004, "value": 5},
    ]


def test_an_event_is_written_once_even_by_a_later_process(path):
    first = taken(path)
    first.append([record(0, event_id="e1"), record(1, event_id="e1"), record(2, event_id="e2")], "t")
    first.close()
    second = taken(path)
    second.append([record(2, event_id="e2"), record(3, event_id="e3")], "t")
    second.close()
    assert [line["event_id"] for line in lines(path)] == ["e1", "e2", "e3"]
    assert (first.counts.written, first.counts.duplicates) == (2, 1)
    assert (second.counts.written, second.counts.duplicates) == (1, 1)


def test_a_line_torn_by_a_crash_is_cut_off_and_its_event_written_again(path):
    first = taken(path)
    first.append([record(0, event_id="e1"), record(1, event_id="e2")], "t")
    first.close()
    path.write_bytes(path.read_bytes()[:-5])
    second = taken(path)
    second.append([record(1, event_id="e2")], "t")
    second.close()
    assert [line["event_id"] for line in lines(path)] == ["e1", "e2"]


def test_a_file_that_was_emptied_meanwhile_is_written_from_its_beginning(path):
    file = taken(path)
    file.append([record(0, event_id="e1"), record(1, event_id="e2")], "t")
    os.truncate(path, 0)
    file.append([record(2, event_id="e2"), record(3, event_id="e3")], "t")
    file.close()
    assert [line["event_id"] for line in lines(path)] == ["e3"]
    taken(path).close()


@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 10)])
def test_no_event_is_written_to_a_file_that_was_deleted_or_cut_off(path, harm):
    file = taken(path)
    file.append([record(0, event_id="e1")], "t")
    harm(path)
    with pytest.raises(InvalidFile, match="was deleted or cut off"):
        file.append([record(1, event_id="e2")], "t")
    file.close()
    again = taken(path)
    again.append([record(1, event_id="e2")], "t")
    again.close()
    assert [line["event_id"] for line in lines(path)] == ["e2"]


@pytest.mark.parametrize("value", [b"{", b"\xff", b"", b"\x81\xa1a\x01", b"1],[2", b"[" * 1000 + b"]" * 1000])
def test_a_value_that_is_no_json_is_refused_and_does_not_hold_up_the_next(path, value):
    file = taken(path)
    (refusal,) = file.append([record(0, value), record(1)], "t")
    file.close()
    assert refusal.record == record(0, value)
    assert "JSON" in refusal.reason
    assert [line["event_id"] for line in lines(path)] == ["t/0/1"]


def test_a_record_without_a_value_is_a_null(path):
    file = taken(path)
    file.append([record(0, None)], "t")
    file.close()
    assert lines(path)[0]["value"] is None


def test_a_file_that_somebody_else_wrote_is_refused_and_left_alone(path):
    path.write_text('{"event_id": "a"}\nhello\n')
    with pytest.raises(InvalidFile, match=r"out\.jsonl:2"):
        taken(path)
    assert path.read_text() == '{"event_id": "a"}\nhello\n'


def test_what_was_appended_has_been_synced_before_append_returns(path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    file = taken(path)
    file.append([record(0), record(1)], "t")
    assert synced == [path.stat().st_size]
    file.append([record(1)], "t")
    assert len(synced) == 1, "nothing new, nothing to sync"
    file.close()


def test_a_file_that_takes_a_deep_value_can_be_opened_again_where_less_stack_is_left(path):
    file = taken(path)
    refused = file.append([record(depth, b"[" * depth + b"]" * depth) for depth in range(700, 1100)], "t")
    file.close()
    written = path.read_bytes().count(b"\n")
    assert written + len(refused) == 400

    def opened_below(frames):
        if frames:
            opened_below(frames - 1)
        else:
            taken(path).close()

    opened_below(100)


def test_what_a_full_disk_took_in_part_is_cut_off_also_where_that_needs_room_first(path, monkeypatch):
    file, write, cut = taken(path), os.write, os.ftruncate
    file.append([record(0)], "t")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torn(number, data):
        write(number, data[:7])
        monkeypatch.setattr(os, "ftruncate", full)
        full()

    monkeypatch.setattr(os, "write", torn)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.append([record(1)], "t")
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "ftruncate", cut)
    file.append([record(1)], "t")
    file.close()
    assert [line["event_id"] for line in lines(path)] == ["t/0/0", "t/0/1"]


def test_postgres_refuses_what_no_row_can_hold():
    assert "no JSON" in _refused(record(0, b"[" * 100_000), "e")
    assert "NUL" in _refused(record(0), "e\0")
    for time_ms in (-1, 2**62):
        assert "is no time" in _refused(Record(None, b"5", timestamp_ms=time_ms), "e")
    assert not _refused(record(0), "e")
