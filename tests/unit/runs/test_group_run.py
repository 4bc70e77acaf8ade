"""A run on consumer groups that ends, on the embedded broker."""

import asyncio

from inferline_stream.controlplane.leadership import leads
from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.group_run import GroupRun, run_groups


async def test_one_that_is_stopped_lets_the_next_one_lead_at_once(tmp_path):
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        where = broker.bootstrap_servers
        await create_topics(where, [WantedTopic("posts", 2, "")], replication=1)
        pipeline = Pipeline("adopted", slo="5s", stages=[ConsumerGroup("enrich", group="enrich-v2", topic="posts")])
        run = GroupRun(
            pipeline=pipeline, topology=tmp_path / "topology.py", bootstrap_servers=where, workers={},
            log_folder=tmp_path,
        )  # fmt: skip
        stop = asyncio.Event()
        running = asyncio.create_task(run_groups(run, stop))
        while not await _led(where):
            await asyncio.sleep(0.1)
        stop.set()
        await running

        assert not await _led(where)


async def _led(where):
    try:
        return await leads(where, Names("adopted"))
    except Unreachable:  # its topics are not made yet
        return False
