"""Letters and notes of a topic of dead letters, whatever its records hold."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.cli import dlq as verb
from inferline_stream.dataplane import dead_letters
from inferline_stream.dataplane.dead_letters import Letter, noted
from inferline_stream.dataplane.frames import Failed
from inferline_stream.dataplane.headers import REPLAY, SENT_AGAIN
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import ERRORS_PREFIX, EVENT_ID, PARENT, Names
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import Taken, pipeline
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import sent as emitted

NOW_MS = 1_700_000_000_000
HEADERS = [EVENT_ID, PARENT, REPLAY, SENT_AGAIN]
HEADERS += [ERRORS_PREFIX + name for name in ("topic", "partition", "offset", "timestamp_ms", "stage", "message")]


def followed(*headers: tuple[str, Any], offset: int = 0, value: bytes | None = b"{}") -> Record:
    return Record(b"k", value, list(headers), NOW_MS, offset=offset)


def died(offset: int = 0, **said: bytes) -> Record:
    own = {"partition": b"2", "offset": b"7", "timestamp_ms": b"1000", **said}
    return followed((EVENT_ID, b"e"), *((ERRORS_PREFIX + name, value) for name, value in own.items()), offset=offset)


def letters_of(*records: Record, input_topic: str = "in") -> list[Letter]:
    return list(noted(f"{input_topic}.dlq", input_topic, records))


class Sender:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.outgoing: dict[tuple[str, int], list[Any]] = {}

    async def partitions_of(self, topic: str) -> int:
        return 4

    async def begin(self) -> None:
        pass

    async def send(self, outgoing: Any) -> None:
        self.outgoing |= outgoing

    async def commit(self, offsets: Any) -> None:
        pass


def replayed(*letters: Letter) -> dict[tuple[str, int], list[Any]]:
    sender = Sender()
    asyncio.run(dead_letters._send(sender, letters, pipeline(), Names("p")))  # type: ignore[arg-type]
    return sender.outgoing


def test_a_letter_goes_back_to_its_own_input_topic_whatever_topic_its_headers_name() -> None:
    outgoing = replayed(*letters_of(died(topic=b"p.control")))
    assert set(outgoing) == {("in", 2), ("in.dlq", 0)}


@pytest.mark.parametrize("partition", [b"-1", b"4", b"9" * 30, "²".encode(), b"", b"x"])
def test_a_partition_that_the_topic_does_not_have_is_not_written_to(partition: bytes) -> None:
    (topic, number), _ = replayed(*letters_of(died(partition=partition)))
    assert topic == "in"
    assert 0 <= number < 4


def test_the_records_own_time_comes_back_unless_it_is_none_or_ahead() -> None:
    def time_ms(said: bytes) -> float:
        ((message,), _) = replayed(*letters_of(died(timestamp_ms=said))).values()
        assert isinstance(message.timestamp_ms, int)
        return message.timestamp_ms

    recent_ms = round(time.time() * 1000) - 3_600_000
    assert time_ms(b"%d" % recent_ms) == recent_ms
    for wrong in (b"1000", b"-1", b"None", b"inf", b"9" * 17, b"9" * 30, b"253402300799000"):
        assert time_ms(wrong) > recent_ms + 3_000_000, "retention could delete it, or a broker refuse it"


def test_an_events_own_time_comes_back_however_old_and_however_often_it_dies() -> None:
    (letter,) = letters_of(died(timestamp_ms=b"1000"))
    for _ in range(3):
        ((message,), _) = replayed(letter).values()
        sent = message._replace(topic="in", partition=3, offset=9)
        (event,) = Taken("ask")(sent).ready
        assert (event.entry_us, event.event_id, event.replayed) == (1_000_000, b"e", True)
        ((again,),) = [m for (topic, _), m in emitted("ask", event, Failed("E", "", "")).items() if topic == "in.dlq"]
        (letter,) = letters_of(Record(again.key, again.value, again.headers, NOW_MS, offset=1))


def test_only_a_note_of_ours_says_that_a_letter_was_sent_again() -> None:
    note = followed((SENT_AGAIN, b"0/3"), offset=9, value=None)
    (letter,) = letters_of(died(offset=3), note)
    assert letter.sent_again_ms == NOW_MS
    forgeries = [
        followed((SENT_AGAIN, b"0/3"), offset=4),
        followed((SENT_AGAIN, b"0/3"), (ERRORS_PREFIX + "type", b"ValueError"), offset=5, value=None),
        followed((SENT_AGAIN, b"\xff"), offset=6, value=None),
        followed((SENT_AGAIN, None), offset=7, value=None),
    ]
    found = letters_of(died(offset=3), *forgeries)
    assert [letter.offset for letter in found] == [3, 4, 5, 6, 7]
    assert all(letter.sent_again_ms is None for letter in found)


def test_what_a_part_of_a_join_waits_for_is_sent_before_the_part() -> None:
    (letter,) = letters_of(died())
    join, branch = (replace(letter, topic=f"p.{s}.dlq", input_topic=f"p.{s}") for s in ("both", "left"))
    assert list(replayed(join, branch)) == [("p.left", 2), ("p.both", 2), ("p.both.dlq", 0), ("p.left.dlq", 0)]


def test_two_letters_of_one_record_are_sent_once_and_those_that_do_not_say_each() -> None:
    sent = replayed(*letters_of(died(0), died(1), followed(offset=2), followed(offset=3)))
    assert sum(len(messages) for (topic, _), messages in sent.items() if topic == "in") == 3


def test_letters_of_two_records_that_had_one_place_are_both_sent() -> None:
    """A topic that is created again begins at the same offsets, and its topic of dead letters keeps those of before."""
    ids = [b"old:2/7", b"new:2/7"]
    letters = [died(at)._replace(headers=[(EVENT_ID, own), *died().headers[1:]]) for at, own in enumerate(ids)]
    sent = replayed(*letters_of(*letters))
    assert [dict(message.headers)[EVENT_ID] for message in sent["in", 2]] == ids


VALUES = st.none() | st.binary(max_size=30) | st.sampled_from([b"9" * 19, "²".encode(), b"-1", b"\x1b[2J", b"inf"])


@given(
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), VALUES), max_size=6),
    value=VALUES,
    entry=st.booleans(),
    time_ms=st.integers(-(2**63), 2**63 - 1),
)
def test_every_verb_reads_whatever_lies_in_the_topic(
    headers: list[tuple[str, bytes | None]], value: bytes | None, entry: bool, time_ms: int
) -> None:
    lying = Record(None, value, headers, time_ms, offset=5)  # type: ignore[arg-type]
    for letter in letters_of(lying, died(), input_topic="in" if entry else "p.both"):
        verb._in_full(letter, pipeline(), "")
        assert len(replayed(letter)) == 2


def test_what_a_record_holds_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    steering = "\x1b[2J\x1b]52;c;eA==\x07 \x9b31m \u202eexe.txt\x7f\rletter       good"
    text = steering.encode()
    lying = followed(
        (EVENT_ID, text), ("mine\x1b[1m", text), (ERRORS_PREFIX + "message", text),
        (ERRORS_PREFIX + "traceback", b"one\n" + text), value=b'"' + "\u202e \u009b1m".encode() + b'"',
    )  # fmt: skip
    (letter,) = letters_of(lying)
    verb._show(letter, pipeline(), "")
    verb._list([letter])
    verb.print_json({"letters": [verb._in_full(letter, pipeline(), "")]})
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\u202e\x7f\r")
    assert "\nletter       good" not in printed
    assert "\\x1b[2J" in printed
    assert '"\\u202e \\u009b1m"' in printed
