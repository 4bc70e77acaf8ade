"""A stage that does all it can against others: it harms nobody but itself."""

from __future__ import annotations

import json
import os
import socket

import pytest

from inferline_stream.isolation import limits
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation
from tests.conftest import memory_group
from tests.contracts.hostile import ATTACKS, heard
from tests.support.director import Director
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox

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
    tmp_path.chmod(0o755)
    folder = tmp_path / "filled"
    folder.mkdir(mode=0o777)
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        async with Director(
            embedded_broker.bootstrap_servers, tmp_path / "topology.py", partitions=ONE_EACH, max_batch_size=1
        ) as director:
            await director.start("good")
            good, dispatcher = (
                await director.pid(director.ready("good")[0].replica),
                await director.pid(director.dispatcher("good")),
            )
            orders = [
                *("read /etc/shadow", f"read {tmp_path / 'good.bin'}", f"read /proc/{os.getpid()}/environ"),
                *(f"read /proc/{dispatcher}/environ", f"connect {elsewhere.getsockname()[1]}"),
                *(f"connect {embedded_broker.bootstrap_servers.rpartition(':')[2]}", f"shell touch {folder}/shell"),
                *(f"fill {folder}", f"kill {os.getpid()}", f"kill {good}", f"kill {dispatcher}"),
                *("fork", "threads", "allocate"),
            ]
            (tmp_path / "orders.json").write_text(json.dumps(orders))
            await director.start("hostile")
            hostile = director.ready("hostile")[0].replica
            await director.put([json.dumps(order).encode() for order in orders], [b"k"] * len(orders))
            await director.until(lambda: director.total("hostile", "events") == len(orders), "it tried", 60.0)
            outcomes = [json.loads(record.value) for record in await director.results()]
            assert [order for order, *_ in outcomes] == orders
            assert {at for _, *both in outcomes for at in both} <= {
                *("EACCES", "EPERM", "EAGAIN", "ENOMEM", "RuntimeError", "MemoryError")
            }
            # What it prints without end goes to a file that is full soon; others are none the slower for it.
            await director.put([b'"flood"'])
            await director.until(lambda: director.total("hostile", "events") > len(orders), "it flooded", 60.0)
            assert (director.logs / f"{hostile}.log").stat().st_size <= 2 << 20
            assert heard(elsewhere) == []
            assert list(folder.iterdir()) == []
            everything = len(orders) + 1
            await director.until(lambda: director.total("good", "events") == everything, "the other's last report")
            assert await director.pid(director.ready("good")[0].replica) == good


@pytest.mark.groups
async def test_a_replica_beyond_the_memory_of_its_control_group_is_killed_alone_and_the_reason_says_so(
    embedded_broker, tmp_path, monkeypatch
):
    """The kernel's own doing, in a group that this test puts the replica into: few machines leave that to a run."""
    (tmp_path / "good.bin").write_bytes(b"the other stage's model")
    (tmp_path / "orders.json").write_text("[]")
    (tmp_path / "topology.py").write_text(TOPOLOGY)
    tmp_path.chmod(0o755)
    ours = {"memory": memory_group()}
    monkeypatch.setattr(limits, "own_group", lambda controller: ours.get(controller, (None, False)))
    async with Director(
        embedded_broker.bootstrap_servers, tmp_path / "topology.py", partitions=ONE_EACH, max_batch_size=1
    ) as director:
        await director.start()
        hostile = director.ready("hostile")[0].replica
        confinement = confined(Isolation("sandbox", memory_mb=300), director.topology, catalogue()["cpu-1"])
        assert limits.join_groups(confinement, await director.pid(hostile)) == ("memory",)
        await director.put([b'"share"'])
        await director.until(lambda: bool(director.exits), "it is killed", 30.0)
        assert director.exits[0].replica == hostile
        assert director.exits[0].reason == "killed by SIGKILL: more than its 300 MiB of memory"
        await director.put([b'"fork"'])
        await director.until(lambda: director.total("good", "events") == 2, "the other goes on")


ONE_EACH = {"good": 1, "hostile": 1}
