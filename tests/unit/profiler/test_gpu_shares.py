"""Shares of a GPU: measured beside others that use the rest of it, so that no plan takes a share for a whole device."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.profiler.machine import Machine
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options
from tests.support.fake_nvml import install

TOPOLOGY = """
import os, socket
from inferline_stream import Hardware, Pipeline, Stage, Topic

class Model:
    def __init__(self) -> None:
        self.device = socket.socket(socket.AF_UNIX)
        self.device.connect(os.path.join(os.path.dirname(__file__), os.environ["CUDA_VISIBLE_DEVICES"]))

    def __call__(self, numbers: list[int]) -> list[int]:
        for _ in range({slices}):
            self.device.sendall(b"k")
            self.device.recv(1)
        return numbers

share = Hardware("share-t4", 0.26, gpus=0.5, gpu_model="Tesla T4")
embed = Stage("embed", Model, hardware=["share-t4"], max_batch_size=1)
rank = Stage("rank", Model, after=[embed], hardware=["share-t4"], max_batch_size=1)
pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[embed, rank], hardware=[share])
"""
SLICE_S = 0.002
ALONE_S = 0.01
EVENTS = [b"%d" % number for number in range(20)]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A device of time slices: those who ask are served in turn, one at a time. Yields its folder."""
    listener, over = socket.socket(socket.AF_UNIX), threading.Event()
    listener.bind(str(tmp_path / "GPU-0"))
    listener.listen()

    def serve() -> None:
        asking = [listener]
        while not over.is_set():
            for each in select.select(asking, [], [], 0.05)[0]:
                if each is listener:
                    asking.append(listener.accept()[0])
                    continue
                time.sleep(SLICE_S)
                if each.recv(1):
                    each.send(b"d", socket.MSG_NOSIGNAL)
                else:
                    asking.remove(each)
                    each.close()
        for each in asking:
            each.close()

    serving = threading.Thread(target=serve)
    serving.start()
    yield tmp_path
    over.set()
    serving.join()


async def profiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineProfile:
    """The pipeline of two stages, each of which takes 10 ms of the device alone."""
    install(monkeypatch, [{"name": "Tesla T4", "uuid": "GPU-0", "total": 16 << 30}])
    topology = folder / "topology.py"
    topology.write_text(TOPOLOGY.format(slices=round(ALONE_S / SLICE_S)))
    machine, options = Machine("Test CPU", 2, ("Tesla T4",)), Options(sample_s=30.0, stage_s=0.4)
    return await profile_pipeline(load_topology(topology), topology, EVENTS, options=options, machine=machine)


async def test_two_halves_of_one_gpu_with_more_work_than_it_does_are_infeasible_and_with_less_are_explained(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = await profiled(device, monkeypatch)
    pipeline = load_topology(device / "topology.py")
    kinds = catalogue([replace(pipeline.hardware[0], gpu_stock=1.0)])
    shape = shape_of(pipeline)

    def arrivals(per_s: float) -> Trace:
        return Trace(tuple(np.arange(20 * per_s) / per_s))

    for work in (1.4, 1.2):  # seconds of the device's time a second
        with pytest.raises(Infeasible):
            provision(Problem(shape, measured, (arrivals(work / (2 * ALONE_S)),), 1.0, kinds))
    few = Problem(shape, measured, (arrivals(2.0),), 20.0, kinds)  # however busy this machine is
    reasons = explain(provision(few), few).stages[0].reasons
    assert any("share-t4 is one of 2 replicas on a device" in reason for reason in reasons)
