"""Write a topic's events to a PostgreSQL table, each once.

    python -m inferline_stream.connectors.sinks.postgres --bootstrap-servers 127.0.0.1:9092 \
        --topic verdicts --database postgresql://writer@127.0.0.1/shop --table verdicts --password-file password

Needs ``pip install 'inferline-stream[postgres]'``. The table is created where it is missing: ``event_id`` (its key),
``recorded_at`` (the record's timestamp) and ``value`` (``jsonb``).

**Once.** Records that arrive within a fifth of a second are written together, 500 rows a transaction, as upserts by
event id; only after that are their offsets committed. What comes again, after a crash or from upstream, updates its own
row. A table of somebody else's with these columns and a key on ``event_id`` does as well.

While the database is away nothing is committed, and the same records are tried again. A value that the database will
never take (it is no JSON, holds a NUL character, or a trigger raises on it) goes to ``--dead-letters``; without one the
sink ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import logging
import re
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sinks import topic_sink
from inferline_stream.connectors.sinks.topic_sink import Away, Refusal, SinkCounts, event_id, no_json
from inferline_stream.dataplane.headers import LATEST_MS
from inferline_stream.errors import InvalidInput, Unreachable
from inferline_stream.kafka.records import Record

if TYPE_CHECKING:
    import asyncpg

logger = logging.getLogger(__name__)

_MODULE = "inferline_stream.connectors.sinks.postgres"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_ANSWER_S = 30.0
_ROWS_AT_ONCE = 500
"""In one transaction: however slow the database is, it answers in time, and what is stored already stays so."""

Tls = Literal["off", "on", "trusting"]


@dataclass(frozen=True, slots=True)
class Database:
    """Where the table is. Its password is no part of it."""

    host: str
    port: int
    user: str
    name: str


Row = tuple[str, datetime.datetime, str]

_PROBE: Row = ("0" * 32, datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), "null")
"""A row that any table of events takes, also one whose ids are UUIDs."""


class Table:
    """A table that takes events. Use as an async context manager; it connects again whenever it has to.

    Args:
        database: where it is.
        table: ``name`` or ``schema.name``.
        password: of the user; empty for none.
        tls: how to connect; None for without.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        *,
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.counts = SinkCounts()
        self._database = database
        self._table = ".".join(f'"{part}"' for part in table.split("."))
        self._statement = (
            f"INSERT INTO {self._table} (event_id, recorded_at, value) VALUES ($1, $2, $3) "  # noqa: S608  checked
            "ON CONFLICT (event_id) DO UPDATE SET recorded_at = excluded.recorded_at, value = excluded.value"
        )
        self._password = password
        self._tls = tls
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Table:
        """Connect, and see that the table is there.

        Raises:
            Unreachable: the database does not answer.
            InvalidInput: it turns us away, or the table is another.
        """
        try:
            await self._connected()
        except Away as away:
            raise Unreachable(f"{self._where()}: {away}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        self._drop()

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        """Upsert all of them; see `Store.store`."""
        import asyncpg

        # Also a check, NOT NULL or trigger of the table's owner, and an id that is too long for an index. An unknown
        # error has a code that a trigger has made up.
        refused = (
            asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError,
            asyncpg.RaiseError, asyncpg.UnknownPostgresError,
        )  # fmt: skip
        rows: dict[str, Row] = {}
        sources: dict[str, Record] = {}
        refusals = []
        for record in records:
            known = event_id(record, ids_from)
            if reason := _refused(record, known):
                refusals.append(Refusal(record, reason))
                continue
            rows[known], sources[known] = _row(known, record), record
        connection = await self._connected()
        try:
            for at_once in _parts(rows):
                try:
                    await self._upsert(connection, list(at_once.values()))
                except refused:  # one of them is to blame: find it
                    for known, row in at_once.items():
                        try:
                            await self._upsert(connection, [row])
                        except refused as error:
                            del rows[known]
                            refusals.append(Refusal(sources[known], str(error)))
        except asyncpg.InsufficientPrivilegeError as error:
            raise Away(f"{error}") from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self._drop()
            raise Away(f"{type(error).__name__}: {error}".removesuffix(": ")) from None
        self.counts.written += len(rows)
        self.counts.duplicates += len(records) - len(refusals) - len(rows)
        return refusals

    async def _upsert(self, connection: asyncpg.Connection, rows: list[Row]) -> None:
        async with asyncio.timeout(_ANSWER_S):  # all rows of one call are one transaction
            await connection.executemany(self._statement, rows)

    async def _connected(self) -> asyncpg.Connection:
        import asyncpg

        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        where = self._database
        try:
            connection = await asyncpg.connect(
                host=where.host,
                port=where.port,
                user=where.user,
                database=where.name,
                password=self._password,
                ssl=self._tls if self._tls is not None else False,
                timeout=_ANSWER_S,
                server_settings={"application_name": "inferline-stream"},
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise InvalidInput(f"{self._where()}: {error}; check --database and --password-file") from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise Away(f"{type(error).__name__}: {error}".removesuffix(": ")) from None
        try:
            await self._look(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection

    async def _look(self, connection: asyncpg.Connection) -> None:
        """Create the table where it is missing, and see that rows can be upserted."""
        import asyncpg

        try:
            if await connection.fetchval("SELECT to_regclass($1)", self._table) is None:
                await connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {self._table} "
                    "(event_id text PRIMARY KEY, recorded_at timestamptz NOT NULL, value jsonb)"
                )
            # Only a plan needs a key on event_id. A shorter column may have room for the ids that come.
            with contextlib.suppress(asyncpg.StringDataRightTruncationError):
                await connection.execute(f"EXPLAIN {self._statement}", *_PROBE)
        except (asyncpg.SyntaxOrAccessError, asyncpg.InvalidSchemaNameError, asyncpg.DataError) as error:
            raise InvalidInput(
                f"{self._where()}: table {self._table} cannot take events ({error}); it needs event_id with a unique "
                "key, recorded_at (timestamptz) and value (jsonb, json or text), and the right to insert and update"
            ) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise Away(f"{type(error).__name__}: {error}".removesuffix(": ")) from None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None

    def _where(self) -> str:
        return f"PostgreSQL at {self._database.host}:{self._database.port}"


def _parts(rows: Mapping[str, Row]) -> list[dict[str, Row]]:
    """Return what is upserted in one transaction each."""
    every = list(rows.items())
    return [dict(every[at : at + _ROWS_AT_ONCE]) for at in range(0, len(every), _ROWS_AT_ONCE)]


def _row(known: str, record: Record) -> Row:
    time = datetime.datetime.fromtimestamp(record.time_ms / 1e3, datetime.UTC)
    return known, time, (b"null" if record.value is None else record.value).decode()


def _refused(record: Record, known: str) -> str:
    if reason := no_json(b"null" if record.value is None else record.value):
        return reason
    if not 0 <= record.time_ms <= LATEST_MS:
        return f"its timestamp, {record.time_ms} ms, is no time"
    return "its id holds a NUL character" if "\0" in known else ""


def database(text: str) -> Database:
    """What ``postgresql://user@host:port/name`` says.

    Raises:
        ArgumentTypeError: it is none, or holds a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or 5432
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form postgresql://user@host:port/name")
    if parts.query:
        raise argparse.ArgumentTypeError(f"{text!r}: ?{parts.query} is not understood; TLS: give it as --tls on")
    if parts.password:
        raise argparse.ArgumentTypeError("a password in a URL is seen by every user: give it as --password-file")
    user = unquote(parts.username)
    return Database(parts.hostname, port, user, unquote(parts.path.strip("/")) or user)


def _table(text: str) -> str:
    if not all(map(_NAME.fullmatch, text.split("."))) or text.count(".") > 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be name or schema.name, of letters, digits and underscores")
    return text


def _context(tls: Tls) -> ssl.SSLContext | None:
    if tls == "off":
        return None
    context = ssl.create_default_context()
    if tls == "trusting":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = topic_sink.parser_of(
        _MODULE, "Write a topic's events to a PostgreSQL table, each once.", "<topic>-to-<table>"
    )
    parser.add_argument("--database", required=True, type=database, metavar="postgresql://USER@HOST:PORT/NAME")
    parser.add_argument("--table", required=True, type=_table, help="created where it is missing")
    parser.add_argument("--password-file", type=Path, help="its first line is the user's password")
    parser.add_argument(
        "--tls",
        choices=("off", "on", "trusting"),
        default="off",
        help="trusting: any server that answers, encrypted all the same",
    )
    options = parser.parse_args(arguments)
    files = tuple(filter(None, (options.password_file,)))
    needs = sealed_connector.Needs(reads=files, ports=(options.database.port,))

    async def work(seal: sealed_connector.Seal) -> None:
        try:
            import asyncpg  # noqa: F401  before the seal
        except ModuleNotFoundError:
            raise InvalidInput("asyncpg is not installed: pip install 'inferline-stream[postgres]'") from None
        password = sealed_connector.secret(options.password_file)
        to = Table(options.database, options.table, password=password, tls=_context(options.tls))
        what, group = f"PostgreSQL table {options.table}", f"{options.topic}-to-{options.table}"
        await topic_sink.run(options, to, seal, what=what, usual_group=group)

    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work)


if __name__ == "__main__":
    sys.exit(main())
