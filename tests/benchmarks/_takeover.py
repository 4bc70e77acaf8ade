"""How long a stage of a running pipeline is without a dispatcher once the host of its own is lost, on Kubernetes.

Real dispatchers, replicas and controller, behind a fake API server and kubelet; under load, on the embedded broker.
From the loss to the first event that the next dispatcher has finished.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.broker_process import embedded_broker_process
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.settings import Settings
from tests.kube.api import KubeApi, client_of
from tests.kube.kubelet import Kubelet
from tests.support.emulated_runs import emulated_run

SWING = Path(__file__).parents[1] / "scenarios" / "swing"
_LOAD_S = 60.0


def measure(quick: bool) -> dict[str, float]:
    """Return the figures; the longest of each way to lose a host."""
    with tempfile.TemporaryDirectory(prefix="inferline-takeover-") as folder:
        return asyncio.run(_measure(Path(folder), 1 if quick else 3))


async def _measure(folder: Path, times: int) -> dict[str, float]:
    async with (
        embedded_broker_process() as servers,
        KubeApi() as api,
        client_of(api) as client,
    ):
        kubelet = api.node.run = Kubelet(folder, api)
        probability = {("parse", "check"): 1 / 3}
        run = emulated_run(
            SWING,
            servers,
            folder,
            levels=[(40.0, _LOAD_S)],
            probability=probability,
            key_field="number",
            settings=Settings(start_timeout_s=300.0),
        )
        names = Names(run.pipeline.name, run.records.prefix)
        async with (
            KubernetesActuator(names, run.bootstrap_servers, Cluster(api.namespace, "image"), client) as actuator,
            open_run(run, actuator) as under_way,
        ):
            await under_way.ready()
            stop = asyncio.Event()
            feeding = asyncio.create_task(under_way.fed(stop))
            await asyncio.sleep(3.0)
            found: dict[str, list[float]] = {"lost": [], "silent": []}
            for _ in range(times):
                for way, took_s in found.items():
                    took_s.append(await _takeover_s(actuator, under_way, kubelet, api, "parse", silent=way == "silent"))
                    await asyncio.sleep(2.0)
            stop.set()
            await feeding
            report = await under_way.report(await under_way.drain())
            await actuator.aclose()
    assert report.lost == 0
    return {f"takeover_host_{way}_s": round(max(took_s), 1) for way, took_s in found.items()}


async def _takeover_s(
    actuator: KubernetesActuator, under_way: LiveRun, kubelet: Kubelet, api: KubeApi, stage: str, *, silent: bool
) -> float:
    """Lose the host of a stage's dispatcher; return the time until another one has finished an event there.

    Args:
        actuator: of the run.
        under_way: the run, under load.
        kubelet: has the host's process.
        api: has its pod.
        stage: the stage.
        silent: whether the host stands still and nobody says so, as when its node is cut off; else it is killed and its
            pod vanishes.
    """
    loop = asyncio.get_running_loop()
    lost = next(d for d in await actuator.dispatchers() if d.stage == stage)
    pod = actuator._dispatcher_pods.pod_of(lost.dispatcher)
    assert pod is not None
    host = kubelet.processes[pod]
    began_s = loop.time()
    if silent:
        for process in (*_children(host), host):
            os.kill(process, signal.SIGSTOP)
    else:
        os.kill(host, signal.SIGKILL)  # the dispatcher, its child, dies with it
        await api.lose_node_of(pod)
    while True:
        for seen in await actuator.dispatchers():
            report = under_way.controller.view.reports.newest(seen.dispatcher)
            if (
                seen.stage == stage
                and seen.dispatcher != lost.dispatcher
                and report is not None
                and report.counts.events
            ):
                return loop.time() - began_s
        await asyncio.sleep(0.05)


def _children(process: int) -> list[int]:
    with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]
