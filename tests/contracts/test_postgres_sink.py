"""The PostgreSQL sink as the process that it is, sealed, against a real database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferline_stream.connectors.sinks.postgres import Database, Table
from inferline_stream.errors import InvalidInput
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import ERRORS_PREFIX, EVENT_ID
from tests.contracts.commands import DEADLINE_S
from tests.contracts.sink_process import numbered, running, send, topic_on
from tests.support.local_postgres import LocalPostgres
from tests.support.sandbox import SEALABLE

asyncpg = pytest.importorskip("asyncpg", reason="the PostgreSQL sink's client is not installed")


@pytest.fixture
async def topic(kafka) -> str:
    return await topic_on(kafka.bootstrap_servers)


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres() as server:
        yield server


@pytest.fixture
def password(postgres, tmp_path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{postgres.password}\n")
    return file


async def rows(postgres: LocalPostgres, table: str) -> dict[str, object]:
    connection = await asyncpg.connect(postgres.url, password=postgres.password)
    try:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return {}
        return {
            str(row["event_id"]): json.loads(row["value"]) for row in await connection.fetch(f"SELECT * FROM {table}")
        }
    finally:
        await connection.close()


async def until_rows(postgres: LocalPostgres, table: str, count: int) -> dict[str, object]:
    async with asyncio.timeout(DEADLINE_S):
        while len(found := await rows(postgres, table)) < count:
            await asyncio.sleep(0.1)
    return found


async def test_a_table_holds_every_event_once_through_an_outage_of_the_database_and_a_crash(
    kafka, topic, postgres, password
):
    table = f"verdicts_{uuid.uuid4().hex[:8]}"
    options = ("--database", postgres.url, "--table", table, "--password-file", str(password))
    await send(kafka.bootstrap_servers, topic, [*numbered(range(10)), ("e3", b'{"n": 33}')])
    async with running("sinks.postgres", kafka.bootstrap_servers, topic, *options) as sink:
        await until_rows(postgres, table, 10)
        postgres.stop()
        await send(kafka.bootstrap_servers, topic, numbered(range(10, 20)))
        line = b""
        while b"trying again" not in line:
            line = await sink.process.stderr.readline()
        postgres.start()
        await until_rows(postgres, table, 20)
        os.kill(sink.worker() if SEALABLE else sink.process.pid, signal.SIGKILL)
        assert await sink.process.wait() != 0
    await send(kafka.bootstrap_servers, topic, numbered(range(20, 25)))
    async with running("sinks.postgres", kafka.bootstrap_servers, topic, *options) as sink:
        found = await until_rows(postgres, table, 25)
        await sink.stopped()
    assert found.pop("e3") in ({"n": 3}, {"n": 33})  # whichever came last; two partitions have no order
    assert found == {f"e{n}": {"n": n} for n in range(25) if n != 3}


async def test_values_that_a_table_can_never_take_are_dead_letters(embedded_broker, postgres, password):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    unindexable = "".join(f"{n:x}" for n in range(3000))
    events = [("a", b"1"), ("b", b"no json"), ("c", b'"\\u0000"'), (unindexable, b"2"), ("d", b"null")]
    await send(where, topic, events)
    table = f"public.letters_{uuid.uuid4().hex[:8]}"
    async with running(
        "sinks.postgres", where, topic, "--database", postgres.url, "--table", table, "--password-file", str(password),
        "--dead-letters", f"{topic}.dlq",
    ) as sink:  # fmt: skip
        assert await until_rows(postgres, table, 2) == {"a": 1, "d": None}
        async with TopicFollower(where, f"{topic}.dlq") as letters:
            found = []
            while len(found) < 3:
                found += await letters.read(1.0)
        assert [letter.value for letter in found] == [b"no json", b'"\\u0000"', b"2"]
        counts = await sink.stopped()
    assert (counts["written"], counts["refused"]) == (2, 3)


@pytest.mark.parametrize("code", ["raise_exception", "check_violation", "U0001"])
async def test_a_row_that_a_trigger_of_the_tables_owner_refuses_holds_up_no_other(
    embedded_broker, postgres, password, code
):
    where = embedded_broker.bootstrap_servers
    topic = await topic_on(where, partitions=1)
    table = f"guarded_{uuid.uuid4().hex[:8]}"
    refuses = f"IF new.value = '1' THEN RAISE EXCEPTION 'no ones here' USING ERRCODE = '{code}'; END IF; RETURN new;"
    await owned(postgres, table, refuses)
    await send(where, topic, [("a", b"0"), ("b", b"1"), ("c", b"2")])
    async with running(
        "sinks.postgres", where, topic, "--database", postgres.url, "--table", table, "--password-file", str(password),
        "--dead-letters", f"{topic}.dlq",
    ) as sink:  # fmt: skip
        assert await until_rows(postgres, table, 2) == {"a": 0, "c": 2}
        async with TopicFollower(where, f"{topic}.dlq") as letters:
            (letter,) = await letters.read(10.0)
        await sink.stopped()
    assert (letter.value, letter.header(f"{ERRORS_PREFIX}message")) == (b"1", b"no ones here")


async def test_more_rows_than_a_slow_database_takes_in_one_answer_are_stored_all_the_same(postgres, monkeypatch):
    table, limit_s = f"slow_{uuid.uuid4().hex[:8]}", 7.0
    await owned(postgres, table, "PERFORM pg_sleep(0.002); RETURN new;")
    monkeypatch.setattr("inferline_stream.connectors.sinks.postgres._ANSWER_S", limit_s)
    every = range(4000)  # for 8 s, and an eighth of it at once
    records = [Record(None, b"%d" % n, [(EVENT_ID, b"e%d" % n)], 0, offset=n) for n in every]
    async with sink_of(postgres, table) as sink:
        assert await sink.store(records, "topic") == []
        assert sink.counts.written == 4000
    assert len(await rows(postgres, table)) == 4000


async def executed(postgres: LocalPostgres, statements: str) -> None:
    connection = await asyncpg.connect(postgres.url, password=postgres.password)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def owned(postgres: LocalPostgres, table: str, does: str) -> None:
    """Make a table whose owner has each row that is written pass a trigger."""
    await executed(
        postgres,
        f"CREATE TABLE {table} (event_id text PRIMARY KEY, recorded_at timestamptz, value jsonb);"
        f"CREATE FUNCTION {table}_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {does} END$$;"
        f"CREATE TRIGGER each BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_row();",
    )


def sink_of(postgres: LocalPostgres, table: str) -> Table:
    at = Database("127.0.0.1", postgres.port, postgres.user, postgres.database)
    return Table(at, table, password=postgres.password)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("event_id text, recorded_at timestamptz, value jsonb", "no unique or exclusion constraint"),
        ("event_id text PRIMARY KEY, recorded_at timestamp, value jsonb", "query argument $2"),
        ("event_id text PRIMARY KEY, recorded_at timestamptz, value bytea", "query argument $3"),
        ("event_id text PRIMARY KEY, recorded_at timestamptz, result jsonb", 'column "value"'),
    ],
)
async def test_a_table_that_can_take_no_event_is_said_at_the_start(postgres, columns, said):
    table = f"other_{uuid.uuid4().hex[:8]}"
    await executed(postgres, f"CREATE TABLE {table} ({columns})")
    with pytest.raises(InvalidInput, match="it needs event_id with a unique key") as error:
        async with sink_of(postgres, table):
            pass
    assert said in str(error.value)


async def test_a_schema_that_is_missing_is_said_at_the_start(postgres):
    with pytest.raises(InvalidInput, match='schema "nowhere" does not exist'):
        async with sink_of(postgres, "nowhere.verdicts"):
            pass


@pytest.mark.parametrize(
    "columns",
    [
        "event_id uuid PRIMARY KEY, recorded_at timestamptz, value json",
        "event_id varchar(40) UNIQUE, recorded_at timestamptz, value text, noted timestamp DEFAULT now()",
        "event_id varchar(33) PRIMARY KEY, recorded_at timestamptz(0), value varchar(100)",
        "event_id varchar(2) PRIMARY KEY, recorded_at timestamptz, value jsonb",
    ],
)
async def test_a_table_of_somebody_elses_takes_events_as_well(postgres, columns):
    table = f"others_{uuid.uuid4().hex[:8]}"
    await executed(postgres, f"CREATE TABLE {table} ({columns})")
    known = uuid.uuid4().hex if "uuid" in columns else "e1"
    async with sink_of(postgres, table) as sink:
        assert await sink.store([Record(None, b'{"n": 1}', [(EVENT_ID, known.encode())], 0)], "topic") == []
    assert list((await rows(postgres, table)).values()) == [{"n": 1}]


async def test_a_password_that_is_wrong_is_said_at_once(embedded_broker, postgres, tmp_path):
    topic = await topic_on(embedded_broker.bootstrap_servers)
    (tmp_path / "wrong").write_text("wrong")
    async with running(
        "sinks.postgres", embedded_broker.bootstrap_servers, topic, "--database", postgres.url, "--table", "t",
        "--password-file", str(tmp_path / "wrong"),
    ) as sink:  # fmt: skip
        _, error = await sink.process.communicate()
    assert sink.process.returncode == 3
    assert "password authentication failed" in error.decode()
    assert "Traceback" not in error.decode()
