"""Whether a stage can use the GPU that its kind pays for: frameworks go on on a CPU without a word."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

_OTHERS = ("cuda", "cupy", "ctranslate2", "jax", "pycuda", "tensorflow", "tensorrt", "vllm")
"""Modules of what else computes on a GPU."""


def cuda_lack(modules: Mapping[str, ModuleType], objects: Iterable[object] | None = None) -> str:
    """Return why nothing that a stage has loaded can use a GPU, in words; empty where something can, or nobody knows.

    PyTorch and onnxruntime are asked. A stage that has loaded neither may use a server, and one that has loaded another
    framework may have these for a part that needs no GPU.

    Args:
        modules: what is imported, by name.
        objects: where sessions of onnxruntime are looked for; by default everything that the garbage collector knows.
    """
    if any(name in modules for name in _OTHERS):
        return ""
    lacks = []
    if (torch := modules.get("torch")) is not None and (cuda := getattr(torch, "cuda", None)) is not None:
        if cuda.is_available():
            return ""
        lacks.append("torch.cuda.is_available() is false")
    if (ort := modules.get("onnxruntime")) is not None and (session := getattr(ort, "InferenceSession", None)):
        used = _providers(session, gc.get_objects() if objects is None else objects)
        if (used or set(ort.get_available_providers())) - {"CPUExecutionProvider", "AzureExecutionProvider"}:
            return ""
        lacks.append(
            f"onnxruntime's sessions run on {', '.join(sorted(used))} alone"
            if used
            else "onnxruntime has no CUDAExecutionProvider"
        )
    return "; ".join(lacks)


def _providers(session: type[Any], objects: Iterable[Any]) -> set[str]:
    """Providers of all sessions that there are."""
    return {name for each in objects if type(each) is session for name in each.get_providers()}
