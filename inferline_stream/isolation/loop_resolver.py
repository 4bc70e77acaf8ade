"""Addresses of hosts for aiohttp, as the event loop knows them: a sealed process cannot look names up itself."""

from __future__ import annotations

import asyncio

from aiohttp.abc import AbstractResolver, ResolveResult

from inferline_stream.isolation.name_service import Loop


class LoopResolver(AbstractResolver):
    """Asks the running loop, which is a `Loop`."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Return every address of a host.

        Raises:
            OSError: there is none.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        found = await loop.addresses(host)
        if not found:
            raise OSError(f"{host}: no such host was known when the process was sealed, and none is now")
        infos = [info for address in found for info in await loop.getaddrinfo(address, port, type=1, flags=4)]
        return [
            ResolveResult(hostname=host, host=str(where[0]), port=port, family=kind, proto=protocol, flags=4)
            for kind, _, protocol, _, where in infos
        ]

    async def close(self) -> None:
        """Nothing is held."""
