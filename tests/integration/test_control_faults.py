"""Everything dies on Apache Kafka, under the default policy: nothing is lost, nobody scales down on what is missing."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from inferline_stream.controlplane import controller as controlling
from inferline_stream.controlplane.observe.event_ledger import read_ledger
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES
from tests.support.emulated_runs import on_this_host, swing_runs


@pytest.fixture
def swing(tmp_path: Path) -> partial:
    return swing_runs(tmp_path, key_field="number", policy=POLICIES["default"])


def downs(*sessions: LiveRun) -> list[str]:
    return [d.detail for s in sessions for d in s.controller.view.decisions if d.action == "scale_down"]


async def test_with_everything_dead_a_new_controller_rebuilds_what_was_known(
    swing, apache_kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlling, "RECENT_S", 3.0)  # so that the past is soon
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(60, 6)], replicas={"parse": 2, "check": 1, "decide": 1})
    async with on_this_host(run, 180.0) as (first, actuator):
        await first.controller.fleet.want({**first.controller.wanted, "parse": {"emulated-cpu": 3}})
        await first.fed(asyncio.Event())
        await asyncio.sleep(1.0)
        decided = len(first.controller.decider.decisions)
        envelope = first.controller.view.traffic.envelope(asyncio.get_running_loop().time())
        first.control.cancel()
        for replica in await actuator.observe():  # what they held is uncommitted, and nobody hears of their end
            os.kill(replica.pid, signal.SIGKILL)
        await actuator.aclose()
        await asyncio.sleep(controlling.RECENT_S + 1.0)  # what they reported is past reading
        async with open_run(replace(run, feed=None)) as second:
            await second.ready()
            controller = second.controller
            assert len(controller.found.decisions) == decided
            now = controller.view.traffic.envelope(asyncio.get_running_loop().time())
            long_windows = [i for i, w in enumerate(controller.view.windows_s) if w > 1.0]
            assert [now[i] for i in long_windows] == pytest.approx([envelope[i] for i in long_windows], rel=0.1)
            async with RecordProducer(apache_kafka.bootstrap_servers) as producer:
                for number in range(20):
                    await producer.send(second.context.source, b'{"number": %d}' % number)
                await producer.flush()
            await second.drain()
            ledger = await read_ledger(second.offsets, second.context, first.since)
    assert downs(first, second) == []
    assert ledger.lost() == (0, [])
    assert ledger.events_in == ledger.events_out
