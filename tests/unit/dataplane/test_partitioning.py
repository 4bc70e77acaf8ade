import random

from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.partitioning import LessLagged, murmur2, partition_of


@given(st.binary(max_size=400))
def test_the_hash_is_that_of_the_java_client_bit_for_bit(key):
    assert murmur2(key) == reference(key)


def test_known_hashes_of_kafkas_own_test():
    """org.apache.kafka.common.utils.UtilsTest.testMurmur2."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
             b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
             b"abc": 479470107}  # fmt: skip
    for key, signed in known.items():
        assert murmur2(key) == signed & 0xFFFFFFFF
        assert partition_of(key, 10) == (signed & 0x7FFFFFFF) % 10


def test_two_choices_keep_the_longest_queue_short():
    choose = LessLagged(16, random.Random(5))
    counts = [0] * 16
    for _ in range(16_000):
        counts[choose.choose()] += 1
    one_choice = [0] * 16
    rng = random.Random(5)
    for _ in range(16_000):
        one_choice[rng.randrange(16)] += 1
    assert max(counts) - 1000 <= 5 < max(one_choice) - 1000


def test_a_lagging_partition_is_avoided_until_what_was_sent_evens_it_out():
    choose = LessLagged(4, random.Random(1))
    choose.published([0, 0, 300, 0])
    first = [choose.choose() for _ in range(600)]
    assert first.count(2) < 60
    choose.published([0, 0, 0, 0])
    assert abs([choose.choose() for _ in range(400)].count(2) - 100) < 20


def test_published_lags_of_another_number_of_partitions_do_no_harm():
    choose = LessLagged(3, random.Random(1))
    choose.published([5])
    choose.published([1, 2, 3, 4, 5])
    assert {choose.choose() for _ in range(50)} == {0, 1, 2}
