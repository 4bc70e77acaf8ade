"""inferline-stream: the cheapest plan that keeps a pipeline's P99 under its SLO, over Kafka.

This is what a `topology.py` imports. Names are loaded when first used (PEP 562): importing the
package costs nothing, so a replica can restrict itself before any other library starts threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferline_stream.dataplane.registry_codec import registry_codec
    from inferline_stream.errors import InferlineError, InvalidTopology, ServerUnavailable
    from inferline_stream.pipeline.consumer_group import (
        Command,
        ConsumerGroup,
        Deployment,
        FaustApp,
        KedaScaler,
        PromQL,
    )
    from inferline_stream.pipeline.emulation import Emulated
    from inferline_stream.pipeline.hardware import Hardware
    from inferline_stream.pipeline.isolation import Isolation
    from inferline_stream.pipeline.model_server import OpenAI, OpenInference, RayServe, TensorFlowServing
    from inferline_stream.pipeline.schedule import Every, On
    from inferline_stream.pipeline.spot import Spot
    from inferline_stream.pipeline.topology import Codec, Edge, Pipeline, Result, Sample, Stage, Topic

__all__ = [
    "Codec",
    "Command",
    "ConsumerGroup",
    "Deployment",
    "Edge",
    "Emulated",
    "Every",
    "FaustApp",
    "Hardware",
    "InferlineError",
    "InvalidTopology",
    "Isolation",
    "KedaScaler",
    "On",
    "OpenAI",
    "OpenInference",
    "Pipeline",
    "PromQL",
    "RayServe",
    "Result",
    "Sample",
    "ServerUnavailable",
    "Spot",
    "Stage",
    "TensorFlowServing",
    "Topic",
    "registry_codec",
]

_ROOMS = {
    "dataplane.registry_codec": ("registry_codec",),
    "errors": ("InferlineError", "InvalidTopology", "ServerUnavailable"),
    "pipeline.consumer_group": ("Command", "ConsumerGroup", "Deployment", "FaustApp", "KedaScaler", "PromQL"),
    "pipeline.emulation": ("Emulated",),
    "pipeline.hardware": ("Hardware",),
    "pipeline.isolation": ("Isolation",),
    "pipeline.model_server": ("OpenAI", "OpenInference", "RayServe", "TensorFlowServing"),
    "pipeline.spot": ("Spot",),
    "pipeline.schedule": ("Every", "On"),
    "pipeline.topology": ("Codec", "Edge", "Pipeline", "Result", "Sample", "Stage", "Topic"),
}


def __getattr__(name: str) -> object:
    room = next((room for room, names in _ROOMS.items() if name in names), None)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value
