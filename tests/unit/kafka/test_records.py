from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.kafka.records import murmur2, partition_of


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
