"""Events that entered while nobody sampled the source are known from their records."""

import secrets
import time

from inferline_stream.controlplane.observe.recovery import arrivals_between
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import one_stage


async def test_events_that_enter_while_a_gap_is_filled_are_counted_by_what_follows_it(
    embedded_broker: KafkaServer,
) -> None:
    kafka, source = KafkaCluster(embedded_broker.bootstrap_servers), secrets.token_hex(4)
    await create_topics(kafka.bootstrap_servers, [WantedTopic(source, 1, "a test's")])
    context = PipelineContext(one_stage(source=source), kafka, Settings())
    began_s = time.time()
    async with RecordProducer(kafka.bootstrap_servers) as producer:
        for _ in range(15):
            await producer.send(source, b"{}")
        await producer.flush()
    came = await arrivals_between(
        context, known=[3], ends=[10], since_s=began_s - 1.0, now_s=time.time(), partitions={source: 1}
    )
    assert [partition for _, partition in came] == [0] * 7
