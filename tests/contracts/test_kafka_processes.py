"""Several processes share one Kafka: on Apache Kafka and on the embedded broker."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

from inferline_stream.testing.kafka import EmbeddedKafka

HERE = Path(__file__).parent


async def start(script, *arguments):
    return await asyncio.create_subprocess_exec(sys.executable, HERE / script, *arguments, stdin=subprocess.PIPE)


async def test_processes_produce_and_copy_together_and_one_that_is_killed_loses_nothing(clients):
    source, sink, group = await clients.topic(4), await clients.topic(), clients.unique("group")
    servers = clients.bootstrap_servers
    reader, seen = await clients.reader(sink), set()

    async def produce(first, count):
        assert await (await start("kafka_process.py", "produce", servers, source, str(first), str(count))).wait() == 0

    async def see(count):
        async with asyncio.timeout(60):
            while len(seen) < count:
                seen.add((await reader.getone()).value)

    copying = [await start("kafka_process.py", "copy", servers, source, sink, group) for _ in range(2)]
    try:
        await asyncio.gather(produce(0, 60), produce(60, 60), see(120))
        copying[0].kill()
        await asyncio.gather(produce(120, 60), see(180))
    finally:
        for process in copying:
            if process.returncode is None:
                process.kill()
            await process.wait()
    assert seen == {b"%d" % number for number in range(180)}


async def test_a_faust_app_runs_an_agent_a_table_and_a_timer(clients):
    name = clients.unique("faust")
    source, sink, ticks = await clients.topic(2), await clients.topic(), await clients.topic()
    admin = await clients.admin()
    changelog = f"{name}-counts-changelog"
    settings = {"cleanup.policy": "compact"}
    answer = await admin.create_topics([NewTopic(changelog, 2, 1, topic_configs=settings)])
    assert answer.topic_errors[0][1] == 0
    await clients.until_partitions(changelog, 2)
    app = await start("faust_app.py", clients.bootstrap_servers, name, source, sink, ticks)
    try:
        producer = await clients.producer()
        for number in range(20):
            await producer.send_and_wait(source, json.dumps({"n": number}).encode(), key=b"%d" % (number % 4))
        results = await clients.read(await clients.reader(sink), 20, within_s=60)
        counted = sorted((record.key, json.loads(record.value)["count"]) for record in results)
        assert counted == sorted((b"%d" % key, count) for key in range(4) for count in range(1, 6))
        assert sorted(json.loads(record.value)["n"] for record in results) == list(range(20))
        await clients.read(await clients.reader(ticks), 3)
        logged = await clients.read(await clients.reader(changelog, 0, 1), 4)
        assert {record.key for record in logged} <= {b'"%d"' % key for key in range(4)} | {b"%d" % k for k in range(4)}
        app.stdin.close()
        assert await asyncio.wait_for(app.wait(), 30) == 0
    finally:
        if app.returncode is None:
            app.kill()
            await app.wait()


@pytest.mark.parametrize("how", ["terminate", "parent gone"])
def test_the_embedded_broker_ends_cleanly(how):
    with EmbeddedKafka() as broker:
        process = broker.process
        if how == "terminate":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        assert process.wait(10) == 0


def test_the_embedded_broker_says_that_it_keeps_nothing():
    command = [sys.executable, "-m", "inferline_stream.embedded_broker", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.terminate()
    assert "127.0.0.1:" in line
    assert "keeps nothing" in line
    assert process.returncode == 0


def test_an_idle_embedded_broker_takes_no_time():
    with EmbeddedKafka() as broker:
        stat = Path(f"/proc/{broker.process.pid}/stat")

        def ticks():
            return sum(int(field) for field in stat.read_text().rsplit(")", 1)[1].split()[11:13])

        before = ticks()
        time.sleep(0.5)
        assert ticks() - before <= 1
