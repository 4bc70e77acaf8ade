"""Releases side by side: each reads what the other writes, and a pipeline is upgraded under load without a loss."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.dataplane.frames import (
    FORMAT,
    HEADER_BYTES,
    FrameError,
    ToDispatcher,
    ToReplica,
    encode_frame,
    to_dispatcher,
    to_replica,
)
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import write_once
from inferline_stream.testing.kafka import KafkaServer
from tests.contracts.wire import CURRENT, FILLED, FOLDER, FRAMES, document, next_release, this_release
from tests.support.emulated_runs import on_this_host, swing_runs

RELEASES = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("[0-9]*.json"))}
KINDS = {type(record).__name__: record for record in FILLED}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", RELEASES)
def test_what_an_earlier_release_has_written_is_read(release: str, kind: str) -> None:
    read = msgspec.json.decode(json.dumps(RELEASES[release][kind]["record"]), type=type(KINDS[kind]))
    kept = json.loads(msgspec.json.encode(read))
    assert {name: kept[name] for name in RELEASES[release][kind]["record"]} == RELEASES[release][kind]["record"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", RELEASES)
def test_an_earlier_release_reads_what_is_written_now(release: str, kind: str) -> None:
    written = json.loads(msgspec.json.encode(KINDS[kind]))
    jsonschema.validate(written, RELEASES[release][kind]["schema"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_a_later_release_is_passed_over(kind: str) -> None:
    written: dict[str, Any] = json.loads(msgspec.json.encode(KINDS[kind]))
    written["added_in_the_next_release"] = {"of": ["any", "kind"]}
    assert msgspec.json.decode(json.dumps(written), type=type(KINDS[kind])) == KINDS[kind]


def test_a_field_that_had_to_be_there_and_is_no_longer_written_would_be_found() -> None:
    written = json.loads(msgspec.json.encode(KINDS["Grant"]))
    del written["term"]
    with pytest.raises(jsonschema.ValidationError, match="'term' is a required property"):
        jsonschema.validate(written, RELEASES[CURRENT]["Grant"]["schema"])


def test_every_kind_of_record_is_filled_and_written_down_for_this_release() -> None:
    for kind, record in KINDS.items():
        defaults = record.__struct_defaults__
        names = record.__struct_fields__[len(record.__struct_fields__) - len(defaults) :]
        for name, default in zip(names, defaults, strict=True):
            unfilled = default.factory() if hasattr(default, "factory") else default
            assert name == "version" or getattr(record, name) != unfilled, f"{kind}.{name} is not filled"
    assert json.loads(json.dumps(document())) == RELEASES[CURRENT], "python -m tests.contracts.wire writes them down"


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_what_a_format_begins_with_changes_only_with_its_number(frame: ToReplica | ToDispatcher) -> None:
    """A reader passes over what is added at the end, and has defaults for what is missing there."""
    known = bytes.fromhex(json.loads((FOLDER / f"frames-{FORMAT}.json").read_text())[type(frame).__name__])
    buffer = to_replica if isinstance(frame, ToReplica) else to_dispatcher
    assert list(buffer().feed(known)) == [frame], "raise frames.FORMAT, then python -m tests.contracts.wire"
    first, now = (msgspec.msgpack.decode(data[HEADER_BYTES:]) for data in (known, bytes(encode_frame(frame))))
    assert now[: len(first)] == first, "raise frames.FORMAT, then python -m tests.contracts.wire"


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_is_read_as_it_was_written_and_of_another_format_it_is_refused(frame: ToReplica | ToDispatcher) -> None:
    data = bytes(encode_frame(frame))
    buffer = to_replica if isinstance(frame, ToReplica) else to_dispatcher
    assert list(buffer().feed(data)) == [frame]
    with pytest.raises(FrameError, match=f"format {FORMAT + 1}"):
        list(buffer().feed(bytes([FORMAT + 1]) + data[1:]))


async def test_a_release_is_deployed_and_taken_back_under_load_without_loss_or_repetition(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = [this_release(tmp_path / "this"), next_release(tmp_path / "next")]
    installed = tmp_path / "installed"
    installed.symlink_to(releases[0])
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.chdir(tmp_path)  # python -m looks for modules where it is, first
    replicas = {"parse": 2, "check": 1, "decide": 1}
    run = swing_runs(tmp_path, key_field="number")(
        embedded_broker.bootstrap_servers, levels=[(40, 14)], replicas=replicas
    )
    fewest = dict.fromkeys(replicas, 9)
    async with on_this_host(run, 120.0) as (under_way, actuator):
        names, ready = under_way.context.names, under_way.controller.view.reports.ready

        async def versions() -> dict[str, bool]:
            """By replica and dispatcher, whether it is of the next release."""
            found = {}
            for replica in await actuator.observe():
                log = next(run.log_folder.rglob(f"{replica.replica}.log"), None)
                if log is not None and " is ready after " in (text := log.read_text()):
                    found[replica.replica] = " of the next release is ready after " in text
            reports = await newest(run.bootstrap_servers, names.stage_stats)
            for dispatcher in await actuator.dispatchers():
                if b'"phase":"serving"' in (report := reports.get(dispatcher.dispatcher, b"")):
                    found[dispatcher.dispatcher] = b"by the next release" in report
            return found

        async def deploy(release: int) -> None:
            before = set(await versions())
            (tmp_path / "link").symlink_to(releases[release])
            (tmp_path / "link").replace(installed)
            now = Override("code", value=time.time(), who="a test")
            await write_once(run.bootstrap_servers, Record.keyed(names.control, now.key, encode(now)))

            async def replaced() -> bool:
                fewest.update({stage: min(count, ready(stage, "emulated-cpu")) for stage, count in fewest.items()})
                found = await versions()
                return not before & set(found) and len(found) == 7 and set(found.values()) == {bool(release)}

            assert await until(replaced, 40.0), (
                f"{await versions()} are not all of the release wanted; before: {before}"
            )

        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        assert not any((await versions()).values())
        await deploy(1)
        await deploy(0)
        await feeding
        report = await under_way.report(await under_way.drain())
    assert (report.lost, report.duplicated) == (0, 0)
    assert report.events_in == report.events_out > 400
    assert report.exits == []
    assert fewest == replicas
    assert [(d.action, d.reason) for d in report.decisions] == [("replace", "new_code")] * 2


async def newest(bootstrap_servers: str, topic: str) -> dict[str, bytes]:
    """The newest record of each key."""
    async with TopicFollower(bootstrap_servers, topic) as follower:
        records = await follower.read_to(await follower.end())
    return {(record.key or b"").decode(): record.value or b"" for record in records}
