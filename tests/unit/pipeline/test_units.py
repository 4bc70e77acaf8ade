"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.units import count_of, duration_s, format_duration, size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("10m", 600),
        ("2min", 120),
        ("1h", 3600),
        ("1d", 86400),
        ("80us", 8e-5),
        (" 3 s ", 3),
        ("0s", 0),
    ],
)
def test_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "250", "ms", "1.s", ".5s", "-1s", "1 year", "1e3ms", "1s 2s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        duration_s(text)


@pytest.mark.parametrize(("number", "words"), [(0, "0 replicas"), (1, "1 replica"), (2, "2 replicas")])
def test_one_of_a_thing_is_named_in_the_singular(number: int, words: str) -> None:
    assert count_of(number, "replica") == words


@pytest.mark.parametrize("text", ["36501d", "99999999999h", "9" * 400 + "h"])
def test_a_duration_beyond_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is longer than 36500d"):
        duration_s(text)


@given(st.floats(1e-6, 1e7))
def test_a_duration_written_is_the_duration_read(seconds: float) -> None:
    written = format_duration(seconds)
    assert duration_s(written) == pytest.approx(seconds, rel=0.006, abs=6e-7)


@given(st.floats(0, 1e9))
def test_a_duration_is_written_without_an_exponent(seconds: float) -> None:
    assert "e" not in format_duration(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00042, "420us"),
        (0.0421, "42.1ms"),
        (0.9999, "1000ms"),
        (1.5, "1.5s"),
        (90, "90s"),
        (600, "10m"),
        (9000, "2.5h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512B", 512), ("4kB", 4000), ("1.5MB", 1.5e6), (" 2 GiB ", 2 * 1024**3), ("64MiB", 67108864)],
)
def test_a_size_and_its_unit(text: str, expected: float) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "64", "MB", "-1MB", "64mb", "1 page"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size_bytes(text)
