"""Throughputs on one NVIDIA K80 that InferLine's authors have published, as they measured them before the paper.

From github.com/dcrankshaw/plots-model-comp-paper, `results_cpp_benchmarker/single_model_profs`: 91 files of March 2018,
each one model with one batch size on one replica, AlexNet, ResNet-50 and ResNet-152 in PyTorch on K80 and P100, and
Inception-v3 and ResNet in TensorFlow on K80 (p2.8xlarge). Those of the models below on a K80 were read: a figure is the
rate of the model's own meter in a file's last trial. The repository names no licence: these are facts out of its files,
and no file is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferline_stream.pipeline.profile import Profile, ServiceTime

THROUGHPUTS: Mapping[str, Mapping[int, float]] = {
    "alexnet": {1: 100.2, 2: 104.9, 4: 107.5, 8: 105.1, 16: 101.8, 32: 109.9},
    "resnet152": {1: 19.9, 2: 27.4, 4: 34.0, 8: 36.6, 16: 41.6, 32: 41.5},
    "tf-inception": {1: 17.9, 2: 31.4, 4: 45.6, 8: 57.6, 16: 70.0, 24: 70.4, 32: 78.5},
    "tf-resnet": {1: 10.8, 2: 18.4, 4: 28.1, 8: 33.2, 16: 42.5, 24: 45.5, 32: 48.3},
}
"""Events per second by model and batch size."""


def profile(stage: str, model: str, hardware: str, start_up_s: float) -> Profile:
    """A stage's profile: S(b) = b over throughput."""
    times = tuple(ServiceTime(size, size / rate) for size, rate in THROUGHPUTS[model].items())
    return Profile(stage, hardware, times, start_up_s)
