"""Which requests the broker answers, in which versions, and who answers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from aiokafka.protocol import admin, commit, coordination, fetch, group, metadata, offset, produce, transaction
from aiokafka.protocol.api import RequestStruct

from inferline_stream.embedded_broker import group_requests, record_requests, topic_requests
from inferline_stream.embedded_broker.broker_state import Broker, Client
from inferline_stream.embedded_broker.wire import Fields
from inferline_stream.kafka.wire.metadata import LATER_METADATA
from inferline_stream.kafka.wire.offset_fetch import LATER_OFFSET_FETCH

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
