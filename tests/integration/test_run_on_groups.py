"""`run` on a group of plain workers on Apache Kafka, whose number a command sets, through what happens to groups."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import uuid
from functools import partial
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from inferline_stream.actuators.group_workers import CommandWorkers
from inferline_stream.controlplane import group_controller
from inferline_stream.controlplane.pipeline_watch import watch_pipeline
from inferline_stream.controlplane.run_inputs import RunDisplay
from inferline_stream.kafka.group_watch import GroupWatch, groups_of
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.consumer_group import Command, ConsumerGroup
from inferline_stream.pipeline.group_profile import Learned
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.group_advice import advise
from inferline_stream.runs.group_run import GroupRun, run_groups
from inferline_stream.runs.group_seen import Seen, declaration
from inferline_stream.testing.kafka import KafkaServer
from tests.integration.grouped.share_worker import EACH_S
from tests.support import deadlines
from tests.support.feed import fed

SCALE = Path(__file__).parent / "grouped" / "scale.py"
MU = 4 / (0.1 + 0.05 * 4)
SHARED_MU = 1 / EACH_S
until = partial(deadlines.until, within_s=120.0)


class Newest(RunDisplay):
    """The newest state."""

    state: PipelineState | None = None

    def now(self, state: PipelineState) -> None:
        self.state = state

    @property
    def members(self) -> int:
        return self.state.stages[0].replicas[0].ready if self.state else 0

    @property
    def wanted(self) -> int:
        return self.state.stages[0].replicas[0].wanted if self.state else 0


async def test_a_group_of_plain_workers_is_scaled_and_whatever_happens_to_it_nothing_breaks(
    apache_kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group_controller, "LEAST_TRAFFIC_S", 15.0)
    servers, topic, group = apache_kafka.bootstrap_servers, f"posts-{uuid.uuid4().hex[:6]}", f"g-{uuid.uuid4().hex[:6]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 4, 1)])
    (done := tmp_path / "done").mkdir()
    worker = ("worker.py", "plain", servers, topic, group, str(done))
    command = shlex.join([sys.executable, str(SCALE), "{replicas}", *worker])
    declared = ConsumerGroup("enrich", group=group, topic=topic, workers=Command(command))
    workers, newest, stop, rate = CommandWorkers(command, tmp_path), Newest(), asyncio.Event(), [11.0]
    await workers.scale(1)
    run = GroupRun(
        pipeline=Pipeline(f"p-{uuid.uuid4().hex[:6]}", slo="5s", stages=[declared]), topology=tmp_path / "topology.py",
        bootstrap_servers=servers, workers={"enrich": workers}, log_folder=tmp_path, display=newest,
    )  # fmt: skip
    try:
        async with fed(servers, topic, rate), Offsets(servers) as offsets:
            leading = asyncio.create_task(run_groups(run, stop))
            await until(lambda: newest.state is not None or leading.done(), "a plan")
            rate[0] = 30.0
            await until(lambda: newest.members * MU > 30.0, "members for three times the traffic")
            async with watch_pipeline(run.pipeline, servers, "", run.settings) as observer:
                watched = await observer.look(6.0)
            os.kill(json.loads((tmp_path / "pids.json").read_text())[0], signal.SIGKILL)
            await until(lambda: newest.members < newest.wanted, "the dead worker's session is over")
            await admin.create_partitions({topic: NewPartitions(6)})
            rate[0] = 0.0
            ends: dict[str, tuple[int, ...]] = {}

            async def finished() -> bool:
                ends.update(await offsets.ends({topic: 6}))
                done = await offsets.committed(group, topic, 6)
                return all(max(0, each.offset) == end for each, end in zip(done, ends[topic], strict=True))

            await until(finished, "all is done")
            assert sum(ends[topic]) > 300
            await admin.delete_topics([topic])
            await asyncio.sleep(8.0)
            stop.set()
            report = await leading
    finally:
        await workers.scale(0)
        await admin.close()
    assert watched.estimated
    assert watched.recent_p99_s is not None
    assert watched.arrival_rate == pytest.approx(30.0, rel=0.5)
    assert watched.stages[0].replicas[0].ready * MU > 30.0
    assert "controller" in watched.input_age_s
    (profile,) = report.groups
    assert profile.throughput is not None
    batches = [line.split()[:2] for file in done.iterdir() for line in file.read_text().splitlines()]
    full_s = [float(took_s) for size, took_s in batches if float(size) == 4]
    assert profile.throughput.value == pytest.approx(4 * len(full_s) / sum(full_s), rel=0.15)
    actions = [decision.action for decision in report.decisions]
    assert "scale_up" in actions
    assert actions.count("scale_up") + actions.count("scale_down") <= 12
    assert max(decision.replicas["enrich"] for decision in report.decisions) <= 6
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_share_group_is_seen_advised_on_and_scaled_beyond_the_partitions_of_its_topic(
    apache_kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(group_controller, "LEAST_TRAFFIC_S", 15.0)
    servers, topic, group = apache_kafka.bootstrap_servers, f"jobs-{uuid.uuid4().hex[:6]}", f"s-{uuid.uuid4().hex[:6]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    command = shlex.join([sys.executable, str(SCALE), "{replicas}", "share_worker.py", servers, topic, group])
    pipeline = Pipeline(
        f"p-{uuid.uuid4().hex[:6]}",
        slo="5s",
        stages=[ConsumerGroup("work", group=group, topic=topic, workers=Command(command))],
    )
    workers, newest, stop, rate = CommandWorkers(command, tmp_path), Newest(), asyncio.Event(), [0.0]
    reported = Learned(SHARED_MU, 0.05, 10)
    await workers.scale(1)
    run = GroupRun(
        pipeline=pipeline, topology=tmp_path / "topology.py", bootstrap_servers=servers, workers={"work": workers},
        metric=lambda _: reported, log_folder=tmp_path, display=newest,
    )  # fmt: skip
    try:
        async with fed(servers, topic, rate, partitions=1), Offsets(servers) as offsets:

            async def joined() -> bool:
                return any((await offsets.share_members(group) or {}).values())

            async def taken() -> bool:
                return await offsets.share_lags(group, topic, [0]) == {0: 0}

            await until(joined, "the worker has joined")
            assert f'topic="{topic}"' in declaration(await groups_of(offsets, [group]))
            rate[0] = SHARED_MU / 2
            leading = asyncio.create_task(run_groups(run, stop))
            await until(lambda: newest.state is not None or leading.done(), "a plan")
            rate[0] = 2.5 * SHARED_MU
            await until(lambda: newest.members >= 4, "members for five times the traffic")
            seen = Seen(pipeline)
            async with GroupWatch(servers, pipeline.groups) as watch:
                async for looks in watch.looks():
                    seen.take(looks)
                    if seen.watched_s > 8.0:
                        break
            advice = advise(
                pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s, reported={"work": reported}
            )
            rate[0] = 0.0
            await until(taken, "all is taken")
            (appended,) = (await offsets.ends({topic: 1}))[topic]
            await until(lambda: newest.state is not None and not newest.state.stages[0].lag_s, "no lag is shown")
            stop.set()
            report = await leading
    finally:
        await workers.scale(0)
        await admin.close()
    assert appended > 300
    (profile,) = report.groups
    assert profile.rebalance is not None
    assert (profile.partitions, profile.rebalance.protocol, profile.source) == (1, "share", "metric")
    actions = [decision.action for decision in report.decisions]
    assert actions.count("scale_up") + actions.count("scale_down") <= 12
    (seen_now,) = advice.profiles.values()
    assert seen_now.workers >= 4
    assert advice.contest is not None
    held = advice.contest.row("fixed")
    assert held is not None
    assert held.members is not None
    assert held.members["work"] > 1  # of one partition
    assert "Traceback" not in caplog.text
