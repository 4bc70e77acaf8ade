from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inferline_stream.controlplane.observe.observation_log import (
    FILE,
    ObservationLog,
    read_observations,
    write_observations,
)
from inferline_stream.controlplane.records.control_records import ArrivalTicks
from inferline_stream.errors import InvalidFile
from inferline_stream.replay.live_observations import LiveObservations

FIRST = ArrivalTicks(
    [1_000.0, 2_000.0], [[5, 2], [6, 2]], [5, 0], 500.0, [1_500.0, 1_602.5], [(1_500.0, "b", 0.5), (1_500.0, "a", None)]
)
SECOND = ArrivalTicks([2_020.0], [[6, 4]], [6, 2], 2_000.0, [1_700.0], [(1_700.0, "a", 3.0)])


def notes(*records: ArrivalTicks) -> ObservationLog:
    found = ObservationLog()
    for record in records:
        found.take(record)
    return found


def test_observations_count_from_their_origin() -> None:
    observations = notes(FIRST, SECOND).observations(1.4, 1.5, watched_s=0.25, staffed_s=1.9)
    assert observations.asked_s == pytest.approx([0.1, 0.2025, 0.3])
    assert observations.ticks_s == pytest.approx([-0.9, -0.4, 0.6, 0.62])
    assert observations.grown.tolist() == [5, 7, 8, 10]
    assert observations.figures_s == pytest.approx([0.1, 0.1, 0.3])
    assert [observations.keys[key] for key in observations.figures_key] == ["b", "a", "a"]
    np.testing.assert_array_equal(observations.figures, [0.5, np.nan, 3.0])
    assert (observations.watched_s, observations.staffed_s) == (0.25, pytest.approx(0.5))


def test_arrivals_that_were_reported_with_their_own_times_were_not_reported_by_ticks() -> None:
    observations = notes(FIRST, SECOND).observations(1.4, 1.5, sampled=False)
    assert (observations.ticks_s.size, observations.grown.size) == (0, 0)
    assert observations.asked_s.size == 3


def test_what_an_earlier_controller_asked_and_was_reported_is_not_this_ones_but_what_it_saw_arrive_is() -> None:
    observations = notes(FIRST, SECOND).observations(1.4, 1.7)
    assert observations.asked_s == pytest.approx([0.3])
    assert observations.figures.tolist() == [3.0]
    assert observations.ticks_s.size == 4
    assert np.isnan(observations.staffed_s)


def test_a_deposed_controllers_late_ticks_add_nothing() -> None:
    late = ArrivalTicks([1_990.0, 2_030.0], [[6, 1], [6, 3]], [5, 1], 900.0)
    assert notes(FIRST, SECOND, late).observations(0.0, 1.5).grown.tolist() == [5, 7, 8, 10, 10]


@pytest.mark.parametrize("asked_from_s", [1.4, 1.8])
def test_observations_whose_first_kafka_no_longer_holds_are_none(asked_from_s: float) -> None:
    assert notes(FIRST, SECOND).observations(1.4, asked_from_s) is None


def test_observations_survive_their_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    steps_ms = (np.cumsum(rng.uniform(90.0, 110.0, 500)) + 1.7e12).tolist()
    asked = ArrivalTicks(
        steps_ms, [[n] for n in range(500)], [0], steps_ms[0] - 20, steps_ms, [(steps_ms[9], "a", 1.5)]
    )
    observations = notes(asked).observations(1.7e9, steps_ms[0] / 1e3, watched_s=1.0)
    write_observations(tmp_path, observations)
    read = read_observations(tmp_path)
    for name in LiveObservations.__slots__:
        np.testing.assert_array_equal(getattr(read, name), getattr(observations, name))
    assert read.grown.dtype == np.int64
    assert (tmp_path / FILE).stat().st_size < 10_000


def test_a_run_that_left_no_observations_has_none_and_damaged_ones_are_named(tmp_path: Path) -> None:
    assert read_observations(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InvalidFile, match=r"observations\.npz: does not hold what a run's policy observed"):
        read_observations(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"asked_s": np.empty(0, np.int64)},
        {"grown": np.array([5, -2, 1, 2])},
        {"grown": np.array([5, 2**40, 1, 2])},
        {"grown": np.array([5])},
        {"figures_key": np.array([0, 1, 7])},
        {"figures": np.array(["a"])},
        {"keys": np.array([1.0])},
        {"staffed_s": np.array("x")},
    ],
)
def test_arrays_that_nobody_observed_are_named(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    write_observations(tmp_path, notes(FIRST, SECOND).observations(1.4, 1.5))
    with np.load(tmp_path / FILE) as arrays:
        found = dict(arrays) | wrong
    with (tmp_path / FILE).open("wb") as file:
        np.savez(file, **found)
    with pytest.raises(InvalidFile, match=r"observations\.npz: does not hold what a run's policy observed"):
        read_observations(tmp_path)


def test_a_record_that_claims_more_than_ever_came_leaves_no_observations() -> None:
    absurd = ArrivalTicks([2_500.0], [[2**52]], [0], 2_400.0)
    assert notes(FIRST, SECOND, absurd).observations(1.4, 1.5) is None
