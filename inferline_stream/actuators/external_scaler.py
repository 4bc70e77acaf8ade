"""KEDA's external scaler: ScaledObjects ask by gRPC how many workers groups should have.

Messages and calls are those of KEDA's `externalscaler.proto`. The metric of a group is the number of workers wanted,
and its target 1 for each worker, so that the HorizontalPodAutoscaler which KEDA makes asks for just that number.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from inferline_stream.baselines.hpa import beyond_tolerance
from inferline_stream.dataplane.grpc_messages import message_types
from inferline_stream.errors import UsageError

METRIC = "workers"
GROUP_KEY = "group"
"""Of a trigger's metadata: the declared name of the group that its ScaledObject scales."""

_SERVICE = "externalscaler.ExternalScaler"
_MESSAGES = {
    "Metadata": ((1, "key", "string"), (2, "value", "string")),
    "ScaledObjectRef": ((1, "name", "string"), (2, "namespace", "string"), (3, "scalerMetadata", "Metadata []")),
    "IsActiveResponse": ((1, "result", "bool"),),
    "MetricSpec": ((1, "metricName", "string"), (2, "targetSize", "int64"), (3, "targetSizeFloat", "double")),
    "GetMetricSpecResponse": ((1, "metricSpecs", "MetricSpec []"),),
    "GetMetricsRequest": ((1, "scaledObjectRef", "ScaledObjectRef"), (2, "metricName", "string")),
    "MetricValue": ((1, "metricName", "string"), (2, "metricValue", "int64"), (3, "metricValueFloat", "double")),
    "GetMetricsResponse": ((1, "metricValues", "MetricValue []"),),
}
_STREAM_AGAIN_S = 30.0
"""A stream repeats what it said last: one that died silently is noticed."""


@cache
def messages() -> dict[str, type[Message]]:
    """Return the protocol's messages, by name."""
    return message_types("externalscaler", _MESSAGES)


class KedaWorkers:
    """Workers whose number a ScaledObject asks for; a `GroupWorkers`.

    Args:
        group: declared name.
        tolerance: of the HorizontalPodAutoscaler that KEDA makes.
    """

    def __init__(self, group: str, tolerance: float) -> None:
        self.group, self._tolerance = group, tolerance
        self._wanted: int | None = None
        self._lag: int | None = None
        self._pods: int | None = None
        self.changed = asyncio.Event()
        """Set at the next change; another one takes its place."""

    async def wanted(self) -> int | None:
        """Return what is asked for; see `GroupWorkers.wanted`."""
        return self._wanted

    async def scale(self, workers: int) -> None:
        """Have the next answer ask for so many; see `GroupWorkers.scale`."""
        self._wanted = workers
        self._change()

    def seen(self, *, lag: int | None, members: int | None) -> None:
        """Take up how the group is: records that are not finished, and members; None where that is not known."""
        before, self._lag, self._pods = self.active, lag, members
        if before != self.active:
            self._change()

    def _change(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    @property
    def active(self) -> bool:
        """Whether the group must have workers; without any lag, KEDA may leave it with as few as it is allowed."""
        return self._lag != 0 or bool(self._wanted)

    @property
    def metric(self) -> int | None:
        """Workers to ask for; None before the first decision."""
        if self._wanted is None or self._pods is None:
            return self._wanted
        return beyond_tolerance(self._wanted, self._pods, self._tolerance)


class ExternalScaler:
    """The server; runs from entering to leaving.

    Args:
        groups: by declared name.
        address: ``host:port`` to listen on; port 0 for any free one.
        certificate: PEM file of its certificate, and of its key; None without TLS.
        clients: PEM file of the authority that KEDA's own certificate must be signed by; None where it needs none.

    Raises:
        UsageError: a file cannot be read, or the port is taken.
    """

    def __init__(
        self,
        groups: Mapping[str, KedaWorkers],
        address: str,
        certificate: tuple[Path, Path] | None = None,
        clients: Path | None = None,
    ) -> None:
        self._groups, self._address, self._files, self._clients = groups, address, certificate, clients
        self._server = grpc.aio.server()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server.add_generic_rpc_handlers((self._handler(),))
        try:
            if self._files is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                self.port = self._server.add_secure_port(self._address, self._credentials(*self._files))
        except RuntimeError as error:
            raise UsageError(f"KEDA's scaler cannot listen on {self._address}: {error}") from None
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(grace=1.0)

    def _credentials(self, chain: Path, key: Path) -> grpc.ServerCredentials:
        """Return what the files hold. Of a bad one gRPC only says that it cannot listen."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(chain, key, password="")  # asks nobody for one
            if self._clients is not None:
                context.load_verify_locations(self._clients)
            pair = key.read_bytes(), chain.read_bytes()
            roots = None if self._clients is None else self._clients.read_bytes()
        except OSError as error:
            files = ", ".join(map(str, filter(None, (chain, key, self._clients))))
            raise UsageError(
                f"{files}: no certificate for KEDA's scaler ({error}); give PEM files, of a certificate and its key"
            ) from None
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)

    def _handler(self) -> grpc.GenericRpcHandler:
        def of(method: Callable[..., Any], request: str) -> grpc.RpcMethodHandler:
            made = grpc.unary_stream_rpc_method_handler if request == "stream" else grpc.unary_unary_rpc_method_handler
            reads = messages()["GetMetricsRequest" if request == "GetMetricsRequest" else "ScaledObjectRef"].FromString
            return made(method, request_deserializer=reads, response_serializer=lambda said: said.SerializeToString())

        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "IsActive": of(self._is_active, "ScaledObjectRef"),
                "StreamIsActive": of(self._stream_is_active, "stream"),
                "GetMetricSpec": of(self._metric_spec, "ScaledObjectRef"),
                "GetMetrics": of(self._metrics, "GetMetricsRequest"),
            },
        )

    async def _group(self, asked: Any, context: grpc.aio.ServicerContext) -> KedaWorkers:
        metadata = {entry.key: entry.value for entry in asked.scalerMetadata}
        found = self._groups.get(metadata.get(GROUP_KEY, ""))
        if found is None:
            known = ", ".join(self._groups) or "none"
            named = metadata.get(GROUP_KEY)
            why = f"the trigger's metadata has {GROUP_KEY}={named!r}; groups that KEDA scales here: {known}"
            await context.abort(grpc.StatusCode.NOT_FOUND, why)
            raise AssertionError("abort raises")
        return found

    async def _is_active(self, asked: Any, context: grpc.aio.ServicerContext) -> Message:
        return _active(await self._group(asked, context))

    async def _stream_is_active(self, asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        group = await self._group(asked, context)
        while True:
            changed = group.changed
            yield _active(group)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STREAM_AGAIN_S):
                    await changed.wait()

    async def _metric_spec(self, asked: Any, context: grpc.aio.ServicerContext) -> Message:
        await self._group(asked, context)
        spec = messages()["MetricSpec"](metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        return messages()["GetMetricSpecResponse"](metricSpecs=[spec])

    async def _metrics(self, asked: Any, context: grpc.aio.ServicerContext) -> Message:
        group = await self._group(asked.scaledObjectRef, context)
        metric = group.metric
        if metric is None:
            # KEDA counts this as a failure, and falls back to the number that its ScaledObject names.
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"nothing is decided yet of group {group.group!r}")
        value = messages()["MetricValue"](metricName=METRIC, metricValue=metric, metricValueFloat=float(metric or 0))
        return messages()["GetMetricsResponse"](metricValues=[value])


def _active(group: KedaWorkers) -> Message:
    return messages()["IsActiveResponse"](result=group.active)
