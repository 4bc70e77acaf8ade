"""How many examples laws try: few in the suite, many in `python -m tests.benchmarks laws`.

A law says how many it tries where Hypothesis's own default is 100, and `examples` scales that to the loaded profile,
also where a law draws its examples from numbered seeds. Hypothesis's option ``--hypothesis-profile many`` loads the
other profile before any law is imported.
"""

from __future__ import annotations

import math

from hypothesis import settings

FEW, MANY = "few", "many"
_USUAL = 100
_LEAST = 2


def load_few() -> None:
    """Register both profiles and load the one of few examples.

    They try the same examples on every run, without a deadline: machines are noisy, and a test that fails must fail
    again.
    """
    settings.register_profile(FEW, derandomize=True, deadline=None, max_examples=20)
    settings.register_profile(MANY, derandomize=True, deadline=None, max_examples=500)
    settings.load_profile(FEW)


def examples(usual: int) -> int:
    """Return how many examples a law tries under the loaded profile that tries ``usual`` by default, at least two."""
    return max(_LEAST, math.ceil(usual * settings().max_examples / _USUAL))
