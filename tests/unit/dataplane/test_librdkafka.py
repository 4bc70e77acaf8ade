"""Errors of librdkafka in our terms."""

import pytest
from confluent_kafka import KafkaError

from inferline_stream.dataplane.librdkafka import may_pass


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,  # of a topic that has just been created
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,  # of a group, after its broker has come back
        KafkaError.NOT_COORDINATOR,
        KafkaError._TRANSPORT,
    ],
)
def test_what_a_cluster_says_while_it_settles_may_pass(code: int) -> None:
    assert may_pass(KafkaError(code))


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_MEMBER_ID])
def test_a_refusal_stays_one(code: int) -> None:
    assert not may_pass(KafkaError(code))
