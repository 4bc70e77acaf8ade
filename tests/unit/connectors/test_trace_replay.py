import asyncio
import time

import numpy as np
import pytest

from inferline_stream.connectors.sources import replay_process
from inferline_stream.connectors.sources.replay_process import TraceReplay
from inferline_stream.connectors.sources.trace_replay import ReplaySpec, _Outbox, due_times, pace
from inferline_stream.dataplane.sample_files import keyed
from inferline_stream.errors import InvalidFile, InvalidInput, UsageError
from tests.support import virtual_time


def spec(path, **fields):
    return ReplaySpec(bootstrap_servers="", topic="t", arrivals=str(path), events="", **fields)


@pytest.fixture
def arrivals(tmp_path):
    path = tmp_path / "arrivals.csv"
    path.write_text("timestamp\n" + "".join(f"{t}\n" for t in (100, 101, 104, 110, 120)))
    return path


def test_a_trace_starts_at_its_first_arrival(arrivals):
    np.testing.assert_allclose(due_times(spec(arrivals)), [0, 1, 4, 10, 20])


def test_a_window_is_cut_in_trace_seconds_and_then_sped_up(arrivals):
    np.testing.assert_allclose(due_times(spec(arrivals, start_s=1, duration_s=9.5, speed_up=2)), [0, 1.5, 4.5])


def test_a_window_without_arrivals_is_refused(arrivals):
    with pytest.raises(InvalidFile, match="no arrivals between"):
        due_times(spec(arrivals, start_s=11, duration_s=5))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_speed_up_that_cannot_be_is_refused(arrivals, factor):
    with pytest.raises(UsageError, match="speed-up"):
        due_times(spec(arrivals, speed_up=factor))


def test_a_key_is_the_fields_text_or_its_json():
    assert keyed(b'{"user": "anna", "n": 1}', "user") == b"anna"
    assert keyed(b'{"user": "anna", "n": 1}', "n") == b"1"


@pytest.mark.parametrize("event", [b'{"other": 1}', b"[1]", b'"user"'])
def test_an_event_without_the_key_field_is_refused(event):
    with pytest.raises(InvalidFile, match="user"):
        keyed(event, "user")


def test_no_event_leaves_early_and_lateness_is_what_the_clock_says():
    due_s = np.cumsum(np.random.default_rng(7).exponential(0.002, 150))
    offered: list[float] = []
    lateness_s: list[float] = []

    def takes_a_while(number: int) -> None:
        offered.append(time.monotonic())
        time.sleep(0.001)

    virtual_time.run(pace(due_s, takes_a_while, lateness_s))
    late = np.array(offered) - due_s
    assert (late > -1e-9).all()
    assert 0.001 < late.max() < 0.02, "some wait for others"
    assert np.median(late) < 1e-9, "and most do not"
    np.testing.assert_allclose(late, lateness_s, atol=1e-9)


def test_events_that_are_overdue_leave_at_once_and_none_is_left_out():
    numbers: list[int] = []

    def stalls_once(number: int) -> None:
        numbers.append(number)
        if number == 0:
            time.sleep(0.5)  # this process was held up

    lateness_s: list[float] = []
    virtual_time.run(pace(np.array([0.0, 0.02, 0.04, 1.2]), stalls_once, lateness_s))
    assert numbers == [0, 1, 2, 3]
    assert lateness_s == pytest.approx([0.0, 0.48, 0.46, 0.0]), "the delay is not passed on"


class StuckProducer:
    """A client whose buffer is full: it takes nothing until it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.sent: list[tuple[bytes, int]] = []

    async def send(self, topic, value, *, key, timestamp_ms):
        await self.let.wait()
        self.sent.append((value, timestamp_ms))


def test_a_stuck_kafka_delays_no_event_and_timestamps_tell_when_each_was_created():
    producer = StuckProducer()

    async def replayed():
        outbox = _Outbox(producer, "t", [(b"a", None), (b"b", None)])
        forwarding = asyncio.create_task(outbox.forward())
        lateness_s: list[float] = []
        await pace(np.array([0.0, 0.05, 0.10]), outbox.offer, lateness_s)
        assert lateness_s == pytest.approx([0.0, 0.0, 0.0])
        assert producer.sent == []
        await asyncio.sleep(0.1)
        producer.let.set()
        await outbox.emptied()
        forwarding.cancel()

    virtual_time.run(replayed())
    assert [value for value, _ in producer.sent] == [b"a", b"b", b"a"]
    created_ms = np.array([timestamp_ms for _, timestamp_ms in producer.sent]) - virtual_time.EPOCH_S * 1e3
    np.testing.assert_allclose(created_ms, [0, 50, 100], atol=1)  # cut to milliseconds


async def test_a_replay_whose_process_has_ended_by_the_time_it_is_killed_ends_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_process, "_KILL_AFTER_S", 0.0)
    spec = ReplaySpec(bootstrap_servers="127.0.0.1:1", topic="t", arrivals=str(tmp_path / "none.csv"), events="none")
    async with TraceReplay(spec) as replay:
        with pytest.raises(InvalidInput):
            await replay.ready()
        await replay._process.wait()
        replay._reading = asyncio.create_task(asyncio.sleep(0.1))  # lines that come after the end
