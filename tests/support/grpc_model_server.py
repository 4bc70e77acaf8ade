"""The Open Inference Protocol over gRPC, from the other side: messages by hand, as protobuf's encoding has them.

It shares no code with the product, which has the protobuf library write them: field numbers and wire types follow the
specifications of the protocol and of protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import numpy as np

Handler = Callable[[dict[str, Any], str], Awaitable[tuple[grpc.StatusCode, Any]]]
"""Gets a request and its authorization; returns a status, and the response's tensors or the error's text."""


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The number and value of each field: an integer, or the bytes of what has a length."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        else:
            assert kind == 2, f"field {number} is of wire type {kind}"
            length = varint()
            at += length
            yield number, message[at - length : at]


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def numbers(packed: bytes) -> list[int]:
    """The varints of a packed field."""
    found, value, shift = [], 0, 0
    for byte in packed:
        value, shift = value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found


def infer_request(message: bytes) -> dict[str, Any]:
    """A ModelInferRequest with raw contents, as the protocol's JSON has it, with arrays; BYTES as a list of bytes."""
    own = list(fields(message))
    raws = [value for number, value in own if number == 7]
    inputs = []
    for tensor, raw in zip((value for number, value in own if number == 5), raws, strict=True):
        parts = dict(fields(tensor))
        datatype = parts[2].decode()
        data = list(strings(raw)) if datatype == "BYTES" else np.frombuffer(raw, DTYPES[datatype])
        inputs.append({"name": parts[1].decode(), "shape": numbers(parts[3]), "datatype": datatype, "data": data})
    return {"model": dict(own)[1].decode(), "version": dict(own).get(2, b"").decode(), "inputs": inputs}


DTYPES = {"INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}


def strings(raw: bytes) -> Iterator[bytes]:
    while raw:
        (length,) = struct.unpack("<I", raw[:4])
        yield raw[4 : 4 + length]
        raw = raw[4 + length :]


def infer_response(outputs: list[dict[str, Any]], *, typed: bool = False) -> bytes:
    """A ModelInferResponse of tensors in the shape of the protocol's JSON: raw, or in the field of an INT64."""
    message = field(1, b"double")
    for output in outputs:
        tensor = field(1, output["name"].encode()) + field(2, output["datatype"].encode())
        tensor += field(3, b"".join(map(varint, output["shape"])))
        if typed:
            tensor += field(5, field(3, b"".join(map(varint, output["data"]))))
        message += field(5, tensor)
    if not typed:
        for output in outputs:
            message += field(6, np.array(output["data"], DTYPES[output["datatype"]]).tobytes())
    return message


class GrpcModelServer:
    """Serves ModelInfer and ModelReady.

    Args:
        port: where it listens; 0 for whichever is free.
        infer: answers requests; what it returns as bytes is sent as it is.
        ready: whether the model is served.
    """

    def __init__(self, port: int, infer: Handler, ready: Callable[[], bool]) -> None:
        self.port = port
        self._infer, self._ready = infer, ready
        self._server: grpc.aio.Server | None = None

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        handlers = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._on_infer),
            "ModelReady": grpc.unary_unary_rpc_method_handler(self._on_ready),
        }
        self._server = grpc.aio.server()
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        where = f"127.0.0.1:{self.port}"
        secured = credentials is not None
        add = self._server.add_secure_port if secured else self._server.add_insecure_port
        self.port = add(where, credentials) if secured else add(where)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    async def _on_infer(self, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        shown = dict(context.invocation_metadata() or ()).get("authorization", "")
        status, answer = await self._infer(infer_request(message), shown)
        if status is not grpc.StatusCode.OK:
            await context.abort(status, answer)
        return answer if isinstance(answer, bytes) else infer_response(answer)

    async def _on_ready(self, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        assert dict(fields(message))[1] == b"double"
        return field(1, int(self._ready()))
