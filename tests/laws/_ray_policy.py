"""Runs Ray Serve's own policy on cases given as JSON; started by a Python that has ray installed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

from ray.serve import autoscaling_policy
from ray.serve.config import AutoscalingConfig

policy = autoscaling_policy._apply_autoscaling_config(autoscaling_policy._core_replica_queue_length_policy)
clock = {"now": 0.0}
autoscaling_policy.time = SimpleNamespace(time=lambda: clock["now"])

answers = []
for case in json.load(sys.stdin):
    rule = case["rule"]
    config = AutoscalingConfig(
        min_replicas=rule["minimum"],
        max_replicas=rule["maximum"],
        initial_replicas=max(1, rule["minimum"]),
        target_ongoing_requests=rule["target_ongoing"],
        upscaling_factor=rule["upscaling_factor"],
        downscaling_factor=rule["downscaling_factor"],
        upscale_delay_s=rule["upscale_delay_s"],
        downscale_delay_s=rule["downscale_delay_s"],
    )
    state, target, targets = {}, max(1, rule["minimum"]), []
    for now, ongoing, apart in case["steps"]:
        clock["now"] = now
        context = SimpleNamespace(
            config=config,
            current_num_replicas=max(0, target + apart),
            target_num_replicas=target,
            total_num_requests=ongoing,
            policy_state=state,
        )
        wanted, state = policy(context)
        target = min(max(wanted, rule["minimum"]), rule["maximum"])
        targets.append(target)
    answers.append(targets)
sys.stdout.write(json.dumps(answers) + "\n")
