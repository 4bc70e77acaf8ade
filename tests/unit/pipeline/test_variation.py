"""What is no variation of service times."""

import pytest

from inferline_stream.pipeline.profile import ServiceTime
from inferline_stream.pipeline.variation import NOISE_PROBABILITIES, Variation


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (((1.0, 255),), "256 together"),
        (((1.0, 256), (2.0, 0)), "1 or more"),
        (((2.0, 128), (1.0, 128)), "must ascend"),
        (((-1.0, 128), (1.0, 128)), "0 or more"),
        (((0.0, 256),), "not all 0"),
        (((float("nan"), 256),), "must be finite"),
    ],
)
def test_units_are_a_distribution(units: tuple[tuple[float, int], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Variation(units)


@pytest.mark.parametrize("noise", [(1.0,), (0.0,) * 18 + (-1.0,), (float("inf"),) * len(NOISE_PROBABILITIES)])
def test_noise_is_a_distribution(noise: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="noise"):
        Variation(noise=noise)


@pytest.mark.parametrize(("fixed_s", "spread"), [(-0.1, 0.0), (1.1, 0.0), (0.0, -1.0), (0.0, float("nan"))])
def test_parts_of_a_service_time_are_within_it(fixed_s: float, spread: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        ServiceTime(1, 1.0, fixed_s=fixed_s, spread=spread)
