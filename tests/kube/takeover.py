"""How long a stage is without a dispatcher once the host of the one that serves it is lost."""

from __future__ import annotations

import asyncio
import os
import signal

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.runs.live_run import LiveRun
from tests.kube.api import KubeApi
from tests.kube.kubelet import Kubelet


async def takeover_s(
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
