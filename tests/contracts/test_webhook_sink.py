"""The webhook sink as the process that it is, sealed, against a server that is away, busy, silent or refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from aiohttp import web

from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import EVENT_ID
from tests.contracts.sink_process import numbered, running, send, send_nothing, topic_on
from tests.contracts.webhook_receiver import Receiver
from tests.support.deadlines import until
from tests.support.sandbox import SEALABLE, needs_sandbox


@pytest.fixture
async def topic(kafka) -> str:
    return await topic_on(kafka.bootstrap_servers)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


async def test_a_webhook_gets_every_event_with_its_id_and_the_token_that_no_command_line_shows(
    kafka, topic, receiver, tmp_path
):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    await send(kafka.bootstrap_servers, topic, numbered(range(20)))
    async with receiver.up():
        options = ("--url", receiver.url, "--token-file", str(token))
        async with running("sinks.webhook", kafka.bootstrap_servers, topic, *options) as sink:
            await until(lambda: len(receiver.posts) == 20, "20 posts")
            for process in (sink.process.pid, sink.worker()) if SEALABLE else (sink.process.pid,):
                assert b"s3cret" not in Path(f"/proc/{process}/cmdline").read_bytes()
                assert b"s3cret" not in Path(f"/proc/{process}/environ").read_bytes()
            assert await sink.stopped() == {
                "written": 20,
                "duplicates": 0,
                "unreadable": 0,
                "halted": {},
                "refused": 0,
            }
        async with running("sinks.webhook", kafka.bootstrap_servers, topic, *options) as sink:
            await send(kafka.bootstrap_servers, topic, numbered(range(20, 21)))
            await until(lambda: len(receiver.posts) == 21, "one more post")
            assert (await sink.stopped())["written"] == 1
    assert sorted(receiver.posts) == sorted((k, v, "Bearer s3cret") for k, v in numbered(range(21)))


@needs_sandbox
async def test_a_sink_is_sealed_before_its_first_record(embedded_broker, receiver):
    topic = await topic_on(embedded_broker.bootstrap_servers)
    await send(embedded_broker.bootstrap_servers, topic, numbered(range(1)))
    async with (
        receiver.up(),
        running(
            "sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url, "--isolation", "sandbox"
        ) as sink,
    ):
        await until(lambda: receiver.posts, "a post")
        status = dict(line.split(":\t") for line in Path(f"/proc/{sink.worker()}/status").read_text().splitlines())
        assert (status["Seccomp"], status["Seccomp_filters"].strip(), status["NoNewPrivs"]) == ("2", "2", "1")
        assert int(status["CapEff"], 16) == 0
        await sink.stopped()


async def test_a_webhook_that_is_away_or_busy_loses_nothing_and_keeps_the_order(embedded_broker, receiver):
    topic = await topic_on(embedded_broker.bootstrap_servers, partitions=1)
    async with receiver.up():
        pass  # it has a port now, where nobody listens
    await send(embedded_broker.bootstrap_servers, topic, numbered(range(5)))
    async with running("sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url) as sink:
        line = b""
        while b"trying again" not in line:
            line = await sink.process.stderr.readline()
        receiver.answers = [web.Response(status=503), web.Response(status=429, headers={"Retry-After": "1"})]
        async with receiver.up():
            await until(lambda: len(receiver.posts) == 5, "5 posts")
            assert receiver.keys == [f"e{n}" for n in range(5)]
            os.kill(sink.worker() if SEALABLE else sink.process.pid, signal.SIGKILL)
            await sink.process.wait()
            async with running(
                "sinks.webhook", embedded_broker.bootstrap_servers, topic, "--url", receiver.url
            ) as again:
                await send(embedded_broker.bootstrap_servers, topic, numbered(range(5, 6)))
                await until(lambda: "e5" in receiver.keys, "the next event")
                await again.stopped()
    assert set(receiver.keys) == {f"e{n}" for n in range(6)}


async def test_a_sink_that_has_to_end_leaves_a_silent_receiver_and_what_that_has_not_taken_comes_again(
    embedded_broker, receiver
):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where)
    await send(where, topic, numbered(range(20)))
    receiver.answering.clear()
    async with receiver.up():
        async with running("sinks.webhook", where, topic, "--url", receiver.url, "--timeout-s", "600") as sink:
            await until(lambda: receiver.posts, "the first event is posted")
            sink.process.send_signal(signal.SIGTERM)
            _, said = await sink.process.communicate()
        assert sink.process.returncode == 5
        assert b"not written in time; to be read again" in said
        receiver.answering.set()
        async with running("sinks.webhook", where, topic, "--url", receiver.url) as sink:
            await until(lambda: len(set(receiver.keys)) == 20, "every event is posted")
            assert (await sink.stopped())["written"] == 20


async def test_a_token_that_the_receiver_does_not_take_any_more_makes_no_event_a_dead_letter(embedded_broker, receiver):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    await send(where, topic, numbered(range(3)))
    receiver.answers = [web.Response(status=401, text="expired")]
    async with receiver.up():
        options = ("--url", receiver.url, "--dead-letters", f"{topic}.dlq")
        async with running("sinks.webhook", where, topic, *options) as sink:
            _, said = await sink.process.communicate()
            assert sink.process.returncode == 3
            assert b"HTTP status 401 (expired); check --token-file" in said
        async with running("sinks.webhook", where, topic, *options) as sink:
            await until(lambda: receiver.keys[-1:] == ["e2"], "all are posted")
            assert (await sink.stopped())["refused"] == 0


async def test_what_a_webhook_refuses_for_good_is_a_dead_letter_and_without_one_ends_the_sink(
    embedded_broker, receiver
):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    await send(where, topic, numbered(range(3)))
    receiver.answers = [web.Response(status=422, text="no such verdict")]
    async with receiver.up():
        async with running("sinks.webhook", where, topic, "--url", receiver.url) as sink:
            _, said = await sink.process.communicate()
            assert sink.process.returncode == 1
            assert b"refuses event 'e0': HTTP status 422: no such verdict" in said
        receiver.answers = [web.Response(status=422, text="no such verdict")]
        async with running(
            "sinks.webhook", where, topic, "--url", receiver.url, "--dead-letters", f"{topic}.dlq"
        ) as sink:
            await until(lambda: "e2" in receiver.keys[2:], "the others are posted again")
            assert (await sink.stopped())["refused"] == 1
    async with TopicFollower(where, f"{topic}.dlq") as letters:
        (letter,) = await letters.read(10.0)
    assert (letter.value, letter.header(EVENT_ID)) == (b'{"n": 0}', b"e0")
    assert b"422" in letter.header("__inferline.errors.message")
    assert int(letter.header("__inferline.errors.timestamp_ms")) <= letter.timestamp_ms


async def test_a_refused_record_that_holds_nothing_is_a_dead_letter_and_holds_up_no_other(embedded_broker, receiver):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    await send_nothing(where, topic)
    await send(where, topic, numbered(range(1)))
    receiver.answers = [web.Response(status=422)]
    letters_to = ("--dead-letters", f"{topic}.dlq")
    async with (
        receiver.up(),
        running("sinks.webhook", where, topic, "--url", receiver.url, *letters_to) as sink,
        TopicFollower(where, f"{topic}.dlq") as letters,
    ):
        (letter,) = await letters.read(30.0)
        await until(lambda: receiver.keys == ["e0"], "the other is posted")
        assert (await sink.stopped())["refused"] == 1
    assert (letter.key, letter.value) == (None, None)
    assert letter.header(EVENT_ID)
