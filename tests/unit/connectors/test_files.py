"""Reading files: every event once, whole, and by the same id however it is read."""

import asyncio
import contextlib
import errno
import gzip
import io
import itertools
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.connectors.sources import file_events, files
from inferline_stream.connectors.sources.file_events import lines_of, rows_of
from inferline_stream.connectors.sources.file_positions import FilePosition, FilePositions
from inferline_stream.connectors.sources.files import Files
from inferline_stream.errors import InvalidFile, Unreachable


def files_of(path, state=None, **options):
    state = state or FilePositions(path.parent / "state")
    return Files(path, ["*.jsonl", "*.csv", "*.gz"], state, **options)


def first(reading, place, *, whole):
    """The first events from a place on, and the place after them."""
    with contextlib.closing(reading.read(place, whole=whole)) as found:
        return next(found, ([], place))


def everything(path, *, whole=True, **options):
    events, _ = first(files_of(path, **options), FilePosition(path.name), whole=whole)
    return [(event.id.decode(), json.loads(event.value)) for event in events]


def test_lines_are_events_known_by_where_they_begin(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n  [2]\r\n"\xc3\xa9"')
    assert everything(file) == [("a.jsonl:0", {"a": 1}), ("a.jsonl:10", [2]), ("a.jsonl:17", "é")]


def test_an_unfinished_line_waits_until_it_is_finished_where_more_is_to_come(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1\n2")
    files = files_of(file)
    events, place = first(files, FilePosition("a.jsonl"), whole=False)
    assert [event.value for event in events] == [b"1"]
    with file.open("a") as more:
        more.write("3\n")
    events, place = first(files, place, whole=False)
    assert [(event.id, event.value) for event in events] == [(b"a.jsonl:2", b"23")]
    assert first(files, place, whole=False) == ([], place)


def test_rows_are_objects_of_texts_and_of_numbers_where_that_is_said(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfid,say,price\r\n007,"two\nlines, ""quoted""",1.5\r\n8,short\n9,x,-2\n')
    assert everything(file, numbers=["price"]) == [
        ("a.csv:17", {"id": "007", "say": 'two\nlines, "quoted"', "price": 1.5}),
        ("a.csv:50", ["8", "short"]),
        ("a.csv:58", {"id": "9", "say": "x", "price": -2}),
    ]


def test_a_row_whose_quotes_are_open_waits_where_more_is_to_come_and_is_its_text_where_not(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('a,b\n1,2\n3,"open\n4,5\n')
    first = ("a.csv:4", {"a": "1", "b": "2"})
    assert everything(file, whole=False) == [first]
    assert everything(file) == [first, ("a.csv:8", ['3,"open']), ("a.csv:16", {"a": "4", "b": "5"})]


def test_a_row_that_is_no_csv_is_its_text_and_holds_up_no_other(tmp_path):
    file = tmp_path / "a.csv"
    large = "x" * 200_000
    file.write_bytes(b'a,b\n1,"2"3\n4,%b\n5,caf\xe9\n"6\n",\xff\n7,8\r9\n10,11\n' % large.encode())
    assert [value for _, value in everything(file)] == [
        ['1,"2"3'],
        {"a": "4", "b": large},
        ["5,caf\\xe9"],
        ['"6\n",\\xff'],
        ["7,8\r9"],
        {"a": "10", "b": "11"},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_that_is_too_long_is_an_event_that_cannot_be_sent_and_holds_up_no_other(tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_events, "_LONGEST_LINE", 64)
    file = tmp_path / name
    file.write_bytes(b'"x"\n1\n' + b"2" * 1000 + b"\n3\n")
    parts = list(files_of(file).read(FilePosition(name), whole=True))
    events, place = [event for part, _ in parts for event in part], parts[-1][1]
    assert [event.refusal[:8] for event in events[-3:]] == ["", "its line", ""]
    assert [event.id.decode() for event in events[-3:]] == [f"{name}:4", f"{name}:6", f"{name}:1007"]
    assert place.offset == file.stat().st_size


async def test_a_file_that_cannot_be_read_is_named_and_holds_up_no_other(tmp_path, caplog):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    packed = gzip.compress(b"1\n2\n" + bytes(range(256)) * 100)
    (folder / "a.jsonl.gz").write_bytes(packed[:20] + b"\xff" * 20 + packed[40:])
    (folder / "b.csv").write_bytes(b"\xff,b\n1,2\n")
    (folder / "c.jsonl").write_text("3\n")
    with pytest.raises(InvalidFile, match=r"a\.jsonl\.gz: cannot be read"):
        await look(folder, taken)
    assert "b.csv: its first row is no CSV of UTF-8 text" in caplog.text
    assert taken.new()[-1] == ("c.jsonl:0", 3)


async def test_a_file_whose_name_is_no_text_is_named_and_holds_up_no_other(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    (folder / os.fsdecode(b"a-caf\xe9.jsonl")).write_text("1\n")
    (folder / "b.jsonl").write_text("2\n")
    with pytest.raises(InvalidFile, match=r"a-caf\\udce9\.jsonl.*rename it"):
        await look(folder, taken)
    assert taken.new() == [("b.jsonl:0", 2)]
    (folder / "b.jsonl").rename(folder / os.fsdecode(b"b-caf\xe9.jsonl"))  # where it is not read on
    with pytest.raises(InvalidFile, match="rename it"):
        await look(folder, taken)
    assert taken.new() == []


def test_a_gzipped_file_is_read_as_what_it_holds(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"1\n2\n"))
    assert everything(file) == [("a.jsonl.gz:0", 1), ("a.jsonl.gz:2", 2)]


def test_a_file_that_has_become_shorter_is_another_one_with_ids_of_its_own(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1\n")
    begun = FilePosition("a.jsonl", generation=1)
    assert first(files_of(file), FilePosition("a.jsonl", 100), whole=True) == ([], begun)
    events, place = first(files_of(file), begun, whole=True)
    assert [event.id for event in events] == [b"a.jsonl~1:0"]
    assert (place.offset, place.generation) == (2, 1)


class Taken:
    """Stands for Kafka: takes events, or none."""

    def __init__(self):
        self.events = []

    async def deliver(self, events):
        self.events += [(event.id.decode(), json.loads(event.value)) for event in events]

    def new(self):
        taken, self.events = self.events, []
        return taken


async def look(path, taken, **options):
    """Read what is new, as after a start of the process."""
    state = FilePositions(path.parent / "state")
    state.open()
    with contextlib.closing(state):
        await files_of(path, state, **options).send(taken, asyncio.Event(), follow=False)
    return taken.new()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_rewritten_is_another_one_however_long_it_is(tmp_path, caplog, replaced):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / "a.jsonl"
    file.write_text("1\n2\n")
    assert await look(folder, taken) == [("a.jsonl:0", 1), ("a.jsonl:2", 2)]
    if replaced:
        file.unlink()
    file.write_text("7\n8\n9\n")
    assert await look(folder, taken) == [("a.jsonl~1:0", 7), ("a.jsonl~1:2", 8), ("a.jsonl~1:4", 9)]
    assert "read from its beginning, as a.jsonl~1" in caplog.text
    caplog.clear()
    file.write_text("")
    assert await look(folder, taken) == await look(folder, taken) == []
    assert caplog.text.count("as a.jsonl~2") == 1, "said once"
    file.write_text("5\n")
    assert await look(folder, taken) == [("a.jsonl~2:0", 5)]


@pytest.mark.parametrize("name", ["a.jsonl.1", "b.jsonl", "0.jsonl"])
async def test_a_file_that_was_renamed_loses_no_line_and_repeats_none(tmp_path, name):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / "a.jsonl"
    file.write_text("1\n")
    assert await look(folder, taken) == [("a.jsonl:0", 1)]
    with file.open("a") as writer:
        writer.write("2\n")
        writer.flush()
        file.rename(folder / name)
        file.write_text("11\n12\n")
        expected = [("a.jsonl:2", 2), ("a.jsonl~1:0", 11), ("a.jsonl~1:3", 12)]
        assert sorted(await look(folder, taken)) == sorted(expected)
        writer.write("3\n")  # the writer may notice late
    with file.open("a") as writer:
        writer.write("13\n")
    assert sorted(await look(folder, taken)) == [("a.jsonl:4", 3), ("a.jsonl~1:6", 13)]
    (folder / name).unlink()
    assert await look(folder, taken) == []


def rotate(folder, name="a.jsonl"):
    """As logrotate does: each rotated file gets the next number."""
    names = [name, *(f"{name}.{number}" for number in range(1, 11))]
    for new, old in itertools.pairwise(reversed(names)):
        with contextlib.suppress(FileNotFoundError):
            (folder / old).rename(folder / new)


async def test_files_that_are_renamed_again_and_again_lose_no_line_and_repeat_none(tmp_path, caplog):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / "a.jsonl"
    seen = []
    for turn in range(1, 5):
        file.write_text(f"{turn}0\n{turn}1\n")
        seen += await look(folder, taken)
        with file.open("a") as writer:
            writer.write(f"{turn}2\n")
        rotate(folder)
        seen += await look(folder, taken) if turn % 2 else []
    seen += await look(folder, taken)
    assert sorted(value for _, value in seen) == [turn * 10 + n for turn in range(1, 5) for n in range(3)]
    assert len({known for known, _ in seen}) == len(seen)
    assert "something else" not in caplog.text, "it is known where they are"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.gz"])
async def test_a_file_that_came_and_went_between_two_looks_is_found_by_the_name_of_those_before_it(tmp_path, name):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()

    def write(line):
        text = b"n\n" * ("csv" in name) + line
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)

    for line in (b"1\n", b"2\n"):
        write(line)
        await look(folder, taken)
        rotate(folder, name)
        await look(folder, taken)
    for line in (b"3\n", b"4\n"):
        write(line)
        rotate(folder, name)
    expected = [{"n": "3"}, {"n": "4"}] if "csv" in name else [3, 4]
    assert sorted((value for _, value in await look(folder, taken)), key=str) == expected
    assert await look(folder, taken) == []


async def test_a_file_that_is_renamed_while_it_is_sent_is_sent_to_its_end(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f"{n}\n" for n in range(700)))

    class Rotating(Taken):
        async def deliver(self, events):
            if not self.events:
                rotate(folder)
                (folder / "a.jsonl").write_text("700\n")
            await super().deliver(events)

    seen = await look(folder, Rotating()) + await look(folder, Taken())
    assert sorted(value for _, value in seen) == list(range(701))


async def test_files_that_are_renamed_while_another_one_is_sent_repeat_no_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LOOK_AGAIN_S", -1.0)  # sending takes long
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    seen = []
    for n in range(4):
        (folder / "a.jsonl").write_text(f"{n}\n")
        seen += await look(folder, taken)
        rotate(folder)
        seen += await look(folder, taken)
    (folder / "a.jsonl").write_text("4\n")
    for number, line in ((1, 5), (2, 6), (3, 7)):
        with (folder / f"a.jsonl.{number}").open("a") as writer:
            writer.write(f"{line}\n")

    class Rotating(Taken):
        async def deliver(self, events):
            rotate(folder)
            await super().deliver(events)

    seen += await look(folder, Rotating()) + await look(folder, taken)
    assert sorted(value for _, value in seen) == list(range(8))


async def test_a_file_that_gets_the_name_of_a_new_one_while_another_one_is_sent_repeats_no_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LOOK_AGAIN_S", -1.0)  # sending takes long
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    (folder / "b.jsonl").write_text("1\n")
    seen = await look(folder, taken)
    (folder / "0.jsonl").write_text("0\n")
    (folder / "a.jsonl").write_text("2\n")

    class Renaming(Taken):
        async def deliver(self, events):
            if not self.events:
                (folder / "a.jsonl").rename(folder / "c.jsonl")
                (folder / "b.jsonl").rename(folder / "a.jsonl")
            await super().deliver(events)

    seen += await look(folder, Renaming()) + await look(folder, taken)
    assert sorted(value for _, value in seen) == [0, 1, 2]


async def test_a_renamed_archive_that_is_damaged_holds_up_no_other_file(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    archive = folder / "a.jsonl.gz"
    archive.write_bytes(gzip.compress(b"".join(b'"%s"\n' % os.urandom(50).hex().encode() for _ in range(400))))
    assert len(await look(folder, taken)) == 400
    with archive.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 2000)
    archive.rename(folder / "b.jsonl.gz")
    (folder / "c.jsonl").write_text("1\n")
    with pytest.raises(InvalidFile, match=r"b\.jsonl\.gz: cannot be read"):
        await look(folder, taken)
    assert taken.new()[-1] == ("c.jsonl:0", 1)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_renamed_file_is_read_on_as_what_it_is(tmp_path, packed):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / ("a.csv.gz" if packed else "a.csv")

    def write(text):
        with file.open("ab") as writer:
            writer.write(gzip.compress(text) if packed else text)

    write(b"n\n1\n")
    assert [value for _, value in await look(folder, taken)] == [{"n": "1"}]
    write(b"2\n")
    rotate(folder, file.name)
    assert [value for _, value in await look(folder, taken)] == [{"n": "2"}]


async def test_an_archive_that_was_rewritten_is_another_one(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / "a.jsonl.gz"
    for known, lines in (("a.jsonl.gz", "1\n2\n"), ("a.jsonl.gz~1", "3\n4\n5\n"), ("a.jsonl.gz~2", "6\n")):
        file.write_bytes(gzip.compress(lines.encode()))
        expected = [(f"{known}:{at * 2}", int(line)) for at, line in enumerate(lines.split())]
        assert await look(folder, taken) == expected
        assert await look(folder, taken) == []


async def test_no_id_comes_again_by_a_name_that_another_file_was_renamed_to(tmp_path):
    folder, taken, seen = tmp_path / "in", Taken(), []
    folder.mkdir()
    file, beside = folder / "a.jsonl", folder / "b.jsonl"
    for written, line in ((file, "1\n"), (file, "2\n"), (beside, "3\n"), (file, "4\n"), (beside, "5\n"), (file, "6\n")):
        written.write_text(line)
        seen += await look(folder, taken)
        if written == beside:
            beside.rename(file)  # as one does so that nobody reads half of it
            seen += await look(folder, taken)
    assert [value for _, value in seen] == [1, 2, 3, 4, 5, 6]
    assert len({known for known, _ in seen}) == len(seen)


async def test_a_crash_while_a_rotation_is_noted_loses_no_line(tmp_path, monkeypatch):
    folder, taken, state = tmp_path / "in", Taken(), tmp_path / "state"
    folder.mkdir()
    (folder / "a.jsonl").write_text("1\n")
    await look(folder, taken)
    with (folder / "a.jsonl").open("a") as writer:
        writer.write("2\n")
    rotate(folder)
    states = []
    with monkeypatch.context() as disk:
        synced = os.fsync
        disk.setattr(os, "fsync", lambda number: (synced(number), states.append(state.read_bytes())))
        assert await look(folder, taken) == [("a.jsonl:2", 2)]
    for crashed in states[:-1]:
        state.write_bytes(crashed)
        assert await look(folder, taken) == [("a.jsonl:2", 2)]


async def test_an_archive_that_was_read_while_it_was_compressed_is_known_again(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    file = folder / "a.jsonl.gz"
    packed = gzip.compress(b"1\n" + os.urandom(40_000).hex().encode() + b"\n")
    file.write_bytes(packed[:20_000])
    with contextlib.suppress(InvalidFile):
        await look(folder, taken)
    assert taken.new() == [("a.jsonl.gz:0", 1)]
    file.write_bytes(gzip.compress(b"7\n8\n"))
    assert await look(folder, taken) == [("a.jsonl.gz~1:0", 7), ("a.jsonl.gz~1:2", 8)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
async def test_an_archive_is_unpacked_a_few_times_however_much_it_holds(tmp_path, monkeypatch, name):
    file, taken, read_bytes = tmp_path / name, Taken(), 0
    file.write_bytes(gzip.compress(b'"n"\n' + b"".join(b'"%0100d"\n' % n for n in range(10_000))))

    class Counted(io.FileIO):
        def read(self, size=-1):
            nonlocal read_bytes
            data = super().read(size)
            read_bytes += len(data)
            return data

    state = FilePositions(tmp_path / "state")
    state.open()
    with contextlib.ExitStack() as opened:
        opened.callback(state.close)
        monkeypatch.setattr(gzip, "open", lambda path: gzip.GzipFile(fileobj=opened.enter_context(Counted(path))))
        reading = files_of(file, state)
        await reading.send(taken, asyncio.Event(), follow=False)
        assert len(taken.new()) >= 10_000
        assert 0 < read_bytes < 4 * file.stat().st_size
        read_bytes = 0
        await reading.send(taken, asyncio.Event(), follow=False)
        assert (taken.new(), read_bytes) == ([], 0), "it has not changed"
        with file.open("ab") as more:
            more.write(gzip.compress(b"1\n"))
        await reading.send(taken, asyncio.Event(), follow=False)
        assert len(taken.new()) == 1


async def test_lines_that_are_long_are_not_all_held_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BYTES_AT_ONCE", 64)
    folder, most = tmp_path / "in", 0
    folder.mkdir()
    (folder / "a.jsonl").write_text(f'"{"x" * 60}"\n' * 100)

    class Weighing(Taken):
        async def deliver(self, events):
            nonlocal most
            most = max(most, sum(len(event.value) for event in events))
            await super().deliver(events)

    assert len(await look(folder, Weighing())) == 100
    assert most <= 2 * 64


async def test_an_empty_file_may_be_about_to_be_replaced_as_well(tmp_path):
    file, taken, stop = tmp_path / "a.jsonl", Taken(), asyncio.Event()
    file.touch()
    state = FilePositions(tmp_path / "state")
    state.open()
    with contextlib.closing(state):
        followed = asyncio.create_task(files_of(file, state).send(taken, stop, follow=True))
        async with asyncio.timeout(20):
            while not state.places:
                await asyncio.sleep(0.01)
            file.unlink()
            await asyncio.sleep(0.8)
            file.write_text("1\n")
            while not taken.events and not followed.done():
                await asyncio.sleep(0.05)
        stop.set()
        await followed
    assert taken.events == [("a.jsonl:0", 1)]


async def test_a_file_put_in_place_of_one_that_it_begins_with_is_the_same_one(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    (folder / "a.jsonl").write_text("1\n")
    await look(folder, taken)
    (folder / "new").write_text("1\n2\n")
    (folder / "new").rename(folder / "a.jsonl")
    assert await look(folder, taken) == [("a.jsonl:2", 2)]


async def test_what_was_not_delivered_is_not_noted(tmp_path):
    folder, taken = tmp_path / "in", Taken()
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f"{n}\n" for n in range(700)))

    class Half(Taken):
        async def deliver(self, events):
            if self.events:
                raise Unreachable("Kafka is away")
            await super().deliver(events)

    half = Half()
    with pytest.raises(Unreachable):
        await look(folder, half)
    assert [value for _, value in half.events + await look(folder, taken)] == list(range(700))


def test_a_folders_files_come_by_name_and_hidden_ones_links_and_others_not_at_all(tmp_path):
    for name in ("b.jsonl", "a.csv", ".c.jsonl", "d.txt"):
        (tmp_path / name).touch()
    (tmp_path / "e.jsonl").symlink_to("/etc/passwd")
    assert files_of(tmp_path, FilePositions(tmp_path / "state")).names() == ["a.csv", "b.jsonl"]


@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_ends_never_or_cannot_be_read_again_is_refused(tmp_path, made):
    made(path := tmp_path / "a.jsonl")
    with pytest.raises(InvalidFile, match=r"a\.jsonl: is no file or folder"):
        files_of(path).names()


def test_keys_come_from_a_field(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"user": "u"}\n{"user": 7}\n{}\nnothing\n')
    events, _ = first(files_of(file, key_field="user"), FilePosition("a.jsonl"), whole=True)
    assert [event.key for event in events] == [b"u", b"7", None, None]


def test_a_state_tells_what_was_noted_last_and_a_torn_line_counts_for_nothing(tmp_path):
    path = tmp_path / "state"
    state = FilePositions(path)
    state.open()
    for place in (FilePosition("a", 1), FilePosition("b", 5), FilePosition("a", 2)):
        state.note(place)
    state.close()
    with path.open("ab") as file:
        file.write(b'{"file":"a","offs')
    again = FilePositions(path)
    assert again.places == {"a": FilePosition("a", 2), "b": FilePosition("b", 5)}
    again.shorten()
    assert path.read_bytes().count(b"\n") == 2
    assert FilePositions(path).places == again.places


async def test_a_full_disk_stops_no_file_repeats_no_line_and_leaves_a_state_that_can_be_read(
    tmp_path, monkeypatch, caplog
):
    folder, taken, path = tmp_path / "in", Taken(), tmp_path / "state"
    folder.mkdir()
    file = folder / "a.jsonl"
    file.write_text("1\n")
    state = FilePositions(path)
    state.open()
    reading = files_of(folder, state)
    with monkeypatch.context() as disk:

        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        disk.setattr(os, "fsync", full)
        for more in ("2\n", "3\n"):
            await reading.send(taken, asyncio.Event(), follow=False)
            with file.open("a") as writer:
                writer.write(more)
    assert [value for _, value in taken.new()] == [1, 2]
    assert "state: No space left on device" in caplog.text
    await reading.send(taken, asyncio.Event(), follow=False)
    state.close()
    assert [value for _, value in taken.new()] == [3]
    assert FilePositions(path).places["a.jsonl"].offset == 6
    assert path.read_bytes().count(b"\n") == 1


def test_a_state_is_one_sources_at_a_time_and_the_next_goes_on_where_the_last_one_was(tmp_path):
    path = tmp_path / "state"
    first, second = FilePositions(path), FilePositions(path)
    assert first.open()
    first.note(FilePosition("a", 1))
    assert not second.open()
    second.shorten()
    first.note(FilePosition("a", 2))
    first.close()
    with path.open("ab") as file:
        file.write(b'{"file":"a","offs')  # what it was killed at
    assert second.open()
    assert second.places == {"a": FilePosition("a", 2)}
    second.note(FilePosition("a", 3))
    second.close()
    assert FilePositions(path).places == {"a": FilePosition("a", 3)}


def test_somebody_elses_file_is_no_state(tmp_path):
    (tmp_path / "state").write_text("hello\n")
    with pytest.raises(InvalidFile, match="no state of this source"):
        FilePositions(tmp_path / "state")


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


@given(st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\xff", b"\xc3\xa9"])).map(b"".join), st.data())
def test_whatever_a_csv_file_holds_is_read_to_its_end_and_from_any_row_on(content, data):
    file = io.BytesIO(b"x,y\n" + content)
    file.name = "memory"
    found = list(rows_of(file, 0, whole=True))
    assert b"".join(file.getvalue()[one.begin : one.end] for one in found).split() == content.split()
    at = data.draw(st.integers(0, len(found)))
    assert list(rows_of(file, found[at - 1].end if at else 0, whole=True)) == found[at:]


@given(st.binary(max_size=60), st.data())
def test_lines_read_in_any_pieces_are_those_of_the_whole(content, data):
    file = io.BytesIO(content)
    found = list(lines_of(file, 0, whole=True))
    assert [one.value for one in found] == [line.strip() for line in content.split(b"\n") if line.strip()]
    cut = data.draw(st.integers(0, len(content)))
    early = list(lines_of(io.BytesIO(content[:cut]), 0, whole=False))
    end = early[-1].end if early else 0
    assert early + list(lines_of(file, end, whole=True)) == found
