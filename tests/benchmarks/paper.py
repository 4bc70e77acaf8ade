"""InferLine's figures re-made, as far as what is published allows.

Planning: dollars per hour of InferLine's algorithms and of ours beside coarse-grained serving (CG-Mean, CG-Peak), on
Image Processing, TF Cascade and the reference pipeline, against SLO, rate and burstiness. Scaling: the experiments of
`replay`, and an ablation. A `_half_width` is half a 95 % interval over seeds. What could not be re-made is
named.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from tests.benchmarks import _paper_planning as planning
from tests.benchmarks import _paper_tuning as tuning
from tests.benchmarks._figures import Figures
from tests.benchmarks._workloads import burst, ramp
from tests.benchmarks.replay import experiment

LEFT_OUT = (
    "Video Monitoring and Social Media (the published profiles have no YOLO, plate reader or language identification, "
    "and there are no visit ratios); the published ResNet-50, and all of the P100 (no whole pipeline of the paper is "
    "made of them, and it has no price of a P100); serving engines other than the authors' own; estimated against "
    "measured on the authors' GPUs (`fidelity` does so on emulated hardware); DS2 on Flink (its rule is in `compare`); "
    "the Slowly Varying trace (not published). AlexNet's 180/s is inferred from the paper's plans: the published "
    "profile has 100/s (`image_published`). TF Cascade's share of unsure events and its SLO are assumed."
)


def measure(quick: bool) -> Figures:
    return {**_planning(quick), **_scaling(quick), "left_out": LEFT_OUT}


def _planning(quick: bool) -> Figures:
    duration_s = 60.0 if quick else 300.0
    subject = planning.image()
    image = {cv: planning.by_rate(subject, cv, tuple(planning.PAPER_IMAGE), 0.15, duration_s) for cv in (1.0, 4.0)}
    subject = planning.image(as_published=True)
    slower = planning.by_rate(subject, 1.0, tuple(planning.PAPER_IMAGE), 0.15, duration_s)
    subject = planning.tf_cascade()
    cascade_rates = (100, 300) if quick else (50, 100, 150, 200, 250, 300)
    cascade = {
        cv: planning.by_rate(subject, cv, cascade_rates, planning.CASCADE_SLO_S, duration_s) for cv in (1.0, 4.0)
    }
    subject = planning.reference_pipeline()
    slos_s = (0.2, 0.3, 0.5, 0.8) if quick else (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    rates = (100, 200, 300) if quick else (50, 100, 150, 200, 250, 300)
    cvs = (1.0, 4.0) if quick else (0.5, 1.0, 2.0, 4.0, 8.0)
    by_slo = {cv: planning.by_slo(subject, cv, slos_s, duration_s) for cv in ((1.0,) if quick else (1.0, 4.0))}
    by_rate = planning.by_rate(subject, 1.0, rates, 0.5, duration_s)
    by_cv = planning.by_cv(subject, cvs, 0.5, duration_s)
    off = [abs(_cost(row) / planning.PAPER_IMAGE[rate] - 1) for rate, row in image[1.0].items()]
    figures: Figures = {
        "image_cv1_off_paper_max": round(max(off), 3),
        "image_cv1_off_paper_median": round(statistics.median(off), 3),
    }
    for cv, rows in image.items():
        for rate, row in rows.items():
            figures[f"image_cv{cv:g}_{rate}_cost_per_hour"] = round(_cost(row), 2)
    for rate, row in slower.items():
        figures[f"image_published_cv1_{rate}_cost_per_hour"] = round(_cost(row), 2)
    figures["resnet152_off_published_max"] = round(planning.off_published(), 3)
    figures["tf_cascade_assumed_unsure_share"] = planning.CASCADE_SHARE
    figures["tf_cascade_assumed_slo_s"] = planning.CASCADE_SLO_S
    for cv, rows in cascade.items():
        for rate, row in rows.items():
            for name, cost in row.items():
                label = name.replace("-", "_")
                figures[f"tf_cascade_cv{cv:g}_{rate}_cost_per_hour_{label}"] = None if cost is None else round(cost, 2)
    every = [*image.values(), *by_slo.values(), by_rate, by_cv]
    for name in ("cg-mean", "cg-peak"):
        label = name.replace("-", "_")
        ratios = [ratio for rows in every for ratio in planning.ratio(rows, name)]
        figures[f"{label}_over_inferline_max"] = round(max(ratios), 2)
        figures[f"{label}_over_inferline_mean"] = round(statistics.mean(ratios), 2)
    savings = [1 - 1 / ratio for rows in every for ratio in planning.ratio(rows, "inferline", "default")]
    figures["default_saves_on_inferline_mean"] = round(statistics.mean(savings), 3)
    figures["default_saves_on_inferline_max"] = round(max(savings), 3)
    return figures


def _cost(row: Mapping[str, float | None]) -> float:
    cost = row["inferline"]
    assert cost is not None, "the paper has a plan here"
    return cost


def _scaling(quick: bool) -> Figures:
    seeds = 3 if quick else 10
    workloads = {
        "ramp_60": lambda rng: ramp(60.0, rng),
        "ramp_30": lambda rng: ramp(30.0, rng),
        "ramp_10": lambda rng: ramp(10.0, rng),
        "burst": burst,
    }
    figures: Figures = {}
    for name in ("ramp_30", "burst") if quick else workloads:
        figures |= experiment(name, workloads[name], seeds)
    parts = tuning.ablation(seeds)
    for part, (misses, cost) in parts.items():
        label = "ablation_" + part.lower().replace(" + ", "_").replace("'", "").replace(" ", "_").replace("-", "_")
        figures[f"{label}_miss_rate"] = round(misses.mean, 5)
        figures[f"{label}_miss_rate_half_width"] = round(misses.half_width, 5)
        figures[f"{label}_cost"] = round(cost.mean, 3)
    return figures
