"""Reading files: every event once, whole, and by the same id however it is read."""

import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.connectors.sources.files import Files, Place, State, lines_of, rows_of
from inferline_stream.errors import InvalidTopology


def files_of(path, state=None, **options):
    state = state or State(path.parent / "state")
    return Files(path, ["*.jsonl", "*.csv", "*.gz"], state, **options)


def everything(path, *, whole=True, **options):
    events, _ = files_of(path, **options).read(path.name, Place(path.name), whole=whole)
    return [(event.id.decode(), json.loads(event.value)) for event in events]


def test_lines_are_events_known_by_where_they_begin(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n  [2]\r\n"\xc3\xa9"')
    assert everything(file) == [("a.jsonl:0", {"a": 1}), ("a.jsonl:10", [2]), ("a.jsonl:17", "é")]


def test_an_unfinished_line_waits_until_it_is_finished_where_more_is_to_come(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1\n2")
    files = files_of(file)
    events, place = files.read("a.jsonl", Place("a.jsonl"), whole=False)
    assert [event.value for event in events] == [b"1"]
    with file.open("a") as more:
        more.write("3\n")
    events, place = files.read("a.jsonl", place, whole=False)
    assert [(event.id, event.value) for event in events] == [(b"a.jsonl:2", b"23")]
    assert files.read("a.jsonl", place, whole=False) == ([], place)


def test_rows_are_objects_of_texts_and_of_numbers_where_that_is_said(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfid,say,price\r\n007,"two\nlines, ""quoted""",1.5\r\n8,short\n9,x,-2\n')
    assert everything(file, numbers=["price"]) == [
        ("a.csv:17", {"id": "007", "say": 'two\nlines, "quoted"', "price": 1.5}),
        ("a.csv:50", ["8", "short"]),
        ("a.csv:58", {"id": "9", "say": "x", "price": -2}),
    ]


def test_a_row_whose_quotes_are_open_waits_where_more_is_to_come_and_is_an_error_where_not(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('a,b\n1,2\n3,"open\n')
    assert everything(file, whole=False) == [("a.csv:4", {"a": "1", "b": "2"})]
    with pytest.raises(InvalidTopology, match="no CSV"):
        everything(file)


def test_a_gzipped_file_is_read_as_what_it_holds(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"1\n2\n"))
    assert everything(file) == [("a.jsonl.gz:0", 1), ("a.jsonl.gz:2", 2)]


def test_a_file_that_has_become_shorter_is_another_one_with_ids_of_its_own(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1\n")
    events, place = files_of(file).read("a.jsonl", Place("a.jsonl", 100), whole=True)
    assert ([event.id for event in events], place) == ([b"a.jsonl~1:0"], Place("a.jsonl", 2, 1))


def test_a_folders_files_come_by_name_and_hidden_ones_links_and_others_not_at_all(tmp_path):
    for name in ("b.jsonl", "a.csv", ".c.jsonl", "d.txt"):
        (tmp_path / name).touch()
    (tmp_path / "e.jsonl").symlink_to("/etc/passwd")
    assert files_of(tmp_path, State(tmp_path / "state")).names() == ["a.csv", "b.jsonl"]


def test_keys_come_from_a_field(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"user": "u"}\n{"user": 7}\n{}\nnothing\n')
    events, _ = files_of(file, key_field="user").read("a.jsonl", Place("a.jsonl"), whole=True)
    assert [event.key for event in events] == [b"u", b"7", None, None]


def test_a_state_tells_what_was_noted_last_and_a_torn_line_counts_for_nothing(tmp_path):
    path = tmp_path / "state"
    state = State(path)
    state.open()
    for place in (Place("a", 1), Place("b", 5), Place("a", 2)):
        state.note(place)
    state.close()
    with path.open("ab") as file:
        file.write(b'{"file":"a","offs')
    again = State(path)
    assert again.places == {"a": Place("a", 2), "b": Place("b", 5)}
    again.shorten()
    assert path.read_bytes().count(b"\n") == 2
    assert State(path).places == again.places


def test_somebody_elses_file_is_no_state(tmp_path):
    (tmp_path / "state").write_text("hello\n")
    with pytest.raises(InvalidTopology, match="no state of this source"):
        State(tmp_path / "state")


@given(st.lists(st.lists(st.text(alphabet='ab,"\n é', max_size=5), min_size=2, max_size=2)), st.data())
def test_rows_read_from_any_row_on_are_those_that_follow_it(rows, data):
    import csv

    text = io.StringIO()
    csv.writer(text).writerows([["x", "y"], *rows])
    file = io.BytesIO(text.getvalue().encode())
    file.name = "memory"
    found = list(rows_of(file, 0, whole=True))
    assert [json.loads(row.value) for row in found] == [{"x": x, "y": y} for x, y in rows]
    at = data.draw(st.integers(0, len(found)))
    begin = found[at - 1].end if at else 0
    assert list(rows_of(file, begin, whole=True)) == found[at:]


@given(st.binary(max_size=60), st.data())
def test_lines_read_in_any_pieces_are_those_of_the_whole(content, data):
    file = io.BytesIO(content)
    found = list(lines_of(file, 0, whole=True))
    assert [one.value for one in found] == [line.strip() for line in content.split(b"\n") if line.strip()]
    cut = data.draw(st.integers(0, len(content)))
    early = list(lines_of(io.BytesIO(content[:cut]), 0, whole=False))
    end = early[-1].end if early else 0
    assert early + list(lines_of(file, end, whole=True)) == found
