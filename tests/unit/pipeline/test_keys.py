"""Which keys count as busy, and where their order is kept."""

import pytest

from inferline_stream.pipeline.keys import MOST_KEYS, Keys, keys_of
from inferline_stream.pipeline.topology import Sample
from inferline_stream.pipeline.validation import problems
from tests.unit.pipeline.declaring import moderation, only_problem


def test_keys_count_by_their_share_of_all_events_and_those_of_single_events_not_at_all():
    found = keys_of(moderation(), [b"anna", None, b"bob", b"anna", b"carl", b"bob", b"anna", None])
    assert found.shares == (("anna", 3 / 8), ("bob", 2 / 8))


def test_plain_stages_keep_the_order_of_keys_and_joins_only_where_they_are_asked_to():
    assert keys_of(moderation(), []).ordered == ("language", "toxicity", "duplicate")
    changed = moderation(toxicity={"ordered": False}, verdict={"ordered": True})
    assert keys_of(changed, []).ordered == ("language", "duplicate", "verdict")


def test_only_the_most_frequent_keys_are_known_one_by_one():
    many = [b"%d" % (i // 2) for i in range(4 * MOST_KEYS)] + [b"hot"] * 5
    found = keys_of(moderation(), many)
    assert len(found.shares) == MOST_KEYS
    assert found.shares[0] == ("hot", 5 / len(many))


@pytest.mark.parametrize("shares", [(("a", 0.0),), (("a", 0.7), ("b", 0.4)), (("a", -0.1),)])
def test_shares_that_cannot_be_are_refused(shares):
    with pytest.raises(ValueError, match="shares"):
        Keys(shares)


def test_a_sample_s_key_names_a_field():
    for key in ("", 3):
        found = only_problem(moderation(sample=Sample("arrivals.csv", "posts.jsonl", key=key)))
        assert f"sample key {key!r} must be the name of a field" in found
    assert not problems(moderation(sample=Sample("arrivals.csv", "posts.jsonl", key="user")))
