"""A schema registry in memory, with what Confluent's REST API has to read, look up and register them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class SchemaRegistry:
    """Schemas by id, from 1 on; ids by subject, in the order of their versions."""

    schemas: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: bool = False
    status: int = 503
    """Of what a broken one answers."""
    url: str = ""

    def register(self, subject: str, text: str, kind: str = "AVRO") -> int:
        """Return the id of a schema, which is new or not."""
        schema = {"schema": text, "schemaType": kind}
        if schema not in self.schemas:
            self.schemas.append(schema)
        number = self.schemas.index(schema) + 1
        if number not in self.subjects.setdefault(subject, []):
            self.subjects[subject].append(number)
        return number

    def answer(self, request: web.Request, body: dict[str, Any] | None) -> web.Response:
        """Answer one request; errors as Confluent's documentation numbers them."""
        self.asked.append(f"{request.method} {request.path}")
        if self.broken:
            return _error(self.status, 100 * self.status, "it takes nothing now")
        match request.method, request.path.strip("/").split("/"):
            case "GET", ["schemas", "ids", number]:
                if not 0 < int(number) <= len(self.schemas):
                    return _error(404, 40403, f"Schema {number} not found")
                return _answer(self.schemas[int(number) - 1])
            case "POST", ["subjects", subject, *rest] if body is not None:
                kind = body.get("schemaType", "AVRO")
                if rest == ["versions"]:
                    return _answer({"id": self.register(subject, body["schema"], kind)})
                for version, number in enumerate(self.subjects.get(subject, []), 1):
                    known = self.schemas[number - 1]
                    if _same(known["schema"], body["schema"]):
                        return _answer({"id": number, "subject": subject, "version": version, **known})
                return _error(404, 40403, "Schema not found")
        return _error(404, 404, f"no such resource: {request.path}")


def _same(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one == other


def _answer(body: object, status: int = 200) -> web.Response:
    return web.json_response(body, status=status, content_type="application/vnd.schemaregistry.v1+json")


def _error(status: int, code: int, message: str) -> web.Response:
    return _answer({"error_code": code, "message": message}, status)


@contextmanager
def schema_registry() -> Iterator[SchemaRegistry]:
    """Serve an empty one on the loopback address."""
    registry, loop = SchemaRegistry(), asyncio.new_event_loop()

    async def handle(request: web.Request) -> web.Response:
        return registry.answer(request, await request.json() if request.can_read_body else None)

    async def serve() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        registry.url = f"http://localhost:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
