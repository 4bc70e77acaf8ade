"""Metadata, topics and their settings."""

from __future__ import annotations

from functools import partial

from aiokafka.errors import InvalidRequestError

from inferline_stream.embedded_broker.broker_state import NODE_ID, Broker, Client, answered
from inferline_stream.embedded_broker.topic_settings import TopicSettings
from inferline_stream.embedded_broker.wire import Fields
from inferline_stream.kafka.wire.later_requests import UNKNOWN_OPERATIONS

_TOPIC, _BROKER = 2, 4  # kinds of resources that have settings
_BY_TOPIC, _STATIC, _BY_DEFAULT = 1, 4, 5  # where the value of a setting comes from
_BROKER_SETTINGS = {"auto.create.topics.enable": "false", "offset.metadata.max.bytes": "4096"}


async def metadata(broker: Broker, request: Fields, client: Client) -> Fields:
    """The one broker and the topics asked for; all of them where none is named."""

    def partitions(name: str) -> Fields:
        copies = {"leader": NODE_ID, "replicas": [NODE_ID], "isr": [NODE_ID]}
        topic = broker.topics.get(name)
        parts = [{"partition": number, **copies} for number in range(len(topic))]
        return {"topic_id": topic.id, "partitions": parts}

    if request["topics"] is None:
        names = sorted(broker.topics.by_name)
    else:
        names = [topic["topic"] if isinstance(topic, dict) else topic for topic in request["topics"]]
    operations = {"topic_authorized_operations": UNKNOWN_OPERATIONS}
    return {
        "brokers": [{"node_id": NODE_ID, "host": broker.host, "port": broker.port, "rack": None}],
        "cluster_id": "embedded",
        "controller_id": NODE_ID,
        "topics": [{"topic": name, **operations, **answered(partial(partitions, name))} for name in names],
        "cluster_authorized_operations": UNKNOWN_OPERATIONS,
    }


async def create_topics(broker: Broker, request: Fields, client: Client) -> Fields:
    """Create topics; each is answered for itself."""

    def create(topic: Fields) -> None:
        given = {entry["config_key"]: entry["config_value"] for entry in topic["configs"]}
        placed = len(topic["replica_assignment"])
        size, copies = (placed, 1) if placed else (topic["num_partitions"], topic["replication_factor"])
        broker.topics.create(topic["topic"], size, copies, given, validate_only=request.get("validate_only", False))

    wanted = request["create_topic_requests"]
    return {"topic_errors": [{"topic": topic["topic"], **answered(partial(create, topic))} for topic in wanted]}


async def create_partitions(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add partitions to topics."""

    def grow(topic: Fields) -> None:
        count = topic["new_partitions"]["count"]
        broker.topics.grow(topic["topic"], count, validate_only=request["validate_only"])

    wanted = request["topic_partitions"]
    return {"topic_errors": [{"topic": topic["topic"], **answered(partial(grow, topic))} for topic in wanted]}


async def delete_topics(broker: Broker, request: Fields, client: Client) -> Fields:
    """Delete topics, and the offsets that groups committed for them."""

    def delete(name: str) -> None:
        broker.topics.delete(name)
        broker.groups.forget_topic(name)

    return {"topic_error_codes": [{"topic": name, **answered(partial(delete, name))} for name in request["topics"]]}


async def describe_configs(broker: Broker, request: Fields, client: Client) -> Fields:
    """Settings of topics, and the few of the broker."""

    def describe(resource: Fields) -> Fields:
        wanted = resource["config_names"]
        return {
            "config_entries": [
                {
                    "config_names": name,
                    "config_value": value,
                    "read_only": source == _STATIC,
                    "is_default": source == _BY_DEFAULT,
                    "config_source": source,
                }
                for name, (value, source) in settings(resource).items()
                if wanted is None or name in wanted
            ]
        }

    def settings(resource: Fields) -> dict[str, tuple[str | None, int]]:
        if resource["resource_type"] == _BROKER:
            return {name: (value, _STATIC) for name, value in _BROKER_SETTINGS.items()}
        given = broker.topics.get(resource["resource_name"]).given
        by_default = {name: (value, _BY_DEFAULT) for name, value in TopicSettings().named().items()}
        return {**by_default, **{name: (value, _BY_TOPIC) for name, value in given.items()}}

    resources = request["resources"]
    return {"resources": [{**_named(resource), **answered(partial(describe, resource))} for resource in resources]}


async def alter_configs(broker: Broker, request: Fields, client: Client) -> Fields:
    """Replace the settings of topics; the broker's own cannot be changed."""

    def alter(resource: Fields) -> None:
        if resource["resource_type"] != _TOPIC:
            raise InvalidRequestError("the embedded broker's own settings cannot be altered")
        given = {entry["config_name"]: entry["config_value"] for entry in resource["config_entries"]}
        broker.topics.get(resource["resource_name"]).configure(given, validate_only=request["validate_only"])

    resources = request["resources"]
    return {"resources": [{**_named(resource), **answered(partial(alter, resource))} for resource in resources]}


def _named(resource: Fields) -> Fields:
    return {name: resource[name] for name in ("resource_type", "resource_name")}
