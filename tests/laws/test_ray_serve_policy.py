"""Ray Serve's rule decides as Ray's own code does, where that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from inferline_stream.baselines.ray_serve import RayServe, RayServeMemory

RAYS = Path(__file__).with_name("_ray_policy.py")
STEPS = 100_000


def random_case(rng: random.Random) -> dict:
    """Parameters and the steps of one deployment: bursts, lulls and odd factors."""
    rule = {
        "target_ongoing": rng.choice([0.5, 1.0, 2.0, 3.0, 8.0, rng.uniform(0.1, 20)]),
        "upscaling_factor": rng.choice([1.0, 0.5, 2.0, rng.uniform(0.05, 3)]),
        "downscaling_factor": rng.choice([1.0, 0.5, 0.1, rng.uniform(0.05, 1)]),
        "upscale_delay_s": rng.choice([0.0, 0.3, 1.0, 5.0]),
        "downscale_delay_s": rng.choice([0.0, 0.5, 2.0, 10.0]),
        "minimum": rng.choice([0, 1, 2]),
        "maximum": rng.choice([3, 10, 100]),
    }
    steps, now, level = [], 1000.0, 5.0
    for _ in range(500):
        now += rng.choice([0.1, 0.1, 0.1, 0.25, 1.0])
        level = max(0.0, rng.choice([level, level * rng.uniform(0.5, 2.0), 0.0, rng.uniform(0, 200)]))
        # Replicas that run lag behind those asked for by up to three, as while they start or stop.
        steps.append((now, level, rng.choice([0, 0, 0, -1, 1, -3, 3])))
    return {"rule": rule, "steps": steps}


def ours(case: dict) -> list[int]:
    rule = RayServe(**case["rule"])
    memory, target, targets = RayServeMemory(), max(1, rule.minimum), []
    for now, ongoing, apart in case["steps"]:
        memory, wanted = rule.decided(memory, now, ongoing, max(0, target + apart), target)
        target = min(max(wanted, rule.minimum), rule.maximum)
        targets.append(target)
    return targets


def test_the_rule_decides_as_rays_own_policy_code_on_a_hundred_thousand_random_steps():
    python = os.environ.get("RAY_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("ray.serve") is None:
        pytest.skip("ray[serve] 2.60 is not installed (extra `dev`); RAY_PYTHON may name a Python that has it")
    rng = random.Random(7)
    cases = [random_case(rng) for _ in range(STEPS // 500)]
    found = subprocess.run(
        [python, str(RAYS)], input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(found.stdout.splitlines()[-1]) == [ours(case) for case in cases]
