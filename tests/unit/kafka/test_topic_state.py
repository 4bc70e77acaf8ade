"""A topic is another one only where both ids are known."""

import pytest

from inferline_stream.kafka.topic_state import TopicState


@pytest.mark.parametrize(
    ("now", "committed", "replaces"),
    [
        ("b", "a", True),
        ("a", "a", False),
        ("b", "", False),  # committed before brokers gave topics ids
        ("", "a", False),  # the broker that answers gives none
    ],
)
def test_a_topic_replaces_another_one_of_its_name_where_both_ids_are_known(now, committed, replaces) -> None:
    assert TopicState(now, 1).replaces(committed) is replaces
