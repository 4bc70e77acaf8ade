"""Spans of dispatchers, decoded as OpenTelemetry's own exporter sends them to a collector."""

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.director import Director

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic


def same(numbers: list[int]) -> list[int]:
    return numbers


first = Stage("first", same, hardware=["cpu-1"])
second = Stage("second", same, hardware=["cpu-1"], after=[first])
pipeline = Pipeline("traced", slo="250ms", source=Topic("in"), sink=Topic("out"), stages=[first, second])
"""

PRODUCER = bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331")


class Collector(ThreadingHTTPServer):
    """Takes what comes by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.taken: list[tuple[dict[str, str], Span]] = []
        """(attributes of the resource, span), as they came."""

    def spans(self, stage: str) -> list[Span]:
        return [span for resource, span in self.taken if resource["service.name"].endswith(f".{stage}")]


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {one.key: one.value.string_value for one in group.resource.attributes}
            self.server.taken += [(resource, span) for scope in group.scope_spans for span in scope.spans]
        known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def values(attributes) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


async def test_a_collector_can_follow_every_event_from_its_producer_through_the_batches_to_the_sink(
    embedded_broker, collector, tmp_path, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    topology = tmp_path / "topology.py"
    topology.write_text(TOPOLOGY)
    header = f"00-{PRODUCER[0].hex()}-{PRODUCER[1].hex()}-01".encode()
    partitions = {"first": 1, "second": 1}
    async with Director(
        embedded_broker.bootstrap_servers, topology, partitions=partitions, tracing="otlp_proto_http"
    ) as director:
        source = director.names.topic("in")
        for number in range(20):
            await director.producer.send(source, b"%d" % number, headers=[("traceparent", header)])
        await director.producer.flush()
        await director.start()
        await director.caught_up()
        results = await director.results()
        names = {stage: (director.ready(stage)[0].replica, director.dispatcher(stage)) for stage in partitions}
        await director.supervisor.drain(10.0)

    first, second = collector.spans("first"), collector.spans("second")
    sent = {(span.trace_id, span.span_id) for span in first}
    assert [(link.trace_id, link.span_id) for span in first for link in span.links] == [PRODUCER] * 20
    assert {(link.trace_id, link.span_id) for span in second for link in span.links} == sent
    offsets = [values(link.attributes)["messaging.kafka.offset"] for span in second for link in span.links]
    assert sorted(offsets) == list(range(20)), "a link for every record, and none twice"

    carried = {dict(record.headers)["traceparent"].decode().split("-")[2] for record in results}
    assert carried == {span.span_id.hex() for span in second}

    for stage, spans in (("first", first), ("second", second)):
        for span in spans:
            found = values(span.attributes)
            assert (span.kind, span.name) == (Span.SPAN_KIND_CONSUMER, f"process {found['messaging.destination.name']}")
            assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
            assert found["messaging.batch.message_count"] == len(span.links)
            assert (found["messaging.system"], found["messaging.operation.type"]) == ("kafka", "process")
            assert found["messaging.consumer.group.name"] == director.names.group(stage)
            assert found["messaging.client.id"] == names[stage][0]
    dispatchers = {dispatcher for _, dispatcher in names.values()}
    assert {resource["service.instance.id"] for resource, _ in collector.taken} == dispatchers


async def test_a_collector_that_does_not_answer_holds_no_dispatcher_back(embedded_broker, tmp_path, monkeypatch):
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # more than a dispatcher is given to leave
        topology = tmp_path / "topology.py"
        topology.write_text(TOPOLOGY)
        async with Director(embedded_broker.bootstrap_servers, topology, tracing="otlp_proto_http") as director:
            await director.producer.send_and_wait(director.names.topic("in"), b"1")
            await director.start()
            await director.caught_up()
            assert len(await director.results()) == 1
            await director.supervisor.drain(10.0)
            await director.until(lambda: len(director.exits) == 4, "every process has ended")
        assert [each.exit_code for each in director.exits] == [0] * 4
