"""A model server that behaves as a test tells it to, in every protocol that a stage speaks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np
from aiohttp import web

from inferline_stream.dataplane.replica.served_model import ServedModel
from tests.support.grpc_model_server import DTYPES, GrpcModelServer

TIMES = {"double": 2, "triple": 3}
"""By what each model multiplies."""

STATUS = {
    "500": grpc.StatusCode.INTERNAL,
    "503": grpc.StatusCode.UNAVAILABLE,
    "429": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "404": grpc.StatusCode.NOT_FOUND,
    "401": grpc.StatusCode.UNAUTHENTICATED,
}


class ModelServerDouble:
    """Doubles numbers, whatever the protocol. Over HTTP it has a model that triples them, too.

    Args:
        port: where it listens; 0 for whichever is free.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.behaves = "well"
        """Or ``"500"`` and other statuses, ``garbage``, ``half``, ``closes``, ``slow``, ``large``, ``moved``."""
        self.takes_s = self.slows_s = 0.0
        """Time of a request alone, and what each one under way beside it adds."""
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.ready = True
        self.retry_after = ""
        self.takes_at_once = 0
        """Requests beyond which it answers 429; 0 for no limit."""
        self.token = ""
        """That requests have to show; empty for none."""
        self._runner: web.AppRunner | None = None
        self.grpc = GrpcModelServer(0, self._infer_over_grpc, lambda: self.ready)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        for model in TIMES:
            app.router.add_post(f"/v2/models/{model}/infer", self._infer)
            app.router.add_get(f"/v2/models/{model}/ready", self._is_ready)
        app.router.add_post("/v1/models/double:predict", self._predict)
        app.router.add_get("/v1/models/double", self._status)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._is_ready)
        app.router.add_post("/double", self._double)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listens = socket.create_server(("127.0.0.1", self.port))
        self.port = listens.getsockname()[1]
        await web.SockSite(self._runner, listens).start()
        await self.grpc.start()

    async def stop(self) -> None:
        """Close every connection, and listen no more."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        await self.grpc.stop()

    async def _is_ready(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return web.json_response({"error": "no such token"}, status=401)
        return web.json_response({}, status=200 if self.ready else 503)

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        length = request.headers.get("Inference-Header-Content-Length")
        if length is not None:
            return await self._infer_binary(request, await request.read(), int(length))
        body = await request.json()
        (inputs,) = body["inputs"]
        if any(number < 0 for number in inputs["data"]):
            return web.json_response({"error": "negative"}, status=422)
        times = TIMES[request.path.split("/")[-2]]
        numbers = [times * number for number in inputs["data"]]
        outputs = {**inputs, "name": "doubled", "data": numbers}
        return await self._answer(request, body, {"model_name": "double", "outputs": [outputs]})

    async def _infer_binary(self, request: web.Request, content: bytes, length: int) -> web.StreamResponse:
        body = msgspec.json.decode(content[:length])
        (inputs,) = body["inputs"]
        numbers = np.frombuffer(content[length:], DTYPES[inputs["datatype"]])
        assert inputs.pop("parameters") == {"binary_data_size": len(content) - length}
        if (numbers < 0).any():
            return web.json_response({"error": "negative"}, status=422)
        raw = (2 * numbers).tobytes()
        output = {**inputs, "name": "doubled", "parameters": {"binary_data_size": len(raw)}}
        header = msgspec.json.encode({"model_name": "double", "outputs": [output]})
        return await self._answer(request, body, header + raw, {"Inference-Header-Content-Length": str(len(header))})

    async def _infer_over_grpc(self, body: dict[str, Any], shown: str) -> tuple[grpc.StatusCode, Any]:
        self.requests.append(body)
        self.headers.append({"Authorization": shown})
        (inputs,) = body["inputs"]
        await asyncio.sleep(self.takes_s if self.behaves != "slow" else 3600)
        if self.token and shown != f"Bearer {self.token}":
            return grpc.StatusCode.UNAUTHENTICATED, "no such token"
        if self.behaves in STATUS:
            return STATUS[self.behaves], "as the test wants"
        if (inputs["data"] < 0).any():
            return grpc.StatusCode.INVALID_ARGUMENT, "negative"
        padding = 200_000 if self.behaves == "large" else 0
        if self.behaves in ("garbage", "large"):
            return grpc.StatusCode.OK, b"\xff" * (10 + padding)
        return grpc.StatusCode.OK, [{**inputs, "name": "doubled", "data": 2 * inputs["data"]}]

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        numbers = [each["number"] for each in body["instances"]]
        if any(number < 0 for number in numbers):
            return web.json_response({"error": "negative"}, status=400)
        return await self._answer(request, body, {"predictions": [{"doubled": 2 * number} for number in numbers]})

    async def _status(self, request: web.Request) -> web.Response:
        state = "AVAILABLE" if self.ready else "LOADING"
        return web.json_response({"model_version_status": [{"version": "1", "state": state}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = int(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": str(2 * number)}
        return await self._answer(request, body, {"choices": [{"index": 0, "message": message}]})

    async def _double(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, {"doubled": 2 * body["number"]})

    def _admits(self, request: web.Request) -> bool:
        return not self.token or request.headers.get("Authorization") == f"Bearer {self.token}"

    async def _answer(
        self, request: web.Request, body: Any, answer: Any, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.takes_s + self.slows_s * (self.under_way - 1))
            return await self._misbehaved(request, answer, headers)
        finally:
            self.under_way -= 1

    async def _misbehaved(
        self, request: web.Request, answer: Any, headers: Mapping[str, str] | None
    ) -> web.StreamResponse:
        if not self._admits(request):
            return web.json_response({"error": "no such token"}, status=401)
        if 0 < self.takes_at_once < self.under_way:
            return web.json_response({"error": "too many"}, status=429)
        if self.behaves == "well" and isinstance(answer, bytes):
            return web.Response(body=answer, headers=headers)
        if self.behaves == "well":
            return web.json_response(answer)
        if self.behaves == "moved":
            return web.Response(status=307, headers={"Location": "https://elsewhere.example/infer"})
        if self.behaves == "garbage":
            return web.Response(text="<html>it works</html>")
        if self.behaves == "large":
            return web.Response(body=b"x" * 200_000)
        if self.behaves == "slow":
            await asyncio.sleep(3600)
        if self.behaves in ("half", "closes"):
            assert request.transport is not None
            response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
            if self.behaves == "half":
                await response.prepare(request)
                await response.write(b'{"outputs": [')
            request.transport.close()
            return response
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return web.json_response({"error": "as the test wants"}, status=int(self.behaves), headers=headers)


async def _serve(takes_s: float, slows_s: float, port: float = 0, grpc_port: float = 0) -> None:
    server = ModelServerDouble(int(port))
    server.grpc.port = int(grpc_port)
    server.takes_s, server.slows_s = takes_s, slows_s
    await server.start()
    sys.stdout.write(f"{server.url} {server.grpc_url}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


class ServerProcess(NamedTuple):
    """A server in a process of its own, by its addresses."""

    url: str
    grpc_url: str
    kill: Callable[[], None]


@contextlib.contextmanager
def model_server_process(takes_s: float = 0.0, slows_s: float = 0.0) -> Iterator[ServerProcess]:
    """A server that runs in a process of its own."""
    command = [sys.executable, "-m", "tests.support.model_server", str(takes_s), str(slows_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url, grpc_url = process.stdout.readline().split()
            yield ServerProcess(url, grpc_url, process.kill)
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[ModelServerDouble]:
    """A server that runs."""
    server = ModelServerDouble()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def closed(model: ServedModel) -> None:
    """Close a model's connections, which a replica keeps for as long as it lives."""
    model._first.cancel()
    await model._transport.close()


if __name__ == "__main__":
    asyncio.run(_serve(*map(float, sys.argv[1:])))
