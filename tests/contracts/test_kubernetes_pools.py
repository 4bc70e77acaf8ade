"""Pools whose dispatchers and replicas are pods: real processes that speak TLS.

Their API server is a fake, and a real one besides where Kubernetes' binaries are (see `tests.kube.real_cluster`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inferline_stream.actuators.kubernetes.actuator import KubernetesActuator
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.pipeline.names import Names
from tests.contracts.pooled import PASSING, in_order_of_keys, more, under_load
from tests.kube.api import Api, MakeApi, client_of
from tests.kube.kubelet import Kubelet
from tests.support.director import Director, event_id


class Pods:
    """A director of pods."""

    def __init__(self, director: Director, api: Api, kubelet: Kubelet) -> None:
        self.director, self.api, self.kubelet = director, api, kubelet

    @property
    def dispatcher(self) -> str:
        """Name of the pod whose dispatcher serves."""
        name = self.director.dispatcher("work")
        pod = self.director.supervisor._dispatcher_pods.pod_of(name)
        assert pod is not None, f"{name} has no pod"
        return pod

    @property
    def replicas(self) -> list[str]:
        """Names of the replicas that are ready, the names of their pods."""
        return [status.replica for status in self.director.ready("work")]


OpenPods = Callable[..., contextlib.AbstractAsyncContextManager[Pods]]


@pytest.fixture
def pods(make_api: MakeApi, apache_kafka: Any, tmp_path: Path) -> OpenPods:
    """Opens a pool of pods."""
    return partial(_pods, make_api, apache_kafka, tmp_path)


@contextlib.asynccontextmanager
async def _pods(
    make_api: MakeApi, kafka: Any, folder: Path, *, replicas: int = 2, slots: int = 1, **options: Any
) -> AsyncIterator[Pods]:
    """A pool of pods, once its replicas are ready."""
    async with make_api() as api, client_of(api) as client:
        kubelet = api.node.run = Kubelet(folder, api)

        @contextlib.asynccontextmanager
        async def actuator(names: Names) -> AsyncIterator[KubernetesActuator]:
            cluster = Cluster(api.namespace, "image")
            async with KubernetesActuator(names, kafka.bootstrap_servers, cluster, client) as made:
                try:
                    yield made
                finally:
                    async with asyncio.timeout(60):
                        await made.aclose()

        options = {"partitions": {"work": 4}, "max_batch_size": 4, **options}
        async with Director(kafka.bootstrap_servers, PASSING, actuator=actuator, **options) as director:
            await director.start(replicas=replicas, slots=slots)
            yield Pods(director, api, kubelet)
        async with asyncio.timeout(60):
            while api.pods() or kubelet.processes:  # those that were deleted by force end a moment later
                await asyncio.sleep(0.02)


async def finished(of: Pods, ids: list[str]) -> None:
    """Every event has exactly one result, and none is a dead letter."""
    await of.director.caught_up(60.0)
    sink = await of.director.results()
    assert Counter(map(event_id, sink)) == Counter(ids)
    assert in_order_of_keys(sink)
    assert await of.director.letters("work") == []


async def kept_their_models(of: Pods, before: set[str]) -> None:
    """The two replicas are those of before, and neither has loaded its model again; events were ``who``."""
    assert set(of.replicas) == before
    assert len({record.value for record in await of.director.results()}) == 2, "a model was loaded again"


async def test_scaling_one_to_four_to_one_under_load_loses_and_repeats_nothing(pods: OpenPods) -> None:
    async with pods(replicas=1, delivery="exactly_once") as of:
        report = of.director.report("work")
        nodes = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in of.api.pods()}
        assert report.node == nodes[of.dispatcher], "status shows dispatcher and replicas by node"
        assert [replica.node for replica in report.replicas] == [nodes[replica] for replica in of.replicas]
        async with under_load(of.director) as ids:
            await of.director.scale("work", 4)
            await more(of.director, "work", 300)
            await of.director.scale("work", 1)
            await more(of.director, "work", 100)
        await finished(of, ids)
        assert all(exit_.expected for exit_ in of.director.exits), of.director.exits


def process_of_dispatcher(of: Pods, pod: str = "") -> int:
    """Return the dispatcher's process within a pod, by default within the one that serves."""
    started = re.findall(r"work-0-\w+ started, process (\d+)", of.kubelet.log(pod or of.dispatcher))
    return int(started[-1])


def sizes(of: Pods) -> list[int]:
    """Replicas of each dispatcher."""
    return [len(report.replicas) for report in of.director.reports.values()]


async def test_replicas_spread_over_the_dispatchers_of_two_slots_behind_one_address(pods: OpenPods) -> None:
    async with pods(replicas=4, slots=2) as of:
        async with under_load(of.director) as ids:
            await of.director.until(lambda: sizes(of) == [2, 2], "each slot has two", 30.0)
            await more(of.director, "work", 200)
        await finished(of, ids)
        assert sizes(of) == [2, 2]


async def test_replicas_come_back_to_a_slot_whose_dispatcher_died_with_their_models_loaded(pods: OpenPods) -> None:
    async with pods(replicas=4, slots=2, delivery="exactly_once") as of:
        before = set(of.replicas)
        async with under_load(of.director, b"who") as ids:
            dead = of.director.dispatcher("work", 0)
            first = of.director.reports[dead].incarnation
            os.kill(process_of_dispatcher(of, of.director.supervisor._dispatcher_pods.pod_of(dead)), signal.SIGKILL)

            await of.director.until(
                lambda: of.director.reports[dead].incarnation > first and sizes(of) == [2, 2],
                "each slot has two again",
                30.0,
            )
            await more(of.director, "work", 200)
        await finished(of, ids)
        assert set(of.replicas) == before
        assert len({record.value for record in await of.director.results()}) == 4, "a model was loaded again"
        said = "".join(of.kubelet.log(pod["metadata"]["name"]) for pod in of.api.pods())
        assert "in hand" not in said, "they moved between batches"


async def test_a_replica_that_is_cut_off_for_ten_seconds_costs_nothing_and_serves_again_with_its_model_loaded(
    pods: OpenPods,
) -> None:
    async with pods(delivery="exactly_once") as of:
        before = set(of.replicas)
        wire = of.kubelet.wires[of.replicas[0]]
        async with under_load(of.director, b"who") as ids:
            loop = asyncio.get_running_loop()
            restored_s = loop.time() + 10.0
            wire.cut()
            await of.director.until(lambda: len(of.replicas) == 1, "the silent one is noticed")
            await asyncio.sleep(max(0.0, restored_s - loop.time()))
            wire.restore()
            await of.director.until(lambda: len(of.replicas) == 2, "it is connected again", 30.0)
            await more(of.director, "work", 200)
        await finished(of, ids)
        await kept_their_models(of, before)
        assert of.director.exits == []


async def test_half_a_response_and_a_slow_link_cost_nothing(pods: OpenPods) -> None:
    async with pods(delivery="exactly_once") as of:
        torn, slow = (of.kubelet.wires[name] for name in of.replicas)
        async with under_load(of.director, b"x" * 1000) as ids:
            connections = torn.connections
            torn.tear_after = 2500
            slow.slow_s = 0.2
            await of.director.until(lambda: torn.connections > connections, "the torn one is connected again")
            await of.director.until(lambda: len(of.replicas) == 2, "both serve", 30.0)
            await more(of.director, "work", 200)
        await finished(of, ids)
        assert of.director.exits == []


async def test_a_dispatcher_that_dies_starts_again_within_its_pod_and_no_replica_loads_its_model_again(
    pods: OpenPods,
) -> None:
    async with pods(delivery="exactly_once") as of:
        before = set(of.replicas)
        async with under_load(of.director, b"who") as ids:
            pod = of.dispatcher
            for _ in range(2):
                os.kill(process_of_dispatcher(of), signal.SIGKILL)
                incarnation = of.director.report("work").incarnation
                await of.director.until(
                    lambda was=incarnation: of.director.report("work").incarnation > was and len(of.replicas) == 2,
                    "the next one serves both replicas",
                    30.0,
                )
                await more(of.director, "work", 100)
        await finished(of, ids)
        assert of.dispatcher == pod
        await kept_their_models(of, before)
        assert of.director.exits == []


async def test_a_dispatcher_whose_node_is_lost_is_taken_over_by_the_pod_that_waits(pods: OpenPods) -> None:
    async with pods(delivery="exactly_once") as of:
        before = set(of.replicas)
        async with under_load(of.director, b"who") as ids:
            pod = of.dispatcher
            os.kill(of.kubelet.processes[pod], signal.SIGSTOP)  # its node is gone, and nobody knows yet
            os.kill(process_of_dispatcher(of), signal.SIGSTOP)
            await of.director.dispatch("work", silent=True)
            await of.director.until(lambda: len(of.replicas) == 2, "the next one serves both replicas", 30.0)
            await more(of.director, "work", 200)
            lost, host = process_of_dispatcher(of, pod), of.kubelet.processes[pod]
            for process in (lost, host):  # the node was only cut off, and comes back
                os.kill(process, signal.SIGCONT)
            await more(of.director, "work", 200)
        await finished(of, ids)
        assert of.dispatcher != pod
        await kept_their_models(of, before)


async def test_replicas_whose_node_is_lost_or_emptied_cost_nothing(pods: OpenPods) -> None:
    async with pods(delivery="exactly_once") as of:
        lost, emptied = of.replicas
        async with under_load(of.director) as ids:
            await of.api.lose_node_of(lost)
            await of.director.until(lambda: lost not in of.replicas and len(of.replicas) == 2, "it is replaced", 120.0)
            await of.api.evict(emptied)
            await of.director.until(
                lambda: emptied not in of.replicas and len(of.replicas) == 2, "it is replaced", 30.0
            )
            await more(of.director, "work", 200)
        await finished(of, ids)
        assert "is ready after" in of.kubelet.log(emptied)
        # Batches that are late on a busy machine count as lost, too: what is said of this replica decides.
        said = of.kubelet.log(of.dispatcher).splitlines()
        assert [line for line in said if emptied in line and "in hand" in line] == [], "it had time for its batch"
        await of.api.discard_lost_nodes()
        await of.director.until(lambda: len(of.director.exits) == 2, "the lost node's pod is forgotten", 120.0)
        exits = {exit_.replica: exit_.reason for exit_ in of.director.exits}
        assert exits.keys() == {lost, emptied}
        assert "node is gone" in exits[lost]
        assert "finished its batch" in exits[emptied]


async def test_a_dispatcher_whose_node_is_emptied_drains_and_hands_over(pods: OpenPods) -> None:
    async with pods() as of:
        name = of.director.dispatcher("work")
        async with under_load(of.director) as ids:
            await of.api.evict(of.dispatcher)
            await of.director.until(lambda: of.director.phase(name) == "gone", "it has drained")
            await of.director.dispatch("work")
            await of.director.until(lambda: len(of.replicas) == 2, "the next one serves both replicas", 30.0)
            await more(of.director, "work", 200)
        await finished(of, ids)
