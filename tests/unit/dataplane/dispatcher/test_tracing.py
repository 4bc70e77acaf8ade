"""Spans of batches, ended at OpenTelemetry's in-memory exporter; records go from stage to stage by hand."""

import random
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from inferline_stream.dataplane.dispatcher.completion import Partition
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.intake import Intake
from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.tracing import BatchSpans, batch_spans
from inferline_stream.dataplane.frames import Done, Failed
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.errors import UsageError
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The example of the W3C's recommendation."""


class Both(msgspec.Struct):
    left: int
    right: int


def same(numbers: list[int]) -> list[int]:
    return numbers


def both(parts: list[Both]) -> list[Both]:
    return parts


def pipeline() -> Pipeline:
    left = Stage("left", same, hardware="cpu-1")
    right = Stage("right", same, hardware="cpu-1")
    final = Stage("both", both, hardware="cpu-1", after=[left, right])
    return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[left, right, final])


class Traced:
    """One stage whose batches are traced."""

    def __init__(self, stage: str) -> None:
        self.routes = routes_of(pipeline(), stage)
        self.ended = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.ended))
        self.spans = BatchSpans(provider, self.routes)
        self._partition = Partition(3, Committed(0), "me", Join(("left", "right")) if stage == "both" else None)
        self._replica = f"{stage}-cpu-1-ab"

    def events(self, *records: Any) -> list[Event]:
        ready: list[Event] = []
        intake = Intake(self.routes, ready.append, lambda event, outcome: pytest.fail(str(outcome)))
        for given in records:
            intake.take_in(self._partition, given)
        return ready

    def batch(self, *records: Any, outcome: Done | Failed | None = None) -> list[Any]:
        """Trace one batch; returns the messages it causes."""
        events = self.events(*records)
        span = self.spans.begin(events, self._replica, "cpu-1")
        outcome = outcome or Done(b"1", (1 << len(self.routes.children)) - 1)
        self.spans.end(span, [outcome] * len(events))
        partitions = dict.fromkeys([*self.routes.topics_written, "out", "p.both"], 4)
        made = Emitter(self.routes, partitions, random.Random(1), new_report("d", 1, "left", 0, 1))
        for event in events:
            made.add(event, outcome)
        return [message for messages in made.take().values() for message in messages]

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.ended.get_finished_spans()
        return span


def record(value: bytes, *headers: tuple[str, bytes], offset: int = 0) -> Any:
    return Record(b"k", value, headers, 1_000, "in", 3, offset)


def test_a_batch_is_one_span_named_and_described_by_the_messaging_conventions():
    stage = Traced("left")
    stage.batch(record(b"1"), record(b"2", offset=1))
    span = stage.span
    assert (span.name, span.kind, span.parent, span.status.status_code) == (
        "process in", SpanKind.CONSUMER, None, StatusCode.UNSET,
    )  # fmt: skip
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "in",
        "messaging.consumer.group.name": "p.left",
        "messaging.client.id": "left-cpu-1-ab",
        "messaging.batch.message_count": 2,
        "inferline.pipeline": "p",
        "inferline.stage": "left",
        "inferline.hardware": "cpu-1",
    }


def test_a_batch_links_to_the_producer_of_each_record_that_names_one():
    stage = Traced("left")
    stage.batch(record(b"1"), record(b"2", ("traceparent", TRACEPARENT), offset=7), record(b"3", offset=8))
    (link,) = stage.span.links
    assert f"{link.context.trace_id:032x}-{link.context.span_id:016x}".encode() == TRACEPARENT[3:-3]
    assert dict(link.attributes or {}) == {
        "messaging.destination.name": "in",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 7,
    }


@pytest.mark.parametrize("nonsense", [b"", b"\xff\xfe", b"00-zz-zz-01"])
def test_a_context_that_is_none_is_no_link_and_no_failure(nonsense):
    stage = Traced("left")
    stage.batch(record(b"1", ("traceparent", nonsense)))
    assert stage.span.links == ()


def test_what_a_batch_writes_carries_its_context_once_in_place_of_the_one_before():
    stage = Traced("left")
    messages = stage.batch(record(b"1", ("traceparent", TRACEPARENT), ("tracestate", b"a=b"), ("shop", b"7")))
    context = stage.span.get_span_context()
    assert context is not None
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-".encode()
    assert messages
    for message in messages:
        headers = list(message.headers)
        assert [value[:-2] for name, value in headers if name == "traceparent"] == [expected]
        assert ("shop", b"7") in headers
        assert "tracestate" not in dict(headers)


def test_a_join_links_to_the_batches_of_all_its_parents():
    parents = [Traced("left"), Traced("right")]
    parts = []
    for offset, parent in enumerate(parents):
        (message,) = parent.batch(record(b"1", (EVENT_ID, b"e")))
        parts.append(record(message.value, *message.headers, offset=offset))
    join = Traced("both")
    join.batch(*parts, outcome=Done(b"{}", 0))
    linked = {link.context.span_id for link in join.span.links}
    assert linked == {parent.span.get_span_context().span_id for parent in parents}


def test_failed_events_are_reported_with_the_frame_that_raised():
    stage = Traced("left")
    events = stage.events(record(b"1"), record(b"2", offset=1))
    failed = Failed("ValueError", "sevens are not for me", "a traceback", "topology.py:9 in odd")
    stage.spans.end(stage.spans.begin(events, "r", "cpu-1"), [Done(b"1", 0), failed])
    span = stage.span
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == (
        "1 of 2 events failed: topology.py:9 in odd: ValueError: sevens are not for me"
    )  # fmt: skip
    assert (span.attributes or {})["error.type"] == "ValueError"
    (reported,) = span.events
    assert dict(reported.attributes or {}) == {
        "exception.type": "ValueError",
        "exception.message": "sevens are not for me",
        "exception.stacktrace": "a traceback",
    }


def test_a_batch_that_is_broken_off_has_a_span_that_says_why():
    stage = Traced("left")
    stage.spans.broke(stage.spans.begin(stage.events(record(b"1")), "r", "cpu-1"), "killed by SIGKILL")
    assert (stage.span.status.status_code, stage.span.status.description) == (StatusCode.ERROR, "killed by SIGKILL")


def test_without_an_exporter_there_are_no_spans_and_an_unknown_one_is_refused_by_name():
    routes = routes_of(pipeline(), "left")
    assert batch_spans("", routes, "d") is None
    with pytest.raises(UsageError, match=r"--tracing 'otpl': installed are .*console"):
        batch_spans("otpl", routes, "d")
