"""Requests and answers of TensorFlow Serving's REST interface: a batch's instances, and a prediction for each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from inferline_stream.dataplane.replica.server_exchange import ServerAnswer, ServerRequest

_BASE64 = "b64"
"""The only key of an object that stands for bytes."""


class _Predictions(msgspec.Struct):
    predictions: list[Any]


class _Version(msgspec.Struct):
    state: str = ""


class _Status(msgspec.Struct):
    model_version_status: list[_Version] = []


_decode = msgspec.json.Decoder(_Predictions).decode
_decode_status = msgspec.json.Decoder(_Status).decode


def encode_request(events: Sequence[Any]) -> ServerRequest:
    """Return one request for several events' instances.

    Args:
        events: of each one a number, text, bytes, list or numpy array, or a dict of such by the inputs' names.

    Raises:
        ValueError: JSON has no place for one.
    """
    try:
        return ServerRequest(msgspec.json.encode({"instances": [_plain(each) for each in events]}))
    except TypeError as error:
        raise ValueError(f"request returned what JSON has no place for: {error}") from None


def _plain(value: Any) -> Any:
    """Return a value with arrays as lists and bytes in base64, as the interface wants them."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist()) if value.dtype.kind in "SO" else value.tolist()
    if isinstance(value, bytes):
        return {_BASE64: base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def decode_answer(answer: ServerAnswer, events: int) -> list[Any]:
    """Return the prediction for each event: a number, text or list, or a dict of such by the outputs' names.

    Raises:
        ValueError: it is no response, or not one for so many events.
    """
    try:
        predictions = _decode(answer.content).predictions
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no response of TensorFlow Serving ({error})") from None
    if len(predictions) != events:
        raise ValueError(f"the response has {len(predictions)} predictions for {events} instances")
    return [_with_bytes(each) for each in predictions] if b'"b64"' in answer.content else predictions


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_BASE64} and isinstance(value[_BASE64], str):
            return base64.b64decode(value[_BASE64], validate=True)
        return {name: _with_bytes(each) for name, each in value.items()}
    return [_with_bytes(each) for each in value] if isinstance(value, list) else value


def is_served(content: bytes) -> bool:
    """Whether a model's status says that a version of it is served: a model that is being loaded has a status, too."""
    try:
        return any(version.state == "AVAILABLE" for version in _decode_status(content).model_version_status)
    except msgspec.MsgspecError:
        return False
