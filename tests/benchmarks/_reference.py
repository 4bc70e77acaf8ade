"""The pipeline that the paper's experiments are repeated on: preprocess → ResNet-152 → NMT for 40 % of the events.

Service times S = b/µ(b) from the throughputs of the K80 table in InferLine's draft (digitised). Preprocess runs on a
CPU with that table's column; the models run on K80. A replica on a K80 costs the GPU and one CPU. Start-up 5 s, SLO
500 ms. A last stage, free and next to instant, collects every event, so that those that need no NMT have a latency too.
"""

from __future__ import annotations

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths

SLO_S = 0.5
START_UP_S = 5.0
NMT_SHARE = 0.4
CPU, GPU, FREE = "cpu", "k80", "free"
CATALOGUE = {CPU: Hardware(CPU, 0.0665), GPU: Hardware(GPU, 0.7005, gpus=1), FREE: Hardware(FREE, 0.0, cores=0)}

SHAPE = Shape(
    ("preprocess", "resnet152", "nmt", "reply"),
    (Arrow(0, 1), Arrow(1, 2, conditional=True), Arrow(1, 3), Arrow(2, 3)),
)

_THROUGHPUTS = {
    ("preprocess", CPU): {1: 27.2, 2: 28.9, 4: 28.3, 8: 29.2},
    ("resnet152", GPU): {1: 19.3, 2: 28.6, 4: 37.5, 8: 41.0, 16: 47.9, 32: 50.6},
    ("nmt", GPU): {1: 19.2, 2: 32.9, 4: 57.6, 8: 99.6, 16: 163.0, 32: 269.0, 64: 400.0},
    ("reply", FREE): {1: 10_000.0, 64: 640_000.0},
}


def profile(nmt_share: float = NMT_SHARE) -> PipelineProfile:
    """The measured pipeline, with another share of events that need NMT if wanted."""
    profiles = {
        (stage, hardware): Profile(
            stage, hardware, tuple(ServiceTime(b, b / rate) for b, rate in throughputs.items()), START_UP_S
        )
        for (stage, hardware), throughputs in _THROUGHPUTS.items()
    }
    return PipelineProfile(profiles, independent_paths(SHAPE, {("resnet152", "nmt"): nmt_share}))
