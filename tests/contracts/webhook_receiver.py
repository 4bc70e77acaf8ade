"""The server that a webhook sink posts to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web


class Receiver:
    """An HTTP server that takes events, or does what a test asks instead."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, bytes, str]] = []
        self.answers: list[web.Response] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.port = 0

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.posts]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/verdicts"

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/verdicts", self._post)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        if self.answers:
            return self.answers.pop(0)
        headers = request.headers
        self.posts.append((headers["Idempotency-Key"], await request.read(), headers.get("Authorization", "")))
        await self.answering.wait()
        return web.Response()
