"""Connectors run by somebody else than root: sealed as well, with plain words on what that user may not open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import msgspec
import pytest

import inferline_stream
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.commands import command, until_lines
from tests.contracts.sink_process import topic_on
from tests.contracts.test_isolation import NOBODY, interpreter_for_nobody
from tests.contracts.test_sources import isolated_part_of, said
from tests.support.sandbox import needs_sandbox

pytestmark = needs_sandbox


@pytest.fixture(scope="module")
def other_user() -> tuple[str, ...]:
    """What runs Python as another user than root."""
    if os.geteuid() != 0:
        return (sys.executable,)
    python = interpreter_for_nobody()
    if python is None:
        pytest.skip("no Python of this version that user nobody may run")
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that belongs to that user; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="inferline-other-user-") as path:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        yield Path(path)


def running(
    user: tuple[str, ...], module: str, *options: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    places = (Path(msgspec.__file__).parents[1], Path(inferline_stream.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "HOME": "/"}
    return command(*user, "-m", f"inferline_stream.connectors.{module}", *options, cwd="/", env=env)


async def test_sources_and_sinks_of_another_user_than_root_are_sealed_as_well(
    embedded_broker: KafkaServer, other_user: tuple[str, ...], folder: Path
) -> None:
    topic = await topic_on(embedded_broker.bootstrap_servers)
    to = ("--bootstrap-servers", embedded_broker.bootstrap_servers, "--topic", topic, "--isolation", "sandbox")
    inbox, out = folder / "inbox", folder / "out.jsonl"
    inbox.mkdir()
    (inbox / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(5)))
    async with (
        running(
            other_user, "sources.files", *to, "--path", str(inbox), "--state", str(folder / "state"), "--follow"
        ) as files,
        running(other_user, "sources.http", *to, "--listen", "127.0.0.1:0") as http,
        running(other_user, "sinks.jsonl", *to, "--path", str(out)) as sink,
        aiohttp.ClientSession() as session,
    ):
        port = (await said(http, r"http://127\.0\.0\.1:(\d+)/events"))[1]
        async with session.post(f"http://127.0.0.1:{port}/events", json={"n": 5}) as answer:
            assert answer.status == 202
        await until_lines(out, 6)
        for process in (files, http, sink):
            status = dict(
                line.split(":\t") for line in Path(f"/proc/{isolated_part_of(process)}/status").read_text().splitlines()
            )
            assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)
            assert set(status["Uid"].split()) == {str(NOBODY if os.geteuid() == 0 else os.geteuid())}
        for process in (files, http, sink):
            process.send_signal(signal.SIGTERM)
            await process.communicate()
            assert process.returncode == 0
    assert sorted(json.loads(line)["value"]["n"] for line in out.read_text().splitlines()) == list(range(6))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files that another user may not open")
@pytest.mark.parametrize(
    "case",
    [
        ("sinks.jsonl", ("--path", "{closed}/out.jsonl"), "{closed}/out.jsonl: cannot be opened (Permission denied)"),
        ("sources.files", ("--path", "{closed}"), "cannot be written (Permission denied); give another --state"),
        ("sources.files", ("--path", "{closed}", "--state", "{own}/state"), "{closed}: cannot be read (Permission"),
        ("sources.http", ("--token-file", "{closed}/tokens"), "{closed}/tokens: cannot be read"),
        ("sinks.webhook", ("--url", "http://a", "--token-file", "{closed}/token"), "{closed}/token: cannot be read"),
    ],
)  # fmt: skip
async def test_what_another_user_may_not_open_is_named_with_the_option(
    embedded_broker: KafkaServer, other_user: tuple[str, ...], folder: Path, case: tuple[str, tuple[str, ...], str]
) -> None:
    module, options, message = case
    closed = folder / "of-root"
    closed.mkdir(mode=0o700)
    for name in ("tokens", "token"):
        (closed / name).write_text("a-token-of-this-test-alone\n")
    folder.chmod(0o755)
    os.chown(folder, 0, 0)
    own = folder / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    topic = await topic_on(embedded_broker.bootstrap_servers)
    to = ("--bootstrap-servers", embedded_broker.bootstrap_servers, "--topic", topic, "--isolation", "sandbox")
    given = [option.format(closed=closed, own=own) for option in options]
    async with running(other_user, module, *to, *given) as process:
        _, errors = await process.communicate()
    text = errors.decode()
    assert (process.returncode, "Traceback" in text) == (3, False), text
    assert message.format(closed=closed) in text
