"""Each fault strikes a running pipeline once, on an Apache Kafka of its own: nothing is lost, whatever the mode.

The same faults as the benchmark `faults`, which does it for longer and in random order. With a branch and a join, two
controllers, and a file that the sink is written to.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from inferline_stream.kafka.offsets import Offsets
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.testing.local_kafka import LocalKafka
from tests.support.controller_process import Controlled
from tests.support.emulated_runs import trace_feed
from tests.support.faults import FAULTS, scene

SWING = Path(__file__).parents[1] / "scenarios" / "swing"
LONG_S = 4.0
"""Beyond the lease of 2 s, and beyond the 3 s after which a replica counts as dead and a controller as gone."""

KINDS = {
    "at_least_once": [
        "kill_replica", "unreachable_broker", "kill_controller", "kill_supervisor", "full_disk", "poison",
    ],
    "exactly_once": [
        "kill_join_partner", "slow_broker", "freeze_controller", "restart_broker", "freeze_replica", "kill_dispatcher",
        "freeze_dispatcher", "stop_supervisor", "kill_broker",
    ],
}  # fmt: skip
KEEP_THE_LEADER = {"unreachable_broker", "slow_broker", "restart_broker", "kill_broker", "full_disk", "poison"}
"""Where Kafka is silent, so is a leader that lives: nobody takes over from it."""


def test_every_fault_strikes() -> None:
    assert set(KINDS["at_least_once"]) | set(KINDS["exactly_once"]) == FAULTS.keys()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_no_fault_loses_an_event(
    own_apache_kafka: LocalKafka, tmp_path: Path, delivery: Literal["at_least_once", "exactly_once"]
) -> None:
    controlled = Controlled(
        topology=str(SWING / "topology.py"),
        bootstrap_servers=own_apache_kafka.bootstrap_servers,
        folder=str(tmp_path),
        prefix=f"f{secrets.token_hex(3)}.",
        replicas={"parse": 2, "check": 1, "decide": 2},
        conditional=[("parse", "check", 1 / 3)],
        delivery=delivery,
    )
    trace = levels_trace([(40.0, 900.0)], 1.0, np.random.default_rng(7))
    (feeding := tmp_path / "feed").mkdir()
    feed_to = trace_feed(trace, SWING / "orders.jsonl", feeding, "number")
    fenced = []
    async with scene(
        own_apache_kafka, controlled, seed=3, long_s=LONG_S, branch="check", poison=b'{"number": -1}'
    ) as struck:
        async with feed_to(controlled.bootstrap_servers, struck.context.source) as feed:
            await feed.ready()
            feed.start()
            fed_until_s = time.monotonic() + 25.0  # 40 events a second, however soon the faults are over
            for kind in KINDS[delivery]:
                leader = struck.leader
                await struck.strike(kind)
                if struck.leader is not leader and kind in KEEP_THE_LEADER:
                    fenced.append(kind)
            await asyncio.sleep(max(0.0, fed_until_s - time.monotonic()))
            feed.stop()
            await feed.finished()
        async with Offsets(controlled.bootstrap_servers) as offsets:
            assert await struck.drained(offsets)
            ledger = await struck.ledger(offsets)
            differs = await struck.file_differs(offsets)
    slow = [note for note in struck.notes if "not calm within" in note]  # on a busy machine; it drained in the end
    assert struck.notes == slow
    assert fenced == []
    assert ledger.lost() == (0, [])
    assert ledger.unknown == 0
    assert ledger.events_in > 40 * 20
    assert not differs  # the file has each event that the sink topic has, once
    assert struck.restarts == 0
    if delivery == "exactly_once":
        assert ledger.duplicated == 0
        assert ledger.events_in == ledger.events_out
    else:
        assert ledger.reasons == {"dead_lettered": 1}
        assert ledger.events_in == ledger.events_out + 1
