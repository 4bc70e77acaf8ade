"""Options of a run, in the groups that the command line declares and a run keeps.

The description of a field is the option's help: the command line adds nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from inferline_stream.dataplane.process_specs import Delivery as Deliveries

Delivery = Annotated[
    Deliveries,
    Meta(description="at_least_once may repeat results after a crash; exactly_once uses transactions"),
]
Prefix = Annotated[str, Meta(description="before the name of every topic and consumer group, the same as for `run`")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """How a run reads and writes records."""

    delivery: Delivery = "at_least_once"
    tracing: Annotated[
        str,
        Meta(
            title="EXPORTER",
            description="a span per batch by OpenTelemetry (the extra tracing): otlp_proto_http, console, or another",
        ),
    ] = ""
    start: Annotated[str, Meta(description="where to read from: committed, earliest, latest, or an ISO time")] = (
        "committed"
    )
    create_topics: Annotated[
        bool,
        Meta(
            description="create topics that are missing; or only verify them, and name each difference (see `topics`)"
        ),
    ] = True
    prefix: Prefix = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a run serves its live page and its metrics; no metrics without a port."""

    ui: Annotated[bool, Meta(description="serve the live page")] = True
    ui_port: Annotated[int, Meta(description="of the live page; 0 for any free one", ge=0, le=65535)] = 8765
    ui_token: Annotated[
        str,
        Meta(description="lets people who enter it on the page hold decisions and set replicas; 16 characters or more"),
    ] = ""
    metrics_port: Annotated[int | None, Meta(description="of /metrics; 0 for any free one", ge=0, le=65535)] = 9464
    metrics_host: Annotated[
        str, Meta(description="address of /metrics and of KEDA's scaler; 0.0.0.0 for other machines to reach them")
    ] = "127.0.0.1"
    keda_port: Annotated[int, Meta(description="of KEDA's scaler; 0 for any free one", ge=0, le=65535)] = 9465
    keda_tls: Annotated[
        str,
        Meta(
            title="FOLDER",
            description="with tls.crt and tls.key of KEDA's scaler, and ca.crt where KEDA has to show a certificate",
        ),
    ] = ""
