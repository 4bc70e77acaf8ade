import pytest

from inferline_stream.dataplane.dispatcher.hardware_kind import HardwareKind


@pytest.mark.parametrize(("size", "expected_s"), [(1, 0.010), (2, 0.012), (4, 0.016), (8, 0.024), (16, 0.040)])
def test_service_times_are_linear_between_profiled_batch_sizes_and_beyond_them(size, expected_s):
    kind = HardwareKind(sizes=[1, 4, 8], times_s=[0.010, 0.016, 0.024])
    assert kind.service_s(size) == pytest.approx(expected_s)


def test_nothing_is_expected_of_a_kind_without_a_profile():
    assert HardwareKind().service_s(4) == 0.0
