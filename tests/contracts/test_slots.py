"""Who serves a slot: dispatchers replace each other, are suspended, and wake.

On Apache Kafka; tests/scenarios changes slots of runs on the embedded broker.
"""

import asyncio
import signal
import socket
from collections import Counter

import pytest

from inferline_stream.actuators.actuator import DispatcherExit
from tests.contracts.pooled import PASSING, in_order_of_keys, more, under_load
from tests.support.director import Director, event_id

BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
SHORT = {"lease_s": 0.6, "heartbeat_s": 0.15}
IN_HAND = 3 * 16 + 1000
"""At most, events that a dispatcher has in hand or has not committed yet."""


def ends(director: Director) -> list[tuple[str, int]]:
    """Name and exit code of every dispatcher that has ended."""
    return [(each.dispatcher, each.exit_code) for each in director.exits if isinstance(each, DispatcherExit)]


async def suspended(director: Director, name: str) -> None:
    """Suspend a dispatcher until its lease has expired."""
    lapses_s = asyncio.get_running_loop().time() + 2 * SHORT["lease_s"]
    await director.kill(name, signal.SIGSTOP)
    await asyncio.sleep(lapses_s - asyncio.get_running_loop().time())


@BOTH
async def test_a_planned_change_of_dispatcher_under_load_loses_and_repeats_nothing(apache_kafka, delivery):
    async with Director(apache_kafka.bootstrap_servers, PASSING, partitions={"work": 4}, delivery=delivery) as director:
        await director.start(replicas=2)
        pids = {await director.pid(replica.replica) for replica in director.ready("work")}
        served = [director.dispatcher("work")]
        async with under_load(director) as ids:
            for _ in range(2):
                served += await director.dispatch("work")
                await more(director, "work")
        await director.caught_up()
        results = await director.results()
        assert {await director.pid(replica.replica) for replica in director.ready("work")} == pids
    assert Counter(map(event_id, results)) == Counter(ids)
    assert in_order_of_keys(results)
    assert ends(director)[:2] == [(name, 0) for name in served[:2]]


@BOTH
async def test_slots_may_become_more_and_fewer_under_load_without_loss_or_repetition(apache_kafka, delivery):
    async with Director(apache_kafka.bootstrap_servers, PASSING, partitions={"work": 5}, delivery=delivery) as director:
        await director.start(replicas=2)
        async with under_load(director) as ids:
            for slots in (2, 1):
                names = await director.dispatch("work", slots)
                await director.until(
                    lambda names=names: all(director.reports[name].replicas for name in names), "each has a replica"
                )
                held = [set(director.reports[name].held) for name in names]
                assert held == ([{0, 2, 4}, {1, 3}] if slots == 2 else [{0, 1, 2, 3, 4}])
                await more(director, "work")
        await director.caught_up()
        results = await director.results()
    assert Counter(map(event_id, results)) == Counter(ids)
    assert in_order_of_keys(results)
    assert {code for _, code in ends(director)[:3]} == {0}


@BOTH
async def test_a_suspended_dispatcher_that_wakes_beside_its_successor_does_no_harm(apache_kafka, delivery):
    async with Director(
        apache_kafka.bootstrap_servers, PASSING, partitions={"work": 4}, delivery=delivery, settings=SHORT
    ) as director:
        await director.start(replicas=2)
        zombie = director.dispatcher("work")
        async with under_load(director) as ids:
            await suspended(director, zombie)
            (successor,) = await director.dispatch("work", silent=True)
            await more(director, "work")
            await director.kill(zombie, signal.SIGCONT)
            await director.until(lambda: zombie in dict(ends(director)), "the zombie has ended")
            await more(director, "work", 300)
        await director.caught_up()
        results = await director.results()
        assert await director.lag() == 0
        assert director.phase(successor) == "serving"
        assert dict(ends(director)) == {zombie: dict(ends(director))[zombie]}, "its successor was harmed"
    assert dict(ends(director))[zombie] in ((0,) if delivery == "at_least_once" else (0, 75))
    assert set(map(event_id, results)) == set(ids), "events are lost"
    if delivery == "exactly_once":
        assert len(results) == len(ids)
    else:
        assert len(results) - len(ids) <= IN_HAND


@BOTH
async def test_a_lapsed_lease_is_regained_without_a_controller(apache_kafka, delivery):
    async with Director(
        apache_kafka.bootstrap_servers, PASSING, partitions={"work": 2}, delivery=delivery, settings=SHORT
    ) as director:
        await director.start()
        ids = await director.put([b"x"] * 5)
        await director.caught_up()
        name = director.dispatcher("work")
        pid = await director.pid(name)
        await suspended(director, name)
        ids += await director.put([b"x"] * 5)
        await director.kill(name, signal.SIGCONT)
        await director.caught_up()
        assert Counter(map(event_id, await director.results())) == Counter(ids)
        assert await director.pid(name) == pid


async def test_a_dispatcher_whose_supervisor_is_gone_finishes_commits_and_leaves(apache_kafka):
    async with Director(apache_kafka.bootstrap_servers, PASSING, partitions={"work": 2}) as director:
        await director.start()
        name = director.dispatcher("work")
        ids = await director.put([b"x"] * 300)
        await more(director, "work", 1)
        (child,) = (each for each in director.supervisor._children.all if each.name == name)
        assert child.channel is not None
        child.channel.shutdown(socket.SHUT_RDWR)
        await director.until(lambda: (name, 0) in ends(director), "it has left")
        await director.until(lambda: director.phase(name) == "gone", "its last report is read")
        await director.dispatch("work")
        await director.caught_up()
        assert Counter(map(event_id, await director.results())) == Counter(ids)
