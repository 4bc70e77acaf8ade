"""A request in a version that aiokafka leaves out, made as aiokafka has the others."""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import Schema


def request_struct(name: str, key: int, version: int, asks: Schema, answers: Schema, *, flexible: bool) -> Any:
    """Return the class of a request, with the class of its answer as `RESPONSE_TYPE`.

    Args:
        name: of the request, as Kafka's documents have it.
        key: Kafka's number for it.
        version: of the request.
        asks: what a client sends.
        answers: what a broker sends back.
        flexible: whether this version's fields may be followed by tags (KIP-482).
    """
    common = {"API_KEY": key, "API_VERSION": version}
    response = type(f"{name}Response_v{version}", (Response,), {**common, "SCHEMA": answers})
    own = {"RESPONSE_TYPE": response, "SCHEMA": asks, "FLEXIBLE_VERSION": flexible}
    return type(f"{name}Request_v{version}", (RequestStruct,), {**common, **own})
