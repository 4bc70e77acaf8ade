"""A stage that does all it can against others: it harms nobody but itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.isolation import limits
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.sealing import unsupported
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation, isolation_of
from inferline_stream.testing.directing import Director
from tests.conftest import memory_group
from tests.contracts.hostile import ATTACKS

pytestmark = pytest.mark.skipif(
    bool(unsupported(Isolation())), reason=f"no sandbox on {platform.system()} {platform.release()}"
)

TOPOLOGY = (
    ATTACKS
    + '''
import errno, json

from inferline_stream import Isolation, Pipeline, Stage, Topic

HERE = Path(__file__).parent


class Good:
    """Has a model of its own."""

    def __init__(self) -> None:
        self.model = (HERE / "good.bin").read_bytes()

    def __call__(self, orders: list[str]) -> list[str]:
        return orders


class Hostile:
    """Does whatever an event tells it to."""

    def __init__(self) -> None:
        self.at_start = {}
        for attack in json.loads((HERE / "orders.json").read_text()):
            self.at_start[attack] = self.attempt(attack)

    def attempt(self, order):
        kind, _, against = order.partition(" ")
        try:
            ATTACKS[kind](against)
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
        except (RuntimeError, MemoryError) as error:
            return type(error).__name__
        return "succeeded"

    def __call__(self, orders: list[str]) -> list[list[str]]:
        return [[order, self.at_start.get(order, "not tried"), self.attempt(order)] for order in orders]


good = Stage("good", Good, hardware=["cpu-1"], isolation=Isolation("sandbox", reads=["good.bin"]))
hostile = Stage("hostile", Hostile, hardware=["cpu-1"], after=[good],
                isolation=Isolation("sandbox", reads=["orders.json"], memory_mb=300, file_mb=2))
pipeline = Pipeline("attacked", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[good, hostile])
'''
)


async def test_a_hostile_stage_harms_nobody(embedded_broker, tmp_path):
    (tmp_path / "good.bin").write_bytes(b"the other stage's model")
    folder = tmp_path / "filled"
    folder.mkdir(mode=0o777)
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        orders = [
            *("read /etc/shadow", f"read {tmp_path / 'good.bin'}", f"read /proc/{os.getpid()}/environ"),
            *(f"connect {elsewhere.getsockname()[1]}", f"shell touch {folder}/shell", f"fill {folder}"),
            *(f"kill {os.getpid()}", "fork", "threads", "allocate"),
        ]
        one_each = {"good": 1, "hostile": 1}
        async with Director(
            embedded_broker.bootstrap_servers, tmp_path / "topology.py", partitions=one_each
        ) as director:
            good = await director.start("good")
            await director.assign(good, [0])
            orders.append(f"kill {director.processes[good].pid}")
            (tmp_path / "orders.json").write_text(json.dumps(orders))
            async with started(director, tmp_path) as actuator:
                (replica,) = await actuator.observe()
                await director.until(lambda: ready(director, replica.replica), "the hostile stage is ready", 30.0)
                await director.assign(replica.replica, [0], max_batch_size=1)
                for order in orders:
                    await director.producer.send(director.names.topic("in"), json.dumps(order).encode())
                await director.producer.flush()
                await director.until(lambda: director.reports[replica.replica].events == len(orders), "it tried", 40.0)
                outcomes = [json.loads(record.value) for record in await director.read(director.names.topic("out"))]
                assert [order for order, *_ in outcomes] == orders
                assert {at for _, *both in outcomes for at in both} <= {
                    *("EACCES", "EPERM", "EAGAIN", "ENOMEM", "RuntimeError", "MemoryError")
                }
                # What it prints without end goes to a file that is full soon; others are none the slower for it.
                await director.producer.send_and_wait(director.names.topic("in"), b'"flood"')
                await director.until(lambda: director.reports[replica.replica].events > len(orders), "it flooded", 40.0)
                (log,) = (tmp_path / "logs").iterdir()
                assert log.stat().st_size <= 2 << 20
            with pytest.raises(BlockingIOError):
                elsewhere.accept()
            assert list(folder.iterdir()) == []
            await director.producer.send_and_wait(director.names.topic("in"), b'"fork"')
            await director.until(lambda: director.reports[good].events == len(orders) + 2, "the other goes on")
            assert director.processes[good].returncode is None


@pytest.mark.groups
async def test_a_replica_beyond_the_memory_of_its_control_group_is_killed_alone_and_the_reason_says_so(
    embedded_broker, tmp_path, monkeypatch
):
    """The kernel's own doing, in a group that this test puts the replica into: few machines leave that to a run."""
    (tmp_path / "good.bin").write_bytes(b"the other stage's model")
    (tmp_path / "orders.json").write_text("[]")
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    ours = {"memory": memory_group()}
    monkeypatch.setattr(limits, "own_group", lambda controller: ours.get(controller, (None, False)))
    one_each = {"good": 1, "hostile": 1}
    async with Director(embedded_broker.bootstrap_servers, tmp_path / "topology.py", partitions=one_each) as director:
        good = await director.start("good")
        await director.assign(good, [0])
        async with started(director, tmp_path) as actuator:
            (replica,) = await actuator.observe()
            await director.until(lambda: ready(director, replica.replica), "the hostile stage is ready", 30.0)
            confinement = confined(Isolation("sandbox", memory_mb=300), director.topology, catalogue()["cpu-1"], "")
            assert limits.join_groups(confinement, replica.pid) == ("memory",)
            await director.assign(replica.replica, [0], max_batch_size=1)
            await director.producer.send_and_wait(director.names.topic("in"), b'"share"')
            async with asyncio.timeout(30):
                ended = await actuator.next_exit()
            assert ended.replica == replica.replica
            assert ended.reason == "killed by SIGKILL: more than its 300 MiB of memory"
        await director.producer.send_and_wait(director.names.topic("in"), b'"fork"')
        await director.until(lambda: director.reports[good].events == 2, "the other goes on")


@contextlib.asynccontextmanager
async def started(director: Director, folder: Path) -> AsyncIterator[LocalActuator]:
    """The hostile stage, started as a run starts its replicas; its log in a file."""

    def spec(stage: str, hardware: str) -> ReplicaSpec:
        return ReplicaSpec(
            replica="",
            stage=stage,
            topology=str(director.topology),
            prefix=director.prefix,
            bootstrap_servers=director.bootstrap_servers,
            hardware=catalogue()[hardware],
            max_batch_size=1,
            isolation=isolation_of(director.pipeline.stage(stage).isolation),
        )

    async with LocalActuator(spec, folder / "logs", drain_timeout_s=0.0, kill_after_s=1.0) as actuator:
        await actuator.scale("hostile", "cpu-1", 1)
        yield actuator


def ready(director: Director, replica: str) -> bool:
    return replica in director.reports and director.reports[replica].phase == "ready"
