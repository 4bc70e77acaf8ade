"""The embedded broker: one node that listens, and answers each connection's requests in order."""

from __future__ import annotations

import asyncio
import logging
import struct
from types import TracebackType
from typing import Self

from aiokafka.errors import BrokerResponseError, UnsupportedVersionError
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.api import RequestStruct

from inferline_stream.embedded_broker.broker_state import Broker, Client
from inferline_stream.embedded_broker.requests import API_VERSIONS, APIS
from inferline_stream.embedded_broker.wire import Fields, Header, read_header, read_request, write_answer

logger = logging.getLogger(__name__)

_LARGEST_REQUEST_BYTES = 100 * 2**20  # Kafka's socket.request.max.bytes
_READ_AHEAD_BYTES = 2**20


class EmbeddedBroker:
    """A Kafka broker in memory. It keeps nothing: with the process, every record is gone.

        async with EmbeddedBroker() as broker:
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers)

    Args:
        host: where to listen, and the address that clients are given.
        port: the port; 0 takes a free one.
        rebalance_delay_s: how long the first member of an empty group waits for others. Kafka's own default is 3 s.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, rebalance_delay_s: float = 0.0) -> None:
        self._broker = Broker(host, port, rebalance_delay_s)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``."""
        return f"{self._broker.host}:{self._broker.port}"

    async def __aenter__(self) -> Self:
        broker = self._broker
        self._server = await asyncio.start_server(self._accept, broker.host, broker.port, limit=_READ_AHEAD_BYTES)
        broker.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._broker.groups.close()
        self._broker.transactions.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        peer = writer.get_extra_info("peername")[0]
        try:
            await self._converse(reader, writer, peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        except (ValueError, struct.error) as error:
            logger.warning("a connection from %s does not speak Kafka as this broker does: %s", peer, error)
        except asyncio.CancelledError:
            pass  # the broker is closing: nobody awaits a connection but `__aexit__`
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        """Answer one request after another, as Kafka does: a client may rely on the order."""
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            if not 0 < size <= _LARGEST_REQUEST_BYTES:
                raise ValueError(f"a request of {size} bytes")
            answer = await _answer(self._broker, await reader.readexactly(size), peer)
            if answer is not None:
                writer.write(answer)
                await writer.drain()


async def _answer(broker: Broker, frame: bytes, peer: str) -> bytes | None:
    header, body = read_header(frame)
    api = APIS.get(header.api_key)
    request = api.versions.get(header.api_version) if api else None
    if api is None or request is None:
        if header.api_key == API_VERSIONS:  # the client will ask again in the oldest version
            return write_answer(
                header.correlation_id, ApiVersionResponse_v0, {"error_code": UnsupportedVersionError.errno}
            )
        raise ValueError(f"request {header.api_key} in version {header.api_version}")
    try:
        fields = await api.serve(broker, read_request(request, body), Client(header.client_id, f"/{peer}"))
    except BrokerResponseError as error:
        fields = {"error_code": error.errno}
    return None if fields is None else _written(header, request, fields)


def _written(header: Header, request: type[RequestStruct], fields: Fields) -> bytes:
    return write_answer(header.correlation_id, request.RESPONSE_TYPE, fields, flexible=request.FLEXIBLE_VERSION)
