import gzip

import numpy as np
import pytest

from inferline_stream.dataplane import sample_files
from inferline_stream.dataplane.sample_files import read_arrivals, read_events
from inferline_stream.errors import InvalidFile


def test_arrivals_read_the_same_plain_and_gzipped(tmp_path):
    text = "timestamp\n2023-11-16 18:15:46.5\n2023-11-16 18:15:48.75\n2023-11-16 18:15:47\n"
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.csv", "packed.csv.gz"):
        np.testing.assert_allclose(read_arrivals(tmp_path / name).arrivals_s, [0.0, 0.5, 2.25])


def test_events_are_the_bytes_that_stand_in_the_file(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'{"text":  "caf\xc3\xa9 \\u2028"}\r\n\n[1, 2]')
    assert read_events(tmp_path / "events.jsonl") == [b'{"text":  "caf\xc3\xa9 \\u2028"}', b"[1, 2]"]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "events.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    (tmp_path / "arrivals.csv").write_bytes(b"\xef\xbb\xbf0.5\n1.0\n")
    assert read_events(tmp_path / "events.jsonl") == [b'{"a": 1}']
    np.testing.assert_allclose(read_arrivals(tmp_path / "arrivals.csv").arrivals_s, [0.0, 0.5])


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("events.jsonl", b'{"a": 1}\n{"a": \n', "events.jsonl:2"),
        ("events.jsonl", b"\n\n", "holds no events"),
        ("events.jsonl.gz", b"not gzip", "cannot be read"),
        ("events.jsonl", b'"\xff\xfe"\n', "events.jsonl:1"),
    ],
)
def test_a_broken_events_file_is_named_with_its_line(tmp_path, name, contents, says):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(InvalidFile, match=says):
        read_events(tmp_path / name)


def test_a_truncated_gzip_of_arrivals_is_refused(tmp_path):
    packed = gzip.compress(b"timestamp\n" + b"1.0\n" * 1000)
    (tmp_path / "arrivals.csv.gz").write_bytes(packed[:-10])
    with pytest.raises(InvalidFile, match="cannot be read"):
        read_arrivals(tmp_path / "arrivals.csv.gz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidFile, match=r"nowhere\.csv: cannot be read"):
        read_arrivals(tmp_path / "nowhere.csv")


def test_a_file_that_ends_nowhere_or_unpacks_to_more_than_there_is_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_files, "free_memory_bytes", lambda: 1_000_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"\n" * 64_000_000))
    for file in (tmp_path / "bomb.csv.gz", "/dev/zero"):
        with pytest.raises(InvalidFile, match=r"holds more than the 0\.0 GB of memory that are free"):
            read_arrivals(file)


def test_memory_that_files_are_cached_in_is_free_for_a_sample(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000000 kB\nMemFree: 90 kB\nMemAvailable: 12000000 kB\nCached: 11000000 kB\n")
    monkeypatch.setattr(sample_files, "_MEMORY", meminfo)
    assert sample_files.free_memory_bytes() == 12_000_000 * 1024
    monkeypatch.setattr(sample_files, "_MEMORY", tmp_path / "none")
    assert sample_files.free_memory_bytes() is None
