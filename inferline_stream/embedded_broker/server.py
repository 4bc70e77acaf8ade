"""The embedded broker: one node that listens, and answers each connection's requests in order.

`APIS` lists which requests it answers, in which versions, and who answers them.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self, get_args

from aiokafka.errors import BrokerResponseError, UnsupportedVersionError
from aiokafka.protocol import admin, commit, coordination, fetch, group, metadata, offset, produce, transaction
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.api import RequestStruct

from inferline_stream.embedded_broker import group_requests, record_requests, topic_requests
from inferline_stream.embedded_broker.broker_state import Broker, Client
from inferline_stream.embedded_broker.wire import Fields, read_header, read_request, write_answer
from inferline_stream.kafka.wire.later_requests import LATER_METADATA, LATER_OFFSET_FETCH

Serve = Callable[[Broker, Fields, Client], Awaitable[Fields | None]]


@dataclass(frozen=True, slots=True)
class Api:
    """A kind of request: how each version that is spoken looks, and who answers."""

    versions: Mapping[int, type[RequestStruct]]
    serve: Serve


def _api(structs: Any, oldest: int, newest: int, serve: Serve, later: Mapping[int, Any] = MappingProxyType({})) -> Api:
    """A kind of request in a range of versions; `structs` is aiokafka's union of them, or the only one."""
    known = {**{struct.API_VERSION: struct for struct in get_args(structs) or (structs,)}, **later}
    return Api({number: struct for number, struct in known.items() if oldest <= number <= newest}, serve)


async def api_versions(broker: Broker, request: Fields, client: Client) -> Fields:
    """Every kind of request that is answered, with the range of its versions."""
    ranges = [
        {"api_key": key, "min_version": min(api.versions), "max_version": max(api.versions)}
        for key, api in APIS.items()
    ]
    return {"api_versions": ranges}


API_VERSIONS = 18

# Ranges end where aiokafka's structures do, and begin where fields have the names that the newest have.
APIS: Mapping[int, Api] = {
    0: _api(produce.ProduceRequestStruct, 3, 7, record_requests.produce),
    1: _api(fetch.FetchRequestStruct, 5, 11, record_requests.fetch),
    2: _api(offset.OffsetRequestStruct, 1, 3, record_requests.list_offsets),
    3: _api(metadata.MetadataRequestStruct, 1, 10, topic_requests.metadata, LATER_METADATA),
    8: _api(commit.OffsetCommitRequestStruct, 2, 3, group_requests.commit_offsets),
    9: _api(commit.OffsetFetchRequestStruct, 1, 7, group_requests.fetch_offsets, LATER_OFFSET_FETCH),
    10: _api(coordination.FindCoordinatorRequestStruct, 0, 1, group_requests.find_coordinator),
    11: _api(group.JoinGroupRequestStruct, 1, 2, group_requests.join_group),
    12: _api(group.HeartbeatRequestStruct, 0, 1, group_requests.heartbeat),
    13: _api(group.LeaveGroupRequestStruct, 0, 1, group_requests.leave_group),
    14: _api(group.SyncGroupRequestStruct, 0, 1, group_requests.sync_group),
    15: _api(admin.DescribeGroupsRequestStruct, 0, 2, group_requests.describe_groups),
    16: _api(admin.ListGroupsRequestStruct, 0, 1, group_requests.list_groups),
    API_VERSIONS: _api(admin.ApiVersionRequestStruct, 0, 2, api_versions),
    19: _api(admin.CreateTopicsRequestStruct, 0, 3, topic_requests.create_topics),
    20: _api(admin.DeleteTopicsRequestStruct, 0, 3, topic_requests.delete_topics),
    22: _api(transaction.InitProducerIdRequestStruct, 0, 0, record_requests.init_producer_id),
    24: _api(transaction.AddPartitionsToTxnRequestStruct, 0, 0, record_requests.add_partitions),
    25: _api(transaction.AddOffsetsToTxnRequestStruct, 0, 0, record_requests.add_offsets),
    26: _api(transaction.EndTxnRequestStruct, 0, 0, record_requests.end_transaction),
    28: _api(transaction.TxnOffsetCommitRequestStruct, 0, 0, record_requests.commit_offsets_in_transaction),
    32: _api(admin.DescribeConfigsRequestStruct, 0, 2, topic_requests.describe_configs),
    33: _api(admin.AlterConfigsRequestStruct, 0, 1, topic_requests.alter_configs),
    37: _api(admin.CreatePartitionsRequestStruct, 0, 1, topic_requests.create_partitions),
    42: _api(admin.DeleteGroupsRequestStruct, 0, 1, group_requests.delete_groups),
}


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
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._broker = Broker(host, port)
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

    async def __aexit__(self, *_: object) -> None:
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
    if fields is None:
        return None
    return write_answer(header.correlation_id, request.RESPONSE_TYPE, fields, flexible=request.FLEXIBLE_VERSION)
