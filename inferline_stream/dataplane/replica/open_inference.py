"""Requests and responses of the Open Inference Protocol v2, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

DATATYPES = {
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BOOL": np.dtype(bool),
}
"""numpy's type by the protocol's name; ``BYTES`` is a string."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class _Output(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any


class _Response(msgspec.Struct):
    outputs: list[_Output]


_decode = msgspec.json.Decoder(_Response).decode


def encode_request(events: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the body of one request for the inputs of several events.

    Raises:
        ValueError: events have other inputs, shapes or types than each other, or types that the protocol lacks.
    """
    for inputs in events:
        if not isinstance(inputs, Mapping):
            raise ValueError(f"request returned {type(inputs).__qualname__}; return a dict of inputs by name")
    names = list(events[0])
    for inputs in events:
        if inputs.keys() != events[0].keys():
            raise ValueError(f"an event has the inputs {sorted(inputs)}, another one {sorted(names)}")
    return msgspec.json.encode({"inputs": [_input(name, [inputs[name] for inputs in events]) for name in names]})


def _input(name: str, values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], str):
        return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}
    stacked = np.stack([np.asarray(value) for value in values])
    if stacked.dtype.kind == "S":
        raise ValueError(f"input {name!r} holds bytes, which JSON has no place for; return text, e.g. in base64")
    if stacked.dtype.kind == "U":
        return {"name": name, "shape": list(stacked.shape), "datatype": "BYTES", "data": stacked.ravel().tolist()}
    if stacked.dtype not in _NAMES:
        raise ValueError(f"input {name!r} is of type {stacked.dtype}, which the protocol has no name for")
    return {
        "name": name,
        "shape": list(stacked.shape),
        "datatype": _NAMES[stacked.dtype],
        "data": stacked.ravel().tolist(),
    }


def decode_response(body: bytes, events: int) -> list[dict[str, Any]]:
    """Return the outputs of each event by name.

    One number or string per event is no list of one, whether the server gives it the shape [n] or, as MLServer does,
    [n, 1].

    Raises:
        ValueError: it is no response, or not one for so many events.
    """
    try:
        outputs = _decode(body).outputs
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no response of the Open Inference Protocol ({error})") from None
    if not outputs:
        raise ValueError("the response has no outputs")
    found: list[dict[str, Any]] = [{} for _ in range(events)]
    for output in outputs:
        for own, value in zip(found, _values(output, events), strict=True):
            own[output.name] = value
    return found


def _values(output: _Output, events: int) -> Any:
    shape = output.shape[:1] if output.shape[1:] == [1] else output.shape
    if not shape or shape[0] != events or min(shape) < 0:
        raise ValueError(f"output {output.name!r} has the shape {shape} for {events} events")
    if output.datatype == "BYTES":
        flat = _flat(output.data, len(output.shape)) if isinstance(output.data, list) else []
        each = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        if len(flat) != events * each:
            raise ValueError(f"output {output.name!r} has {len(flat)} strings for the shape {shape}")
        return flat if len(shape) == 1 else [flat[i * each : (i + 1) * each] for i in range(events)]
    dtype = DATATYPES.get(output.datatype)
    if dtype is None:
        raise ValueError(f"output {output.name!r} is of the unknown type {output.datatype!r}")
    try:
        return np.asarray(output.data, dtype=dtype).reshape(shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f"output {output.name!r}: {error}") from None


def _flat(data: list[Any], dimensions: int) -> list[Any]:
    """Return a tensor's values in one list: the protocol allows nested ones, too."""
    for _ in range(dimensions - 1):
        if not all(isinstance(each, list) for each in data):
            break
        data = [value for each in data for value in each]
    return data
