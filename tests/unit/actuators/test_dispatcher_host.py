"""What a dispatcher's host keeps from one start to the next, and what it reads of its postings."""

from pathlib import Path

import msgspec

from inferline_stream.actuators.network.dispatcher_host import _postings, _starts
from inferline_stream.dataplane.host_postings import Posting, encode_posting
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.kafka.records import Record
from tests.unit.dataplane.dispatcher.doubles import routes


def test_a_start_that_was_killed_as_it_was_counted_ends_no_later_one(tmp_path: Path) -> None:
    (tmp_path / "starts").touch()
    assert [_starts(tmp_path) for _ in range(3)] == [0, 1, 2]


def test_a_posting_that_cannot_be_read_leaves_the_one_before() -> None:
    posting = Posting("pod-1", DispatcherSpec("rank-0-a", 0, routes(), "127.0.0.1:9"), 1)
    others = (
        b"",
        b"[" * 100_000,
        b'{"type":"posting","host":"\xff"}',
        encode_posting(msgspec.structs.replace(posting, host="x")),
    )
    for value in others:
        records = [Record(b"host:pod-1", encode_posting(posting)), Record(b"host:pod-1", value)]
        assert len(list(_postings(records, "host:pod-1"))) == 1
    assert list(_postings([Record(b"host:pod-1", None), Record(b"host:pod-2", b"{}")], "host:pod-1")) == [None]
