"""How service times depend on a batch's events: laws that are known, judged on batches that the fit did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from inferline_stream.estimator.service_table import expected_unit, service_table, unit_levels
from inferline_stream.pipeline.profile import NOISE_PROBABILITIES, STEADY, Profile, ServiceTime, Variation
from inferline_stream.profiler.variation_fit import TimedBatch, fitted

SIZES = (1, 2, 4, 8, 16)
EVENTS = 240
Law = Callable[[np.ndarray], float]


def of_all(units: np.ndarray) -> float:
    """A loop over the events, after 4 ms for the call."""
    return 0.004 + 0.003 * float(units.sum())


def padded(units: np.ndarray) -> float:
    """A tensor as long as its longest row."""
    return 0.004 + 0.001 * units.size * float(units.max())


def regardless(units: np.ndarray) -> float:
    return 0.004 + 0.001 * units.size


def classes(rng: np.random.Generator) -> np.ndarray:
    """Every fifth event asks for five times as much."""
    return rng.permutation(np.where(np.arange(EVENTS) % 5 == 0, 5.0, 1.0))


def lengths(rng: np.random.Generator) -> np.ndarray:
    return np.ceil(rng.lognormal(4, 0.8, EVENTS))


def timed(
    law: Law, units: np.ndarray, rng: np.random.Generator, *, batches: int = 60, sd: float = 0.0
) -> dict[int, list[TimedBatch]]:
    """Random batches; alone, every event twice."""
    found: dict[int, list[TimedBatch]] = {}
    for size in SIZES:
        drawn = rng.integers(EVENTS, size=(batches, size)) if size > 1 else np.tile(np.arange(EVENTS), 2)[:, None]
        factors = rng.lognormal(-sd * sd / 2, sd, len(drawn))
        found[size] = [
            TimedBatch(tuple(map(int, events)), law(units[events]) * factor)
            for events, factor in zip(drawn, factors, strict=True)
        ]
    return found


def profile_of(times: Sequence[ServiceTime], variation: Variation | None) -> Profile:
    return Profile("a", "h", tuple(times), variation=variation)


def predicted_s(profile: Profile, units: np.ndarray) -> float:
    """What the Estimator would take for a batch of events with these units, the chance of a batch aside."""
    table, size = service_table(profile, SIZES[-1]), units.size
    x = units.max() if table.largest else units.mean()
    return float(table.fixed_s[size] + table.per_unit_s[size] * x)


@pytest.mark.parametrize("law", [of_all, padded])
@pytest.mark.parametrize("events", [classes, lengths])
@pytest.mark.parametrize("by_cost", [True, False])
def test_times_of_mixed_batches_are_predicted(law: Law, events: Callable[..., np.ndarray], by_cost: bool) -> None:
    """Also of sizes that were never timed, with the costs that the user gives or the times of events alone."""
    rng = np.random.default_rng(5)
    units = events(rng)
    units /= units.mean()
    seen = timed(law, units, rng, sd=0.03)
    profile = profile_of(*fitted(seen, units.tolist() if by_cost else None))
    assert profile.variation is not None
    assert profile.variation.largest == (law is padded)
    levels = service_table(profile, SIZES[-1]).units
    known = levels[(units.argsort().argsort() * levels.size) // EVENTS]  # what the Estimator makes of each event
    by_model, by_mean = [], []
    for size in (2, 3, 6, 8, 12, 16):
        for events_ in rng.integers(EVENTS, size=(100, size)):
            true_s = law(units[events_])
            by_model.append(predicted_s(profile, known[events_]) / true_s - 1)
            by_mean.append(profile.service_time_s(size) / true_s - 1)
    assert np.sqrt(np.mean(np.square(by_model))) < 0.1
    assert np.sqrt(np.mean(np.square(by_mean))) > 3 * np.sqrt(np.mean(np.square(by_model)))


def test_means_are_those_of_batches_of_the_whole_sample_whatever_batches_were_timed() -> None:
    """Only few batches were timed, none of average events."""
    rng = np.random.default_rng(8)
    units = classes(rng)
    seen = timed(of_all, units, rng)
    seen[4] = sorted(seen[4], key=lambda batch: batch.time_s)[-20:]
    times, _ = fitted(seen, units.tolist())
    assert np.mean([batch.time_s for batch in seen[4]]) > 1.2 * of_all(np.full(4, units.mean()))
    assert times[SIZES.index(4)].mean_s == pytest.approx(of_all(np.full(4, units.mean())), rel=0.02)


@pytest.mark.parametrize("by_cost", [True, False])
def test_chance_is_not_taken_for_what_events_ask(by_cost: bool) -> None:
    """Lognormal times of CV² 0.5 that have nothing to do with the events."""
    rng = np.random.default_rng(6)
    sd = float(np.sqrt(np.log(1.5)))
    seen = timed(regardless, lengths(rng), rng, batches=200, sd=sd)
    times, variation = fitted(seen, lengths(rng).tolist() if by_cost else None)
    assert variation is not None
    assert by_cost or not variation.units
    assert [entry.spread for entry in times] == pytest.approx([sd] * len(SIZES), rel=0.12)
    middle, ninety_nine = (np.interp(p, NOISE_PROBABILITIES, variation.noise) for p in (0.5, 0.99))
    assert middle == pytest.approx(0, abs=0.1)
    assert ninety_nine == pytest.approx(2.326, rel=0.15)


def test_events_and_chance_are_kept_apart() -> None:
    rng = np.random.default_rng(7)
    units = classes(rng)
    times, variation = fitted(timed(of_all, units, rng, batches=200, sd=0.3), None)
    assert variation is not None
    assert [entry.spread for entry in times] == pytest.approx([0.3] * len(SIZES), rel=0.2)
    profile = profile_of(times, variation)
    fast, slow = (predicted_s(profile, np.array([unit])) for unit in np.unique(unit_levels(variation)))
    assert fast == pytest.approx(of_all(np.array([1.0])), rel=0.1)
    assert slow == pytest.approx(of_all(np.array([5.0])), rel=0.1)
    assert variation.units[1][1] / 256 == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("by_cost", [True, False])
def test_below_five_percent_the_mean_is_used(by_cost: bool) -> None:
    rng = np.random.default_rng(9)
    seen = timed(regardless, lengths(rng), rng, sd=0.7 * STEADY)
    times, variation = fitted(seen, lengths(rng).tolist() if by_cost else None)
    assert variation is None
    for entry in times:
        assert entry.mean_s == pytest.approx(np.mean([batch.time_s for batch in seen[entry.batch_size]]))
        assert (entry.fixed_s, entry.spread) == (0.0, 0.0)


def test_events_that_cost_nothing_take_some_time_all_the_same() -> None:
    rng = np.random.default_rng(10)
    units = classes(rng) - 1.0
    profile = profile_of(*fitted(timed(lambda u: 0.003 * float(u.sum()) + 1e-6, units, rng), units.tolist()))
    assert service_table(profile, 16).least_s > 0


def test_a_few_events_say_nothing_of_how_events_differ() -> None:
    batches = [TimedBatch((i % 4,), 0.01 * (1 + i % 4)) for i in range(40)]
    _, variation = fitted({1: batches}, None)
    assert variation is not None
    assert not variation.units


def test_the_expected_largest_unit_is_that_of_random_batches() -> None:
    units = unit_levels(Variation(((1.0, 192), (5.0, 64))))
    drawn = np.random.default_rng(3).choice(units, (100_000, 4)).max(axis=1)
    assert expected_unit(units, 4, largest=True) == pytest.approx(drawn.mean(), rel=0.01)
