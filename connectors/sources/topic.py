"""Send the records of another topic, of this Kafka or of another one, into a pipeline's source topic.

    python -m inferline_stream.connectors.sources.topic --bootstrap-servers 127.0.0.1:9092 --topic posts \
        --from-topic raw-posts --from-bootstrap-servers PLAINTEXT://10.0.0.7:9092

Values, keys and headers stay as they are. An event keeps its id; one without is known by
``<topic>@<topic id>/<partition>/<offset>`` of where it was. What was read is committed only once it has been written
and acknowledged; a crash between the two sends a record again, by the same id, which joins and sinks know.

Timestamps are those of the copy, so that latency counts from there; with ``--keep-timestamps`` they are the
original's. ``INFERLINE_KAFKA_*`` holds for both Kafkas, unless an address begins with ``PLAINTEXT://``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sources import delivery
from inferline_stream.connectors.sources.delivery import Delivery, SourceEvent
from inferline_stream.errors import UsageError
from inferline_stream.isolation.confinement import ports_of
from inferline_stream.kafka.fetched_batches import SkippedBatch
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import STARTS, TopicFollower
from inferline_stream.pipeline.names import EVENT_ID, HEADER_PREFIX

logger = logging.getLogger(__name__)

_MODULE = "inferline_stream.connectors.sources.topic"
_WAIT_S = 0.2


def event_of(record: Record, ids_from: str, *, keep_timestamp: bool) -> SourceEvent:
    """A record as an event of its own: what another pipeline has noted on it stays behind, but its id."""
    known = record.header(EVENT_ID) or f"{ids_from}/{record.partition}/{record.offset}".encode()
    own = tuple(header for header in record.headers if not header[0].startswith(HEADER_PREFIX))
    return SourceEvent(known, record.value, record.key, own, record.timestamp_ms if keep_timestamp else None)


async def follow(follower: TopicFollower, delivery: Delivery, stop: asyncio.Event, topic: str, *, keep: bool) -> None:
    """Copy until stopped.

    Raises:
        Unreachable: stopped while Kafka was away, or it cannot be read any more.
        RecordRefused: a record that Kafka will never take.
    """
    await follower.commit()  # where it begins
    while not stop.is_set():
        records = await follower.read(_WAIT_S)
        if records:
            await delivery.deliver(
                [
                    event_of(record, follower.ids_from, keep_timestamp=keep)
                    for record in records
                    if not isinstance(record.value, SkippedBatch)
                ]
            )
            for record in records:
                if isinstance(record.value, SkippedBatch):
                    logger.error("%s/%d: left out: %s", topic, record.partition, record.value.reason)
                    delivery.counts.refused += 1
            await follower.commit()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = delivery.parser_of(_MODULE, "Send the records of another topic into a pipeline's source topic.")
    parser.add_argument("--from-topic", required=True, help="to follow; must exist")
    parser.add_argument(
        "--from-bootstrap-servers",
        type=sealed_connector.kafka_at,
        metavar="HOST:PORT",
        help="its Kafka, if it is another",
    )
    parser.add_argument("--keep-timestamps", action="store_true", help="of the records; latency counts from them")
    parser.add_argument("--group", help="consumer group (default: <from-topic>-to-<topic>)")
    parser.add_argument("--start", choices=STARTS, default="committed", help="where to begin, as sinks have it")
    options = parser.parse_args(arguments)
    source = options.from_bootstrap_servers or options.bootstrap_servers
    if (options.from_topic, source) == (options.topic, options.bootstrap_servers):
        parser.error(f"--from-topic {options.from_topic}: a topic cannot be sent into itself")

    async def work(seal: sealed_connector.Seal) -> None:
        stop = sealed_connector.stopping()
        group = options.group or f"{options.from_topic}-to-{options.topic}"
        async with (
            TopicFollower(source, options.from_topic, options.start, group=group, gapless=True) as follower,
            RecordProducer(options.bootstrap_servers, options.topic) as producer,
        ):
            if options.from_topic == options.topic:
                async with TopicFollower(options.bootstrap_servers, options.topic, start={}) as written:
                    if written.topic_id and written.topic_id == follower.topic_id:
                        raise UsageError(
                            f"--from-topic {options.from_topic}: at {source} it is the topic that is sent into, "
                            f"{options.topic} at {options.bootstrap_servers}; give another --topic"
                        )
            delivery = Delivery(producer, options.topic, stop, skip_refused=options.skip_refused)
            seal()
            await follow(follower, delivery, stop, options.from_topic, keep=options.keep_timestamps)
        sealed_connector.tell(delivery.counts)
        sealed_connector.end_if_halted(follower.halted, "sent")

    needs = sealed_connector.Needs(ports=ports_of(source))
    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work)


if __name__ == "__main__":
    sys.exit(main())
