"""What replicas do with records, on Apache Kafka and on the embedded broker alike."""

import asyncio
import itertools
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.dataplane.protocol import Lags, encode
from inferline_stream.pipeline.version import structure_of
from inferline_stream.testing.directing import Director

DIAMOND = """
from msgspec import Struct
from inferline_stream import Pipeline, Stage, Topic


class Post(Struct):
    number: int


class Gathered(Struct):
    parity: int
    odd: int | None
    twice: int


def parity_of(posts: list[Post]) -> list[int]:
    return [post.number for post in posts]


def odd_of(numbers: list[int]) -> list[int]:
    if any(number % 10 == 7 for number in numbers):
        raise ValueError("sevens are not for me")
    return [-number for number in numbers]


def twice_of(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def gather(parts: list[Gathered]) -> list[Gathered]:
    return parts


def is_odd(number: int) -> bool:
    return number % 2 == 1


parity = Stage("parity", parity_of, hardware=["cpu-1"])
odd = Stage("odd", odd_of, hardware=["cpu-1"], after=[parity.when(is_odd)])
twice = Stage("twice", twice_of, hardware=["cpu-1"], after=[parity])
final = Stage("final", gather, hardware=["cpu-1"], after=[parity, odd, twice])
pipeline = Pipeline("diamond", slo="250ms", source=Topic("posts"), sink=Topic("verdicts"),
                    stages=[parity, odd, twice, final])
"""

PASSING = """
import time
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    if b"wrong length" in values:
        return values[1:]
    if b"asleep" in values:
        time.sleep(60)
    return values


work = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "2ms", 16: "5ms"})
pipeline = Pipeline("passing", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[work])
"""


@pytest.fixture
def diamond(tmp_path: Path) -> Path:
    return written(tmp_path, DIAMOND)


@pytest.fixture
def passing(tmp_path: Path) -> Path:
    return written(tmp_path, PASSING)


def written(folder: Path, topology: str) -> Path:
    file = folder / "topology.py"
    file.write_text(topology)
    return file


async def put(director: Director, values: list[bytes], keys: list[bytes] | None = None) -> list[str]:
    """Send to the source topic; returns the event ids."""
    topic = director.names.topic(director.pipeline.source.name)
    sent = [
        await director.producer.send(topic, value, key=keys[i] if keys else b"%d" % (i % 7))
        for i, value in enumerate(values)
    ]
    return [f"{r.topic}/{r.partition}/{r.offset}" for r in await asyncio.gather(*sent)]


def event_id(record: object) -> str:
    return dict(record.headers)["__inferline.event_id"].decode()  # type: ignore[attr-defined]


async def results(director: Director) -> list:
    return await director.read(director.names.topic(director.pipeline.sink.name))


async def test_branches_and_a_join_give_every_event_its_result_or_its_reason_exactly_once(kafka, diamond):
    stages = dict.fromkeys(("parity", "odd", "twice", "final"), 3)
    async with Director(kafka.bootstrap_servers, diamond, partitions=stages) as director:
        ids = await put(director, [b'{"number": %d}' % number for number in range(100)])
        ids += await put(director, [b'{"number": "none"}', b"no json"])
        replicas = await director.start_all()
        await director.caught_up()
        sink = await results(director)
        completed = await director.read(director.names.completed)
        letters = await director.read(director.names.dead_letters(director.names.stage_topic("odd")))
        undecodable = await director.read(director.names.dead_letters(director.names.topic("posts")))
        await director.drain(*replicas.values())

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
    reports = {stage: director.reports[replica] for stage, replica in replicas.items()}
    assert reports["parity"].arrows_taken == {"odd": 50, "twice": 100, "final": 100}
    assert reports["odd"].dead_lettered == 10
    assert reports["final"].events == 102
    assert sum(reports["final"].latency_buckets) == 90
    assert sum(size * stats.batches for size, stats in reports["twice"].batch_stats.items()) == 100


async def test_branches_and_a_join_in_transactions_leave_no_lag_and_no_duplicate(kafka, diamond):
    stages = dict.fromkeys(("parity", "odd", "twice", "final"), 2)
    async with Director(kafka.bootstrap_servers, diamond, partitions=stages, delivery="exactly_once") as director:
        ids = await put(director, [b'{"number": %d}' % number for number in range(50)])
        await director.start_all()
        await director.caught_up()  # a transaction's marker ends each partition: offsets must pass it
        ended = [event_id(record) for record in await results(director)]
        ended += [record.key.decode() for record in await director.read(director.names.completed)]
    assert Counter(ended) == Counter(ids)


async def test_scaling_one_to_three_to_one_under_load_loses_nothing_and_repeats_nothing(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 8}) as director:
        replicas = [await director.start("work")]
        await director.share(replicas)
        sent: list[str] = []

        enough = asyncio.Event()

        async def load() -> None:
            for number in itertools.count():
                if enough.is_set():
                    return
                sent.extend(await put(director, [b"%d" % number], [b"%d" % (number % 20)]))
                await asyncio.sleep(0.003)

        loading = asyncio.create_task(load())
        await director.until(lambda: director.reports[replicas[0]].events > 20, "the first events are through")
        replicas += await asyncio.gather(director.start("work"), director.start("work"))
        for owners in (replicas, replicas[:2], replicas[1:2]):
            await director.share(owners)
            await asyncio.sleep(0.3)
        enough.set()
        await loading
        await director.caught_up()
        sink = await results(director)
        await director.drain(*replicas)
    assert Counter(map(event_id, sink)) == Counter(sent)
    by_key = defaultdict(list)
    for record in sorted(sink, key=lambda record: (record.partition, record.offset)):
        by_key[record.key].append(int(record.value))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert {replica for replica in replicas if director.reports[replica].events > 0} == set(replicas)


async def test_a_join_hands_over_the_events_that_wait_for_a_part(kafka, diamond):
    stages = dict.fromkeys(("parity", "odd", "twice", "final"), 2)
    async with Director(kafka.bootstrap_servers, diamond, partitions=stages) as director:
        numbers = [n for n in range(60) if n % 10 != 7]
        ids = await put(director, [b'{"number": %d}' % number for number in numbers])
        parity, odd, first, second = await asyncio.gather(
            *(director.start(stage) for stage in ("parity", "odd", "final", "final"))
        )
        for replica in (parity, odd, first):
            await director.assign(replica, [0, 1])
        # Without `twice`, every event of the join waits for its last part.
        await director.until(lambda: director.reports[odd].events == 24, "two of three parts are there")
        await asyncio.sleep(0.2)
        await director.assign(first, [])
        await director.until(lambda: not director.reports[first].held, "the join's partitions are released")
        await director.assign(second, [0, 1])
        twice = await director.start("twice")
        # The later half first: what is complete then lies above what is not, and only the commit's metadata says so.
        await director.assign(twice, [1])
        await director.until(lambda: director.reports[second].events > 0, "some events are complete")
        await director.assign(second, [])
        await director.until(lambda: not director.reports[second].held, "they are released again")
        await director.assign(first, [0, 1])
        await director.assign(twice, [0, 1])
        await director.caught_up()
        sink = await results(director)
    assert Counter(map(event_id, sink)) == Counter(ids)


async def test_a_killed_replicas_partitions_go_on_elsewhere_with_nothing_lost(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 4}) as director:
        victim, heir = await asyncio.gather(director.start("work"), director.start("work"))
        await director.assign(victim, range(4))
        ids = await put(director, [b"%d" % number for number in range(400)])
        await director.until(lambda: director.reports[victim].events > 0, "the victim works")
        director.kill(victim)
        await director.processes[victim].wait()
        await director.assign(heir, range(4))
        await director.caught_up()
        sink = await results(director)
    assert set(map(event_id, sink)) == set(ids)
    duplicates = len(sink) - len(ids)
    assert duplicates <= 6 * 16, "more than the batches that can be on their way"


async def test_a_suspended_replica_wakes_without_its_lease_and_adds_at_most_what_was_on_its_way(kafka, passing):
    short = {"lease_s": 0.6, "heartbeat_s": 0.15}
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 4}, settings=short) as director:
        zombie, heir = await asyncio.gather(director.start("work"), director.start("work"))
        await director.assign(zombie, range(4))
        ids = await put(director, [b"%d" % number for number in range(600)])
        await director.until(lambda: director.reports[zombie].events > 0, "the zombie works")
        director.kill(zombie, signal.SIGSTOP)
        before = director.reports[zombie].report
        await asyncio.sleep(0.9)  # longer than the lease; nobody tells the zombie that its partitions are another's
        await director.assign(heir, range(4))
        ids += await put(director, [b"%d" % number for number in range(300)])
        await director.until(lambda: director.reports[heir].events > 100, "the heir works")
        director.kill(zombie, signal.SIGCONT)
        await director.until(lambda: director.reports[zombie].report > before, "the zombie speaks again")
        await director.until(lambda: director.reports[zombie].held == {}, "the zombie has let go of its own accord")
        await director.assign(zombie, [])
        await director.caught_up()
        sink = await results(director)
        assert set(map(event_id, sink)) == set(ids)
        assert len(sink) - len(ids) <= 7 * 16
        assert await director.lag() == 0


async def test_a_lapsed_lease_is_regained_without_a_controller(kafka, passing):
    short = {"lease_s": 0.4, "heartbeat_s": 0.1, "dead_after_s": 0.6}
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 2}, settings=short) as director:
        replica = await director.start("work")
        await director.assign(replica, range(2))
        ids = await put(director, [b"a", b"b"])
        await director.caught_up()
        director.kill(replica, signal.SIGSTOP)
        await asyncio.sleep(0.6)
        director.kill(replica, signal.SIGCONT)
        ids += await put(director, [b"c", b"d"])
        await director.caught_up()
        assert Counter(map(event_id, await results(director))) == Counter(ids)


async def test_a_partition_without_a_committed_offset_is_halted_and_said(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 2}, start=None) as director:
        await put(director, [b"%d" % number for number in range(20)])
        replica = await director.start("work")
        await director.assign(replica, range(2))
        await director.until(lambda: "halted" in director.reports[replica].reason, "the halt is told")
        assert await results(director) == []
        await director.drain(replica)


async def test_a_replica_whose_supervisor_is_gone_finishes_commits_and_leaves(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 2}) as director:
        replica = await director.start("work")
        await director.assign(replica, range(2))
        ids = await put(director, [b"%d" % number for number in range(200)])
        await director.until(lambda: director.reports[replica].events > 0, "the replica works")
        process = director.processes[replica]
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 10) == 0
        await director.until(lambda: director.reports[replica].phase == "gone", "it has said goodbye")
        successor = await director.start("work")
        await director.assign(successor, range(2))
        await director.caught_up()
        assert Counter(map(event_id, await results(director))) == Counter(ids)


async def test_a_stage_that_returns_another_number_of_results_costs_its_replica_with_the_reason(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 1}) as director:
        replica = await director.start("work")
        await director.assign(replica, [0])
        await put(director, [b"fine", b"wrong length"])
        assert await asyncio.wait_for(director.processes[replica].wait(), 10) == 70
        await director.until(lambda: director.reports[replica].phase == "failed", "the failure is told")
        assert "one per event" in director.reports[replica].reason


async def test_batches_are_eager_up_to_the_limit_and_the_limit_changes_live(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 2}) as director:
        replica = await director.start("work")
        await director.assign(replica, range(2), max_batch_size=4)
        await put(director, [b"%d" % number for number in range(40)])
        await director.caught_up()
        await director.until(lambda: director.reports[replica].events == 40, "the first are counted")
        assert max(director.reports[replica].batch_stats) == 4
        await director.assign(replica, range(2), max_batch_size=16, max_wait_s=0.2)
        began = time.monotonic()
        await put(director, [b"alone"])
        await director.caught_up()
        assert time.monotonic() - began >= 0.2
        await put(director, [b"%d" % number for number in range(16)])
        await director.caught_up()
        await director.until(lambda: director.reports[replica].events == 57, "all are counted")
        assert 16 in director.reports[replica].batch_stats


async def test_expired_events_are_dropped_or_dead_lettered_where_asked(kafka, tmp_path):
    strict = written(tmp_path, PASSING.replace('slo="250ms"', 'slo="2s", on_expired="dlq"'))
    async with Director(kafka.bootstrap_servers, strict, partitions={"work": 1}) as director:
        topic = director.names.topic("in")
        old_ms = round(time.time() * 1000) - 10_000
        replica = await director.start("work")
        await director.assign(replica, [0])
        await director.producer.send_and_wait(topic, b"old", timestamp_ms=old_ms)
        await director.producer.send_and_wait(topic, b"new")
        await director.caught_up()
        assert [r.value for r in await results(director)] == [b"new"]
        (completed,) = await director.read(director.names.completed)
        assert dict(completed.headers)["__inferline.reason"] == b"expired"
        (letter,) = await director.read(director.names.dead_letters(topic))
        assert (letter.value, letter.timestamp) == (b"old", old_ms)


async def test_what_had_entered_before_the_run_is_counted_apart_from_live_traffic(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 1}) as director:
        await put(director, [b"%d" % number for number in range(10)])
        replica = await director.start("work", live_since_s=time.time() + 0.001)
        await director.assign(replica, [0])
        await director.caught_up()
        await put(director, [b"%d" % number for number in range(5)])
        await director.caught_up()
        await director.until(lambda: director.reports[replica].events == 15, "all are told of")
        report = director.reports[replica]
        assert (report.backlog, sum(report.latency_buckets)) == (10, 5)


async def test_the_users_headers_key_and_event_id_reach_the_sink(kafka, passing):
    async with Director(kafka.bootstrap_servers, passing, partitions={"work": 1}) as director:
        topic = director.names.topic("in")
        headers = [("traceparent", b"00-abc-def-01"), ("__inferline.event_id", b"mine-1"), ("shop", b"7")]
        sent = await director.producer.send_and_wait(topic, b"x", key=b"k", headers=headers)
        replica = await director.start("work")
        await director.assign(replica, [0])
        await director.caught_up()
        (record,) = await results(director)
    found = dict(record.headers)
    assert (record.key, found["traceparent"], found["shop"]) == (b"k", b"00-abc-def-01", b"7")
    assert found["__inferline.event_id"] == b"mine-1"
    assert int(found["__inferline.entry_time_us"]) == sent.timestamp * 1000
    assert found["__inferline.version"] == b"1." + structure_of(director.pipeline).version.encode()


LINE = """
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


one = Stage("one", same, hardware=["cpu-1"])
two = Stage("two", same, hardware=["cpu-1"], after=[one])
pipeline = Pipeline("line", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"),
                    stages=[one, two])
"""


async def test_records_without_a_key_avoid_the_partition_whose_published_lag_is_long(kafka, tmp_path):
    async with Director(kafka.bootstrap_servers, written(tmp_path, LINE), partitions={"one": 1, "two": 4}) as director:
        one = await director.start("one")
        lags = Lags(term=1, time_ms=0, lags={"two": [0, 5000, 0, 0]})
        await director.producer.send_and_wait(director.names.assignments, encode(lags), key=b"lags", partition=0)
        await director.assign(one, [0])
        for _ in range(300):
            await director.producer.send(director.names.topic("in"), b"x")
        await director.producer.flush()
        await director.until(lambda: director.reports[one].events == 300, "all went on")
        topic = director.names.stage_topic("two")
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers)
        async with consumer:
            ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(4)])
    counts = [ends[TopicPartition(topic, p)] for p in range(4)]
    assert sum(counts) == 300
    assert counts[1] < 40
    assert max(counts[0], counts[2], counts[3]) - min(counts[0], counts[2], counts[3]) < 20
