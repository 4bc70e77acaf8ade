"""Writes this example's arrivals and questions: generated, not measured. Run it again and the same come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace

HERE = Path(__file__).parent

SAMPLE_RATE, SAMPLE_S = 16.0, 60.0
LIVE_LEVELS = [(16.0, 2.0), (48.0, 6.0), (10.0, 82.0)]
"""Events per second and for how many seconds: as planned, then a burst, then quieter than planned."""

SWING_SEED, TUNING_SEED = 8, 9
SWING = [(0, 16), (120, 16), (180, 48), (300, 48), (360, 10), (450, 10), (450, 48), (470, 48), (470, 16), (600, 16)]
"""Seconds and events per second, straight lines between: up to three times the planned rate, a lull, a spike."""

SUBJECTS = ["partition", "replica", "consumer group", "topic", "broker"]
EASY = ["What is a {0}?", "Is a {0} cheap?", "How big is one {0}?"]
HARD = [
    "Why does a {0} have to wait while another {1} moves?",
    "How many of them does a {0} need when the arrival rate doubles?",
    "What happens to a {0} in Kafka after its {1} is gone?",
]


def arrivals(rng: np.random.Generator) -> Trace:
    """Poisson arrivals for the Planner."""
    return gamma_trace(SAMPLE_RATE, 1.0, SAMPLE_S, rng)


def live(rng: np.random.Generator) -> Trace:
    """Poisson arrivals whose rate changes, for the run."""
    return levels_trace(LIVE_LEVELS, 1.0, rng)


def swing(rng: np.random.Generator) -> Trace:
    """Poisson arrivals whose rate rises, falls and jumps, for comparisons: those of the highest rate, thinned out."""
    times, rates = zip(*SWING, strict=True)
    arrivals_s = np.cumsum(rng.exponential(1 / max(rates), 2 * max(rates) * times[-1]))
    arrivals_s = arrivals_s[arrivals_s < times[-1]]
    return Trace(arrivals_s[rng.random(arrivals_s.size) < np.interp(arrivals_s, times, rates) / max(rates)])


def questions(rng: np.random.Generator) -> list[dict[str, int | str]]:
    """Questions, six out of ten of them hard."""
    made: list[dict[str, int | str]] = []
    for number in range(200):
        form = rng.choice(HARD if rng.random() < 0.6 else EASY)
        made.append({"number": number, "text": form.format(*rng.choice(SUBJECTS, 2, replace=False))})
    return made


def main() -> None:
    """Write the five files beside this one."""
    rng = np.random.default_rng(2020)
    swings = {name: swing(np.random.default_rng(s)) for name, s in (("swing", SWING_SEED), ("tuning", TUNING_SEED))}
    for name, trace in ({"arrivals": arrivals(rng), "live": live(rng)} | swings).items():
        (HERE / f"{name}.csv").write_text("arrival_s\n" + "".join(f"{t:.6f}\n" for t in trace.arrivals_s))
    (HERE / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions(rng)))


if __name__ == "__main__":
    main()
