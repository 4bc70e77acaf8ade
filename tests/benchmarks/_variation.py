"""Profiles whose service times vary: what the goals "with distributions" are measured on."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

from inferline_stream.pipeline.profile import LEVELS, NOISE_PROBABILITIES, PipelineProfile, Variation

_SLOW = LEVELS // 5
_NORMAL = tuple(NormalDist().inv_cdf(min(max(p, 0.001), 0.999)) for p in NOISE_PROBABILITIES)


def varying(measured: PipelineProfile, *, classes: bool = True) -> PipelineProfile:
    """The same means, with a lognormal factor of CV² 0.5 for each batch.

    Args:
        measured: profiles of means.
        classes: whether a fifth of the events are five times as large besides.
    """
    variation = Variation(((1.0, LEVELS - _SLOW), (5.0, _SLOW)) if classes else (), noise=_NORMAL)
    spread = math.sqrt(math.log(1.5))
    profiles = {
        key: replace(
            profile,
            variation=variation,
            service_times=tuple(replace(entry, spread=spread) for entry in profile.service_times),
        )
        for key, profile in measured.profiles.items()
    }
    return replace(measured, profiles=profiles)
