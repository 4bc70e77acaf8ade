"""What is said between the profiler and its dispatcher in a cluster, in records no longer than Kafka takes."""

from inferline_stream.profiler.bench_messages import (
    Answered,
    Assembler,
    EventOutcome,
    Order,
    Outcomes,
    RunEvents,
    SampleInputs,
    Standing,
    decode_from_bench,
    decode_to_bench,
    dispatcher_of,
    pieces,
)

LONG = SampleInputs([bytes([number]) * (1 << 17) for number in range(12)])


def test_a_message_of_a_megabyte_and_a_half_comes_through_records_that_any_kafka_takes() -> None:
    records, assembler = pieces("stage-0-ab12", LONG), Assembler()
    assert len(records) == 4
    assert all(len(value) <= 1 << 19 for _, value in records)
    assert {dispatcher_of(key) for key, _ in records} == {"stage-0-ab12"}
    *begun, whole = (assembler.add(*record) for record in records)
    assert begun == [None, None, None]
    assert whole is not None
    assert decode_to_bench(whole) == LONG


def test_a_message_that_was_cut_short_does_not_spoil_the_next_one() -> None:
    assembler, answer = Assembler(), Answered(7, Outcomes([EventOutcome(b"x" * (3 << 19))]))
    for record in pieces("d", answer)[:2]:
        assert assembler.add(*record) is None
    (short,) = pieces("d", Standing({"replica": "cpu-1"}))
    found = assembler.add(*short)
    assert found is not None
    assert decode_from_bench(found) == Standing({"replica": "cpu-1"})


def test_a_message_whose_beginning_was_missed_is_dropped() -> None:
    assembler = Assembler()
    assert [assembler.add(*record) for record in pieces("d", LONG)[2:]] == [None, None]
    (short,) = pieces("d", order := Order("replica", RunEvents([b"event"]), 1))
    found = assembler.add(*short)
    assert found is not None
    assert decode_to_bench(found) == order


def test_pieces_of_one_message_among_those_of_another_are_no_part_of_it() -> None:
    assembler, one, other = Assembler(), pieces("d", LONG), pieces("d", SampleInputs(LONG.inputs[::-1]))
    mixed = [record for pair in zip(one, other, strict=True) for record in pair]
    found = [whole for record in mixed if (whole := assembler.add(*record)) is not None]
    assert [decode_to_bench(whole) for whole in found] == [SampleInputs(LONG.inputs[::-1])]


def test_no_two_records_share_a_key_so_that_compaction_keeps_them() -> None:
    keys = [key for message in (LONG, LONG) for key, _ in pieces("d", message)]
    assert len(set(keys)) == len(keys)


def test_a_record_of_no_message_names_no_dispatcher() -> None:
    assert [dispatcher_of(key) for key in (None, b"", b"term", b"d/12")] == ["", "", "", ""]
