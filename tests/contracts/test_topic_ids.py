"""What clients learn of a topic's incarnation, on Apache Kafka and on the embedded broker alike."""

from aiokafka.client import AIOKafkaClient

from inferline_stream.kafka.topic_state import TopicState, topic_states


async def test_a_topic_that_is_created_again_has_another_id_and_one_that_grows_keeps_it(clients):
    name = await clients.topic(partitions=2)
    client = AIOKafkaClient(bootstrap_servers=clients.bootstrap_servers)
    await client.bootstrap()
    try:
        before = await topic_states(client, [name, "no-such-topic"])
        await clients.grow(name, 5)
        grown = await topic_states(client, [name])
        await clients.recreate(name, 1)
        after = await topic_states(client, [name])
    finally:
        await client.close()
    assert before == {name: TopicState(before[name].id, 2)}
    assert len(before[name].id) == 8
    assert grown == {name: TopicState(before[name].id, 5)}
    assert after[name].partitions == 1
    assert after[name].id not in ("", before[name].id)
