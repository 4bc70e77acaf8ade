"""Spans of sealed replicas, decoded as OpenTelemetry's own exporter sends them to a collector."""

import asyncio
import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from inferline_stream.testing.directing import Director

TOPOLOGY = """
from inferline_stream import Isolation, Pipeline, Stage, Topic


def same(numbers: list[int]) -> list[int]:
    return numbers


traced = Isolation("sandbox", environment={environment}, ports=[{port}])
first = Stage("first", same, hardware=["cpu-1"], isolation=traced)
second = Stage("second", same, hardware=["cpu-1"], after=[first], isolation=traced)
pipeline = Pipeline("traced", slo="250ms", source=Topic("in"), sink=Topic("out"), stages=[first, second])
"""
ENVIRONMENT = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TIMEOUT"]

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
    topology.write_text(TOPOLOGY.format(environment=ENVIRONMENT, port=collector.server_port))
    header = f"00-{PRODUCER[0].hex()}-{PRODUCER[1].hex()}-01".encode()
    partitions = {"first": 1, "second": 1}
    async with Director(
        embedded_broker.bootstrap_servers, topology, partitions=partitions, tracing="otlp_proto_http"
    ) as director:
        source = director.names.topic("in")
        for number in range(20):
            await director.producer.send(source, b"%d" % number, headers=[("traceparent", header)])
        await director.producer.flush()
        replicas = await director.start_all()
        await director.caught_up()
        results = await director.read(director.names.topic("out"))
        await director.drain(*replicas.values())

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
            told = values(span.attributes)
            assert (span.kind, span.name) == (Span.SPAN_KIND_CONSUMER, f"process {told['messaging.destination.name']}")
            assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
            assert told["messaging.batch.message_count"] == len(span.links)
            assert (told["messaging.system"], told["messaging.operation.type"]) == ("kafka", "process")
            assert told["messaging.consumer.group.name"] == director.names.group(stage)
            assert told["messaging.client.id"] == replicas[stage]
    assert {resource["service.instance.id"] for resource, _ in collector.taken} == set(replicas.values())


async def test_a_collector_that_does_not_answer_holds_no_replica_back(embedded_broker, tmp_path, monkeypatch):
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # more than anybody gives a replica to leave
        topology = tmp_path / "topology.py"
        topology.write_text(TOPOLOGY.format(environment=ENVIRONMENT, port=port))
        async with Director(embedded_broker.bootstrap_servers, topology, tracing="otlp_proto_http") as director:
            await director.producer.send_and_wait(director.names.topic("in"), b"1")
            replicas = await director.start_all()
            await director.caught_up()
            assert len(await director.read(director.names.topic("out"))) == 1
            await director.drain(*replicas.values())
        assert [process.returncode for process in director.processes.values()] == [0, 0]
