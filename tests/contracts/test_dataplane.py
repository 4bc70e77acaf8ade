"""What pools do with records, on Apache Kafka and on the embedded broker alike."""

import time
from collections import Counter
from pathlib import Path

import msgspec

from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.version import structure_of
from tests.contracts.pooled import DIAMOND, PASSING, in_order_of_keys, more, under_load
from tests.support.director import Director, event_id

KIND = "emulated-cpu"


def events_in_batches(counts: StageCounts) -> int:
    """Of a kind that has had no batch yet, nothing is counted."""
    return sum(size * stats.batches for size, stats in counts.batch_stats.get("cpu-1", {}).items())


async def test_branches_and_a_join_give_every_event_its_result_or_its_reason_exactly_once(kafka):
    stages = dict.fromkeys(("parity", "odd", "twice", "final"), 3)
    async with Director(kafka.bootstrap_servers, DIAMOND, partitions=stages) as director:
        ids = await director.put([b'{"number": %d}' % number for number in range(100)])
        ids += await director.put([b'{"number": "none"}', b"no json"])
        await director.start(replicas=2)
        await director.caught_up()
        sink = await director.results()
        completed = await director.read(director.names.completed)
        letters = await director.letters("odd")
        undecodable = await director.letters("parity")

        def reported() -> bool:
            """Each stage reports by itself: what it has done may be committed and not reported yet."""
            parity, odd, twice, final = (director.report(stage).counts for stage in stages)
            return (
                sum(parity.edges_taken.values()) == 250
                and odd.dead_lettered == 10
                and events_in_batches(twice) == 100
                and director.total("final", "events") == 102
                and sum(final.latency_buckets) == 90
            )

        await director.until(reported, "every event, and the latency of every result, is reported")
        reports = {stage: director.report(stage) for stage in stages}

    sevens = {ids[number] for number in range(7, 100, 10)}
    assert Counter(map(event_id, sink)) == Counter(set(ids[:100]) - sevens)
    for record in sink:
        gathered = msgspec.json.decode(record.value)
        number = gathered["parity"]
        assert event_id(record) == ids[number]
        assert gathered == {"parity": number, "odd": -number if number % 2 else None, "twice": 2 * number}
        assert record.key == b"%d" % (number % 7)
    assert Counter(record.key.decode() for record in completed) == Counter([*sevens, *ids[100:]])
    assert all(dict(record.headers)["__inferline.reason"] == b"dead_lettered" for record in completed)
    assert sorted(record.value for record in letters) == sorted(b"%d" % number for number in range(7, 100, 10))
    errors = dict(letters[0].headers)
    assert errors["__inferline.errors.type"] == b"ValueError"
    assert errors["__inferline.errors.message"] == b"sevens are not for me"
    assert errors["__inferline.errors.stage"] == b"odd"
    assert b"odd_of" in errors["__inferline.errors.traceback"]
    assert {record.value for record in undecodable} == {b'{"number": "none"}', b"no json"}
    assert reports["parity"].counts.edges_taken == {"odd": 50, "twice": 100, "final": 100}
    assert reports["odd"].counts.dead_lettered == 10
    assert events_in_batches(reports["twice"].counts) == 100


async def test_branches_and_a_join_in_transactions_leave_no_lag_and_no_duplicate(kafka):
    stages = dict.fromkeys(("parity", "odd", "twice", "final"), 2)
    async with Director(kafka.bootstrap_servers, DIAMOND, partitions=stages, delivery="exactly_once") as director:
        ids = await director.put([b'{"number": %d}' % number for number in range(50)])
        await director.start()
        await director.caught_up()  # a transaction's marker ends each partition: offsets must pass it
        ended = [event_id(record) for record in await director.results()]
        ended += [record.key.decode() for record in await director.read(director.names.completed)]
    assert Counter(ended) == Counter(ids)


async def test_scaling_one_to_three_to_one_under_load_loses_nothing_repeats_nothing_and_keeps_the_order(kafka):
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 8}, max_batch_size=4) as director:
        await director.start()
        async with under_load(director, b"who") as ids:
            await director.scale("work", 3)
            await more(director, "work", 300)
            await director.scale("work", 1)
            await more(director, "work")
        await director.caught_up()
        sink = await director.results()
        ended = [(exit_.exit_code, exit_.expected) for exit_ in director.exits]
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert in_order_of_keys(sink)
    assert len({record.value for record in sink}) == 3, "not every replica has worked"
    assert ended == [(0, True)] * 2


async def test_a_partition_without_a_committed_offset_is_halted_with_a_reason(kafka):
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 2}, start=None) as director:
        await director.put([b"x"] * 20)
        await director.start()
        await director.until(lambda: set(director.report("work").halted) == {0, 1}, "both partitions are halted")
        assert "is halted: its group has committed no offset" in director.report("work").reason
        assert await director.results() == []


async def test_batches_fill_up_to_a_limit_that_changes_live_and_wait_only_where_they_are_to_be_held(kafka):
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 2}, max_batch_size=4) as director:

        def sizes() -> dict[int, int]:
            return {size: stats.batches for size, stats in director.report("work").counts.batch_stats[KIND].items()}

        async def all_done(events: int) -> None:
            await director.until(lambda: director.total("work", "events") == events, f"{events} events are done")

        await director.put([b"x"] * 40, [None] * 40)
        await director.start()
        await all_done(40)
        assert max(sizes()) == 4
        number = await director.grant("work", max_batch_size=16, hold_s=3600.0)
        await director.until(lambda: director.report("work").number == number, "the grant is followed")
        before = sizes()
        await director.put([b"x"] * 15, [None] * 15)
        await director.until(lambda: director.report("work").queued == 15, "they are held")
        await director.put([b"x"], [None])
        await all_done(56)
        assert sizes() == {**before, 16: 1}, "a full batch goes at once, and nothing before it"
        await director.grant("work", hold_s=0.05)
        await director.put([b"x"], [None])
        await all_done(57)


async def test_expired_events_become_dead_letters_where_asked(kafka, tmp_path: Path):
    strict = tmp_path / "topology.py"
    strict.write_text(PASSING.read_text().replace('slo="250ms"', 'slo="2s", on_expired="dlq"'))
    async with Director(kafka.bootstrap_servers, strict, partitions={"work": 1}) as director:
        topic = director.names.topic("in")
        old_ms = round(time.time() * 1000) - 10_000
        await director.start()
        await director.producer.send_and_wait(topic, b"old", timestamp_ms=old_ms)
        await director.producer.send_and_wait(topic, b"new")
        await director.caught_up()
        assert [record.value for record in await director.results()] == [b"new"]
        (completed,) = await director.read(director.names.completed)
        assert dict(completed.headers)["__inferline.reason"] == b"expired"
        (letter,) = await director.letters("work")
        assert (letter.value, letter.time_ms > old_ms + 5_000) == (b"old", True), "a letter is as old as the death"
        assert dict(letter.headers)["__inferline.errors.timestamp_ms"] == b"%d" % old_ms


async def test_what_had_entered_before_the_run_is_counted_apart_from_live_traffic(kafka):
    began_s = time.time() - 60
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 1}, live_since_s=began_s) as director:
        for since_s in [-1.0] * 10 + [1.0] * 5:
            await director.producer.send(
                director.names.topic("in"), b"x", timestamp_ms=round((began_s + since_s) * 1000)
            )
        await director.start()

        def counted() -> bool:
            report = director.report("work")
            return (report.counts.backlog, sum(report.counts.latency_buckets)) == (10, 5)

        await director.until(counted, "10 events are a backlog and 5 are live")


async def test_the_users_headers_key_and_event_id_reach_the_sink(kafka):
    async with Director(kafka.bootstrap_servers, PASSING, partitions={"work": 1}) as director:
        headers = [("traceparent", b"00-abc-def-01"), ("__inferline.event_id", b"mine-1"), ("shop", b"7")]
        sent = await director.producer.send_and_wait(director.names.topic("in"), b"x", key=b"k", headers=headers)
        await director.start()
        await director.caught_up()
        (record,) = await director.results()
    found = dict(record.headers)
    assert (record.key, found["traceparent"], found["shop"]) == (b"k", b"00-abc-def-01", b"7")
    assert found["__inferline.event_id"] == b"mine-1"
    assert int(found["__inferline.entry_time_us"]) == sent.timestamp * 1000
    assert found["__inferline.version"] == b"1." + structure_of(director.pipeline).version.encode()
