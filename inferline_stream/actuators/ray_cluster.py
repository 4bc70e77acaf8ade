"""A Ray cluster as it is found: how to join it, what a node has to have for a replica, and what there is room for."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import signal
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private import worker
from ray._private.services import canonicalize_bootstrap_address_or_die  # what `ray.init` itself asks
from ray._private.state import state
from ray.exceptions import RayError

from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")

_CONNECT_S = 5.0
"""Longest wait for the cluster's first answer."""


async def join() -> None:
    """Join the Ray cluster that RAY_ADDRESS names, else the one that runs here, unless this process has joined one.

    Raises:
        Unreachable: none answers.
    """
    if ray.is_initialized():
        return
    try:
        address = await asyncio.to_thread(canonicalize_bootstrap_address_or_die, "auto")
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(_CONNECT_S):  # Ray would try for two minutes, and then end this process
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        logging.getLogger("ray").setLevel(logging.ERROR)  # it would speak of signals, which are the command's
        worker.print_to_stdstream = _log_error  # it prints on standard output, which is the command's
        await asyncio.to_thread(ray.init, address, log_to_driver=False, configure_logging=False)
        if threading.current_thread() is threading.main_thread() and (handler := signal.getsignal(signal.SIGTERM)):
            signal.signal(signal.SIGTERM, handler)  # Ray's library has put its own in its place, which aborts
            signal.siginterrupt(signal.SIGTERM, False)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(
            f"no Ray cluster answers: {why}. Start one with `ray start --head`, or set RAY_ADDRESS"
        ) from None


def _log_error(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Log what the cluster reports to everyone who has joined it."""
    for line in data["lines"]:
        logger.info("Ray: %s", str(line).splitlines()[0])


def requirements(spec: ReplicaSpec) -> dict[str, Any]:
    """Return what a replica's actor asks its node for. Emulated kinds sleep, and ask for no core.

    A GPU's model becomes Ray's accelerator type by the rule that its nodes follow: ``Tesla T4`` is ``T4``. Ray
    knows a slice of a GPU (MIG) only as a GPU, on a node that is started with its UUID: its kind is a custom resource.
    """
    hardware = spec.hardware
    asked: dict[str, Any] = {"num_cpus": hardware.cores, "num_gpus": hardware.gpus}
    if hardware.slice:
        asked |= {"num_gpus": 1, "resources": {hardware.name: 1}}
    elif hardware.gpus and hardware.gpu_model is not None:
        asked["accelerator_type"] = accelerator_type(hardware.gpu_model)
    if spec.isolation.memory_mb is not None:
        asked["memory"] = spec.isolation.memory_mb << 20
    return asked


def accelerator_type(model: str) -> str:
    """Return what Ray calls a GPU's model: its first word of capitals and digits, or all but the maker's name."""
    found = _MODEL.match(model)
    if found and len(found.group(1)) > 1:
        return found.group(1).replace(" ", "-")
    return re.sub(r"^NVIDIA\s+", "", model).strip().replace(" ", "-")


async def room(specs: Iterable[ReplicaSpec]) -> Mapping[str, int]:
    """Return how many actors more of each kind the cluster may have, by the most that its configuration allows.

    Args:
        specs: of replicas, any number of each kind.

    A cluster that says nothing of that may grow at any time: there a replica without a place is what shows it.
    """
    try:
        most = await asyncio.to_thread(state.get_max_resources_from_cluster_config)
        if not most:
            return {}
        total, free = (
            await asyncio.to_thread(ray.cluster_resources),
            await asyncio.to_thread(ray.available_resources),
        )
    except RayError:  # an outage: the next look says more
        return {}
    used = {name: total.get(name, 0.0) - free.get(name, 0.0) for name in total}
    found = {}
    for spec in {spec.hardware.name: spec for spec in specs}.values():
        limits = [
            (most[name] - used.get(name, 0.0)) / each
            for name, each in _resources(requirements(spec)).items()
            if name in most and each > 0
        ]
        if limits:
            found[spec.hardware.name] = max(0, math.floor(min(limits) + 1e-6))
    return found


def cause(error: RayError) -> str:
    """Return why a call of an actor failed, in a sentence of the library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("The actor is dead because")), (lines or [""])[0])
    return reason.partition(". ")[0].rstrip(".") or type(error).__name__


def _resources(asked: Mapping[str, Any]) -> dict[str, float]:
    """What an actor asks for, by the names that a cluster counts it by."""
    named = {"CPU": asked.get("num_cpus", 0), "GPU": asked.get("num_gpus", 0), "memory": asked.get("memory", 0)}
    return {**named, **asked.get("resources", {})}


def words(asked: Mapping[str, Any]) -> str:
    """Return `requirements` for people."""
    named = {**asked, **asked.get("resources", {})}
    named.pop("resources", None)
    return ", ".join(f"{name} {value}" for name, value in named.items() if value) or "room"
