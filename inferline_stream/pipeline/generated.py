"""Traffic described in one line: ``gamma:rate=150,cv=4,for=10m``, a ramp, or levels."""

from __future__ import annotations

import numpy as np

from inferline_stream.pipeline.trace import LONGEST_S, Expecting, Trace, levels_trace
from inferline_stream.pipeline.units import duration_s

FORMS = (
    "gamma:rate=150,cv=4,for=10m",
    "ramp:from=100,to=250,over=60s,for=3m,cv=1",
    "levels:150x60s,250x30s,150x60s,cv=1",
)
"""One example of each form."""

RAMP_STEP_S, MOST_RAMP_STEPS = 1.0, 3600
"""A ramp is made of levels this long, or longer where it would have more of them."""

_MOST_CV = 1000.0
"""Nearly all gaps are 0 beyond, and a trace hardly ends."""

_NEEDED = {"gamma": {"rate"}, "ramp": {"from", "to", "over"}, "levels": set[str]()}
_DEFAULTS = {"gamma": {"cv": "1", "for": "10m"}, "ramp": {"cv": "1", "for": ""}, "levels": {"cv": "1"}}


def is_generated(text: str) -> bool:
    """Whether a text means to describe traffic: it begins with the name of a form and a colon."""
    return text.partition(":")[0] in _NEEDED and ":" in text


def generated_trace(text: str, rng: np.random.Generator, expecting: Expecting = lambda _: None) -> Trace:
    """Arrivals as described.

    - ``gamma:rate=λ[,cv=σ²/µ²][,for=duration]``: gamma-distributed gaps, CV 1 (Poisson) and 10 minutes by default.
    - ``ramp:from=λ,to=λ,over=duration[,for=duration][,cv=…]``: the rate changes, then stays; ``for``: all of it.
    - ``levels:λxduration,λxduration,…[,cv=…]``: one rate after another.

    Args:
        text: the description.
        rng: source of randomness.
        expecting: called with about how many arrivals there will be, before memory is taken for them; may raise.

    Raises:
        ValueError: no such form, a missing or unknown part, or a number that cannot be; names the forms.
    """
    form, _, rest = text.partition(":")
    try:
        levels, given = _parts(form, rest)
        cv = _number(given["cv"], "cv", most=_MOST_CV)
        if form == "gamma":
            levels = [(_rate(given["rate"]), _seconds(given["for"]))]
        elif form == "ramp":
            levels = _ramp(given)
        expecting(int(min(sum(rate * lasts_s for rate, lasts_s in levels), 1e18)))
        trace = levels_trace(levels, cv, rng)
    except ValueError as error:
        raise ValueError(f"{text!r} describes no traffic ({error}); write e.g. {' or '.join(FORMS)}") from None
    if not len(trace):
        raise ValueError(f"{text!r} holds no arrivals; raise the rate or the duration")
    return trace


def _parts(form: str, rest: str) -> tuple[list[tuple[float, float]], dict[str, str]]:
    if form not in _NEEDED:
        raise ValueError(f"no form {form!r}")
    given = dict(_DEFAULTS[form])
    levels: list[tuple[float, float]] = []
    for part in filter(None, (p.strip() for p in rest.split(","))):
        name, equals, value = part.partition("=")
        if equals and name in _NEEDED[form] | set(_DEFAULTS[form]):
            given[name] = value
        elif form == "levels" and not equals:
            rate, _, lasts = part.partition("x")
            levels.append((_number(rate, "rate"), _seconds(lasts)))
        else:
            raise ValueError(f"unknown part {part!r}")
    if missing := _NEEDED[form] - set(given):
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if form == "levels" and not levels:
        raise ValueError("lacks levels")
    return levels, given


def _ramp(given: dict[str, str]) -> list[tuple[float, float]]:
    first, last = _number(given["from"], "from"), _number(given["to"], "to")
    over_s = _seconds(given["over"])
    whole_s = max(_seconds(given["for"]) if given["for"] else over_s, over_s)
    steps = min(max(1, round(over_s / RAMP_STEP_S)), MOST_RAMP_STEPS)
    middles = (np.arange(steps) + 0.5) / steps
    rising = [(float(first + (last - first) * m), over_s / steps) for m in middles]
    return [*rising, (last, whole_s - over_s)] if whole_s > over_s else rising


def _rate(text: str) -> float:
    rate = _number(text, "rate")
    if rate == 0:
        raise ValueError("rate must be above 0")
    return rate


def _number(text: str, name: str, most: float = 1e300) -> float:
    number = float(text)
    if not 0 <= number <= most:
        raise ValueError(f"{name} {text} must be 0 to {most:g}")
    return number


def _seconds(text: str) -> float:
    seconds = duration_s(text)
    if not 0 < seconds <= LONGEST_S:
        raise ValueError(f"duration {text!r} must be above 0 and at most {LONGEST_S / 86_400:g}d")
    return seconds
