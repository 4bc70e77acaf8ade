"""A span per batch, by OpenTelemetry's messaging conventions: the only door to opentelemetry.

The span of a batch is of kind CONSUMER and links to whatever wrote each of its records: the batch of the stage before,
or the user's producer, by the W3C ``traceparent`` header. The records that the batch causes carry the span's own
context in its place, so the path of an event can be followed from link to link, to the sink and to what reads there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.frames import Answer, Failed
from inferline_stream.dataplane.routes import Routes
from inferline_stream.errors import UsageError
from inferline_stream.kafka.records import Header

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span

_CONTEXT = ("traceparent", "tracestate")
_EXPORTERS = "opentelemetry_traces_exporter"
_LEAVE_WITHIN_S = 2.0
_INSTALL = "pip install 'inferline-stream[tracing]'"


def check_exporter(name: str) -> None:
    """See early that spans can be exported so.

    Raises:
        UsageError: OpenTelemetry or the exporter is not installed.
    """
    try:
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        raise UsageError(f"--tracing needs OpenTelemetry: {_INSTALL}") from None
    known = sorted(exporter.name for exporter in _exporters())
    if name not in known:
        raise UsageError(f"--tracing {name!r}: installed are {', '.join(known)}; otlp_proto_http comes with {_INSTALL}")


def _exporters() -> EntryPoints:
    from importlib.metadata import entry_points  # loads email and zipfile: a tenth of a dispatcher's start

    return entry_points(group=_EXPORTERS)


def batch_spans(exporter: str, routes: Routes, dispatcher: str) -> BatchSpans | None:
    """Return spans that go to an exporter of that name, from a thread of its own; None without one.

    Endpoints, sampling and further attributes are OpenTelemetry's: its environment variables hold, such as
    ``OTEL_EXPORTER_OTLP_ENDPOINT``.

    Raises:
        UsageError: OpenTelemetry or the exporter is not installed.
    """
    if not exporter:
        return None
    check_exporter(exporter)
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)  # a line for each bad part of a record's header
    (found,) = _exporters().select(name=exporter)
    resource = Resource.create(
        {
            "service.namespace": f"{routes.prefix}{routes.pipeline}",
            "service.name": f"{routes.prefix}{routes.pipeline}.{routes.stage}",
            "service.instance.id": dispatcher,
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(found.load()()))
    return BatchSpans(provider, routes)


class BatchSpans:
    """Spans of the batches of one dispatcher.

    Args:
        provider: where they end.
        routes: of the stage.
    """

    def __init__(self, provider: TracerProvider, routes: Routes) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("inferline_stream")
        self._kind = SpanKind.CONSUMER
        self._propagator = TraceContextTextMapPropagator()
        self._name = f"process {routes.input_topic}"
        self._place = routes.place
        self._attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": routes.input_topic,
            "messaging.consumer.group.name": routes.group,
            "inferline.pipeline": routes.pipeline,
            "inferline.stage": routes.stage,
        }

    def begin(self, batch: Sequence[Event], replica: str, hardware: str) -> Span:
        """Begin the span of a batch; from here on its events carry the span's context."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            self._name,
            context=Context(),  # a batch has many causes and no parent
            kind=self._kind,
            attributes={
                **self._attributes,
                "messaging.client.id": replica,
                "inferline.hardware": hardware,
                "messaging.batch.message_count": len(batch),
            },
            links=[link for event in batch for link in self._links(event)],
        )
        own: dict[str, str] = {}
        self._propagator.inject(own, set_span_in_context(span))
        headers: list[Header] = [(name, value.encode()) for name, value in own.items()]
        for event in batch:
            event.headers = [*(header for header in event.headers if header[0] not in _CONTEXT), *headers]
        return span

    def end(self, span: Span, outcomes: Sequence[Answer]) -> None:
        """End the span of a batch that has its outcomes."""
        from opentelemetry.trace import StatusCode

        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        for one in failed:
            span.add_event(
                "exception",
                {"exception.type": one.type, "exception.message": one.message, "exception.stacktrace": one.traceback},
            )
        if failed:
            kinds = {one.type for one in failed}
            span.set_attribute("error.type", kinds.pop() if len(kinds) == 1 else "_OTHER")
            span.set_status(StatusCode.ERROR, f"{len(failed)} of {len(outcomes)} events failed: {failed[0].summary}")
        span.end()

    def broke(self, span: Span, why: str) -> None:
        """End the span of a batch that was lost with its replica."""
        from opentelemetry.trace import StatusCode

        span.set_attribute("error.type", "ReplicaLost")
        span.set_status(StatusCode.ERROR, why)
        span.end()

    def close(self) -> None:
        """Export what is left, and wait no longer for a collector than a replica that leaves may be held up."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LEAVE_WITHIN_S)

    def _links(self, event: Event) -> Iterator[Link]:
        from opentelemetry.trace import Link, get_current_span

        for record in event.records:
            carried = self._propagator.extract(_carrier(record.headers))
            cause = get_current_span(carried).get_span_context()
            if cause.is_valid:
                topic, _, partition = self._place(event.partition).rpartition("/")
                where: Mapping[str, str | int] = {
                    "messaging.destination.name": topic,
                    "messaging.destination.partition.id": partition,
                    "messaging.kafka.offset": record.offset,
                }
                yield Link(cause, where)


def _carrier(headers: Sequence[Header]) -> dict[str, str]:
    return {name: value.decode("ascii", "replace") for name, value in headers if name in _CONTEXT and value}
